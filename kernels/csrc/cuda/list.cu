// Lists of samples: where each ray's samples begin, the compact list of coloured samples, and the sum of their colours.
#include "march.cuh"

namespace landmark {

constexpr int NONE = 0x7fffffff;

__device__ __forceinline__ int block_scan(int value, int* shared, int& total) {  // exclusive, 1024 threads
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int x = value;
    for (int n = 1; n < 32; n <<= 1) {
        const int y = __shfl_up_sync(ALL, x, n);
        if (lane >= n) x += y;
    }
    if (lane == 31) shared[warp] = x;
    __syncthreads();
    if (warp == 0) {
        int y = shared[lane];
        for (int n = 1; n < 32; n <<= 1) {
            const int z = __shfl_up_sync(ALL, y, n);
            if (lane >= n) y += z;
        }
        shared[lane] = y;
    }
    __syncthreads();
    total = shared[31];
    const int before = warp ? shared[warp - 1] : 0;
    __syncthreads();
    return before + x - value;
}

__global__ void __launch_bounds__(1024) scan_rays(const int* found, int count, int* offset, int* sums) {
    __shared__ int shared[32];
    const int i = blockIdx.x * 1024 + threadIdx.x;
    int total;
    const int before = block_scan(i < count ? found[i] : 0, shared, total);
    if (i < count) offset[i] = before;
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// status[0]: all samples; status[1], if the list has a capacity: 1 if there are more.
__global__ void __launch_bounds__(1024) scan_sums(int* sums, int blocks, int* status, int64_t capacity) {
    __shared__ int shared[32];
    int carry = 0;
    for (int start = 0; start < blocks; start += 1024) {
        const int i = start + threadIdx.x;
        int total;
        const int before = block_scan(i < blocks ? sums[i] : 0, shared, total);
        if (i < blocks) sums[i] = carry + before;
        carry += total;
    }
    if (threadIdx.x == 0) {
        status[0] = carry;
        if (capacity >= 0) status[1] = carry > capacity;
    }
}

__global__ void __launch_bounds__(1024) add_sums(const int* sums, int count, int* offset) {
    const int i = blockIdx.x * 1024 + threadIdx.x;
    if (i < count) offset[i] += sums[blockIdx.x];
}

// A warp copies the samples of its 32 rays together, so that the list is written in whole lines, and notes in which turn they are
// best looked up: the same depth of all its rays in one go, because there they read the same texels.
__global__ void __launch_bounds__(256) compact(const LmCompact a) {
    const int ray = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31, count = a.count;
    const int n = ray < count ? a.found[ray] : 0;
    int begin = 0, entry = 0;  // the ray's first sample in the list and on the stage
    float t0 = 0.f, per_step = 0.f;
    if (ray < count) {
        begin = a.offset[ray] + a.sums[ray >> 10];
        a.offset[ray] = begin;
        entry = a.entry != nullptr ? a.entry[ray] : 0;
        if (n > 0 && a.entry != nullptr) {
            const float step = a.delta[entry];
            per_step = step > 0.f ? 1.f / step : 0.f;
        } else if (n > 0 && a.samples > 1) {
            const float extent = a.extent[ray];
            t0 = __ldg(a.base) + extent * __ldg(a.slope);
            const float span = __ldg(a.base + a.samples - 1) + extent * __ldg(a.slope + a.samples - 1) - t0;
            per_step = span > 0.f ? (float)(a.samples - 1) / span : 0.f;
        }
    }
    const int first = __shfl_sync(ALL, begin, 0);
    const int relative = ray < count ? begin - first : NONE;
    const int total = __reduce_add_sync(ALL, n);
    const bool whole = (int64_t)first + total <= a.list_capacity;
    for (int start = 0; start < total; start += 32) {
        const int place = start + lane;
        int owner = 0;
#pragma unroll
        for (int half = 16; half; half >>= 1) {
            const int r = __shfl_sync(ALL, relative, owner + half);
            if (r <= place) owner += half;
        }
        const int r = __shfl_sync(ALL, relative, owner), e = __shfl_sync(ALL, entry, owner);
        if (place < total && (int64_t)first + place < a.list_capacity) {
            const int source = ray - lane + owner;
            const float2 v = a.entry != nullptr ? a.stage[(size_t)e + (place - r)] : a.stage[(size_t)(place - r) * count + source];
            a.list[first + place] = make_int4(source, __float_as_int(v.x), __float_as_int(v.y), first + place);
        }
    }
    if (!whole) return;  // rendered again with a longer list
    __syncwarp();
    const auto depth = [&](int i) {
        if (i >= n) return NONE;
        const float t = a.entry != nullptr ? a.stage[(size_t)entry + i].x : a.stage[(size_t)i * count + ray].x;
        return min(__float2int_rn((t - t0) * per_step), NONE - 1);
    };
    int position = first, next = 0, key = depth(0);
    while (true) {
        const int nearest = __reduce_min_sync(ALL, key);
        if (nearest == NONE) break;
        const bool turn = key == nearest;
        const unsigned together = __ballot_sync(ALL, turn);
        if (turn) {
            a.list[position + __popc(together & ((1u << lane) - 1u))].w = begin + next;
            key = depth(++next);
        }
        position += __popc(together);
    }
}

__global__ void __launch_bounds__(256) resolve(const float4* colour, const int* offset, const int* found, int count, int64_t list_capacity, float* rgb) {
    const int ray = blockIdx.x * blockDim.x + threadIdx.x;
    if (ray >= count) return;
    float r = 0.f, g = 0.f, b = 0.f;
    const float4* c = colour + offset[ray];
    const int n = (int64_t)offset[ray] + found[ray] <= list_capacity ? found[ray] : 0;  // an overfull list is rendered again
    for (int i = 0; i < n; i++) r += c[i].x, g += c[i].y, b += c[i].z;
    rgb[(size_t)ray * 3] = r, rgb[(size_t)ray * 3 + 1] = g, rgb[(size_t)ray * 3 + 2] = b;
}

}  // namespace landmark

extern "C" int lm_scan(const int* found, int count, int* offset, int* sums, int* status, int64_t capacity, cudaStream_t stream) {
    const int scans = (count + 1023) / 1024;
    landmark::scan_rays<<<scans, 1024, 0, stream>>>(found, count, offset, sums);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    landmark::scan_sums<<<1, 1024, 0, stream>>>(sums, scans, status, capacity);
    return cudaGetLastError();
}

extern "C" int lm_add_sums(const int* sums, int count, int* offset, cudaStream_t stream) {
    landmark::add_sums<<<(count + 1023) / 1024, 1024, 0, stream>>>(sums, count, offset);
    return cudaGetLastError();
}

extern "C" int lm_compact(const LmCompact* a, cudaStream_t stream) {
    landmark::compact<<<(a->count + 255) / 256, 256, 0, stream>>>(*a);
    return cudaGetLastError();
}

extern "C" int lm_resolve(const float4* colour, const int* offset, const int* found, int count, int64_t list_capacity, float* rgb, cudaStream_t stream) {
    if (count == 0) return 0;
    landmark::resolve<<<(count + 255) / 256, 256, 0, stream>>>(colour, offset, found, count, list_capacity, rgb);
    return cudaGetLastError();
}
