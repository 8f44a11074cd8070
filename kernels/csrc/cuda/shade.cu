// shade: colours of the coloured samples with fp16 tables of 48 channels, 27 features and LandMark's usual decoder (two octaves
// of features and of view direction, two hidden layers of 128): gather, basis, positional encoding and perceptron on matrix units
// without leaving the chip. Products in fp16, sums in fp32. Other shapes go through lm_features.
#include "matrix.cuh"

namespace landmark {

constexpr int HIDDEN = 128, CHANNELS = 48, OCTETS = 6, COLUMNS = 27, FEATURES = 32;  // features, padded
constexpr int INPUTS = 5 * FEATURES + 16;  // features, sin and cos of two octaves; direction and its encoding
constexpr unsigned EVERY = 0xffffffffu;

__host__ __device__ constexpr int matrices_basis(int tables) { return tables * CHANNELS * FEATURES; }
__host__ __device__ constexpr int matrices_size(int tables) { return matrices_basis(tables) + (INPUTS + HIDDEN) * HIDDEN + HIDDEN * 8; }

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

template <int TABLES, int GROUPS>
struct Layout {
    static constexpr int columns = TABLES * CHANNELS, stride = columns + 8, warps = GROUPS * 4;
    static constexpr int matrices = matrices_size(TABLES), rows = TABLES ? warps * 16 * stride : 0;
    static constexpr int bytes = (matrices + rows) * 2 + warps * 16 * TABLES * (int)sizeof(Lookup) + (2 * HIDDEN + 8) * 4;
};

// The products of 16 samples, row by row: a quarter warp and a half takes a texel.
template <int TABLES>
__device__ __forceinline__ void gather(const LmField& f, const Lookup* lookups, half* rows, int lane) {
    constexpr int stride = TABLES * CHANNELS + 8;
#pragma unroll
    for (int i = 0; i < TABLES; i++) {
#pragma unroll
        for (int round = 0; round < 3; round++) {
            const int item = round * 32 + lane, row = item / OCTETS, octet = item - row * OCTETS;
            const Lookup l = lookups[i * 16 + row];
            PlaneTexels plane;
            LineTexels line;
            read_plane(f.table[i], l.plane, OCTETS, octet, plane);
            read_line(f.table[i], l.line, OCTETS, octet, line);
            *reinterpret_cast<uint4*>(rows + row * stride + i * CHANNELS + octet * 8) = half_products(plane, line, l.upper, l.lower, l.along);
        }
    }
}

// The same where neighbouring samples share texels: eight lanes, two of them idle, take the texels of four samples one after
// another and read only what differs from the sample before. A quarter of a load is then one line of 96 bytes.
template <int TABLES>
__device__ __forceinline__ void gather_chains(const LmField& f, const Lookup* lookups, half* rows, int lane) {
    constexpr int stride = TABLES * CHANNELS + 8, LENGTH = 4;
    const int octet = lane & 7, first = (lane >> 3) * LENGTH;
    if (octet >= OCTETS) return;
#pragma unroll
    for (int i = 0; i < TABLES; i++) {
        Lookup l = lookups[i * 16 + first];
        PlaneTexels plane;
        LineTexels line;
        read_plane(f.table[i], l.plane, OCTETS, octet, plane);
        read_line(f.table[i], l.line, OCTETS, octet, line);
#pragma unroll
        for (int row = first, step = 0; step < LENGTH; step++, row++) {
            Lookup next = l;
            PlaneTexels next_plane = plane;
            LineTexels next_line = line;
            if (step + 1 < LENGTH) {  // on their way while this sample is worked on
                next = lookups[i * 16 + row + 1];
                if (next.plane != l.plane) read_plane(f.table[i], next.plane, OCTETS, octet, next_plane);
                if (next.line != l.line) read_line(f.table[i], next.line, OCTETS, octet, next_line);
            }
            *reinterpret_cast<uint4*>(rows + row * stride + i * CHANNELS + octet * 8) = half_products(plane, line, l.upper, l.lower, l.along);
            l = next, plane = next_plane, line = next_line;
        }
    }
}

// Each warp carries 16 samples; four warps share a product of 64 rows. TABLES = 0: the features were summed before (the mixed mode).
// GROUPS of four warps in a block and CHAINS, which takes the samples in the turn that the list names, change its pace, not its bits.
template <int TABLES, int GROUPS, bool CHAINS, bool CUT>
__global__ void __launch_bounds__(GROUPS * 128, 1) shade(const LmShade a) {
    using L = Layout<TABLES, GROUPS>;
    extern __shared__ __align__(128) char shared[];
    half* matrices = reinterpret_cast<half*>(shared);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    half* rows = matrices + L::matrices + warp * 16 * L::stride;
    Lookup* lookups = reinterpret_cast<Lookup*>(matrices + L::matrices + L::rows) + warp * 16 * TABLES;
    float* biases = reinterpret_cast<float*>(reinterpret_cast<Lookup*>(matrices + L::matrices + L::rows) + L::warps * 16 * TABLES);
    for (int i = threadIdx.x; i < L::matrices / 8; i += blockDim.x) reinterpret_cast<uint4*>(matrices)[i] = static_cast<const uint4*>(a.matrices)[i];
    for (int i = threadIdx.x; i < 2 * HIDDEN + 8; i += blockDim.x) biases[i] = a.biases[i];
#ifdef LM_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
    const half *basis = matrices, *first = basis + matrices_basis(TABLES), *second = first + INPUTS * HIDDEN, *third = second + HIDDEN * HIDDEN;
    const int64_t total = a.status[0] < a.list_capacity ? a.status[0] : a.list_capacity;
    const int group = lane >> 2, quarter = lane & 3, pair = quarter * 2;
    const int64_t step = (int64_t)gridDim.x * GROUPS;
    int64_t tile = (int64_t)blockIdx.x * GROUPS + (warp >> 2);
    const auto entry = [&](int64_t which) { return min(which * 64 + (warp & 3) * 16 + (lane & 15), total - 1); };
    int turn = CHAINS && total > 0 ? a.list[entry(tile)].w : 0;

    for (; tile * 64 < total; tile += step) {
        const int64_t base = tile * 64 + (warp & 3) * 16;
        int index = CHAINS ? turn : (int)entry(tile);
        const int4 sample = a.list[index];
        if (CHAINS) turn = a.list[entry(tile + step)].w;
        const float2* ray = reinterpret_cast<const float2*>(a.rays + (size_t)sample.x * 6);
        const float2 r0 = __ldg(ray), r1 = __ldg(ray + 1), r2 = __ldg(ray + 2);
        const float d[3] = {r1.y, r2.x, r2.y};
        float feature[4][4] = {};
        if constexpr (TABLES > 0) {
            const float t = __int_as_float(sample.y);
            const Place place = locate<CUT>(a.field, sample_axis(r0.x, d[0], t), sample_axis(r0.y, d[1], t), sample_axis(r1.x, d[2], t));
#pragma unroll
            for (int i = 0; i < TABLES; i++)  // the two half warps share the tables
                if ((lane >> 4) == (i & 1)) lookups[i * 16 + (lane & 15)] = lookup<CUT>(a.field, i, place);
            if (a.pass && place.slot == -2) index = -1;  // its colour is another pass's
            __syncwarp();
            if constexpr (CHAINS) gather_chains<TABLES>(a.field, lookups, rows, lane);
            else gather<TABLES>(a.field, lookups, rows, lane);
            __syncwarp();
            uint32_t x[L::columns / 16][4];
#pragma unroll
            for (int k = 0; k < L::columns / 16; k++) load_matrix(x[k], rows + (lane & 15) * L::stride + k * 16 + (lane >> 4) * 8);
            begin_products();
#pragma unroll
            for (int k = 0; k < L::columns / 16; k++) multiply(feature, x[k], basis + k * 16 * FEATURES, lane);
            end_products();
            __syncwarp();
        } else {
#pragma unroll
            for (int half_tile = 0; half_tile < 2; half_tile++) {
                const float* own = a.features + (size_t)__shfl_sync(EVERY, index, half_tile * 8 + group) * COLUMNS;
#pragma unroll
                for (int q = 0; q < 4; q++)
#pragma unroll
                    for (int c = 0; c < 2; c++)
                        if (q * 8 + pair + c < COLUMNS) feature[q][half_tile * 2 + c] = __ldg(own + q * 8 + pair + c);
            }
        }

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
            const int own = __shfl_sync(EVERY, index, row);
            if (quarter == 0 && base + row < total && own >= 0)
                a.colour[own] = make_float4(weight / (1.f + __expf(-red)), weight / (1.f + __expf(-green)), weight / (1.f + __expf(-blue)), 0.f);
        }
    }
}

template <int TABLES, int GROUPS, bool CHAINS, bool CUT>
int launch(const LmShade& a, int multiprocessors, cudaStream_t stream) {
    constexpr int bytes = Layout<TABLES, GROUPS>::bytes;
    const cudaError_t error = cudaFuncSetAttribute(shade<TABLES, GROUPS, CHAINS, CUT>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    shade<TABLES, GROUPS, CHAINS, CUT><<<multiprocessors, GROUPS * 128, bytes, stream>>>(a);
    return cudaGetLastError();
}

template <int TABLES, bool CUT>
int launch(const LmShade& a, int shape, int multiprocessors, cudaStream_t stream) {
    int device, room;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error != cudaSuccess) return error;
    if (shape == 2 && Layout<TABLES, 4>::bytes <= room) return launch<TABLES, 4, true, CUT>(a, multiprocessors, stream);
    if (shape == 1 || shape == 2) return launch<TABLES, 3, true, CUT>(a, multiprocessors, stream);
    return launch<TABLES, 3, false, CUT>(a, multiprocessors, stream);
}

template <bool CUT>
int launch(const LmShade& a, int shape, int multiprocessors, cudaStream_t stream) {
    switch (a.field.tables) {
        case 1: return launch<1, CUT>(a, shape, multiprocessors, stream);
        case 2: return launch<2, CUT>(a, shape, multiprocessors, stream);
        case 3: return launch<3, CUT>(a, shape, multiprocessors, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace landmark

extern "C" int lm_shade_matrices(int tables) { return landmark::matrices_size(tables); }

extern "C" int lm_shade_bytes(int tables) {  // shared memory of a block
    using namespace landmark;
    return tables == 0 ? Layout<0, 3>::bytes : tables == 1 ? Layout<1, 3>::bytes : tables == 2 ? Layout<2, 3>::bytes : Layout<3, 3>::bytes;
}

extern "C" int lm_shade(const LmShade* a, int shape, int multiprocessors, cudaStream_t stream) {
    using namespace landmark;
    if (a->field.tables == 0) return launch<0, 3, false, false>(*a, multiprocessors, stream);
    return a->field.origins != nullptr ? launch<true>(*a, shape, multiprocessors, stream) : launch<false>(*a, shape, multiprocessors, stream);
}
