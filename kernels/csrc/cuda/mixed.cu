// The mixed mode: ranks that hold shares of the channels. march_density lists the surviving samples of all rays with this rank's
// share of their density; weigh_list composites the summed densities and lists the coloured samples. A frame whose blocks are not
// all in memory goes the same way, pass by pass: where every block was present once, the sums have the bits of trace.
#include "march.cuh"

namespace landmark {

constexpr int WARPS = 4;

__global__ void __launch_bounds__(256) count_samples(const LmSamples a) {
    const int ray = blockIdx.x * blockDim.x + threadIdx.x;
    const bool live = ray < a.march.count;
    Walk w = start_walk(a.march, ray, live);
    int found = 0;
    while (find_sample(a.march, w)) found++, w.k++;
    if (live) a.found[ray] = found;
}

// One thread a ray, as trace. Every sample goes to the place that the count gave it.
template <typename T, int TABLES, int OCTETS, bool CUT>
__global__ void __launch_bounds__(WARPS * 32, (sizeof(T) == 2 ? 6 : 5) - CUT) list_samples(const LmSamples a) {
    __shared__ Place places[WARPS][32];
    __shared__ float features[WARPS][32];
    const LmMarch& m = a.march;
    Place* queue = places[threadIdx.x >> 5];
    float* feature = features[threadIdx.x >> 5];
    const int ray = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
    const bool live = ray < m.count;
    Walk w = start_walk(m, ray, live);
    int64_t place_in_list = live ? a.offset[ray] : 0;
    int survived = 0, absent = 0;
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
            if (place_in_list < a.capacity) {
                a.ray[place_in_list] = ray;
                a.t[place_in_list] = w.t;
                a.delta[place_in_list] = next_distance(m, w);
                a.partial[place_in_list] = feature[rank];
            }
            place_in_list++, survived++, w.k++;
        }
        __syncwarp();
    }
    const int lost = __reduce_add_sync(ALL, absent), total = __reduce_add_sync(ALL, survived);
    if (lane == 0) {
        if (lost) atomicAdd(a.status + 2, lost);
        if (total) atomicAdd(a.status + 3, total);
    }
}

// One thread a ray; its coloured samples go to the beginning of its own part of the stage.
__global__ void __launch_bounds__(256) weigh(const LmWeigh a) {
    const int ray = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
    const bool live = ray < a.count;
    const int64_t begin = live ? a.offset[ray] : 0, room = a.samples - begin;
    const int n = !live ? 0 : room < a.found[ray] ? (room > 0 ? (int)room : 0) : a.found[ray];  // an overfull list is rendered again
    Light light = {1.f, 0.f, 0.f};
    const Absorption absorption = {a.relu, a.nonlinear, a.shift, a.scale};
    int coloured = 0, weighed = 0;
    for (; weighed < n && !(light.transmittance < a.stop); weighed++) {
        const int64_t i = begin + weighed;
        const float t = a.t[i], weight = absorb(absorption, light, a.density[i], t, a.delta[i]);
        if (weight > a.threshold) a.stage[begin + coloured++] = make_float2(t, weight);
    }
    if (live) {
        a.coloured[ray] = coloured;
        a.alpha[ray] = light.alpha;
        a.depth[ray] = light.depth;
    }
    const int total = __reduce_add_sync(ALL, weighed);
    if (lane == 0 && total) atomicAdd(a.status + 3, total);
}

template <typename T, int TABLES, int OCTETS>
void launch_list(const LmSamples& a, cudaStream_t stream) {
    const int blocks = (a.march.count + WARPS * 32 - 1) / (WARPS * 32);
    if (a.field.origins != nullptr) list_samples<T, TABLES, OCTETS, true><<<blocks, WARPS * 32, 0, stream>>>(a);
    else list_samples<T, TABLES, OCTETS, false><<<blocks, WARPS * 32, 0, stream>>>(a);
}

}  // namespace landmark

extern "C" int lm_march_density(const LmSamples* a, cudaStream_t stream) {
    using namespace landmark;
    const int count = a->march.count;
    if (count == 0) return 0;
    count_samples<<<(count + 255) / 256, 256, 0, stream>>>(*a);
    int error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    if ((error = lm_scan(a->found, count, a->offset, a->sums, a->status, a->capacity, stream)) != cudaSuccess) return error;
    if ((error = lm_add_sums(a->sums, count, a->offset, stream)) != cudaSuccess) return error;
    const LmField& f = a->field;
    if (f.half_precision && f.tables == 3 && f.octets == 2) launch_list<half, 3, 2>(*a, stream);
    else if (f.half_precision && f.tables == 3 && f.octets == 1) launch_list<half, 3, 1>(*a, stream);
    else if (f.half_precision) launch_list<half, 0, 0>(*a, stream);
    else if (f.tables == 3 && f.octets == 2) launch_list<float, 3, 2>(*a, stream);
    else if (f.tables == 3 && f.octets == 1) launch_list<float, 3, 1>(*a, stream);
    else launch_list<float, 0, 0>(*a, stream);
    return cudaGetLastError();
}

extern "C" int lm_weigh_list(const LmWeigh* a, cudaStream_t stream) {
    if (a->count == 0) return 0;
    landmark::weigh<<<(a->count + 255) / 256, 256, 0, stream>>>(*a);
    int error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    if ((error = lm_scan(a->coloured, a->count, a->place, a->sums, a->status, a->list_capacity, stream)) != cudaSuccess) return error;
    const LmCompact c = {a->stage, a->offset, a->delta, nullptr, nullptr, nullptr, 0, a->count, a->coloured, a->place, a->sums, a->list, a->list_capacity};
    return lm_compact(&c, stream);
}
