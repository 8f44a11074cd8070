// Sixteen lanes as one AVX-512 register. The same names and the same rounding as in simd_avx2.h and simd_portable.h.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace LANDMARK_VARIANT {

constexpr int LANES = 16;
constexpr int GEMM_ROWS = 8;   // of the register block: GEMM_ROWS * GEMM_WIDE accumulators
constexpr int GEMM_WIDE = 3;

struct F { __m512 v; };
struct H { __m256 v; };  // eight lanes
struct I { __m512i v; };
struct M { __mmask16 v; };

static inline F set(float x) { return {_mm512_set1_ps(x)}; }
static inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline F load(const float* p, int n) { return {_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p)}; }
static inline F load(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline F load(const uint16_t* p, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p))}; }
static inline F load2(const float* p, const float* q) {  // eight floats of each
    return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)), _mm256_loadu_ps(q), 1)};
}
static inline F load2(const uint16_t* p, const uint16_t* q) {
    return {_mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)p)), _mm_loadu_si128((const __m128i*)q), 1))};
}
static inline F set2(float x, float y) { return {_mm512_mask_broadcastss_ps(_mm512_set1_ps(x), 0xff00, _mm_set_ss(y))}; }
static inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
static inline void store(float* p, F a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a.v); }
static inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F fnma(F a, F b, F c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
static inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }                // b where either is NaN
static inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F floor(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
static inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
static inline M operator<(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
static inline M operator>(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
static inline F select(M m, F a, F b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
static inline F gather(const float* p, I i) { return {_mm512_i32gather_ps(i.v, p, 4)}; }
static inline float sum8(__m256 a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
static inline H fold(F a) { return {_mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1))}; }
static inline float sum(H a) { return sum8(a.v); }
static inline float sum(F a) { return sum(fold(a)); }
static inline H zero8() { return {_mm256_setzero_ps()}; }
static inline H load8(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline H one8() { return {_mm256_set1_ps(1.0f)}; }
static inline H operator*(H a, H b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline H fma(H a, H b, H c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline F load4(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }  // the same four floats in each quarter
// Of each aligned four lanes, then of the four quarters, lane by lane.
static inline F least4(F a) { __m512 b = _mm512_min_ps(a.v, _mm512_permute_ps(a.v, 0xb1)); return {_mm512_min_ps(b, _mm512_permute_ps(b, 0x4e))}; }
static inline F most4(F a) { __m512 b = _mm512_max_ps(a.v, _mm512_permute_ps(a.v, 0xb1)); return {_mm512_max_ps(b, _mm512_permute_ps(b, 0x4e))}; }
static inline F least_quarter(F a) { __m512 b = _mm512_min_ps(a.v, _mm512_shuffle_f32x4(a.v, a.v, 0xb1)); return {_mm512_min_ps(b, _mm512_shuffle_f32x4(b, b, 0x4e))}; }
static inline F most_quarter(F a) { __m512 b = _mm512_max_ps(a.v, _mm512_shuffle_f32x4(a.v, a.v, 0xb1)); return {_mm512_max_ps(b, _mm512_shuffle_f32x4(b, b, 0x4e))}; }

static inline I seti(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I counting() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
static inline I load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline I load(const int32_t* p, int n) { return {_mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p)}; }
static inline void store(int32_t* p, I a) { _mm512_storeu_si512(p, a.v); }
static inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I operator-(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline I operator*(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
static inline I operator&(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline I max(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
static inline I min(I a, I b) { return {_mm512_min_epi32(a.v, b.v)}; }
static inline M operator<(I a, I b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
static inline M operator==(I a, I b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
static inline I select(M m, I a, I b) { return {_mm512_mask_blend_epi32(m.v, b.v, a.v)}; }
static inline I shift_left(I a, int n) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
static inline I shift_right(I a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
static inline I truncate(F a) { return {_mm512_cvttps_epi32(a.v)}; }
static inline I nearest(F a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline F as_float(I a) { return {_mm512_castsi512_ps(a.v)}; }
static inline I as_int(F a) { return {_mm512_castps_si512(a.v)}; }
// Byte i of p: the aligned word that holds it is read (p is aligned to words), never one beyond.
static inline I gather_bytes(const uint8_t* p, I i) {
    __m512i word = _mm512_i32gather_epi32(_mm512_srli_epi32(i.v, 2), p, 4);
    __m512i shift = _mm512_slli_epi32(_mm512_and_si512(i.v, _mm512_set1_epi32(3)), 3);
    return {_mm512_and_si512(_mm512_srlv_epi32(word, shift), _mm512_set1_epi32(255))};
}

static inline M operator&(M a, M b) { return {(__mmask16)(a.v & b.v)}; }
static inline M operator|(M a, M b) { return {(__mmask16)(a.v | b.v)}; }
static inline M operator!(M a) { return {(__mmask16)~a.v}; }
static inline M from_bits(uint32_t x) { return {(__mmask16)x}; }
static inline M has_bit(I a, int bit) { return {_mm512_test_epi32_mask(a.v, _mm512_set1_epi32(1 << bit))}; }
static inline F add_where(M m, F a, F b) { return {_mm512_mask_add_ps(a.v, m.v, a.v, b.v)}; }  // a + b, elsewhere a
static inline M first(int n) { return {(__mmask16)((1u << n) - 1)}; }
static inline M first(int n, int m) { return {(__mmask16)(((1u << n) - 1) | ((1u << m) - 1) << 8)}; }  // of each eight
static inline uint32_t bits(M a) { return a.v; }
// The chosen lanes, packed, to p; may write all 16 places.
static inline void compress(float* p, M m, F a) { _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m.v, a.v)); }

// Rows of sixteen floats -> their columns.
static inline void transpose(F* r) {
    __m512 a[16];
    for (int i = 0; i < 16; i += 2) {  // pairs, then fours, inside the quarters of a register
        a[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v), a[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    }
    __m512 b[16];
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a[i + j]), _mm512_castps_pd(a[i + 2 + j])));
            b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a[i + j]), _mm512_castps_pd(a[i + 2 + j])));
        }
    for (int j = 0; j < 4; j++) {  // quarters change places
        const __m512 low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
        const __m512 high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88), last = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
        r[j].v = _mm512_shuffle_f32x4(low, high, 0x88), r[8 + j].v = _mm512_shuffle_f32x4(low, high, 0xdd);
        r[4 + j].v = _mm512_shuffle_f32x4(odd, last, 0x88), r[12 + j].v = _mm512_shuffle_f32x4(odd, last, 0xdd);
    }
}

}  // namespace LANDMARK_VARIANT
