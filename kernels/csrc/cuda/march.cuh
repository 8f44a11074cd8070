// The walk of a ray over its samples, and the density of the samples that a warp's rays have found: what trace and
// march_density share.
#pragma once
#include "field.cuh"

namespace landmark {

constexpr int CELL = 8;
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

// A ray and its place among its samples: k is the next to look at, t and px, py, pz are those of the one found last.
struct Walk {
    float o[3], d[3], g0[3], gd[3], exit_scale[3];
    float extent, t0, per_step, t, px, py, pz;
    int k, last;
    bool skips;
};

__device__ __forceinline__ Walk start_walk(const LmMarch& m, int ray, bool live) {
    Walk w;
    w.extent = live ? m.extent[ray] : 0.f;
#pragma unroll
    for (int i = 0; i < 3; i++) w.o[i] = live ? m.rays[(size_t)ray * 6 + i] : 0.f, w.d[i] = live ? m.rays[(size_t)ray * 6 + 3 + i] : 0.f;

    // t is close to linear in k: used only to leave out what certainly lies outside
    w.t0 = sample_at(m, w.extent, 0);
    const float step = m.samples > 1 ? (sample_at(m, w.extent, m.samples - 1) - w.t0) / (float)(m.samples - 1) : 0.f;
    w.k = 0, w.last = live ? m.samples : 0;
    w.skips = step > 0.f;
    w.per_step = w.skips ? 1.f / step : 0.f;
    if (w.skips) {
        float enter = -INFINITY, leave = INFINITY;
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const float inverse = 1.f / (fabsf(w.d[i]) < 1e-12f ? copysignf(1e-12f, w.d[i]) : w.d[i]);
            const float p = (m.crop[i] - w.o[i]) * inverse, q = (m.crop[i + 3] - w.o[i]) * inverse;
            enter = fmaxf(enter, fminf(p, q)), leave = fminf(leave, fmaxf(p, q));
        }
        const float first = floorf((enter - w.t0) * w.per_step) - 2.f, end = ceilf((leave - w.t0) * w.per_step) + 3.f;
        if (first > 0.f) w.k = first < (float)m.samples ? (int)first : m.samples;
        if (end < (float)w.last) w.last = end > 0.f ? (int)end : 0;
    }
    if (m.bits != nullptr) {
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const float scale = m.mask_inverse[i] * 0.5f * (float)(m.size[i] - 1);
            w.g0[i] = (w.o[i] - m.mask_low[i]) * scale, w.gd[i] = w.d[i] * scale;
            w.exit_scale[i] = 1.f / (fabsf(w.gd[i]) < 1e-12f ? copysignf(1e-12f, w.gd[i]) : w.gd[i]);
        }
    }
    return w;
}

// Moves k to the next sample that survives; false if none is left. The caller steps past it.
__device__ __forceinline__ bool find_sample(const LmMarch& m, Walk& w) {
    w.t = w.px = w.py = w.pz = 0.f;
    while (w.k < w.last) {
        w.t = sample_at(m, w.extent, w.k);
        if (m.bits != nullptr && w.skips) {
            const float gx = w.g0[0] + w.gd[0] * w.t, gy = w.g0[1] + w.gd[1] * w.t, gz = w.g0[2] + w.gd[2] * w.t;
            if (gx > -0.5f && gy > -0.5f && gz > -0.5f && gx < m.size[0] - 0.5f && gy < m.size[1] - 0.5f && gz < m.size[2] - 0.5f) {
                const int cx = max((int)gx, 0) / CELL, cy = max((int)gy, 0) / CELL, cz = max((int)gz, 0) / CELL;
                const int cell = (cz * m.cells[1] + cy) * m.cells[0] + cx;
                if (!(__ldg(m.coarse + (cell >> 5)) >> (cell & 31) & 1u)) {
                    const float ex = ((float)(cx * CELL + (w.gd[0] > 0.f ? CELL : 0)) - w.g0[0]) * w.exit_scale[0];
                    const float ey = ((float)(cy * CELL + (w.gd[1] > 0.f ? CELL : 0)) - w.g0[1]) * w.exit_scale[1];
                    const float ez = ((float)(cz * CELL + (w.gd[2] > 0.f ? CELL : 0)) - w.g0[2]) * w.exit_scale[2];
                    const float next = ceilf((fminf(ex, fminf(ey, ez)) - w.t0) * w.per_step - 0.05f);
                    w.k = next > (float)(w.k + 1) ? (next < (float)w.last ? (int)next : w.last) : w.k + 1;
                    continue;
                }
            }
        }
        w.px = sample_axis(w.o[0], w.d[0], w.t), w.py = sample_axis(w.o[1], w.d[1], w.t), w.pz = sample_axis(w.o[2], w.d[2], w.t);
        if (w.px >= m.crop[0] && w.py >= m.crop[1] && w.pz >= m.crop[2] && w.px <= m.crop[3] && w.py <= m.crop[4] && w.pz <= m.crop[5] &&
            (m.bits == nullptr || occupied(m, mask_pixel(w.px, m.mask_low[0], m.mask_inverse[0], m.size[0]),
                                           mask_pixel(w.py, m.mask_low[1], m.mask_inverse[1], m.size[1]),
                                           mask_pixel(w.pz, m.mask_low[2], m.mask_inverse[2], m.size[2]))))
            return true;
        w.k++;
    }
    return false;
}

// Distance from the sample found last to the ray's next one, 0 for its last.
__device__ __forceinline__ float next_distance(const LmMarch& m, const Walk& w) {
    return w.k + 1 < m.samples ? __fsub_rn(sample_at(m, w.extent, w.k + 1), w.t) : 0.f;
}

// Sums of the density products of the `waiting` samples in a warp's queue, by pairs of lanes, so that no lane idles for another's
// ray. The whole warp calls it; the caller synchronises before reading `feature`. Products and sums are rounded one by one, so that
// no kernel that this is compiled into contracts them in its own way.
template <typename T, int TABLES, int OCTETS, bool CUT>
__device__ __forceinline__ void density_sums(const LmField& f, const float* basis, const Place* queue, int waiting, float* feature) {
    const int tables = TABLES ? TABLES : f.tables, octets = OCTETS ? OCTETS : f.octets, lane = threadIdx.x & 31;
    for (int start = 0; start < waiting; start += 16) {
        const int mine = start + (lane >> 1);
        float sum = 0.f;
        if (mine < waiting) {
            const Place place = queue[mine];
            if (place.slot >= 0) {
#pragma unroll
                for (int i = 0; i < tables; i++) {
                    const LmTable& table = f.table[i];
                    const Taps p = taps<CUT>(f, i, place);
#pragma unroll
                    for (int octet = lane & 1; octet < octets; octet += 2) {
                        float v[8];
                        products<T>(table, p, octets, octet, v);
                        if (basis != nullptr) {
                            const float* b = basis + (i * octets + octet) * 8;
#pragma unroll
                            for (int c = 0; c < 8; c++) v[c] = __fmul_rn(v[c], __ldg(b + c));
                        }
                        const float left = __fadd_rn(__fadd_rn(v[0], v[1]), __fadd_rn(v[2], v[3])), right = __fadd_rn(__fadd_rn(v[4], v[5]), __fadd_rn(v[6], v[7]));
                        sum = __fadd_rn(sum, __fadd_rn(left, right));
                    }
                }
            }
        }
        sum += __shfl_xor_sync(ALL, sum, 1);
        if (mine < waiting && !(lane & 1)) feature[mine] = sum;
    }
}

struct Absorption {
    int relu, nonlinear;
    float shift, scale;
};

// Sums of a ray, sample by sample, each product and sum rounded. Returns the sample's weight.
struct Light {
    float transmittance, alpha, depth;
};
__device__ __forceinline__ float absorb(const Absorption& a, Light& light, float sigma, float t, float delta) {
    if (a.nonlinear) sigma = fmaxf(sigma, 0.f);
    if (a.relu) sigma = fmaxf(sigma, 0.f);
    else {
        sigma += a.shift;
        sigma = sigma > 20.f ? sigma : log1pf(expf(sigma));
    }
    const float opacity = __fsub_rn(1.f, expf(__fmul_rn(-sigma, __fmul_rn(delta, a.scale))));
    const float weight = __fmul_rn(opacity, light.transmittance);
    light.transmittance = __fmul_rn(light.transmittance, __fadd_rn(__fsub_rn(1.f, opacity), 1e-10f));
    light.alpha = __fadd_rn(light.alpha, weight);
    light.depth = __fmaf_rn(weight, t, light.depth);
    return weight;
}

}  // namespace landmark
