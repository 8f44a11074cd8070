// png_stream: the image data of a PNG from pixels on the device: rows filtered, matches of distance 1 and 3, one Huffman code for all.
// The bytes of kernels/reference/deflating.py. A block of threads takes a row, a thread pieces of 64 bytes, out of which no match leads.
#include "abi.h"

namespace landmark {

constexpr int THREADS = 256, WARPS = THREADS / 32, SORTED = 512;
constexpr int PIECE = 64, SHORTEST = 4, END = 256, SYMBOLS = 277, LONGEST = 15, MODULUS = 65521;
constexpr int HEADER = 4;                                                  // words before the stream
constexpr int HEAD = 3 + 5 + 5 + 4 + 19 * 3, LENGTHS = SYMBOLS + 3;        // bits of the block's head, code lengths of 4 bits behind it
constexpr int HEAD_BITS = HEAD + 4 * LENGTHS, HEAD_WORDS = (HEAD_BITS + 31) / 32;

using Byte = unsigned char;
using Long = unsigned long long;

// Where byte i of a row lies in shared memory: threads that read their pieces at once meet in no bank.
__device__ int place(int i) { return i + i / PIECE * 4; }

__device__ int magnitude(int v) {
    v &= 255;
    return v < 128 ? v : 256 - v;
}

__device__ int paeth(int left, int above, int corner) {
    const int p = left + above - corner, a = abs(p - left), b = abs(p - above), c = abs(p - corner);
    return a <= b && a <= c ? left : b <= c ? above : corner;
}

template <typename T>
__device__ T warp_sum(T v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
    return v;
}

// Sum over the block, to all its threads. Used by all of them at once.
__device__ Long block_sum(Long v) {
    __shared__ Long parts[WARPS];
    __syncthreads();
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    Long whole = 0;
    for (int warp = 0; warp < WARPS; warp++) whole += parts[warp];
    return whole;
}

// Ones from bit i on.
__device__ int run(Long mask, int i) {
    const Long zeros = ~(mask >> i);
    return zeros ? __ffsll(zeros) - 1 : PIECE;
}

// take(symbol, extra, width, distance) for each token of a piece; distance 0: a literal.
template <typename Take>
__device__ void tokens(const Byte* row, int start, int stop, Take take) {
    Long one = 0, three = 0;  // bit i: byte start + i equals the one so far before it
    int before[3];
    for (int i = 0; i < 3; i++) before[i] = start > i ? row[place(start - 1 - i)] : -1;
    for (int i = start; i < stop; i++) {
        const int v = row[place(i)];
        one |= static_cast<Long>(v == before[0]) << (i - start);
        three |= static_cast<Long>(v == before[2]) << (i - start);
        before[2] = before[1], before[1] = before[0], before[0] = v;
    }
    for (int i = start; i < stop;) {
        const int near = run(one, i - start), far = run(three, i - start), length = max(near, far);
        if (length < SHORTEST) {
            take(row[place(i)], 0, 0, 0);
            i++;
            continue;
        }
        const int distance = near >= far ? 1 : 3;
        if (length < 11) {
            take(254 + length, 0, 0, distance);
        } else {
            const int width = 29 - __clz(length - 3);
            take(257 + 4 * width + ((length - 3) >> width), (length - 3) & ((1 << width) - 1), width, distance);
        }
        i += length;
    }
}

__device__ void load_row(const Byte* line, int length, Byte* row) {
    for (int i = threadIdx.x; i < length; i += THREADS) row[place(i)] = line[i];
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS) filter_rows(const Byte* pixels, int bytes, Byte* lines, ulonglong2* sums, int* counts) {
    extern __shared__ Byte row[];
    __shared__ int tried[3];
    __shared__ int count[WARPS][SYMBOLS];
    const int length = bytes + 1;
    const bool first = blockIdx.x == 0;
    const Byte* here = pixels + static_cast<int64_t>(blockIdx.x) * bytes;
    Byte* line = lines + static_cast<int64_t>(blockIdx.x) * length;
    if (threadIdx.x < 3) tried[threadIdx.x] = 0;
    for (int i = threadIdx.x; i < WARPS * SYMBOLS; i += THREADS) (&count[0][0])[i] = 0;
    __syncthreads();
    int sum[3] = {0, 0, 0};
    for (int i = threadIdx.x; i < bytes; i += THREADS) {
        const int v = here[i], left = i < 3 ? 0 : here[i - 3], above = first ? 0 : here[i - bytes], corner = first || i < 3 ? 0 : here[i - bytes - 3];
        sum[0] += magnitude(v - left), sum[1] += magnitude(v - above), sum[2] += magnitude(v - paeth(left, above, corner));
    }
    for (int k = 0; k < 3; k++) {
        sum[k] = warp_sum(sum[k]);
        if (threadIdx.x % 32 == 0) atomicAdd(&tried[k], sum[k]);
    }
    __syncthreads();
    const int kind = tried[1] < tried[0] ? (tried[2] < tried[1] ? 4 : 2) : (tried[2] < tried[0] ? 4 : 1);
    Long low = 0, high = 0;
    for (int i = threadIdx.x; i < length; i += THREADS) {
        int v = kind;
        if (i > 0) {
            const int k = i - 1, left = k < 3 ? 0 : here[k - 3], above = first ? 0 : here[k - bytes], corner = first || k < 3 ? 0 : here[k - bytes - 3];
            v = (here[k] - (kind == 1 ? left : kind == 2 ? above : paeth(left, above, corner))) & 255;
        }
        row[place(i)] = line[i] = static_cast<Byte>(v);
        low += v, high += static_cast<Long>(length - i) * v;
    }
    low = block_sum(low), high = block_sum(high);  // and the row is there
    if (threadIdx.x == 0) sums[blockIdx.x] = make_ulonglong2(low, high);
    int* own = count[threadIdx.x / 32];
    for (int start = threadIdx.x * PIECE; start < length; start += THREADS * PIECE) {
        tokens(row, start, min(start + PIECE, length), [&](int symbol, int, int, int) { atomicAdd(own + symbol, 1); });
    }
    __syncthreads();
    for (int symbol = threadIdx.x; symbol < SYMBOLS; symbol += THREADS) {
        int whole = 0;
        for (int warp = 0; warp < WARPS; warp++) whole += count[warp][symbol];
        if (whole > 0) atomicAdd(counts + symbol, whole);
    }
}

// The depths of Huffman's tree over ascending weights, how many leaves lie at each, cut off at LONGEST.
__device__ void code_depths(const Long* keys, int leaves, unsigned* heavy, short* parent, int* per) {
    int leaf = 0, node = 0;
    for (int made = 0; made < leaves - 1; made++) {
        unsigned weight = 0;
        for (int child = 0; child < 2; child++) {
            if (leaf < leaves && (node >= made || static_cast<unsigned>(keys[leaf] >> 32) <= heavy[node])) {
                weight += static_cast<unsigned>(keys[leaf] >> 32);
                parent[leaf++] = static_cast<short>(made);
            } else {
                weight += heavy[node];
                parent[leaves + node++] = static_cast<short>(made);
            }
        }
        heavy[made] = weight;
    }
    heavy[leaves - 2] = 0;  // from here on depths
    for (int inner = leaves - 3; inner >= 0; inner--) heavy[inner] = heavy[parent[leaves + inner]] + 1;
    for (int i = 0; i < leaves; i++) per[min(static_cast<int>(heavy[parent[i]]) + 1, LONGEST)]++;
    int used = 0;
    for (int length = 1; length <= LONGEST; length++) used += per[length] << (LONGEST - length);
    for (; used > 1 << LONGEST; used--) {
        int length = LONGEST - 1;
        while (per[length] == 0) length--;
        per[LONGEST]--, per[length]--, per[length + 1] += 2;
    }
}

__device__ void put_shared(unsigned* words, int at, unsigned value, int count) {
    const Long shifted = static_cast<Long>(value) << (at % 32);
    atomicOr(words + at / 32, static_cast<unsigned>(shifted));
    if (at % 32 + count > 32) atomicOr(words + at / 32 + 1, static_cast<unsigned>(shifted >> 32));
}

__device__ unsigned reversed(unsigned code, int length) { return __brev(code) >> (32 - length); }

// One block: the code of all symbols, the block's head, the checksum of the rows.
__global__ void __launch_bounds__(SORTED) make_code(const int* counts, const ulonglong2* sums, int rows, int length, unsigned* table, unsigned* out) {
    __shared__ Long keys[SORTED];  // count, symbol
    __shared__ unsigned heavy[SYMBOLS], words[HEAD_WORDS];
    __shared__ short parent[2 * SYMBOLS];
    __shared__ int per[LONGEST + 2], first[LONGEST + 2], leaves;
    __shared__ Byte lengths[LENGTHS];
    __shared__ Long low, high;
    const int i = threadIdx.x;
    const unsigned count = i < SYMBOLS ? static_cast<unsigned>(counts[i]) + (i == END) : 0;
    keys[i] = count > 0 ? static_cast<Long>(count) << 32 | static_cast<unsigned>(i) : ~0ull;
    if (i < HEAD_WORDS) words[i] = 0;
    if (i < LONGEST + 2) per[i] = first[i] = 0;
    if (i < LENGTHS) lengths[i] = i == SYMBOLS || i == SYMBOLS + 2;  // of distances 1 and 3
    if (i == 0) leaves = 0, low = 1, high = 0;
    __syncthreads();
    if (count > 0) atomicAdd(&leaves, 1);
    const Long whole = static_cast<Long>(rows) * length;
    Long own_low = 0, own_high = 0;
    for (int y = i; y < rows; y += SORTED) {
        own_low += sums[y].x;
        own_high += (sums[y].y + (whole - static_cast<Long>(y + 1) * length) % MODULUS * sums[y].x) % MODULUS;
    }
    atomicAdd(&low, own_low), atomicAdd(&high, own_high);
    for (int size = 2; size <= SORTED; size *= 2) {
        for (int step = size / 2; step > 0; step /= 2) {
            __syncthreads();
            const int other = i ^ step;
            if (other > i && (keys[i] > keys[other]) == ((i & size) == 0)) {
                const Long kept = keys[i];
                keys[i] = keys[other], keys[other] = kept;
            }
        }
    }
    __syncthreads();
    if (i == 0) {
        code_depths(keys, leaves, heavy, parent, per);
        int place = leaves, code = 0;
        for (int bits = 1; bits <= LONGEST; bits++) {
            for (int k = place - per[bits]; k < place; k++) lengths[keys[k] & 511] = static_cast<Byte>(bits);
            place -= per[bits];
            first[bits] = code;
            code = (code + per[bits]) << 1;
        }
        const Long head = 1 | 2 << 1 | (SYMBOLS - 257) << 3 | 2 << 8 | 15 << 13;
        put_shared(words, 0, static_cast<unsigned>(head), 17);
        for (int k = 3; k < 19; k++) put_shared(words, 17 + 3 * k, 4, 3);  // all but the three symbols that repeat
        out[1] = static_cast<unsigned>((high + whole) % MODULUS << 16 | low % MODULUS);
    }
    __syncthreads();
    if (i < LENGTHS) put_shared(words, HEAD + 4 * i, reversed(lengths[i], 4), 4);
    if (i < SYMBOLS) {
        const int bits = lengths[i];
        unsigned code = first[bits];
        for (int k = 0; k < i; k++) code += lengths[k] == bits;
        table[i] = bits > 0 ? reversed(code, bits) | static_cast<unsigned>(bits) << 16 : 0;
    }
    __syncthreads();
    if (i < HEAD_WORDS) out[HEADER + i] = words[i];
}

__device__ int token_bits(const unsigned* table, int symbol, int width, int distance) { return static_cast<int>(table[symbol] >> 16) + width + (distance > 0); }

__device__ void load_table(const unsigned* from, unsigned* table) {
    for (int i = threadIdx.x; i < SYMBOLS; i += THREADS) table[i] = from[i];
}

// Bits of each piece and each row.
__global__ void __launch_bounds__(THREADS) measure_rows(const Byte* lines, int length, const unsigned* codes, unsigned short* piece_bits, int pieces, int* row_bits) {
    extern __shared__ Byte row[];
    __shared__ unsigned table[SYMBOLS];
    load_table(codes, table);
    load_row(lines + static_cast<int64_t>(blockIdx.x) * length, length, row);
    Long sum = 0;
    for (int piece = threadIdx.x; piece < pieces; piece += THREADS) {
        int bits = 0;
        tokens(row, piece * PIECE, min((piece + 1) * PIECE, length), [&](int symbol, int, int width, int distance) { bits += token_bits(table, symbol, width, distance); });
        piece_bits[static_cast<int64_t>(blockIdx.x) * pieces + piece] = static_cast<unsigned short>(bits);
        sum += bits;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) row_bits[blockIdx.x] = static_cast<int>(sum);
}

// Bits behind one another in words that hold zeros. The first and the last word are others' too.
struct Writer {
    unsigned* words;
    Long limit, first, word, bits = 0;
    int count;

    __device__ Writer(unsigned* words, Long limit, Long at) : words(words), limit(limit), first(at / 32), word(at / 32), count(static_cast<int>(at % 32)) {}
    __device__ void put(unsigned value, int width) {
        bits |= static_cast<Long>(value) << count;
        count += width;
        if (count >= 32) flush();
    }
    __device__ void flush() {
        const unsigned value = static_cast<unsigned>(bits);
        if (word < limit) {
            if (word == first) {
                atomicOr(words + word, value);
            } else {
                words[word] = value;
            }
        }
        word++, bits >>= 32, count -= 32;
    }
    __device__ void end() {
        if (bits != 0 && word < limit) atomicOr(words + word, static_cast<unsigned>(bits));
    }
};

__global__ void __launch_bounds__(THREADS) write_rows(const Byte* lines, int length, const unsigned* codes, const unsigned short* piece_bits, int pieces, const int* row_bits,
                                                      unsigned* out, Long limit) {
    extern __shared__ Byte row[];
    __shared__ unsigned table[SYMBOLS];
    __shared__ int scan[WARPS];
    load_table(codes, table);
    load_row(lines + static_cast<int64_t>(blockIdx.x) * length, length, row);
    Long before = 0;
    for (int y = threadIdx.x; y < static_cast<int>(blockIdx.x); y += THREADS) before += row_bits[y];
    before = HEAD_BITS + block_sum(before);
    unsigned* words = out + HEADER;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int start = 0; start < pieces; start += THREADS) {
        const int piece = start + threadIdx.x;
        const int own = piece < pieces ? piece_bits[static_cast<int64_t>(blockIdx.x) * pieces + piece] : 0;
        int upto = own;
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(~0u, upto, step);
            if (lane >= step) upto += other;
        }
        __syncthreads();
        if (lane == 31) scan[warp] = upto;
        __syncthreads();
        int round = 0;
        for (int w = 0; w < WARPS; w++) {
            if (w < warp) upto += scan[w];
            round += scan[w];
        }
        if (piece < pieces) {
            Writer writer(words, limit, before + upto - own);
            tokens(row, piece * PIECE, min((piece + 1) * PIECE, length), [&](int symbol, int extra, int width, int distance) {
                writer.put(table[symbol] & 0xffff, static_cast<int>(table[symbol] >> 16));
                if (distance > 0) {
                    if (width > 0) writer.put(extra, width);
                    writer.put(distance > 1, 1);
                }
            });
            writer.end();
        }
        before += round;
    }
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) {
        const int width = static_cast<int>(table[END] >> 16);
        Writer writer(words, limit, before);
        writer.put(table[END] & 0xffff, width);
        writer.end();
        const Long bytes = (before + width + 7) / 8;
        out[0] = static_cast<unsigned>(bytes), out[2] = bytes > limit * 4;
    }
}

}  // namespace landmark

extern "C" int lm_png_shared(int bytes) { return bytes + 1 + bytes / landmark::PIECE * 4 + 4; }

extern "C" int lm_png_stream(const LmPng* a, cudaStream_t stream) {
    using namespace landmark;
    const int length = a->bytes + 1, pieces = (length + PIECE - 1) / PIECE, shared = lm_png_shared(a->bytes);
    auto* sums = static_cast<ulonglong2*>(a->sums);
    const Long limit = static_cast<Long>(a->words - HEADER);
    filter_rows<<<a->rows, THREADS, shared, stream>>>(a->pixels, a->bytes, a->lines, sums, a->counts);
    make_code<<<1, SORTED, 0, stream>>>(a->counts, sums, a->rows, length, a->table, a->out);
    measure_rows<<<a->rows, THREADS, shared, stream>>>(a->lines, length, a->table, a->piece_bits, pieces, a->row_bits);
    write_rows<<<a->rows, THREADS, shared, stream>>>(a->lines, length, a->table, a->piece_bits, pieces, a->row_bits, a->out, limit);
    return cudaGetLastError();
}
