// out[i][s] = start[i] + sum over k of a[i][k] * b[k][s], each sum in the order of k: an element's bits depend on its row of a
// and its column of b alone. Lanes run over s; a is read as it lies in memory, row by row, one number for all lanes.
#pragma once

namespace LANDMARK_VARIANT {

constexpr int GEMM_DEPTH = 128;  // rows of b that stay in the first-level cache while all rows of a pass

struct Product {
    const float* a;  // [rows, a_stride]
    int64_t a_stride;
    const float* b;  // [depth, b_stride], b_stride whole vectors
    int64_t b_stride;
    float* out;  // [rows, out_stride], out_stride whole vectors
    int64_t out_stride;
    int rows, depth, vectors;  // vectors: of 16 columns
    const float* start;        // [rows], or null for 0
    bool relu;
};

template <int ROWS, int WIDE>
static inline void product_block(const Product& p, int row, int column, int k0, int k1) {
    F sum[ROWS][WIDE];
    float* out = p.out + row * p.out_stride + column;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < WIDE; j++)
            sum[i][j] = k0 ? load(out + i * p.out_stride + j * LANES) : set(p.start ? p.start[row + i] : 0.0f);
    const float* a = p.a + row * p.a_stride;
    const float* b = p.b + k0 * p.b_stride + column;
    for (int k = k0; k < k1; k++, b += p.b_stride) {
        F right[WIDE];
#pragma GCC unroll 4
        for (int j = 0; j < WIDE; j++) right[j] = load(b + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            F left = set(a[i * p.a_stride + k]);
#pragma GCC unroll 4
            for (int j = 0; j < WIDE; j++) sum[i][j] = fma(left, right[j], sum[i][j]);
        }
    }
    const bool relu = p.relu && k1 == p.depth;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < WIDE; j++) store(out + i * p.out_stride + j * LANES, relu ? max(set(0.0f), sum[i][j]) : sum[i][j]);
}

template <int WIDE>
static void product_panel(const Product& p, int column, int k0, int k1) {
    int row = 0;
    for (; row + GEMM_ROWS <= p.rows; row += GEMM_ROWS) product_block<GEMM_ROWS, WIDE>(p, row, column, k0, k1);
    switch (p.rows - row) {
#define TAIL(n) case n: if constexpr (n < GEMM_ROWS) product_block<n, WIDE>(p, row, column, k0, k1); break;
        TAIL(1) TAIL(2) TAIL(3) TAIL(4) TAIL(5) TAIL(6) TAIL(7)
#undef TAIL
    }
}

static void product(const Product& p) {
    for (int column = 0; column < p.vectors; column += GEMM_WIDE)
        for (int k0 = 0; k0 < p.depth || k0 == 0; k0 += GEMM_DEPTH) {
            int k1 = k0 + GEMM_DEPTH < p.depth ? k0 + GEMM_DEPTH : p.depth;
            int wide = p.vectors - column < GEMM_WIDE ? p.vectors - column : GEMM_WIDE;
            if (wide == GEMM_WIDE) product_panel<GEMM_WIDE>(p, column * LANES, k0, k1);
            else if (wide == 2) { if constexpr (GEMM_WIDE > 2) product_panel<2>(p, column * LANES, k0, k1); }
            else if constexpr (GEMM_WIDE > 1) product_panel<1>(p, column * LANES, k0, k1);
        }
}

}  // namespace LANDMARK_VARIANT
