// png_stream: the image data of a PNG from pixels on the device: rows filtered, matches of distance 1 and 3, one Huffman code for all.
// The bytes of kernels/reference/deflating.py. A block of threads takes a row, a warp pieces of 64 bytes, out of which no match leads.
#include "png_code.cuh"

namespace landmark {

constexpr int THREADS = 128, WARPS = THREADS / 32, PIECE = 64;
constexpr int AT_ONCE = 4;                                               // pieces of a warp, while a row is written
constexpr int ROUND_WORDS = WARPS * AT_ONCE * PIECE * LONGEST / 32 + 2;  // a piece's bits: a match takes fewer than its literals might
constexpr int TRIED = 4;                                                 // of so many fours of bytes one tells which filter a row gets
constexpr unsigned ONES = 0x01010101, STEPS = 0x03020100;

// A filtered row in memory: three bytes of nothing, its filter's type, its bytes, zeros up to a multiple of four.
constexpr int LEAD = 3;

// Four bytes of a row of pixels from byte 4 k on; zeros behind its end.
__device__ unsigned four(const Byte* row, int k, int bytes) {
    if (4 * k + 4 <= bytes && reinterpret_cast<size_t>(row) % 4 == 0) return reinterpret_cast<const unsigned*>(row)[k];
    unsigned found = 0;
    for (int i = 4 * k; i < min(4 * k + 4, bytes); i++) found |= static_cast<unsigned>(row[i]) << 8 * (i - 4 * k);
    return found;
}

// Four bytes at once. The sum of left and above is as far from the corner as both of them together where they lie on the same side of
// it, else as far as they differ.
__device__ unsigned paeth(unsigned left, unsigned above, unsigned corner) {
    const unsigned a = __vabsdiffu4(above, corner), b = __vabsdiffu4(left, corner);
    const unsigned same = ~(__vcmpgeu4(above, corner) ^ __vcmpgeu4(left, corner));
    const unsigned c = (same & __vaddus4(a, b)) | (~same & __vabsdiffu4(a, b));
    const unsigned takes_left = __vcmpleu4(a, b) & __vcmpleu4(a, c), takes_above = ~takes_left & __vcmpleu4(b, c);
    return (left & takes_left) | (above & takes_above) | (corner & ~(takes_left | takes_above));
}

// Four pixels' bytes and those around them.
struct Around {
    unsigned here, left, above, corner;

    __device__ Around(const Byte* row, int k, int bytes, bool first) : here(four(row, k, bytes)) {
        left = __byte_perm(k > 0 ? four(row, k - 1, bytes) : 0, here, 0x4321);
        above = first ? 0 : four(row - bytes, k, bytes);
        corner = first ? 0 : __byte_perm(k > 0 ? four(row - bytes, k - 1, bytes) : 0, above, 0x4321);
    }
};

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

__device__ Long ones(int count) { return count < 64 ? (1ull << count) - 1 : ~0ull; }

// Which of a warp's 64 bytes say so: its lanes' first, then their second.
__device__ Long ballot(bool low, bool high) { return static_cast<Long>(__ballot_sync(~0u, high)) << 32 | __ballot_sync(~0u, low); }

// The tokens of a piece. x: where they start; y: at a match 1, and behind it 1 where its distance is 3. Used by whole warps.
__device__ ulonglong2 tokens(const Byte* row, int start, int length) {
    const int lane = threadIdx.x % 32;
    bool near[2], far[2];
    for (int half = 0; half < 2; half++) {
        const int i = start + lane + 32 * half;
        const Byte* at = row + LEAD + i;
        near[half] = i >= 1 && i < length && at[0] == at[-1];
        far[half] = i >= 3 && i < length && at[0] == at[-3];
    }
    const Long one = ballot(near[0], near[1]), three = ballot(far[0], far[1]);
    Long starts = ones(min(PIECE, length - start)), matches = 0;
    const Long pairs = one & one >> 1, triples = three & three >> 1;
    Long left = (pairs & pairs >> 2) | (triples & triples >> 2);  // four or more of them from here on
    while (left != 0) {
        const int i = __ffsll(left) - 1, close = run(one, i), apart = run(three, i), stop = i + max(close, apart);
        starts &= ~(ones(stop) & ~ones(i + 1));
        matches |= 1ull << i | static_cast<Long>(apart > close) << (i + 1);
        left &= ~ones(stop);
    }
    return make_ulonglong2(starts, matches);
}

// A lane's byte of a piece as a token: the first or, high, the second of its two.
struct Token {
    int symbol = -1, extra = 0, width = 0;  // -1: within a match
    bool match = false, far = false;

    __device__ Token(ulonglong2 mask, bool high, int count, const Byte* piece) {
        const int lane = threadIdx.x % 32;
        const unsigned starts = static_cast<unsigned>(high ? mask.x >> 32 : mask.x), matches = static_cast<unsigned>(high ? mask.y >> 32 : mask.y);
        if ((starts >> lane & 1) == 0) return;
        match = matches >> lane & 1;
        if (!match) {
            symbol = piece[lane + 32 * high];
            return;
        }
        const int i = lane + 32 * high;
        const Long next = mask.x & ~ones(i + 1);
        const int length = (next ? __ffsll(next) - 1 : count) - i;
        far = mask.y >> (i + 1) & 1;
        if (length < 11) {
            symbol = 254 + length;
        } else {
            width = 29 - __clz(length - 3);
            symbol = 257 + 4 * width + ((length - 3) >> width), extra = (length - 3) & ((1 << width) - 1);
        }
    }
};

// Extra bits of a symbol's token, and the one of its distance.
__device__ int more_bits(int symbol) { return symbol <= END ? 0 : 1 + (symbol < 265 ? 0 : (symbol - 261) / 4); }

__global__ void __launch_bounds__(THREADS) filter_rows(const Byte* pixels, int bytes, unsigned* lines, ulonglong2* pieces, ulonglong2* sums, int* counts, unsigned short* row_counts) {
    extern __shared__ unsigned words[];  // the row
    __shared__ int tried[3], count[SYMBOLS];
    const int length = bytes + 1, whole = (bytes + 3) / 4, lane = threadIdx.x % 32;
    const bool first = blockIdx.x == 0;
    const Byte* here = pixels + static_cast<int64_t>(blockIdx.x) * bytes;
    if (threadIdx.x < 3) tried[threadIdx.x] = 0;
    for (int i = threadIdx.x; i < SYMBOLS; i += THREADS) count[i] = 0;
    __syncthreads();
    unsigned sum[3] = {0, 0, 0};
    for (int k = threadIdx.x * TRIED; k < whole; k += THREADS * TRIED) {
        const Around p(here, k, bytes, first);
        const unsigned inside = 4 * k + 4 <= bytes ? ~0u : (1u << 8 * (bytes - 4 * k)) - 1;
        sum[0] = __dp4a(__vabs4(__vsub4(p.here, p.left)) & inside, ONES, sum[0]);
        sum[1] = __dp4a(__vabs4(__vsub4(p.here, p.above)) & inside, ONES, sum[1]);
        sum[2] = __dp4a(__vabs4(__vsub4(p.here, paeth(p.left, p.above, p.corner))) & inside, ONES, sum[2]);
    }
    for (int k = 0; k < 3; k++) {
        const int own = static_cast<int>(warp_sum(sum[k]));
        if (lane == 0) atomicAdd(&tried[k], own);
    }
    __syncthreads();
    const unsigned kind = tried[1] < tried[0] ? (tried[2] < tried[1] ? 4 : 2) : (tried[2] < tried[0] ? 4 : 1);
    unsigned* line = lines + static_cast<int64_t>(blockIdx.x) * (whole + 1);
    Long low = 0, high = 0;
    if (threadIdx.x == 0) words[0] = line[0] = kind << 24, low = kind, high = static_cast<Long>(length) * kind;
    for (int k = threadIdx.x; k < whole; k += THREADS) {
        const Around p(here, k, bytes, first);
        const unsigned inside = 4 * k + 4 <= bytes ? ~0u : (1u << 8 * (bytes - 4 * k)) - 1;
        const unsigned found = __vsub4(p.here, kind == 1 ? p.left : kind == 2 ? p.above : paeth(p.left, p.above, p.corner)) & inside;
        words[k + 1] = line[k + 1] = found;
        const unsigned all = __dp4a(found, ONES, 0u);
        low += all, high += static_cast<Long>(length - 4 * k - 1) * all - __dp4a(found, STEPS, 0u);
    }
    low = block_sum(low), high = block_sum(high);  // and the row is there
    if (threadIdx.x == 0) sums[blockIdx.x] = make_ulonglong2(low, high);
    const Byte* row = reinterpret_cast<const Byte*>(words);
    const int all = (length + PIECE - 1) / PIECE;
    for (int piece = threadIdx.x / 32; piece < all; piece += WARPS) {
        const ulonglong2 mask = tokens(row, piece * PIECE, length);
        if (lane == 0) pieces[static_cast<int64_t>(blockIdx.x) * all + piece] = mask;
        for (int half = 0; half < 2; half++) {
            const Token token(mask, half, min(PIECE, length - piece * PIECE), row + LEAD + piece * PIECE);
            if (token.symbol >= 0) atomicAdd(count + token.symbol, 1);
        }
    }
    __syncthreads();
    for (int symbol = threadIdx.x; symbol < SYMBOLS; symbol += THREADS) {
        row_counts[static_cast<int64_t>(blockIdx.x) * SYMBOLS + symbol] = static_cast<unsigned short>(count[symbol]);
        if (count[symbol] > 0) atomicAdd(counts + symbol, count[symbol]);
    }
}

// Bits of each row: a warp a row.
__global__ void __launch_bounds__(THREADS) measure_rows(const unsigned short* row_counts, const unsigned* table, int rows, int* row_bits) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    int bits = 0;
    for (int symbol = threadIdx.x % 32; symbol < SYMBOLS; symbol += 32) {
        bits += row_counts[static_cast<int64_t>(row) * SYMBOLS + symbol] * (static_cast<int>(table[symbol] >> 16) + more_bits(symbol));
    }
    bits = warp_sum(bits);
    if (threadIdx.x % 32 == 0) row_bits[row] = bits;
}

// A token's bits, first lowest, and how many.
struct Coded {
    unsigned value = 0;
    int width = 0;

    __device__ Coded(const Token& token, const unsigned* table) {
        if (token.symbol < 0) return;
        const unsigned entry = table[token.symbol];
        value = entry & 0xffff, width = static_cast<int>(entry >> 16);
        if (!token.match) return;
        value |= (static_cast<unsigned>(token.extra) | static_cast<unsigned>(token.far) << token.width) << width;
        width += token.width + 1;
    }
};

__global__ void __launch_bounds__(THREADS) write_rows(const unsigned* lines, int length, const unsigned* codes, const ulonglong2* pieces, const int* row_bits, unsigned* out, Long limit) {
    __shared__ unsigned table[SYMBOLS], words[ROUND_WORDS];
    __shared__ int parts[WARPS];
    const int all = (length + PIECE - 1) / PIECE, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Byte* row = reinterpret_cast<const Byte*>(lines + static_cast<int64_t>(blockIdx.x) * ((length + 2) / 4 + 1)) + LEAD;
    for (int i = threadIdx.x; i < SYMBOLS; i += THREADS) table[i] = codes[i];
    Long before = 0;
    for (int y = threadIdx.x; y < static_cast<int>(blockIdx.x); y += THREADS) before += row_bits[y];
    before = HEAD_BITS + block_sum(before);
    unsigned* stream = out + HEADER;
    for (int start = 0; start < all; start += WARPS * AT_ONCE) {
        for (int i = threadIdx.x; i < ROUND_WORDS; i += THREADS) words[i] = 0;
        unsigned value[AT_ONCE][2];
        int width[AT_ONCE][2], at[AT_ONCE][2], own = 0;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int piece = start + warp * AT_ONCE + k, first = piece * PIECE, count = min(PIECE, length - first);
            const ulonglong2 mask = piece < all ? pieces[static_cast<int64_t>(blockIdx.x) * all + piece] : make_ulonglong2(0, 0);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const Coded coded(Token(mask, half, count, row + first), table);
                value[k][half] = coded.value, width[k][half] = coded.width;
            }
            int upto = width[k][0] | width[k][1] << 16;
            for (int step = 1; step < 32; step *= 2) {
                const int other = __shfl_up_sync(~0u, upto, step);
                if (lane >= step) upto += other;
            }
            const int sum = __shfl_sync(~0u, upto, 31);
            at[k][0] = own + (upto & 0xffff) - width[k][0];
            at[k][1] = own + (sum & 0xffff) + (upto >> 16) - width[k][1];
            own += (sum & 0xffff) + (sum >> 16);
        }
        if (lane == 0) parts[warp] = own;
        __syncthreads();  // and the words hold zeros
        const int shift = static_cast<int>(before % 32);
        int from = shift, bits = 0;
        for (int w = 0; w < WARPS; w++) from += w < warp ? parts[w] : 0, bits += parts[w];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (width[k][half] > 0) put_shared(words, from + at[k][half], value[k][half], width[k][half]);
            }
        }
        __syncthreads();
        const int last = (shift + bits - 1) / 32;
        for (int i = threadIdx.x; i <= last; i += THREADS) {
            const Long word = before / 32 + i;
            if (word >= limit) break;
            if (i == 0 || i == last) {  // others' too
                atomicOr(stream + word, words[i]);
            } else {
                stream[word] = words[i];
            }
        }
        before += bits;
        __syncthreads();
    }
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) {
        const int width = static_cast<int>(table[END] >> 16), shift = static_cast<int>(before % 32);
        const Long word = before / 32, end = static_cast<Long>(table[END] & 0xffff) << shift, bytes = (before + width + 7) / 8;
        if (word < limit) atomicOr(stream + word, static_cast<unsigned>(end));
        if (shift + width > 32 && word + 1 < limit) atomicOr(stream + word + 1, static_cast<unsigned>(end >> 32));
        out[0] = static_cast<unsigned>(bytes), out[2] = bytes > limit * 4;
    }
}

}  // namespace landmark

extern "C" int lm_png_shared(int bytes) { return 4 * LM_PNG_LINE(bytes); }

extern "C" int lm_png_stream(const LmPng* a, cudaStream_t stream) {
    using namespace landmark;
    const int length = a->bytes + 1;
    auto* sums = static_cast<ulonglong2*>(a->sums);
    auto* pieces = static_cast<ulonglong2*>(a->pieces);
    filter_rows<<<a->rows, THREADS, lm_png_shared(a->bytes), stream>>>(a->pixels, a->bytes, a->lines, pieces, sums, a->counts, a->row_counts);
    make_code<<<1, SORTED, 0, stream>>>(a->counts, sums, a->rows, length, a->table, a->out);
    measure_rows<<<(a->rows + WARPS - 1) / WARPS, THREADS, 0, stream>>>(a->row_counts, a->table, a->rows, a->row_bits);
    write_rows<<<a->rows, THREADS, 0, stream>>>(a->lines, length, a->table, pieces, a->row_bits, a->out, static_cast<Long>(a->words - HEADER));
    return cudaGetLastError();
}
