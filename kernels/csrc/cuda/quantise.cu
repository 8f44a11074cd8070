// quantise: rendered floats to what a store holds, in one pass; and whether a value cannot be stored.
// Integers: floor(v * top + 0.5) of v clamped to 0..1, each step rounded to float32: the bits of the plain ops.
#include <cuda_fp16.h>

#include "abi.h"

namespace landmark {

constexpr int THREADS = 256;

template <typename T>
__device__ T stored(float v);

template <>
__device__ float stored<float>(float v) {
    return v;
}
template <>
__device__ __half stored<__half>(float v) {
    return __float2half_rn(v);
}
template <>
__device__ unsigned char stored<unsigned char>(float v) {
    return static_cast<unsigned char>(__fadd_rn(__fmul_rn(fminf(fmaxf(v, 0.f), 1.f), 255.f), 0.5f));
}
template <>
__device__ unsigned short stored<unsigned short>(float v) {
    return static_cast<unsigned short>(__fadd_rn(__fmul_rn(fminf(fmaxf(v, 0.f), 1.f), 65535.f), 0.5f));
}

template <typename T>
struct alignas(4 * sizeof(T)) Four {
    T v[4];
};

// One thread, four values: of four pixels' channels as they lie, or with alpha of one pixel of three.
template <typename T, bool ALPHA>
__global__ void __launch_bounds__(THREADS) quantise(const float* values, const float* alpha, int64_t count, float limit, T* out, int* wrong) {
    const int64_t four = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x, first = four * 4;
    bool bad = false;
    if (first < count) {
        float v[4];
        const int n = count - first < 4 ? static_cast<int>(count - first) : 4;
        if (ALPHA) {
            for (int i = 0; i < 3; i++) v[i] = values[four * 3 + i];
            v[3] = alpha[four];
        } else if (n == 4) {
            const float4 read = *reinterpret_cast<const float4*>(values + first);
            v[0] = read.x, v[1] = read.y, v[2] = read.z, v[3] = read.w;
        } else {
            for (int i = 0; i < n; i++) v[i] = values[first + i];
        }
        for (int i = 0; i < n; i++) bad |= !(fabsf(v[i]) <= limit);  // not a number, too
        if (n == 4) {
            Four<T> whole;
            for (int i = 0; i < 4; i++) whole.v[i] = stored<T>(v[i]);
            *reinterpret_cast<Four<T>*>(out + first) = whole;
        } else {
            for (int i = 0; i < n; i++) out[first + i] = stored<T>(v[i]);
        }
    }
    if (__syncthreads_or(bad) && threadIdx.x == 0) atomicOr(wrong, 1);
}

template <typename T>
int launch(const float* values, const float* alpha, int64_t count, float limit, void* out, int* wrong, cudaStream_t stream) {
    const int64_t blocks = (count + 4 * THREADS - 1) / (4 * THREADS);
    if (alpha != nullptr) {
        quantise<T, true><<<static_cast<unsigned>(blocks), THREADS, 0, stream>>>(values, alpha, count, limit, static_cast<T*>(out), wrong);
    } else {
        quantise<T, false><<<static_cast<unsigned>(blocks), THREADS, 0, stream>>>(values, nullptr, count, limit, static_cast<T*>(out), wrong);
    }
    return cudaGetLastError();
}

}  // namespace landmark

extern "C" int lm_quantise(const float* values, const float* alpha, int64_t count, float limit, int kind, void* out, int* wrong, cudaStream_t stream) {
    if (count == 0) return 0;
    switch (kind) {
        case LM_UINT8: return landmark::launch<unsigned char>(values, alpha, count, limit, out, wrong, stream);
        case LM_UINT16: return landmark::launch<unsigned short>(values, alpha, count, limit, out, wrong, stream);
        case LM_FLOAT16: return landmark::launch<__half>(values, alpha, count, limit, out, wrong, stream);
        default: return landmark::launch<float>(values, alpha, count, limit, out, wrong, stream);
    }
}
