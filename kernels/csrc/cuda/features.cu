// features: appearance features of the coloured samples for every shape of field. Products in the tables' precision; the basis in
// fp32, or with fp16 tables and up to 32 features in fp16 on matrix units, with sums in fp32. Under tensor parallelism these are
// one rank's partial sums. The decoder's matrix products then run in the caller's library, or in shade.
#include "matrix.cuh"

namespace landmark {

constexpr int BATCH = 4;  // samples a warp carries at once, of features
constexpr int ROWS = 16, WIDTH = 32;  // samples and features of one product, of features_half

template <bool CUT>
__device__ __forceinline__ Place place_of(const LmFeatures& a, const int4& sample) {
    const float* ray = a.rays + (size_t)sample.x * 6;
    const float t = __int_as_float(sample.y);
    return locate<CUT>(a.field, sample_axis(__ldg(ray), __ldg(ray + 3), t), sample_axis(__ldg(ray + 1), __ldg(ray + 4), t), sample_axis(__ldg(ray + 2), __ldg(ray + 5), t));
}

__device__ __forceinline__ int listed(const LmFeatures& a) { return a.status == nullptr ? a.count : min(__ldg(a.status), a.count); }

// Each sum runs over the columns in their order. staged: the basis lies transposed in shared memory.
template <typename T, bool CUT>
__global__ void __launch_bounds__(128) features(const LmFeatures a, const int staged) {
    extern __shared__ __align__(16) char shared[];
    const int octets = a.field.octets, columns = a.field.tables * octets * 8, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    float* basis = reinterpret_cast<float*>(shared);
    float* mine = basis + (staged ? columns * a.outputs : 0) + (size_t)warp * BATCH * columns;
    if (staged)
        for (int i = threadIdx.x; i < columns * a.outputs; i += blockDim.x) basis[i] = __ldg(a.basis + (size_t)(i % a.outputs) * columns + i / a.outputs);
    __syncthreads();
    const int count = listed(a);
    for (int64_t batch = ((int64_t)blockIdx.x * warps + warp) * BATCH; batch < count; batch += (int64_t)gridDim.x * warps * BATCH) {
        bool any = false;  // of the batch in memory: all lanes know
#pragma unroll
        for (int s = 0; s < BATCH; s++) {
            const Place place = place_of<CUT>(a, a.list[min(batch + s, (int64_t)count - 1)]);
            any |= place.slot >= 0;
            for (int item = lane; item < a.field.tables * octets; item += 32) {
                const int i = item / octets, octet = item - i * octets;
                float v[8] = {};
                if (place.slot >= 0) products<T>(a.field.table[i], taps<CUT>(a.field, i, place), octets, octet, v);
#pragma unroll
                for (int c = 0; c < 8; c++) mine[s * columns + item * 8 + c] = v[c];
            }
        }
        __syncwarp();
        for (int f = lane; f < a.outputs; f += 32) {
            float sum[BATCH] = {};
            const float* weight = staged ? basis + f : a.basis + (size_t)f * columns;
            const int step = staged ? a.outputs : 1;
            for (int k = 0; any && k < columns; k++) {
                const float b = weight[(size_t)k * step];
#pragma unroll
                for (int s = 0; s < BATCH; s++) sum[s] = fmaf(mine[s * columns + k], b, sum[s]);
            }
#pragma unroll
            for (int s = 0; s < BATCH; s++)
                if (batch + s < count) a.features[(size_t)(batch + s) * a.outputs + f] = sum[s];
        }
        __syncwarp();
    }
}

// Inputs of a product: columns rounded up to 16. A row of products is 8 halves longer, so that ldmatrix meets no bank twice.
__host__ __device__ constexpr int inputs_of(int columns) { return (columns + 15) / 16 * 16; }
constexpr int warp_bytes(int inputs) { return ROWS * (inputs + 8) * 2 + 2 * ROWS * (int)sizeof(Lookup); }

// Each warp carries 16 samples, two tables at a time. OCTETS: of the field where known when compiling; 0: read at run time.
template <int OCTETS, bool CUT>
__global__ void __launch_bounds__(256) features_half(const LmFeatures a) {
    extern __shared__ __align__(16) char shared[];
    const int octets = OCTETS ? OCTETS : a.field.octets, tables = a.field.tables, columns = tables * octets * 8, inputs = inputs_of(columns), stride = inputs + 8;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    half* basis = reinterpret_cast<half*>(shared);
    half* rows = basis + inputs * WIDTH + warp * ROWS * stride;
    Lookup* lookups = reinterpret_cast<Lookup*>(basis + inputs * WIDTH + warps * ROWS * stride) + warp * 2 * ROWS;
    for (int i = threadIdx.x; i < inputs * WIDTH; i += blockDim.x) {  // [K / 8][N / 8][8 outputs][8 inputs]
        const int k = i / (8 * WIDTH) * 8 + i % 8, n = i / 64 % (WIDTH / 8) * 8 + i / 8 % 8;
        basis[i] = __float2half_rn(k < columns && n < a.outputs ? __ldg(a.basis + (size_t)n * columns + k) : 0.f);
    }
    for (int i = lane; i < ROWS * (inputs - columns); i += 32) rows[i / (inputs - columns) * stride + columns + i % (inputs - columns)] = __float2half_rn(0.f);
    __syncthreads();
    const int count = listed(a), group = lane >> 2, pair = (lane & 3) * 2;
    for (int64_t base = ((int64_t)blockIdx.x * warps + warp) * ROWS; base < count; base += (int64_t)gridDim.x * warps * ROWS) {
        const Place place = place_of<CUT>(a, a.list[min(base + (lane & 15), (int64_t)count - 1)]);
        const bool any = __ballot_sync(0xffffffffu, place.slot >= 0) != 0u;  // of the sixteen in memory
        for (int i = 0; any && i < tables; i += 2) {
            const int own = i + (lane >> 4), both = min(tables - i, 2);
            if (own < tables) lookups[lane] = lookup<CUT>(a.field, own, place);
            __syncwarp();
            for (int item = lane; item < both * ROWS * octets; item += 32) {
                const int row = item / octets, octet = item - row * octets, table = i + (row >> 4);
                const Lookup l = lookups[row];
                PlaneTexels plane;
                LineTexels line;
                read_plane(a.field.table[table], l.plane, octets, octet, plane);
                read_line(a.field.table[table], l.line, octets, octet, line);
                uint4 v = half_products(plane, line, l.upper, l.lower, l.along);
                if (l.along == 0u) v = {};  // absent or outside: 0, whatever lies in the slots
                *reinterpret_cast<uint4*>(rows + (row & 15) * stride + (table * octets + octet) * 8) = v;
            }
            __syncwarp();
        }
        float sums[WIDTH / 8][4] = {};
        for (int k = 0; any && k < inputs / 16; k++) {
            uint32_t x[4];
            load_matrix(x, rows + (lane & 15) * stride + k * 16 + (lane >> 4) * 8);
            multiply_warp(sums, x, basis + k * 16 * WIDTH, lane);
        }
        __syncwarp();
#pragma unroll
        for (int half_tile = 0; half_tile < 2; half_tile++) {
            const int64_t index = base + half_tile * 8 + group;
#pragma unroll
            for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++)
                    if (index < count && n * 8 + pair + c < a.outputs) a.features[index * a.outputs + n * 8 + pair + c] = sums[n][half_tile * 2 + c];
        }
    }
}

template <typename Kernel, typename... More>
int launch_features(Kernel kernel, int warps, size_t bytes, int64_t samples, const LmFeatures& a, int multiprocessors, cudaStream_t stream, More... more) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    int resident = 0;
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, warps * 32, bytes);
    if (error != cudaSuccess) return error;
    const int64_t needed = ((int64_t)a.count + warps * samples - 1) / (warps * samples), most = (int64_t)multiprocessors * (resident > 0 ? resident : 1);
    kernel<<<(int)(needed < most ? needed : most), warps * 32, bytes, stream>>>(a, more...);
    return cudaGetLastError();
}

template <typename T>
int launch_exact(const LmFeatures& a, int multiprocessors, int shared_bytes, cudaStream_t stream) {
    const int columns = a.field.tables * a.field.octets * 8;
    const size_t basis = (size_t)columns * a.outputs * sizeof(float), warp = (size_t)BATCH * columns * sizeof(float);
    const int staged = basis + 4 * warp <= (size_t)shared_bytes / 2;
    const size_t bytes = (staged ? basis : 0) + 4 * warp;
    if (a.field.origins != nullptr) return launch_features(features<T, true>, 4, bytes, BATCH, a, multiprocessors, stream, staged);
    return launch_features(features<T, false>, 4, bytes, BATCH, a, multiprocessors, stream, staged);
}

template <bool CUT>
int launch_half(const LmFeatures& a, int warps, size_t bytes, int multiprocessors, cudaStream_t stream) {
    switch (a.field.octets) {
        case 1: return launch_features(features_half<1, CUT>, warps, bytes, ROWS, a, multiprocessors, stream);
        case 2: return launch_features(features_half<2, CUT>, warps, bytes, ROWS, a, multiprocessors, stream);
        case 3: return launch_features(features_half<3, CUT>, warps, bytes, ROWS, a, multiprocessors, stream);
        case 6: return launch_features(features_half<6, CUT>, warps, bytes, ROWS, a, multiprocessors, stream);
        default: return launch_features(features_half<0, CUT>, warps, bytes, ROWS, a, multiprocessors, stream);
    }
}

}  // namespace landmark

extern "C" int lm_features(const LmFeatures* a, int multiprocessors, int shared_bytes, cudaStream_t stream) {
    using namespace landmark;
    if (a->count == 0) return 0;
    if (!a->field.half_precision) return launch_exact<float>(*a, multiprocessors, shared_bytes, stream);
    const int inputs = inputs_of(a->field.tables * a->field.octets * 8), room = shared_bytes - inputs * WIDTH * 2;
    int warps = 8;
    while (warps > 0 && warps * warp_bytes(inputs) > room) warps /= 2;
    if (a->outputs > WIDTH || warps == 0) return launch_exact<half>(*a, multiprocessors, shared_bytes, stream);
    const size_t bytes = (size_t)inputs * WIDTH * 2 + (size_t)warps * warp_bytes(inputs);
    if (a->field.origins != nullptr) return launch_half<true>(*a, warps, bytes, multiprocessors, stream);
    return launch_half<false>(*a, warps, bytes, multiprocessors, stream);
}
