// Filtered rows as symbols of RFC 1951: literals, and matches of distance 1 for whole pieces that repeat the byte before them. Shorter and
// farther matches make pictures with little noise a few per cent smaller, and take as long as all the rest: branches nobody can foresee.
#pragma once
#include "bytes.h"

namespace LANDMARK_VARIANT {

using landmark::Code;
using landmark::PIECE;

// Pieces that repeat the byte before p, of those that fit into `left` bytes.
static inline int run(const uint8_t* p, int64_t left) {
    int pieces = 0;
    while (pieces < landmark::MOST_PIECES && left >= PIECE && repeats(p)) pieces++, p += PIECE, left -= PIECE;
    return pieces;
}

static void count(const uint8_t* lines, int64_t rows, int64_t length, int every, uint32_t* counts) {
    constexpr int64_t GROUP = landmark::GROUP * PIECE;
    uint32_t table[4][256] = {};  // neighbours are often equal: nobody waits for the other's sum
    for (int64_t y = 0; y < rows; y++) {
        const uint8_t* line = lines + y * length;
        for (int64_t start = y % every * GROUP; start < length; start += GROUP * every) {
            const int64_t stop = length - start < GROUP ? length : start + GROUP;
            for (int64_t at = start; at < stop;) {
                const int pieces = at > 0 ? run(line + at, stop - at) : 0;
                if (pieces > 0) {
                    counts[landmark::RUN[pieces]]++;
                    at += pieces * PIECE;
                    continue;
                }
                const int64_t end = stop - at < PIECE ? stop : at + PIECE;
                for (; at + 4 <= end; at += 4) {
                    for (int k = 0; k < 4; k++) table[k][line[at + k]]++;
                }
                for (; at < end; at++) table[0][line[at]]++;
            }
        }
    }
    for (int i = 0; i < 256; i++) counts[i] += table[0][i] + table[1][i] + table[2][i] + table[3][i];
}

// Bits behind one another, the first lowest. The word in work is always written, too.
struct Bits {
    uint8_t* out;
    uint64_t at, word;

    inline void put(uint64_t bits, uint64_t count) {  // count < 64
        const uint64_t shift = at & 63, next = at + count, rest = bits >> 1 >> (63 - shift);
        word |= bits << shift;
        memcpy(out + (at >> 6) * 8, &word, 8);
        const uint64_t full = 0 - ((next ^ at) >> 6 & 1);  // no branch: nobody could foresee it
        word = (word & ~full) | (rest & full);
        at = next;
    }
};

#if defined(__AVX512VBMI__)

// The code's tables in registers.
struct Book {
    __m512i length[4], low[4], high[4];

    explicit Book(const Code& code) {
        for (int i = 0; i < 4; i++) {
            length[i] = _mm512_load_si512(code.length + 64 * i), low[i] = _mm512_load_si512(code.low + 64 * i);
            high[i] = _mm512_load_si512(code.high + 64 * i);
        }
    }
};

static inline __m512i looked_up(const __m512i* table, __m512i v) {
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), _mm512_permutex2var_epi8(table[0], v, table[1]), _mm512_permutex2var_epi8(table[2], v, table[3]));
}

// Codes and lengths of 16 bits, joined by fours into `fours` and by eights into every second place of `eights`. Whether one of these is too long.
struct Joined {
    alignas(64) uint64_t fours[2][8], eights[2][8];
};

static inline bool join(__m512i code, __m512i length, Joined& out) {
    const __m512i two = _mm512_set1_epi32(0xffff), four = _mm512_set1_epi64(0xffffffff);
    __m512i first = _mm512_and_si512(length, two);
    code = _mm512_or_si512(_mm512_and_si512(code, two), _mm512_sllv_epi32(_mm512_srli_epi32(code, 16), first));
    length = _mm512_add_epi32(first, _mm512_srli_epi32(length, 16));
    first = _mm512_and_si512(length, four);
    code = _mm512_or_si512(_mm512_and_si512(code, four), _mm512_sllv_epi64(_mm512_srli_epi64(code, 32), first));
    length = _mm512_add_epi64(first, _mm512_srli_epi64(length, 32));
    _mm512_store_si512(out.fours[0], code), _mm512_store_si512(out.fours[1], length);
    code = _mm512_or_si512(code, _mm512_sllv_epi64(_mm512_bsrli_epi128(code, 8), length));
    length = _mm512_add_epi64(length, _mm512_bsrli_epi128(length, 8));
    _mm512_store_si512(out.eights[0], code), _mm512_store_si512(out.eights[1], length);
    return _mm512_mask_cmpgt_epi64_mask(0x55, length, _mm512_set1_epi64(63)) != 0;
}

static inline void literals(const uint8_t* p, const Code&, const Book& book, Bits& bits) {
    const __m512i v = _mm512_loadu_si512(p), zero = _mm512_setzero_si512();
    const __m512i length = looked_up(book.length, v), low = looked_up(book.low, v), high = looked_up(book.high, v);
    Joined part[2];  // of each 16 bytes the first eight, and the others
    const bool long_first = join(_mm512_unpacklo_epi8(low, high), _mm512_unpacklo_epi8(length, zero), part[0]);
    const bool long_other = join(_mm512_unpackhi_epi8(low, high), _mm512_unpackhi_epi8(length, zero), part[1]);
    for (int i = 0; i < 8; i += 2) {
        for (const Joined& each : part) {
            if (long_first | long_other) {
                bits.put(each.fours[0][i], each.fours[1][i]);
                bits.put(each.fours[0][i + 1], each.fours[1][i + 1]);
            } else {
                bits.put(each.eights[0][i], each.eights[1][i]);
            }
        }
    }
}

#else

struct Book {
    explicit Book(const Code&) {}
};

static inline void literals(const uint8_t* p, const Code& code, const Book&, Bits& bits) {
    for (int i = 0; i < PIECE; i += 8) {
        uint64_t joined[2], lengths[2];
        for (int k = 0; k < 2; k++) {
            const uint8_t* four = p + i + 4 * k;
            const uint64_t a = code.entry[four[0]], b = code.entry[four[1]], c = code.entry[four[2]], d = code.entry[four[3]];
            const uint64_t first = (a & landmark::LOW) | (b & landmark::LOW) << (a >> 16), other = (c & landmark::LOW) | (d & landmark::LOW) << (c >> 16);
            const uint64_t count = (a >> 16) + (b >> 16);
            joined[k] = first | other << count, lengths[k] = count + (c >> 16) + (d >> 16);
        }
        if (lengths[0] + lengths[1] < 64) {
            bits.put(joined[0] | joined[1] << lengths[0], lengths[0] + lengths[1]);
        } else {
            bits.put(joined[0], lengths[0]), bits.put(joined[1], lengths[1]);
        }
    }
}

#endif

static uint64_t pack(const uint8_t* lines, int64_t rows, int64_t length, const Code& code, uint8_t* out, uint64_t at) {
    Bits bits{out, at, 0};
    memcpy(&bits.word, out + (at >> 6) * 8, 8);
    bits.word &= (1ull << (at & 63)) - 1;
    const Book book(code);
    for (int64_t y = 0; y < rows; y++) {
        const uint8_t* line = lines + y * length;
        for (int64_t i = 0; i < length;) {
            const int pieces = i > 0 ? run(line + i, length - i) : 0;
            if (pieces > 0) {
                const uint64_t entry = code.entry[landmark::RUN[pieces]], count = entry >> 16;
                bits.put((entry & landmark::LOW) | (uint64_t)landmark::RUN_EXTRA[pieces] << count, count + landmark::RUN_WIDTH[pieces] + 1);  // and distance 1: a zero
                i += pieces * PIECE;
            } else if (length - i >= PIECE) {
                literals(line + i, code, book, bits);
                i += PIECE;
            } else {
                for (; i < length; i++) bits.put(code.entry[line[i]] & landmark::LOW, code.entry[line[i]] >> 16);
            }
        }
    }
    memcpy(out + (bits.at >> 6) * 8, &bits.word, 8);
    return bits.at;
}

}  // namespace LANDMARK_VARIANT
