// shade: colours of the coloured samples with fp16 tables of 48 channels, 27 features and LandMark's usual decoder (two octaves
// of features and of view direction, two hidden layers of 128): gather, basis, positional encoding and perceptron on matrix units
// without leaving the chip. Products in fp16, sums in fp32. Other shapes go through lm_features.
#include "field.cuh"

namespace landmark {

constexpr int HIDDEN = 128, CHANNELS = 48, OCTETS = 6, FEATURES = 32;  // 27 features, padded
constexpr int INPUTS = 5 * FEATURES + 16;  // features, sin and cos of two octaves; direction and its encoding
constexpr unsigned EVERY = 0xffffffffu;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LM_WGMMA 1
#endif

// A matrix of N outputs and K inputs lies as core matrices [K / 8][N / 8][8 outputs][8 inputs]: what wgmma reads without
// swizzle, and ldmatrix without bank conflicts.
__host__ __device__ constexpr int matrices_basis(int tables) { return tables * CHANNELS * FEATURES; }
__host__ __device__ constexpr int matrices_size(int tables) { return matrices_basis(tables) + (INPUTS + HIDDEN) * HIDDEN + HIDDEN * 8; }

__device__ __forceinline__ uint32_t pack(float a, float b) { return as_bits(__floats2half2_rn(a, b)); }
__device__ __forceinline__ uint32_t pack_relu(float a, float b) { return pack(fmaxf(a, 0.f), fmaxf(b, 0.f)); }
__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void load_matrix(uint32_t a[4], const half* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(shared_address(row)));
}

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
__device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <int N8>
__device__ __forceinline__ void multiply(float (&c)[N8][4], const uint32_t a[4], const half* b, int lane) {
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
__device__ __forceinline__ void begin_products() {}
__device__ __forceinline__ void end_products() {}
#endif

template <int N8>
__device__ __forceinline__ void start_from(float (&c)[N8][4], const float* bias, int pair) {
#pragma unroll
    for (int n = 0; n < N8; n++) c[n][0] = c[n][2] = bias[n * 8 + pair], c[n][1] = c[n][3] = bias[n * 8 + pair + 1];
}
__device__ __forceinline__ void relu_inputs(uint32_t h[8][4], const float c[16][4]) {
#pragma unroll
    for (int k = 0; k < 8; k++) {
        h[k][0] = pack_relu(c[2 * k][0], c[2 * k][1]), h[k][1] = pack_relu(c[2 * k][2], c[2 * k][3]);
        h[k][2] = pack_relu(c[2 * k + 1][0], c[2 * k + 1][1]), h[k][3] = pack_relu(c[2 * k + 1][2], c[2 * k + 1][3]);
    }
}

// Direction and its encoding of one row, columns pair, pair + 1, pair + 8, pair + 9 of: d(3), sin x, sin 2x, sin y .., cos likewise, 0.
__device__ __forceinline__ void view_columns(const float d[3], int quarter, float out[4]) {
    float s[3], c[3];
#pragma unroll
    for (int i = 0; i < 3; i++) s[i] = __sinf(d[i]), c[i] = __cosf(d[i]);
    const float v[16] = {d[0], d[1], d[2], s[0], 2 * s[0] * c[0], s[1], 2 * s[1] * c[1], s[2], 2 * s[2] * c[2], c[0], 1 - 2 * s[0] * s[0], c[1], 1 - 2 * s[1] * s[1], c[2], 1 - 2 * s[2] * s[2], 0.f};
#pragma unroll
    for (int q = 0; q < 4; q++) {
        const int o = (q & 1) + (q >> 1) * 8;
        out[q] = quarter == 0 ? v[o] : quarter == 1 ? v[o + 2] : quarter == 2 ? v[o + 4] : v[o + 6];
    }
}

constexpr int GROUPS = 3;  // warpgroups of a block, each with 64 samples in hand
struct Lookup {            // of one sample in one table: texel indices, weights
    int plane, line;
    uint32_t upper, lower, along;
};
template <int TABLES>
struct Layout {
    static constexpr int columns = TABLES * CHANNELS, stride = columns + 8;
    static constexpr int matrices = matrices_size(TABLES);
    static constexpr int bytes = (matrices + GROUPS * 4 * 16 * stride) * 2 + GROUPS * 4 * 16 * TABLES * (int)sizeof(Lookup) + (2 * HIDDEN + 8) * 4;
};

// Each warp carries 16 samples; four warps share a product of 64 rows.
template <int TABLES>
__global__ void __launch_bounds__(GROUPS * 128, 1) shade(const LmShade a) {
    using L = Layout<TABLES>;
    extern __shared__ __align__(128) char shared[];
    half* matrices = reinterpret_cast<half*>(shared);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    half* rows = matrices + L::matrices + warp * 16 * L::stride;
    Lookup* lookups = reinterpret_cast<Lookup*>(matrices + L::matrices + GROUPS * 4 * 16 * L::stride) + warp * 16 * TABLES;
    float* biases = reinterpret_cast<float*>(reinterpret_cast<Lookup*>(matrices + L::matrices + GROUPS * 4 * 16 * L::stride) + GROUPS * 4 * 16 * TABLES);
    for (int i = threadIdx.x; i < L::matrices / 8; i += blockDim.x) reinterpret_cast<uint4*>(matrices)[i] = static_cast<const uint4*>(a.matrices)[i];
    for (int i = threadIdx.x; i < 2 * HIDDEN + 8; i += blockDim.x) biases[i] = a.biases[i];
#ifdef LM_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
    const half *basis = matrices, *first = basis + matrices_basis(TABLES), *second = first + INPUTS * HIDDEN, *third = second + HIDDEN * HIDDEN;
    const int64_t total = a.status[0] < a.list_capacity ? a.status[0] : a.list_capacity;
    const int group = lane >> 2, quarter = lane & 3, pair = quarter * 2;

    for (int64_t tile = (int64_t)blockIdx.x * GROUPS + (warp >> 2); tile * 64 < total; tile += (int64_t)gridDim.x * GROUPS) {
        const int64_t base = tile * 64 + (warp & 3) * 16;
        const int4 sample = a.list[min(base + (lane & 15), total - 1)];
        const float2* ray = reinterpret_cast<const float2*>(a.rays + (size_t)sample.x * 6);
        const float2 r0 = __ldg(ray), r1 = __ldg(ray + 1), r2 = __ldg(ray + 2);
        const float d[3] = {r1.y, r2.x, r2.y};
        const float t = __int_as_float(sample.y);
        const Place place = locate(a.field, sample_axis(r0.x, d[0], t), sample_axis(r0.y, d[1], t), sample_axis(r1.x, d[2], t));
        const float present = place.slot >= 0 ? 1.f : 0.f;
#pragma unroll
        for (int i = 0; i < TABLES; i++) {
            if ((lane >> 4) == (i & 1)) {  // the two half warps share the tables
                const Taps p = taps(a.field.table[i], place);
                Lookup& l = lookups[i * 16 + (lane & 15)];
                l.plane = (int)p.plane, l.line = (int)p.line;
                l.upper = pack(p.w00, p.w01), l.lower = pack(p.w10, p.w11), l.along = pack(present * p.l0, present * p.l1);
            }
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < TABLES; i++) {
            const LmTable& table = a.field.table[i];
            const int under = table.h > 1 ? table.w * OCTETS : 0, right = table.w > 1 ? OCTETS : 0, next = table.n > 1 ? OCTETS : 0;
#pragma unroll
            for (int round = 0; round < 3; round++) {
                const int item = round * 32 + lane, row = item / OCTETS, octet = item - row * OCTETS;
                const Lookup l = lookups[i * 16 + row];
                const uint4* plane = static_cast<const uint4*>(table.plane) + (size_t)l.plane * OCTETS + octet;
                const uint4* line = static_cast<const uint4*>(table.line) + (size_t)l.line * OCTETS + octet;
                const uint4 t00 = __ldg(plane), t01 = __ldg(plane + right), t10 = __ldg(plane + under), t11 = __ldg(plane + under + right);
                const uint4 s0 = __ldg(line), s1 = __ldg(line + next);
                const half2 w00 = __low2half2(as_half2(l.upper)), w01 = __high2half2(as_half2(l.upper)), w10 = __low2half2(as_half2(l.lower)), w11 = __high2half2(as_half2(l.lower));
                const half2 l0 = __low2half2(as_half2(l.along)), l1 = __high2half2(as_half2(l.along));
                const uint32_t *A = &t00.x, *B = &t01.x, *C = &t10.x, *D = &t11.x, *E = &s0.x, *F = &s1.x;
                uint32_t out[4];
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    half2 q = __hmul2(as_half2(A[c]), w00);
                    q = __hfma2(as_half2(B[c]), w01, q);
                    q = __hfma2(as_half2(C[c]), w10, q);
                    q = __hfma2(as_half2(D[c]), w11, q);
                    out[c] = as_bits(__hmul2(q, __hfma2(as_half2(F[c]), l1, __hmul2(as_half2(E[c]), l0))));
                }
                *reinterpret_cast<uint4*>(rows + row * L::stride + i * CHANNELS + octet * 8) = make_uint4(out[0], out[1], out[2], out[3]);
            }
        }
        __syncwarp();

        float feature[4][4] = {};
        {
            uint32_t x[L::columns / 16][4];
#pragma unroll
            for (int k = 0; k < L::columns / 16; k++) load_matrix(x[k], rows + (lane & 15) * L::stride + k * 16 + (lane >> 4) * 8);
            begin_products();
#pragma unroll
            for (int k = 0; k < L::columns / 16; k++) multiply(feature, x[k], basis + k * 16 * FEATURES, lane);
            end_products();
        }
        __syncwarp();

        float hidden[16][4];
        start_from(hidden, biases, pair);
        {
            uint32_t x[11][4];
            float view[2][4];
#pragma unroll
            for (int half_tile = 0; half_tile < 2; half_tile++) {
                const float direction[3] = {__shfl_sync(EVERY, d[0], group + half_tile * 8), __shfl_sync(EVERY, d[1], group + half_tile * 8), __shfl_sync(EVERY, d[2], group + half_tile * 8)};
                view_columns(direction, quarter, view[half_tile]);
            }
            x[10][0] = pack(view[0][0], view[0][1]), x[10][1] = pack(view[1][0], view[1][1]);
            x[10][2] = pack(view[0][2], view[0][3]), x[10][3] = pack(view[1][2], view[1][3]);
#pragma unroll
            for (int q = 0; q < 4; q++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float u = feature[q][2 * h], v = feature[q][2 * h + 1];
                    const float su = __sinf(u), cu = __cosf(u), sv = __sinf(v), cv = __cosf(v);
                    const int k = q >> 1, r = (q & 1) * 2 + h;
                    x[k][r] = pack(u, v);
                    x[2 + k][r] = pack(su, sv), x[4 + k][r] = pack(2 * su * cu, 2 * sv * cv);
                    x[6 + k][r] = pack(cu, cv), x[8 + k][r] = pack(1 - 2 * su * su, 1 - 2 * sv * sv);
                }
            begin_products();
#pragma unroll
            for (int k = 0; k < 11; k++) multiply(hidden, x[k], first + k * 16 * HIDDEN, lane);
            end_products();
        }
        uint32_t h[8][4];
        relu_inputs(h, hidden);
        start_from(hidden, biases + HIDDEN, pair);
        begin_products();
#pragma unroll
        for (int k = 0; k < 8; k++) multiply(hidden, h[k], second + k * 16 * HIDDEN, lane);
        end_products();
        relu_inputs(h, hidden);
        float rgb[1][4];
        start_from(rgb, biases + 2 * HIDDEN, pair);
        begin_products();
#pragma unroll
        for (int k = 0; k < 8; k++) multiply(rgb, h[k], third + k * 16 * 8, lane);
        end_products();
#pragma unroll
        for (int half_tile = 0; half_tile < 2; half_tile++) {  // columns 0, 1 lie in the first lane of a row, column 2 in the second
            const float red = rgb[0][2 * half_tile], green = rgb[0][2 * half_tile + 1], blue = __shfl_down_sync(EVERY, red, 1);
            const int row = half_tile * 8 + group;
            const float weight = __int_as_float(__shfl_sync(EVERY, sample.z, row));
            if (quarter == 0 && base + row < total)
                a.colour[base + row] = make_float4(weight / (1.f + __expf(-red)), weight / (1.f + __expf(-green)), weight / (1.f + __expf(-blue)), 0.f);
        }
    }
}

template <int TABLES>
cudaError_t launch(const LmShade& a, int multiprocessors, cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(shade<TABLES>, cudaFuncAttributeMaxDynamicSharedMemorySize, Layout<TABLES>::bytes);
    if (error != cudaSuccess) return error;
    shade<TABLES><<<multiprocessors, GROUPS * 128, Layout<TABLES>::bytes, stream>>>(a);
    return cudaGetLastError();
}

}  // namespace landmark

extern "C" int lm_shade_matrices(int tables) { return landmark::matrices_size(tables); }

extern "C" int lm_shade_bytes(int tables) {  // shared memory of a block
    return tables == 1 ? landmark::Layout<1>::bytes : tables == 2 ? landmark::Layout<2>::bytes : landmark::Layout<3>::bytes;
}

extern "C" int lm_shade(const LmShade* a, int multiprocessors, cudaStream_t stream) {
    switch (a->field.tables) {
        case 1: return landmark::launch<1>(*a, multiprocessors, stream);
        case 2: return landmark::launch<2>(*a, multiprocessors, stream);
        case 3: return landmark::launch<3>(*a, multiprocessors, stream);
        default: return cudaErrorInvalidValue;
    }
}
