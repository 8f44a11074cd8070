// Rays of pixels, with the bits of LandMark's matrix product: (x r0 rounded + y r1) rounded once, then - r2; and where they reach a floor.
#include "abi.h"

namespace landmark {

// One thread, one pixel; a warp's rays are written together.
__global__ void __launch_bounds__(256) pixel_rays(const float* pose, const float* lens, float center, const int64_t* index, int64_t count, int64_t width, float* rays) {
    __shared__ float written[256 * 6];
    const int64_t first = static_cast<int64_t>(blockIdx.x) * 256, i = first + threadIdx.x;
    if (i < count) {
        const int64_t row = index[i] / width, column = index[i] - row * width;
        const float x = __fdiv_rn(__fadd_rn(__fsub_rn(static_cast<float>(column), lens[2]), center), lens[0]);
        const float y = __fdiv_rn(-__fadd_rn(__fsub_rn(static_cast<float>(row), lens[3]), center), lens[1]);
        for (int a = 0; a < 3; a++) {
            const float* turn = pose + 4 * a;
            const double both = __dadd_rn(static_cast<double>(__fmul_rn(x, turn[0])), __dmul_rn(static_cast<double>(y), static_cast<double>(turn[1])));
            written[threadIdx.x * 6 + a] = turn[3];
            written[threadIdx.x * 6 + 3 + a] = __fsub_rn(__double2float_rn(both), turn[2]);
        }
    }
    __syncthreads();
    const int64_t values = (count - first < 256 ? count - first : 256) * 6;
    for (int64_t k = threadIdx.x; k < values; k += 256) rays[first * 6 + k] = written[k];
}

__global__ void __launch_bounds__(256) ray_hull(const float* rays, int64_t count, float far, float floor, float* extent) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (i >= count) return;
    const float slope = rays[i * 6 + 5];
    extent[i] = slope >= 0.f ? far : -__fdiv_rn(__fsub_rn(rays[i * 6 + 2], floor), slope);
}

}  // namespace landmark

extern "C" int lm_pixel_rays(const float* pose, const float* lens, float center, const int64_t* index, int64_t count, int64_t width, float* rays, cudaStream_t stream) {
    if (count == 0) return 0;
    landmark::pixel_rays<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(pose, lens, center, index, count, width, rays);
    return cudaGetLastError();
}

extern "C" int lm_ray_hull(const float* rays, int64_t count, float far, float floor, float* extent, cudaStream_t stream) {
    if (count == 0) return 0;
    landmark::ray_hull<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(rays, count, far, floor, extent);
    return cudaGetLastError();
}
