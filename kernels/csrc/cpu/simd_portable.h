// Sixteen lanes as plain arrays, for processors without AVX2: the compiler makes of them what the target has. A target with a
// fused multiply-add (aarch64) gives the bits of the other two files; one without rounds products of sums once more.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace LANDMARK_VARIANT {

constexpr int LANES = 16;
constexpr int GEMM_ROWS = 4;
constexpr int GEMM_WIDE = 1;

struct F { float v[16]; };
struct H { float v[8]; };
struct I { int32_t v[16]; };
struct M { int32_t v[16]; };  // 0 or -1

#define EACH(type, expression) type r; for (int i = 0; i < 16; i++) r.v[i] = expression; return r

static inline float multiply_add(float x, float y, float z) {
#ifdef FP_FAST_FMAF
    return __builtin_fmaf(x, y, z);
#else
    return x * y + z;
#endif
}
static inline float from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023, word;
    if (exponent == 0) {
        float value = (float)fraction * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -value : value;
    }
    word = sign | (exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | fraction << 13;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

static inline F set(float x) { EACH(F, x); }
static inline F load(const float* p) { EACH(F, p[i]); }
static inline F load(const float* p, int n) { EACH(F, i < n ? p[i] : 0.0f); }
static inline F load(const uint16_t* p) { EACH(F, from_half(p[i])); }
static inline F load(const uint16_t* p, int n) { EACH(F, i < n ? from_half(p[i]) : 0.0f); }
static inline F load2(const float* p, const float* q) { EACH(F, i < 8 ? p[i] : q[i - 8]); }
static inline F load2(const uint16_t* p, const uint16_t* q) { EACH(F, from_half(i < 8 ? p[i] : q[i - 8])); }
static inline F set2(float x, float y) { EACH(F, i < 8 ? x : y); }
static inline void store(float* p, F a) { memcpy(p, a.v, 64); }
static inline void store(float* p, F a, int n) { for (int i = 0; i < n && i < 16; i++) p[i] = a.v[i]; }
static inline F operator+(F a, F b) { EACH(F, a.v[i] + b.v[i]); }
static inline F operator-(F a, F b) { EACH(F, a.v[i] - b.v[i]); }
static inline F operator*(F a, F b) { EACH(F, a.v[i] * b.v[i]); }
static inline F operator/(F a, F b) { EACH(F, a.v[i] / b.v[i]); }
static inline F fma(F a, F b, F c) { EACH(F, multiply_add(a.v[i], b.v[i], c.v[i])); }
static inline F fnma(F a, F b, F c) { EACH(F, multiply_add(-a.v[i], b.v[i], c.v[i])); }
static inline F max(F a, F b) { EACH(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline F min(F a, F b) { EACH(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline F floor(F a) { EACH(F, floorf(a.v[i])); }
static inline F abs(F a) { EACH(F, fabsf(a.v[i])); }
static inline M operator<(F a, F b) { EACH(M, -(a.v[i] < b.v[i])); }
static inline M operator>(F a, F b) { EACH(M, -(a.v[i] > b.v[i])); }
static inline F select(M m, F a, F b) { EACH(F, m.v[i] ? a.v[i] : b.v[i]); }
static inline F gather(const float* p, I j) { EACH(F, p[j.v[i]]); }
static inline H fold(F a) { H r; for (int i = 0; i < 8; i++) r.v[i] = a.v[i] + a.v[i + 8]; return r; }
static inline float sum(H a) {
    float b[4];
    for (int i = 0; i < 4; i++) b[i] = a.v[i] + a.v[i + 4];
    return (b[0] + b[2]) + (b[1] + b[3]);
}
static inline float sum(F a) { return sum(fold(a)); }
static inline H zero8() { return {}; }
static inline H load8(const float* p) { H r; memcpy(r.v, p, 32); return r; }
static inline H one8() { H r; for (int i = 0; i < 8; i++) r.v[i] = 1.0f; return r; }
static inline H operator*(H a, H b) { H r; for (int i = 0; i < 8; i++) r.v[i] = a.v[i] * b.v[i]; return r; }
static inline H fma(H a, H b, H c) { H r; for (int i = 0; i < 8; i++) r.v[i] = multiply_add(a.v[i], b.v[i], c.v[i]); return r; }
static inline F load4(const float* p) { EACH(F, p[i % 4]); }
static inline F pairwise(F a, int distance, int most) { EACH(F, (a.v[i] < a.v[i ^ distance]) != most ? a.v[i] : a.v[i ^ distance]); }
static inline F least4(F a) { return pairwise(pairwise(a, 1, 0), 2, 0); }
static inline F most4(F a) { return pairwise(pairwise(a, 1, 1), 2, 1); }
static inline F least_quarter(F a) { return pairwise(pairwise(a, 4, 0), 8, 0); }
static inline F most_quarter(F a) { return pairwise(pairwise(a, 4, 1), 8, 1); }

static inline int32_t whole(float x) { return x >= -2147483648.0f && x < 2147483648.0f ? (int32_t)x : INT32_MIN; }  // as x86 converts
static inline I seti(int32_t x) { EACH(I, x); }
static inline I counting() { EACH(I, i); }
static inline I load(const int32_t* p) { EACH(I, p[i]); }
static inline I load(const int32_t* p, int n) { EACH(I, i < n ? p[i] : 0); }
static inline void store(int32_t* p, I a) { memcpy(p, a.v, 64); }
static inline I operator+(I a, I b) { EACH(I, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i])); }
static inline I operator-(I a, I b) { EACH(I, (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i])); }
static inline I operator*(I a, I b) { EACH(I, (int32_t)((uint32_t)a.v[i] * (uint32_t)b.v[i])); }
static inline I operator&(I a, I b) { EACH(I, a.v[i] & b.v[i]); }
static inline I max(I a, I b) { EACH(I, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline I min(I a, I b) { EACH(I, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline M operator<(I a, I b) { EACH(M, -(a.v[i] < b.v[i])); }
static inline M operator==(I a, I b) { EACH(M, -(a.v[i] == b.v[i])); }
static inline I select(M m, I a, I b) { EACH(I, m.v[i] ? a.v[i] : b.v[i]); }
static inline I shift_left(I a, int n) { EACH(I, (int32_t)((uint32_t)a.v[i] << n)); }
static inline I shift_right(I a, int n) { EACH(I, (int32_t)((uint32_t)a.v[i] >> n)); }
static inline I truncate(F a) { EACH(I, whole(a.v[i])); }
static inline I nearest(F a) { EACH(I, whole(nearbyintf(a.v[i]))); }
static inline F to_float(I a) { EACH(F, (float)a.v[i]); }
static inline F as_float(I a) { F r; memcpy(&r, &a, 64); return r; }
static inline I as_int(F a) { I r; memcpy(&r, &a, 64); return r; }
static inline I gather_bytes(const uint8_t* p, I j) { EACH(I, p[j.v[i]]); }

static inline M operator&(M a, M b) { EACH(M, a.v[i] & b.v[i]); }
static inline M operator|(M a, M b) { EACH(M, a.v[i] | b.v[i]); }
static inline M operator!(M a) { EACH(M, ~a.v[i]); }
static inline M from_bits(uint32_t x) { EACH(M, -(int32_t)(x >> i & 1)); }
static inline M has_bit(I a, int bit) { EACH(M, -(a.v[i] >> bit & 1)); }
static inline F add_where(M m, F a, F b) { EACH(F, m.v[i] ? a.v[i] + b.v[i] : a.v[i]); }
static inline M first(int n) { EACH(M, -(i < n)); }
static inline M first(int n, int m) { EACH(M, -(i < 8 ? i < n : i - 8 < m)); }
static inline uint32_t bits(M a) { uint32_t r = 0; for (int i = 0; i < 16; i++) r |= (uint32_t)(a.v[i] & 1) << i; return r; }
static inline void compress(float* p, M m, F a) { for (int i = 0; i < 16; i++) if (m.v[i]) *p++ = a.v[i]; }

#undef EACH

// Rows of sixteen floats -> their columns.
static inline void transpose(F* r) {
    float rows[16][16];
    for (int i = 0; i < 16; i++) store(rows[i], r[i]);
    for (int i = 0; i < 16; i++) {
        float column[16];
        for (int j = 0; j < 16; j++) column[j] = rows[j][i];
        r[i] = load(column);
    }
}

}  // namespace LANDMARK_VARIANT
