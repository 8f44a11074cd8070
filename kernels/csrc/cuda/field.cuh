// Where a sample lies in the field: block, texels and weights. Coordinates in the reference's order of operations.
#pragma once
#include <cuda_fp16.h>

#include "abi.h"

namespace landmark {

struct Place {
    float x, y, z;  // in the sample's block, -1..1; in a cut scene, in the whole
    int slot;       // row of the tables; -1 outside, -2 absent
};

__device__ __forceinline__ float sample_axis(float o, float d, float t) { return __fadd_rn(__fmul_rn(t, d), o); }

__device__ __forceinline__ void enter(float& v, float cell, float size) {
    const float low = __fsub_rn(__fmul_rn(cell, size), 1.f), high = __fsub_rn(__fmul_rn(cell + 1.f, size), 1.f);
    v = __fsub_rn(__fdiv_rn(__fmul_rn(__fsub_rn(v, low), 2.f), __fsub_rn(high, low)), 1.f);
}

// Block of a sample in a cut scene: the nearest one of those outside.
__device__ __forceinline__ int cut_block(const LmField& f, float x, float y) {
    const float nx = (float)f.division[0], ny = (float)f.division[1];
    const int column = (int)fminf(fmaxf(floorf(__fdiv_rn(x + 1.f, 2.f / nx)), 0.f), nx - 1.f);
    const int row = (int)fminf(fmaxf(floorf(__fdiv_rn(y + 1.f, 2.f / ny)), 0.f), ny - 1.f);
    return column * f.division[1] + row;
}

__device__ __forceinline__ int slot_of(const LmField& f, int block) {
    if (f.slots == nullptr) return block;
    const long long slot = __ldg(reinterpret_cast<const long long*>(f.slots) + block);
    return slot < 0 ? -2 : (int)slot;
}

// CUT, here and below: whether the scene is cut.
template <bool CUT>
__device__ __forceinline__ Place locate(const LmField& f, float px, float py, float pz) {
    Place p;
    p.x = __fsub_rn(__fmul_rn(__fsub_rn(px, f.low[0]), f.inverse[0]), 1.f);
    p.y = __fsub_rn(__fmul_rn(__fsub_rn(py, f.low[1]), f.inverse[1]), 1.f);
    p.z = __fsub_rn(__fmul_rn(__fsub_rn(pz, f.low[2]), f.inverse[2]), 1.f);
    p.slot = 0;
    if constexpr (CUT) p.slot = slot_of(f, cut_block(f, p.x, p.y));
    else if (f.division[0] > 0) {
        const float nx = (float)f.division[0], ny = (float)f.division[1];
        const float width = 2.f / nx, height = 2.f / ny;
        // as LandMark: the local frame is derived back from the index, so that the far y face falls into the next column
        const float index = floorf(__fdiv_rn(p.x + 1.f, width)) * ny + floorf(__fdiv_rn(p.y + 1.f, height));
        const float column = floorf(index / ny), row = index - column * ny;
        enter(p.x, column, width);
        enter(p.y, row, height);
        p.slot = index >= 0.f && index < nx * ny ? slot_of(f, (int)index) : -1;
    }
    return p;
}

// Two neighbours on an axis: lower index and both weights; zeros beyond the first and last texel.
struct Neighbours {
    int index;
    float low, high;
};
__device__ __forceinline__ Neighbours neighbours(float v, int size) {
    Neighbours n;
    const float pixel = __fmul_rn(__fmul_rn(v + 1.f, 0.5f), (float)(size - 1));
    n.index = max(min((int)floorf(pixel), size - 2), 0);
    n.high = pixel - (float)n.index;
    n.low = (float)(n.index + 1) - pixel;
    if (size == 1) n.low = 1.f, n.high = 0.f;
    if (!(pixel > -1.f && pixel < (float)size)) n.low = n.high = 0.f;
    return n;
}

// Texels of table i: indices of the first of four (plane) and of two (line), and their weights.
struct Taps {
    long long plane, line;
    float w00, w01, w10, w11, l0, l1;
};
template <bool CUT>
__device__ __forceinline__ Taps taps(const LmField& f, int i, const Place& p) {
    const LmTable& t = f.table[i];
    const float across = t.dim == 2 ? p.y : p.x, down = t.dim == 0 ? p.y : p.z, along = t.dim == 0 ? p.z : t.dim == 1 ? p.y : p.x;
    Neighbours x = neighbours(across, CUT ? t.whole_w : t.w), y = neighbours(down, CUT ? t.whole_h : t.h);
    const Neighbours z = neighbours(along, t.n);
    if constexpr (CUT) {  // within the tile, whatever the origins say
        const int2 origin = __ldg(f.origins + cut_block(f, p.x, p.y) * f.tables + i);
        x.index = max(min(x.index - origin.x, t.w - 2), 0), y.index = max(min(y.index - origin.y, t.h - 2), 0);
    }
    Taps r;
    const int slot = max(p.slot, 0);
    r.plane = ((long long)slot * t.h + y.index) * t.w + x.index;
    r.line = (long long)slot * t.n + z.index;
    r.w00 = x.low * y.low, r.w01 = x.high * y.low, r.w10 = x.low * y.high, r.w11 = x.high * y.high;
    r.l0 = z.low, r.l1 = z.high;
    return r;
}

__device__ __forceinline__ half2 as_half2(uint32_t v) { return *reinterpret_cast<half2*>(&v); }
__device__ __forceinline__ uint32_t as_bits(half2 v) { return *reinterpret_cast<uint32_t*>(&v); }

// Taps of one sample in one table, weights in half precision: 20 bytes, for shared memory.
struct Lookup {
    int plane, line;
    uint32_t upper, lower, along;
};
template <bool CUT>
__device__ __forceinline__ Lookup lookup(const LmField& f, int i, const Place& p) {
    const Taps r = taps<CUT>(f, i, p);
    const bool present = p.slot >= 0;
    return {(int)r.plane, (int)r.line, as_bits(__floats2half2_rn(r.w00, r.w01)), as_bits(__floats2half2_rn(r.w10, r.w11)),
            as_bits(__floats2half2_rn(present ? r.l0 : 0.f, present ? r.l1 : 0.f))};
}

// Eight channels of the four texels of a plane and of the two of a line.
struct PlaneTexels {
    uint4 t00, t01, t10, t11;
};
struct LineTexels {
    uint4 s0, s1;
};
__device__ __forceinline__ void read_plane(const LmTable& t, long long index, int octets, int octet, PlaneTexels& r) {
    const uint4* plane = static_cast<const uint4*>(t.plane) + (size_t)index * octets + octet;
    const int right = t.w > 1 ? octets : 0, under = t.h > 1 ? t.w * octets : 0;
    r.t00 = __ldg(plane), r.t01 = __ldg(plane + right), r.t10 = __ldg(plane + under), r.t11 = __ldg(plane + under + right);
}
__device__ __forceinline__ void read_line(const LmTable& t, long long index, int octets, int octet, LineTexels& r) {
    const uint4* line = static_cast<const uint4*>(t.line) + (size_t)index * octets + octet;
    const int next = t.n > 1 ? octets : 0;
    r.s0 = __ldg(line), r.s1 = __ldg(line + next);
}

// plane * line of eight channels, in half precision.
__device__ __forceinline__ uint4 half_products(const PlaneTexels& p, const LineTexels& q, uint32_t upper, uint32_t lower, uint32_t along) {
    const half2 w00 = __low2half2(as_half2(upper)), w01 = __high2half2(as_half2(upper)), w10 = __low2half2(as_half2(lower)), w11 = __high2half2(as_half2(lower));
    const half2 l0 = __low2half2(as_half2(along)), l1 = __high2half2(as_half2(along));
    const uint32_t *A = &p.t00.x, *B = &p.t01.x, *C = &p.t10.x, *D = &p.t11.x, *E = &q.s0.x, *F = &q.s1.x;
    uint4 out;
    uint32_t* o = &out.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        half2 v = __hmul2(as_half2(A[i]), w00);
        v = __hfma2(as_half2(B[i]), w01, v);
        v = __hfma2(as_half2(C[i]), w10, v);
        v = __hfma2(as_half2(D[i]), w11, v);
        o[i] = as_bits(__hmul2(v, __hfma2(as_half2(F[i]), l1, __hmul2(as_half2(E[i]), l0))));
    }
    return out;
}

// plane * line of channels 8 * octet .. + 7, as eight floats.
template <typename T>
__device__ __forceinline__ void products(const LmTable& t, const Taps& p, int octets, int octet, float out[8]);

template <>
__device__ __forceinline__ void products<half>(const LmTable& t, const Taps& p, int octets, int octet, float out[8]) {
    PlaneTexels plane;
    LineTexels line;
    read_plane(t, p.plane, octets, octet, plane);
    read_line(t, p.line, octets, octet, line);
    const uint4 v = half_products(plane, line, as_bits(__floats2half2_rn(p.w00, p.w01)), as_bits(__floats2half2_rn(p.w10, p.w11)), as_bits(__floats2half2_rn(p.l0, p.l1)));
    const uint32_t* bits = &v.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 r = __half22float2(as_half2(bits[i]));
        out[2 * i] = r.x, out[2 * i + 1] = r.y;
    }
}

template <>
__device__ __forceinline__ void products<float>(const LmTable& t, const Taps& p, int octets, int octet, float out[8]) {
    const float4* plane = static_cast<const float4*>(t.plane) + (p.plane * octets + octet) * 2;
    const float4* line = static_cast<const float4*>(t.line) + (p.line * octets + octet) * 2;
    const int right = t.w > 1 ? octets * 2 : 0, under = t.h > 1 ? t.w * octets * 2 : 0, next = t.n > 1 ? octets * 2 : 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float4 a = __ldg(plane + h), b = __ldg(plane + right + h), c = __ldg(plane + under + h), d = __ldg(plane + under + right + h);
        const float4 e = __ldg(line + h), f = __ldg(line + next + h);
        const float *A = &a.x, *B = &b.x, *C = &c.x, *D = &d.x, *E = &e.x, *F = &f.x;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float q = fmaf(D[i], p.w11, fmaf(C[i], p.w10, fmaf(B[i], p.w01, A[i] * p.w00)));
            out[4 * h + i] = q * fmaf(F[i], p.l1, E[i] * p.l0);
        }
    }
}

}  // namespace landmark
