// trace: march through the occupancy, density, emission and absorption, in one pass a ray; then the compact list of coloured
// samples, in the order of rays and samples.
#include "field.cuh"

namespace landmark {

constexpr int CELL = 8, WARPS = 4;
constexpr unsigned ALL = 0xffffffffu;

__device__ __forceinline__ float sample_at(const LmMarch& m, float extent, int k) {
    return __fadd_rn(__ldg(m.base + k), __fmul_rn(extent, __ldg(m.slope + k)));
}

__device__ __forceinline__ float mask_pixel(float position, float low, float inverse, int voxels) {
    return __fmul_rn(__fmul_rn(__fadd_rn(__fsub_rn(__fmul_rn(__fsub_rn(position, low), inverse), 1.f), 1.f), 0.5f), (float)(voxels - 1));
}

__device__ __forceinline__ unsigned voxel(const LmMarch& m, int x, int y, int z) {
    if ((unsigned)x >= (unsigned)m.size[0] || (unsigned)y >= (unsigned)m.size[1] || (unsigned)z >= (unsigned)m.size[2]) return 0u;
    return __ldg(m.bits + ((size_t)z * m.size[1] + y) * m.words + (x >> 5)) >> (x & 31) & 1u;
}

// Bits x and x + 1 of a row, given its word x / 32.
__device__ __forceinline__ unsigned pair(const uint32_t* word, int x) {
    const int shift = x & 31;
    const uint32_t low = __ldg(word);
    return shift < 31 ? low >> shift & 3u : low >> 31 | (__ldg(word + 1) & 1u) << 1;
}

__device__ __forceinline__ bool occupied(const LmMarch& m, float px, float py, float pz) {
    const float fx = floorf(px), fy = floorf(py), fz = floorf(pz);
    if (!(fx >= -1.f && fy >= -1.f && fz >= -1.f && fx < m.size[0] && fy < m.size[1] && fz < m.size[2])) return false;
    const int x = (int)fx, y = (int)fy, z = (int)fz;
    unsigned corners = 0;
    if (x >= 0 && y >= 0 && z >= 0 && x + 1 < m.size[0] && y + 1 < m.size[1] && z + 1 < m.size[2]) {
        const uint32_t* row = m.bits + ((size_t)z * m.size[1] + y) * m.words + (x >> 5);
        const size_t layer = (size_t)m.size[1] * m.words;
        corners = pair(row, x) | pair(row + m.words, x) << 2 | pair(row + layer, x) << 4 | pair(row + layer + m.words, x) << 6;
    } else {
#pragma unroll
        for (int c = 0; c < 8; c++) corners |= voxel(m, x + (c & 1), y + (c >> 1 & 1), z + (c >> 2)) << c;
    }
    if (corners == 0u) return false;
    if (corners == 255u && m.threshold < 0.999f) return true;
    const float hx = px - fx, hy = py - fy, hz = pz - fz, lx = fx + 1.f - px, ly = fy + 1.f - py, lz = fz + 1.f - pz;
    float total = 0.f;
#pragma unroll
    for (int c = 0; c < 8; c++)
        if (corners >> c & 1u) total = __fadd_rn(total, __fmul_rn(__fmul_rn(c & 1 ? hx : lx, c & 2 ? hy : ly), c & 4 ? hz : lz));
    return total > m.threshold;
}

// One thread a ray; the samples found in one round are evaluated by pairs of lanes, so that no lane idles for another's ray.
// TABLES, OCTETS: of the field, where they are known when compiling; 0: read at run time.
template <typename T, int TABLES, int OCTETS>
__global__ void __launch_bounds__(WARPS * 32, sizeof(T) == 2 ? 6 : 5) trace(const LmTrace a) {
    const int tables = TABLES ? TABLES : a.field.tables, octets = OCTETS ? OCTETS : a.field.octets;
    __shared__ Place places[WARPS][32];
    __shared__ float features[WARPS][32];
    const LmMarch& m = a.march;
    Place* queue = places[threadIdx.x >> 5];
    float* feature = features[threadIdx.x >> 5];
    const int ray = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
    const bool live = ray < m.count;
    float o[3], d[3], g0[3], gd[3], exit_scale[3];
    const float extent = live ? m.extent[ray] : 0.f;
#pragma unroll
    for (int i = 0; i < 3; i++) o[i] = live ? m.rays[(size_t)ray * 6 + i] : 0.f, d[i] = live ? m.rays[(size_t)ray * 6 + 3 + i] : 0.f;

    // t is close to linear in k: used only to leave out what certainly lies outside
    const float t0 = sample_at(m, extent, 0);
    const float step = m.samples > 1 ? (sample_at(m, extent, m.samples - 1) - t0) / (float)(m.samples - 1) : 0.f;
    int k = 0, last = live ? m.samples : 0;
    const bool skips = step > 0.f;
    const float per_step = skips ? 1.f / step : 0.f;
    if (skips) {
        float enter = -INFINITY, leave = INFINITY;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const float inverse = 1.f / (fabsf(d[i]) < 1e-12f ? copysignf(1e-12f, d[i]) : d[i]);
            const float p = (m.crop[i] - o[i]) * inverse, q = (m.crop[i + 3] - o[i]) * inverse;
            enter = fmaxf(enter, fminf(p, q)), leave = fminf(leave, fmaxf(p, q));
        }
        const float first = floorf((enter - t0) * per_step) - 2.f, end = ceilf((leave - t0) * per_step) + 3.f;
        if (first > 0.f) k = first < (float)m.samples ? (int)first : m.samples;
        if (end < (float)last) last = end > 0.f ? (int)end : 0;
    }
    if (m.bits != nullptr) {
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const float scale = m.mask_inverse[i] * 0.5f * (float)(m.size[i] - 1);
            g0[i] = (o[i] - m.mask_low[i]) * scale, gd[i] = d[i] * scale;
            exit_scale[i] = 1.f / (fabsf(gd[i]) < 1e-12f ? copysignf(1e-12f, gd[i]) : gd[i]);
        }
    }

    float transmittance = 1.f, alpha = 0.f, depth = 0.f;
    int coloured = 0, survived = 0, absent = 0;
    while (true) {
        float t = 0.f, px = 0.f, py = 0.f, pz = 0.f;
        bool found = false;
        while (k < last) {
            t = sample_at(m, extent, k);
            if (m.bits != nullptr && skips) {
                const float gx = g0[0] + gd[0] * t, gy = g0[1] + gd[1] * t, gz = g0[2] + gd[2] * t;
                if (gx > -0.5f && gy > -0.5f && gz > -0.5f && gx < m.size[0] - 0.5f && gy < m.size[1] - 0.5f && gz < m.size[2] - 0.5f) {
                    const int cx = max((int)gx, 0) / CELL, cy = max((int)gy, 0) / CELL, cz = max((int)gz, 0) / CELL;
                    const int cell = (cz * m.cells[1] + cy) * m.cells[0] + cx;
                    if (!(__ldg(m.coarse + (cell >> 5)) >> (cell & 31) & 1u)) {
                        const float ex = ((float)(cx * CELL + (gd[0] > 0.f ? CELL : 0)) - g0[0]) * exit_scale[0];
                        const float ey = ((float)(cy * CELL + (gd[1] > 0.f ? CELL : 0)) - g0[1]) * exit_scale[1];
                        const float ez = ((float)(cz * CELL + (gd[2] > 0.f ? CELL : 0)) - g0[2]) * exit_scale[2];
                        const float next = ceilf((fminf(ex, fminf(ey, ez)) - t0) * per_step - 0.05f);
                        k = next > (float)(k + 1) ? (next < (float)last ? (int)next : last) : k + 1;
                        continue;
                    }
                }
            }
            px = sample_axis(o[0], d[0], t), py = sample_axis(o[1], d[1], t), pz = sample_axis(o[2], d[2], t);
            if (px >= m.crop[0] && py >= m.crop[1] && pz >= m.crop[2] && px <= m.crop[3] && py <= m.crop[4] && pz <= m.crop[5]) {
                found = m.bits == nullptr || occupied(m, mask_pixel(px, m.mask_low[0], m.mask_inverse[0], m.size[0]),
                                                      mask_pixel(py, m.mask_low[1], m.mask_inverse[1], m.size[1]),
                                                      mask_pixel(pz, m.mask_low[2], m.mask_inverse[2], m.size[2]));
                if (found) break;
            }
            k++;
        }
        const unsigned active = __ballot_sync(ALL, found);
        if (active == 0u) break;
        const int rank = __popc(active & ((1u << lane) - 1u)), waiting = __popc(active);
        if (found) {
            const Place place = locate(a.field, px, py, pz);
            if (place.slot == -2) absent++;
            queue[rank] = place;
        }
        __syncwarp();
        for (int start = 0; start < waiting; start += 16) {
            const int mine = start + (lane >> 1);
            float sum = 0.f;
            if (mine < waiting) {
                const Place place = queue[mine];
                if (place.slot >= 0) {
#pragma unroll
                    for (int i = 0; i < tables; i++) {
                        const LmTable& table = a.field.table[i];
                        const Taps p = taps(table, place);
#pragma unroll
                        for (int octet = lane & 1; octet < octets; octet += 2) {
                            float v[8];
                            products<T>(table, p, octets, octet, v);
                            if (a.basis != nullptr) {
                                const float* b = a.basis + (i * octets + octet) * 8;
#pragma unroll
                                for (int c = 0; c < 8; c++) v[c] *= __ldg(b + c);
                            }
                            sum += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
                        }
                    }
                }
            }
            sum += __shfl_xor_sync(ALL, sum, 1);
            if (mine < waiting && !(lane & 1)) feature[mine] = sum;
        }
        __syncwarp();
        if (found) {
            survived++;
            float sigma = feature[rank];
            if (a.nonlinear) sigma = fmaxf(sigma, 0.f);
            if (a.relu) sigma = fmaxf(sigma, 0.f);
            else {
                sigma += a.shift;
                sigma = sigma > 20.f ? sigma : log1pf(expf(sigma));
            }
            const float delta = k + 1 < m.samples ? __fsub_rn(sample_at(m, extent, k + 1), t) : 0.f;
            const float opacity = 1.f - expf(-sigma * __fmul_rn(delta, a.scale));
            const float weight = opacity * transmittance;
            transmittance *= (1.f - opacity) + 1e-10f;
            alpha += weight;
            depth += weight * t;
            if (weight > a.threshold) {
                if (coloured < a.capacity) a.stage[(size_t)coloured * m.count + ray] = make_float2(t, weight);
                coloured++;
            }
            k++;
            if (transmittance < a.stop) last = 0;
        }
        __syncwarp();
    }
    if (live) {
        a.found[ray] = min(coloured, a.capacity);
        a.alpha[ray] = alpha;
        a.depth[ray] = depth;
    }
    const int most = __reduce_max_sync(ALL, coloured), lost = __reduce_add_sync(ALL, absent), total = __reduce_add_sync(ALL, survived);
    if (lane == 0) {
        if (most > a.capacity) atomicMax(a.status + 1, most);
        if (lost) atomicAdd(a.status + 2, lost);
        if (total) atomicAdd(a.status + 3, total);
    }
}

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

__global__ void __launch_bounds__(1024) scan_sums(int* sums, int blocks, int* status) {
    __shared__ int shared[32];
    int carry = 0;
    for (int start = 0; start < blocks; start += 1024) {
        const int i = start + threadIdx.x;
        int total;
        const int before = block_scan(i < blocks ? sums[i] : 0, shared, total);
        if (i < blocks) sums[i] = carry + before;
        carry += total;
    }
    if (threadIdx.x == 0) status[0] = carry;
}

// A warp copies the samples of its 32 rays together, so that the list is written in whole lines.
__global__ void __launch_bounds__(256) compact(const LmTrace a) {
    const int ray = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31, count = a.march.count;
    const int n = ray < count ? a.found[ray] : 0;
    int begin = ray < count ? a.offset[ray] + a.sums[ray >> 10] : 0;
    if (ray < count) a.offset[ray] = begin;
    const int first = __shfl_sync(ALL, begin, 0);
    if (ray >= count) begin = 0x7fffffff;
    const int relative = ray < count ? begin - first : 0x7fffffff;
    const int total = __reduce_add_sync(ALL, n);
    for (int start = 0; start < total; start += 32) {
        const int place = start + lane;
        int owner = 0;
#pragma unroll
        for (int half = 16; half; half >>= 1) {
            const int r = __shfl_sync(ALL, relative, owner + half);
            if (r <= place) owner += half;
        }
        const int r = __shfl_sync(ALL, relative, owner);
        if (place < total && (int64_t)first + place < a.list_capacity) {
            const int source = ray - lane + owner;
            const float2 v = a.stage[(size_t)(place - r) * count + source];
            a.list[first + place] = make_int4(source, __float_as_int(v.x), __float_as_int(v.y), 0);
        }
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

extern "C" int lm_trace(const LmTrace* a, cudaStream_t stream) {
    using namespace landmark;
    if (a->march.count == 0) return 0;
    const int threads = WARPS * 32, blocks = (a->march.count + threads - 1) / threads, scans = (a->march.count + 1023) / 1024;
    const LmField& f = a->field;
    if (f.half_precision && f.tables == 3 && f.octets == 2) trace<half, 3, 2><<<blocks, threads, 0, stream>>>(*a);
    else if (f.half_precision) trace<half, 0, 0><<<blocks, threads, 0, stream>>>(*a);
    else if (f.tables == 3 && f.octets == 2) trace<float, 3, 2><<<blocks, threads, 0, stream>>>(*a);
    else trace<float, 0, 0><<<blocks, threads, 0, stream>>>(*a);
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    scan_rays<<<scans, 1024, 0, stream>>>(a->found, a->march.count, a->offset, a->sums);
    if ((error = cudaGetLastError()) != cudaSuccess) return error;
    scan_sums<<<1, 1024, 0, stream>>>(a->sums, scans, a->status);
    if ((error = cudaGetLastError()) != cudaSuccess) return error;
    compact<<<(a->march.count + 255) / 256, 256, 0, stream>>>(*a);
    return cudaGetLastError();
}

extern "C" int lm_resolve(const float4* colour, const int* offset, const int* found, int count, int64_t list_capacity, float* rgb, cudaStream_t stream) {
    if (count == 0) return 0;
    landmark::resolve<<<(count + 255) / 256, 256, 0, stream>>>(colour, offset, found, count, list_capacity, rgb);
    return cudaGetLastError();
}
