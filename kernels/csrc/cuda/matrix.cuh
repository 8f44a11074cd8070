// Matrix products on the tensor units: fp16 in, fp32 sums. Weights lie in shared memory as core matrices
// [K / 8][N / 8][8 outputs][8 inputs]: what wgmma reads without swizzle, and ldmatrix without bank conflicts.
#pragma once
#include "field.cuh"

namespace landmark {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LM_WGMMA 1
#endif

__device__ __forceinline__ uint32_t pack(float a, float b) { return as_bits(__floats2half2_rn(a, b)); }
__device__ __forceinline__ uint32_t pack_relu(float a, float b) { return pack(fmaxf(a, 0.f), fmaxf(b, 0.f)); }
__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void load_matrix(uint32_t a[4], const half* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(shared_address(row)));
}

// 16 rows of a warp times a matrix of 16 inputs and 8 N8 outputs, on any processor.
__device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <int N8>
__device__ __forceinline__ void multiply_warp(float (&c)[N8][4], const uint32_t a[4], const half* b, int lane) {
    if constexpr (N8 == 1) {
        uint32_t f[4];
        load_matrix(f, b + (lane & 15) * 8);  // two core matrices along K; the upper half repeats them
        mma(c[0], a, f[0], f[1]);
    } else {
#pragma unroll
        for (int n = 0; n < N8; n += 2) {  // lanes 0-7: (k 0, n), 8-15: (k 1, n), 16-23: (k 0, n + 1), 24-31: (k 1, n + 1)
            uint32_t f[4];
            load_matrix(f, b + ((lane >> 3 & 1) * N8 + n + (lane >> 4)) * 64 + (lane & 7) * 8);
            mma(c[n], a, f[0], f[1]);
            mma(c[n + 1], a, f[2], f[3]);
        }
    }
}

// 64 rows of four warps where the processor has wgmma.
#ifdef LM_WGMMA
__device__ __forceinline__ uint64_t descriptor(const half* p, int n) {
    return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | (uint64_t)(n / 8 * 128 >> 4) << 16 | (uint64_t)(128 >> 4) << 32;
}
#define LM_F4(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
__device__ __forceinline__ void multiply(float (&c)[16][4], const uint32_t a[4], const half* b, int) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
        "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,"
        "%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 0;\n"
        : LM_F4(c, 0), LM_F4(c, 1), LM_F4(c, 2), LM_F4(c, 3), LM_F4(c, 4), LM_F4(c, 5), LM_F4(c, 6), LM_F4(c, 7), LM_F4(c, 8), LM_F4(c, 9), LM_F4(c, 10),
          LM_F4(c, 11), LM_F4(c, 12), LM_F4(c, 13), LM_F4(c, 14), LM_F4(c, 15)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor(b, 128)));
}
__device__ __forceinline__ void multiply(float (&c)[4][4], const uint32_t a[4], const half* b, int) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;\n"
                 : LM_F4(c, 0), LM_F4(c, 1), LM_F4(c, 2), LM_F4(c, 3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor(b, 32)));
}
__device__ __forceinline__ void multiply(float (&c)[1][4], const uint32_t a[4], const half* b, int) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;\n"
                 : LM_F4(c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor(b, 8)));
}
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
#else
template <int N8>
__device__ __forceinline__ void multiply(float (&c)[N8][4], const uint32_t a[4], const half* b, int lane) {
    multiply_warp(c, a, b, lane);
}
__device__ __forceinline__ void begin_products() {}
__device__ __forceinline__ void end_products() {}
#endif

}  // namespace landmark
