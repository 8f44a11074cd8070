// Sixteen lanes as two AVX2 registers. The same names and the same rounding as in simd_avx512.h.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace LANDMARK_VARIANT {

constexpr int LANES = 16;
constexpr int GEMM_ROWS = 6;
constexpr int GEMM_WIDE = 1;

struct F { __m256 a, b; };
struct H { __m256 v; };  // eight lanes
struct I { __m256i a, b; };
struct M { __m256 a, b; };

static inline __m256i lane_mask(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
static inline __m256 half_precision(const uint16_t* p, int n) {
    if (n >= 8) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
    alignas(16) uint16_t part[8] = {};
    for (int i = 0; i < n; i++) part[i] = p[i];
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i*)part));
}

static inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline F load(const float* p, int n) { return {_mm256_maskload_ps(p, lane_mask(n)), _mm256_maskload_ps(p + 8, lane_mask(n - 8))}; }
static inline F load(const uint16_t* p) { return {half_precision(p, 8), half_precision(p + 8, 8)}; }
static inline F load(const uint16_t* p, int n) { return {half_precision(p, n), half_precision(p + 8, n - 8)}; }
static inline F load2(const float* p, const float* q) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(q)}; }
static inline F load2(const uint16_t* p, const uint16_t* q) { return {half_precision(p, 8), half_precision(q, 8)}; }
static inline F set2(float x, float y) { return {_mm256_set1_ps(x), _mm256_set1_ps(y)}; }
static inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static inline void store(float* p, F x, int n) { _mm256_maskstore_ps(p, lane_mask(n), x.a); _mm256_maskstore_ps(p + 8, lane_mask(n - 8), x.b); }
static inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
static inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F floor(F x) { return {_mm256_floor_ps(x.a), _mm256_floor_ps(x.b)}; }
static inline F abs(F x) { const __m256 s = _mm256_set1_ps(-0.0f); return {_mm256_andnot_ps(s, x.a), _mm256_andnot_ps(s, x.b)}; }
static inline M operator<(F x, F y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)}; }
static inline M operator>(F x, F y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)}; }
static inline F select(M m, F x, F y) { return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)}; }
static inline F gather(const float* p, I i) { return {_mm256_i32gather_ps(p, i.a, 4), _mm256_i32gather_ps(p, i.b, 4)}; }
static inline float sum8(__m256 a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
static inline H fold(F x) { return {_mm256_add_ps(x.a, x.b)}; }
static inline float sum(H x) { return sum8(x.v); }
static inline float sum(F x) { return sum(fold(x)); }
static inline H zero8() { return {_mm256_setzero_ps()}; }
static inline H load8(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline H one8() { return {_mm256_set1_ps(1.0f)}; }
static inline H operator*(H x, H y) { return {_mm256_mul_ps(x.v, y.v)}; }
static inline H fma(H x, H y, H z) { return {_mm256_fmadd_ps(x.v, y.v, z.v)}; }

static inline F load4(const float* p) { const __m256 a = _mm256_broadcast_ps((const __m128*)p); return {a, a}; }
static inline __m256 least4(__m256 a) { a = _mm256_min_ps(a, _mm256_permute_ps(a, 0xb1)); return _mm256_min_ps(a, _mm256_permute_ps(a, 0x4e)); }
static inline __m256 most4(__m256 a) { a = _mm256_max_ps(a, _mm256_permute_ps(a, 0xb1)); return _mm256_max_ps(a, _mm256_permute_ps(a, 0x4e)); }
static inline F least4(F x) { return {least4(x.a), least4(x.b)}; }
static inline F most4(F x) { return {most4(x.a), most4(x.b)}; }
static inline F least_quarter(F x) { __m256 a = _mm256_min_ps(x.a, x.b); a = _mm256_min_ps(a, _mm256_permute2f128_ps(a, a, 1)); return {a, a}; }
static inline F most_quarter(F x) { __m256 a = _mm256_max_ps(x.a, x.b); a = _mm256_max_ps(a, _mm256_permute2f128_ps(a, a, 1)); return {a, a}; }

static inline I seti(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I counting() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)}; }
static inline I load(const int32_t* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))}; }
static inline I load(const int32_t* p, int n) { return {_mm256_maskload_epi32(p, lane_mask(n)), _mm256_maskload_epi32(p + 8, lane_mask(n - 8))}; }
static inline void store(int32_t* p, I x) { _mm256_storeu_si256((__m256i*)p, x.a); _mm256_storeu_si256((__m256i*)(p + 8), x.b); }
static inline I operator+(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline I operator-(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
static inline I operator*(I x, I y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
static inline I operator&(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
static inline I max(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
static inline I min(I x, I y) { return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)}; }
static inline M as_mask(__m256i a, __m256i b) { return {_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)}; }
static inline M operator<(I x, I y) { return as_mask(_mm256_cmpgt_epi32(y.a, x.a), _mm256_cmpgt_epi32(y.b, x.b)); }
static inline M operator==(I x, I y) { return as_mask(_mm256_cmpeq_epi32(x.a, y.a), _mm256_cmpeq_epi32(x.b, y.b)); }
static inline I select(M m, I x, I y) {
    return {_mm256_blendv_epi8(y.a, x.a, _mm256_castps_si256(m.a)), _mm256_blendv_epi8(y.b, x.b, _mm256_castps_si256(m.b))};
}
static inline I shift_left(I x, int n) { __m128i c = _mm_cvtsi32_si128(n); return {_mm256_sll_epi32(x.a, c), _mm256_sll_epi32(x.b, c)}; }
static inline I shift_right(I x, int n) { __m128i c = _mm_cvtsi32_si128(n); return {_mm256_srl_epi32(x.a, c), _mm256_srl_epi32(x.b, c)}; }
static inline I truncate(F x) { return {_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)}; }
static inline I nearest(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline F as_float(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
static inline I as_int(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
static inline __m256i bytes8(const uint8_t* p, __m256i i) {
    __m256i word = _mm256_i32gather_epi32((const int*)p, _mm256_srli_epi32(i, 2), 4);
    __m256i shift = _mm256_slli_epi32(_mm256_and_si256(i, _mm256_set1_epi32(3)), 3);
    return _mm256_and_si256(_mm256_srlv_epi32(word, shift), _mm256_set1_epi32(255));
}
static inline I gather_bytes(const uint8_t* p, I i) { return {bytes8(p, i.a), bytes8(p, i.b)}; }

static inline M operator&(M x, M y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
static inline M operator|(M x, M y) { return {_mm256_or_ps(x.a, y.a), _mm256_or_ps(x.b, y.b)}; }
static inline M operator!(M x) {
    const __m256 ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return {_mm256_xor_ps(x.a, ones), _mm256_xor_ps(x.b, ones)};
}
static inline M from_bits(uint32_t x) {
    const __m256i all = _mm256_set1_epi32((int)x), a = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), b = _mm256_slli_epi32(a, 8);
    return as_mask(_mm256_cmpeq_epi32(_mm256_and_si256(all, a), a), _mm256_cmpeq_epi32(_mm256_and_si256(all, b), b));
}
static inline M has_bit(I x, int bit) {
    const __m256i one = _mm256_set1_epi32(1 << bit);
    return as_mask(_mm256_cmpeq_epi32(_mm256_and_si256(x.a, one), one), _mm256_cmpeq_epi32(_mm256_and_si256(x.b, one), one));
}
static inline F add_where(M m, F x, F y) { return {_mm256_add_ps(x.a, _mm256_and_ps(m.a, y.a)), _mm256_add_ps(x.b, _mm256_and_ps(m.b, y.b))}; }
static inline M first(int n) { return as_mask(lane_mask(n), lane_mask(n - 8)); }
static inline M first(int n, int m) { return as_mask(lane_mask(n), lane_mask(m)); }
static inline uint32_t bits(M x) { return (uint32_t)_mm256_movemask_ps(x.a) | (uint32_t)_mm256_movemask_ps(x.b) << 8; }
static inline void compress(float* p, M m, F x) {
    alignas(32) float lanes[16];
    store(lanes, x);
    for (uint32_t left = bits(m); left; left &= left - 1) *p++ = lanes[__builtin_ctz(left)];
}

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
