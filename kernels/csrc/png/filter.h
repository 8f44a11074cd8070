// Rows filtered (PNG specification, third edition, 9): Sub, Up or Paeth, whichever leaves the smallest sum of magnitudes in half of a row.
#pragma once
#include "bytes.h"

namespace LANDMARK_VARIANT {

using landmark::MARGIN;
constexpr int SUB = 1, UP = 2, PAETH = 4;
constexpr int MODULUS = 65521, MOST_SUMMED = 4096;  // bytes between two divisions: no sum of 32 bits overflows

static inline V paeth(V left, V above, V corner) {
    const V a = apart(above, corner), b = apart(left, corner);
    const V one_side = (V)((above > corner) == (left > corner));
    const V c = apart(a, b) | one_side;  // of neighbours on one side of the corner their sum: no less than either
    const V first = (V)((a <= b) & (a <= c)), second = (V)(b <= c);
    return (first & left) | (~first & ((second & above) | (~second & corner)));
}

static inline V magnitude(V v) { return least(v, -v); }

static inline void take_row(const uint8_t* from, int64_t n, bool swap, uint8_t* to) {
    if (!swap) {
        memcpy(to, from, (size_t)n);
        return;
    }
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE) {
        const V16 v = (V16)load(from + i);
        store(to + i, (V)(v << 8 | v >> 8));
    }
    for (; i < n; i += 2) {
        const uint8_t low = from[i];
        to[i] = from[i + 1], to[i + 1] = low;
    }
}

// adler after n bytes more.
static inline uint32_t summed(uint32_t adler, const uint8_t* p, int64_t n) {
    uint64_t low = adler & 0xffff, high = adler >> 16;
    V16 even, odd;
    for (int k = 0; k < WIDE / 2; k++) even[k] = (uint16_t)(WIDE - 2 * k), odd[k] = (uint16_t)(WIDE - 2 * k - 1);
    while (n > 0) {
        const int64_t part = n < MOST_SUMMED ? n : MOST_SUMMED;
        V64 sum = {}, before = {};
        V32 weighted = {};
        int64_t i = 0;
        for (; i + WIDE <= part; i += WIDE) {
            const V v = load(p + i);
            const V16 twos = ((V16)v & (uint16_t)0xff) * even + ((V16)v >> 8) * odd;
            weighted += ((V32)twos & (uint32_t)0xffff) + ((V32)twos >> 16);
            before += sum;
            sum += eights(v);
        }
        high += low * (uint64_t)i + total(before) * WIDE;
        for (int k = 0; k < WIDE / 4; k++) high += weighted[k];
        low += total(sum);
        for (; i < part; i++) low += p[i], high += low;
        low %= MODULUS, high %= MODULUS;
        p += part, n -= part;
    }
    return (uint32_t)(high << 16 | low);
}

// here, up: rows of n bytes with zeros before them. The first half of every 128 bytes is tried.
static inline int choose(const uint8_t* here, const uint8_t* up, int64_t n, int pixel) {
    V64 sub = {}, above = {}, mixed = {};
    for (int64_t start = 0; start < n; start += 128) {
        for (int64_t i = start; i < start + 64 && i < n; i += WIDE) {
            const V mask = first_bytes(n - i), v = load(here + i), left = load(here + i - pixel), top = load(up + i);
            sub += eights(magnitude(v - left) & mask);
            above += eights(magnitude(v - top) & mask);
            mixed += eights(magnitude(v - paeth(left, top, load(up + i - pixel))) & mask);
        }
    }
    const uint64_t s = total(sub), a = total(above), m = total(mixed);
    return a < s ? (m < a ? PAETH : UP) : (m < s ? PAETH : SUB);
}

// Up to 63 bytes behind `out` are written, too.
static inline void apply(int kind, const uint8_t* here, const uint8_t* up, int64_t n, int pixel, uint8_t* out) {
    if (kind == SUB) {
        for (int64_t i = 0; i < n; i += WIDE) store(out + i, load(here + i) - load(here + i - pixel));
    } else if (kind == UP) {
        for (int64_t i = 0; i < n; i += WIDE) store(out + i, load(here + i) - load(up + i));
    } else {
        for (int64_t i = 0; i < n; i += WIDE) store(out + i, load(here + i) - paeth(load(here + i - pixel), load(up + i), load(up + i - pixel)));
    }
}

static uint32_t filter(const LmPngBand& band, uint8_t* rows, uint8_t* lines, uint32_t adler) {
    const int64_t room = landmark::row_room(band.bytes);
    uint8_t *here = rows + MARGIN, *up = here + room;
    memset(rows, 0, (size_t)(2 * room));
    if (band.above) take_row(band.above, band.bytes, band.swap, up);
    for (int64_t y = 0; y < band.rows; y++) {
        take_row(band.pixels + y * band.bytes, band.bytes, band.swap, here);
        uint8_t* line = lines + y * (band.bytes + 1);
        const int kind = choose(here, up, band.bytes, band.pixel);
        line[0] = (uint8_t)kind;
        apply(kind, here, up, band.bytes, band.pixel, line + 1);
        adler = summed(adler, line, band.bytes + 1);
        uint8_t* const done = here;
        here = up, up = done;
    }
    return adler;
}

static uint32_t copy(const LmPngBand& band, int64_t first, int64_t count, uint8_t* lines, uint32_t adler) {
    for (int64_t y = 0; y < count; y++) {
        uint8_t* line = lines + y * (band.bytes + 1);
        line[0] = 0;
        take_row(band.pixels + (first + y) * band.bytes, band.bytes, band.swap, line + 1);
        adler = summed(adler, line, band.bytes + 1);
    }
    return adler;
}

}  // namespace LANDMARK_VARIANT
