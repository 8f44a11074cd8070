// The Huffman code of a PNG's stream, RFC 1951: made by one block of threads, of the counts of all symbols.
#pragma once
#include "abi.h"

namespace landmark {

constexpr int SORTED = 512, END = 256, SYMBOLS = LM_PNG_SYMBOLS, LONGEST = 15, MODULUS = 65521;
constexpr int HEADER = 4;                                                  // words before the stream
constexpr int HEAD = 3 + 5 + 5 + 4 + 19 * 3, LENGTHS = SYMBOLS + 3;        // bits of the block's head, code lengths of 4 bits behind it
constexpr int HEAD_BITS = HEAD + 4 * LENGTHS, HEAD_WORDS = (HEAD_BITS + 31) / 32;

using Byte = unsigned char;
using Long = unsigned long long;

// Huffman's tree over ascending weights: whose child each leaf is, and behind the leaves each inner node. The leaf where both are as light.
__device__ void grow(const Long* keys, int leaves, unsigned* heavy, short* parent) {
    int leaf = 0, node = 0;
    unsigned lightest = static_cast<unsigned>(keys[0] >> 32), coming = static_cast<unsigned>(keys[1] >> 32), inner = ~0u;  // two leaves, one node
    for (int made = 0; made < leaves - 1; made++) {
        unsigned weight = 0;
        for (int child = 0; child < 2; child++) {
            if (leaf < leaves && lightest <= inner) {
                weight += lightest;
                parent[leaf++] = static_cast<short>(made);
                lightest = coming, coming = static_cast<unsigned>(keys[min(leaf + 1, leaves - 1)] >> 32);
            } else {
                weight += inner;
                parent[leaves + node++] = static_cast<short>(made);
                inner = node < made ? heavy[node] : ~0u;
            }
        }
        heavy[made] = weight;
        if (node == made) inner = weight;
    }
}

// Codes that would be longer than LONGEST. per: how many there are of each length.
__device__ void limit_depths(int* per) {
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
    __shared__ short parent[2 * SYMBOLS], above[SYMBOLS], depth[SYMBOLS];
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
    if (i == 0) grow(keys, leaves, heavy, parent);
    __syncthreads();
    const int root = leaves - 2;
    if (i <= root) above[i] = i < root ? parent[leaves + i] : i, depth[i] = i < root;
    for (int step = 1; step < leaves; step *= 2) {  // each time twice as far up
        __syncthreads();
        const int to = i <= root ? above[i] : 0, further = i <= root ? above[to] : 0, more = i <= root ? depth[to] : 0;
        __syncthreads();
        if (i <= root) above[i] = static_cast<short>(further), depth[i] = static_cast<short>(depth[i] + more);
    }
    __syncthreads();
    if (i < leaves) atomicAdd(per + min(depth[parent[i]] + 1, LONGEST), 1);
    __syncthreads();
    if (i == 0) {
        limit_depths(per);
        int code = 0;
        for (int bits = 1; bits <= LONGEST; bits++) {
            first[bits] = code;
            code = (code + per[bits]) << 1;
        }
        const Long head = 1 | 2 << 1 | (SYMBOLS - 257) << 3 | 2 << 8 | 15 << 13;
        put_shared(words, 0, static_cast<unsigned>(head), 17);
        for (int k = 3; k < 19; k++) put_shared(words, 17 + 3 * k, 4, 3);  // all but the three symbols that repeat
        out[1] = static_cast<unsigned>((high + whole) % MODULUS << 16 | low % MODULUS);
    }
    __syncthreads();
    if (i < leaves) {  // the commonest get the shortest
        int bits = 1;
        for (int place = leaves - per[1]; place > i; place -= per[bits]) bits++;
        lengths[keys[i] & (SORTED - 1)] = static_cast<Byte>(bits);
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

}  // namespace landmark
