// Bytes side by side: registers of the instruction set at hand, by the compiler's vector types; intrinsics where it has no word for it.
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#include <string.h>

namespace LANDMARK_VARIANT {

#if defined(__AVX512BW__)
constexpr int WIDE = 64;
#elif defined(__AVX2__)
constexpr int WIDE = 32;
#else
constexpr int WIDE = 16;
#endif

typedef uint8_t V __attribute__((vector_size(WIDE)));
typedef uint16_t V16 __attribute__((vector_size(WIDE)));
typedef uint32_t V32 __attribute__((vector_size(WIDE)));
typedef uint64_t V64 __attribute__((vector_size(WIDE)));

static inline V load(const uint8_t* p) {
    V v;
    memcpy(&v, p, WIDE);
    return v;
}
static inline void store(uint8_t* p, V v) { memcpy(p, &v, WIDE); }
static inline V least(V a, V b) { return a < b ? a : b; }
static inline V most(V a, V b) { return a > b ? a : b; }
static inline V apart(V a, V b) { return most(a, b) - least(a, b); }

// Sums of eight bytes each.
static inline V64 eights(V v) {
#if defined(__AVX512BW__)
    return (V64)_mm512_sad_epu8((__m512i)v, _mm512_setzero_si512());
#elif defined(__AVX2__)
    return (V64)_mm256_sad_epu8((__m256i)v, _mm256_setzero_si256());
#else
    const V16 twos = ((V16)v & (uint16_t)0xff) + ((V16)v >> 8);
    const V32 fours = ((V32)twos & (uint32_t)0xffff) + ((V32)twos >> 16);
    return ((V64)fours & (uint64_t)0xffffffff) + ((V64)fours >> 32);
#endif
}

static inline uint64_t total(V64 v) {
    uint64_t sum = 0;
    for (int i = 0; i < WIDE / 8; i++) sum += v[i];
    return sum;
}

// Whether the 64 bytes at p repeat the one before them.
static inline bool repeats(const uint8_t* p) {
#if defined(__AVX512BW__)
    return _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(p), _mm512_loadu_si512(p - 1)) == ~0ull;
#else
    return p[0] == p[-1] && p[63] == p[-1] && memcmp(p, p - 1, 64) == 0;
#endif
}

// Ones in the first n bytes, at most WIDE.
static inline V first_bytes(int64_t n) {
    alignas(64) static const struct Ones {
        uint8_t at[2 * 64];
        constexpr Ones() : at() {
            for (int i = 0; i < 64; i++) at[i] = 255;
        }
    } ones;
    return load(ones.at + 64 - (n < WIDE ? n : WIDE));
}

}  // namespace LANDMARK_VARIANT
