// features: appearance features of the coloured samples for every shape of field: products in the tables' precision, the basis in
// fp32. The decoder's matrix products then run in the caller's library.
#include "field.cuh"

namespace landmark {

constexpr int FEATURE_WARPS = 4, BATCH = 4;  // samples a warp carries at once

template <typename T>
__global__ void __launch_bounds__(FEATURE_WARPS * 32) features(const LmFeatures a) {
    extern __shared__ float shared_products[];
    const int columns = a.field.tables * a.field.octets * 8, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float* mine = shared_products + (size_t)warp * BATCH * columns;
    const int batches = (a.count + BATCH - 1) / BATCH;
    for (int batch = blockIdx.x * FEATURE_WARPS + warp; batch < batches; batch += gridDim.x * FEATURE_WARPS) {
#pragma unroll
        for (int s = 0; s < BATCH; s++) {
            const int index = min(batch * BATCH + s, a.count - 1);
            const int4 sample = a.list[index];
            const float* ray = a.rays + (size_t)sample.x * 6;
            const float t = __int_as_float(sample.y);
            const Place place = locate(a.field, sample_axis(__ldg(ray), __ldg(ray + 3), t), sample_axis(__ldg(ray + 1), __ldg(ray + 4), t), sample_axis(__ldg(ray + 2), __ldg(ray + 5), t));
            for (int item = lane; item < a.field.tables * a.field.octets; item += 32) {
                const int i = item / a.field.octets, octet = item - i * a.field.octets;
                float v[8] = {};
                if (place.slot >= 0) products<T>(a.field.table[i], taps(a.field.table[i], place), a.field.octets, octet, v);
#pragma unroll
                for (int c = 0; c < 8; c++) mine[s * columns + item * 8 + c] = v[c];
            }
        }
        __syncwarp();
        for (int f = lane; f < a.outputs; f += 32) {
            float sum[BATCH] = {};
            const float* row = a.basis + (size_t)f * columns;
            for (int k = 0; k < columns; k++) {
                const float b = __ldg(row + k);
#pragma unroll
                for (int s = 0; s < BATCH; s++) sum[s] = fmaf(mine[s * columns + k], b, sum[s]);
            }
#pragma unroll
            for (int s = 0; s < BATCH; s++)
                if (batch * BATCH + s < a.count) a.features[(size_t)(batch * BATCH + s) * a.outputs + f] = sum[s];
        }
        __syncwarp();
    }
}

template <typename T>
cudaError_t launch_features(const LmFeatures& a, cudaStream_t stream) {
    const size_t bytes = (size_t)FEATURE_WARPS * BATCH * a.field.tables * a.field.octets * 8 * sizeof(float);
    const cudaError_t error = cudaFuncSetAttribute(features<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) return error;
    const long long blocks = ((long long)a.count + FEATURE_WARPS * BATCH - 1) / (FEATURE_WARPS * BATCH);
    features<T><<<(int)(blocks < 65536 ? blocks : 65536), FEATURE_WARPS * 32, bytes, stream>>>(a);
    return cudaGetLastError();
}

}  // namespace landmark

extern "C" int lm_features(const LmFeatures* a, cudaStream_t stream) {
    if (a->count == 0) return 0;
    return a->field.half_precision ? landmark::launch_features<half>(*a, stream) : landmark::launch_features<float>(*a, stream);
}
