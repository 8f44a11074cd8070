// trace: march through the occupancy, density, emission and absorption, in one pass a ray; then the compact list of coloured
// samples, in the order of rays and samples.
#include "march.cuh"

namespace landmark {

// One thread a ray. TABLES, OCTETS: of the field, where they are known when compiling; 0: read at run time.
// CUT: the scene is cut. WARPS of a block and BLOCKS a multiprocessor change its pace, not its bits.
template <typename T, int TABLES, int OCTETS, int WARPS, int BLOCKS, bool CUT>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS) trace(const LmTrace a) {
    __shared__ Place places[WARPS][32];
    __shared__ float features[WARPS][32];
    const LmMarch& m = a.march;
    Place* queue = places[threadIdx.x >> 5];
    float* feature = features[threadIdx.x >> 5];
    const int ray = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
    const bool live = ray < m.count;
    Walk w = start_walk(m, ray, live);
    Light light = {1.f, 0.f, 0.f};
    const Absorption absorption = {a.relu, a.nonlinear, a.shift, a.scale};
    int coloured = 0, survived = 0, absent = 0;
    while (true) {
        const bool found = find_sample(m, w);
        const unsigned active = __ballot_sync(ALL, found);
        if (active == 0u) break;
        const int rank = __popc(active & ((1u << lane) - 1u)), waiting = __popc(active);
        if (found) {
            const Place place = locate<CUT>(a.field, w.px, w.py, w.pz);
            if (place.slot == -2) absent++;
            queue[rank] = place;
        }
        __syncwarp();
        density_sums<T, TABLES, OCTETS, CUT>(a.field, a.basis, queue, waiting, feature);
        __syncwarp();
        if (found) {
            survived++;
            const float weight = absorb(absorption, light, feature[rank], w.t, next_distance(m, w));
            if (weight > a.threshold) {
                if (coloured < a.capacity) a.stage[(size_t)coloured * m.count + ray] = make_float2(w.t, weight);
                coloured++;
            }
            w.k++;
            if (light.transmittance < a.stop) w.last = 0;
        }
        __syncwarp();
    }
    if (live) {
        a.found[ray] = min(coloured, a.capacity);
        a.alpha[ray] = light.alpha;
        a.depth[ray] = light.depth;
    }
    const int most = __reduce_max_sync(ALL, coloured), lost = __reduce_add_sync(ALL, absent), total = __reduce_add_sync(ALL, survived);
    if (lane == 0) {
        if (most > a.capacity) atomicMax(a.status + 1, most);
        if (lost) atomicAdd(a.status + 2, lost);
        if (total) atomicAdd(a.status + 3, total);
    }
}

template <typename T, int TABLES, int OCTETS, int WARPS, int BLOCKS, bool CUT = false>
void launch(const LmTrace& a, cudaStream_t stream) {
    trace<T, TABLES, OCTETS, WARPS, BLOCKS, CUT><<<(a.march.count + WARPS * 32 - 1) / (WARPS * 32), WARPS * 32, 0, stream>>>(a);
}

}  // namespace landmark

extern "C" int lm_trace(const LmTrace* a, int shape, cudaStream_t stream) {
    using namespace landmark;
    if (a->march.count == 0) return 0;
    const LmField& f = a->field;
    const bool usual = f.tables == 3 && f.octets == 2;
    if (f.origins != nullptr) {  // one shape each, whatever was asked for
        if (f.half_precision && usual) launch<half, 3, 2, 4, 5, true>(*a, stream);
        else if (f.half_precision) launch<half, 0, 0, 4, 5, true>(*a, stream);
        else if (usual) launch<float, 3, 2, 4, 4, true>(*a, stream);
        else launch<float, 0, 0, 4, 4, true>(*a, stream);
    } else if (f.half_precision && usual) {
        switch (shape) {
            case 1: launch<half, 3, 2, 4, 5>(*a, stream); break;
            case 2: launch<half, 3, 2, 4, 8>(*a, stream); break;
            case 3: launch<half, 3, 2, 2, 12>(*a, stream); break;
            case 4: launch<half, 3, 2, 8, 3>(*a, stream); break;
            default: launch<half, 3, 2, 4, 6>(*a, stream);
        }
    } else if (f.half_precision) launch<half, 0, 0, 4, 6>(*a, stream);
    else if (usual) launch<float, 3, 2, 4, 5>(*a, stream);
    else launch<float, 0, 0, 4, 5>(*a, stream);
    int error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    if ((error = lm_scan(a->found, a->march.count, a->offset, a->sums, a->status, -1, stream)) != cudaSuccess) return error;
    const LmMarch& m = a->march;
    const LmCompact c = {a->stage, nullptr, nullptr, m.extent, m.base, m.slope, m.samples, m.count, a->found, a->offset, a->sums, a->list, a->list_capacity};
    return lm_compact(&c, stream);
}
