// The thin torch side of the CUDA kernels that march and shade: tensors to pointers, current stream and device, errors to exceptions.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "abi.h"
#include "binding.h"

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

int attribute(cudaDeviceAttr which) {
    int device, value;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&value, which, device), "device attribute");
    return value;
}

LmField field_of(c10::ArrayRef<double> box, at::IntArrayRef division, const OptionalTensor& slots, at::TensorList planes, at::TensorList lines, int64_t resolutions,
                 const OptionalTensor& origins, at::IntArrayRef extents) {
    TORCH_CHECK(!planes.empty() && planes.size() <= LM_MAX_TABLES, planes.size(), " tables: 1 to ", LM_MAX_TABLES);
    const int64_t count = static_cast<int64_t>(planes.size());
    TORCH_CHECK(static_cast<int64_t>(extents.size()) == (origins.has_value() ? 2 * count : 0), extents.size(), " extents of ", count, " planes");
    LmField f = {};
    const int64_t channels = planes[0].size(3);
    TORCH_CHECK(channels % 8 == 0, channels, " channels: pad them to a multiple of 8");
    f.tables = static_cast<int>(planes.size());
    f.octets = static_cast<int>(channels / 8);
    f.half_precision = planes[0].scalar_type() == at::kHalf;
    for (int i = 0; i < f.tables; i++) {
        const Tensor &plane = planes[i], &line = lines[i];
        TORCH_CHECK(plane.is_contiguous() && line.is_contiguous() && plane.scalar_type() == planes[0].scalar_type() && line.scalar_type() == planes[0].scalar_type() &&
                        plane.size(3) == channels && line.size(2) == channels,
                    "table ", i, " differs in channels, precision or layout from the first");
        f.table[i] = {plane.data_ptr(), line.data_ptr(), static_cast<int>(plane.size(1)), static_cast<int>(plane.size(2)), static_cast<int>(line.size(1)), static_cast<int>(i / resolutions),
                      static_cast<int>(origins.has_value() ? extents[2 * i] : plane.size(1)), static_cast<int>(origins.has_value() ? extents[2 * i + 1] : plane.size(2))};
    }
    for (int i = 0; i < 3; i++) {
        f.low[i] = static_cast<float>(box[i]);
        f.inverse[i] = 2.f / (static_cast<float>(box[i + 3]) - static_cast<float>(box[i]));
    }
    if (!division.empty()) f.division[0] = static_cast<int>(division[0]), f.division[1] = static_cast<int>(division[1]);
    f.slots = slots.has_value() ? slots->data_ptr<int64_t>() : nullptr;
    if (origins.has_value()) {
        TORCH_CHECK(!division.empty() && origins->scalar_type() == at::kInt && origins->is_contiguous() && origins->numel() == division[0] * division[1] * 2 * count &&
                        reinterpret_cast<uintptr_t>(origins->data_ptr()) % sizeof(int2) == 0,
                    "origins: [blocks, planes, 2] int32, contiguous");
        f.origins = static_cast<const int2*>(origins->data_ptr());
    }
    TORCH_CHECK(planes[0].size(0) > 0, "no row of the tables: at least one slot");
    return f;
}

LmMarch march_of(const Tensor& rays, const Tensor& extent, const Tensor& base, const Tensor& slope, c10::ArrayRef<double> crop, at::TensorList occupancy,
                 c10::ArrayRef<double> mask_box, at::IntArrayRef mask_size, double mask_threshold) {
    TORCH_CHECK(rays.size(0) < (int64_t{1} << 31), "too many rays for one call");
    LmMarch m = {};
    m.rays = data<float>(rays), m.extent = data<float>(extent), m.base = data<float>(base), m.slope = data<float>(slope);
    m.count = static_cast<int>(rays.size(0)), m.samples = static_cast<int>(base.size(0));
    for (int i = 0; i < 6; i++) m.crop[i] = static_cast<float>(crop[i]);
    if (!occupancy.empty()) {
        m.bits = static_cast<const uint32_t*>(occupancy[0].data_ptr()), m.coarse = static_cast<const uint32_t*>(occupancy[1].data_ptr());
        m.words = static_cast<int>((mask_size[0] + 31) / 32);
        for (int i = 0; i < 3; i++) {
            m.size[i] = static_cast<int>(mask_size[i]), m.cells[i] = static_cast<int>((mask_size[i] + 7) / 8);
            const float low = static_cast<float>(mask_box[i]), span = static_cast<float>(mask_box[i + 3]) - low;
            m.mask_low[i] = low, m.mask_inverse[i] = 1.f / span * 2.f;
        }
        m.threshold = static_cast<float>(mask_threshold);
    }
    return m;
}

// The packed lookups of the half precision kernels hold texel indices of 31 bits.
bool indices_fit(at::TensorList planes) {
    for (const Tensor& plane : planes)
        if (plane.numel() / std::max<int64_t>(plane.size(3), 1) >= (int64_t{1} << 31)) return false;
    return true;
}

// trace(rays, extent, base, slope, crop, occupancy, mask_box, mask_size, mask_threshold, box, division, slots, planes, lines,
//       resolutions, basis, activation, nonlinear, shift, scale, threshold, stop, capacity, list_capacity, launch, origins, extents)
//   -> list [L, 4] int32, found [R] int32, offset [R] int32, alpha [R], depth [R], status [4] int32
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> trace(const Tensor& rays, const Tensor& extent, const Tensor& base, const Tensor& slope, c10::ArrayRef<double> crop,
                                                                 at::TensorList occupancy, c10::ArrayRef<double> mask_box, at::IntArrayRef mask_size, double mask_threshold,
                                                                 c10::ArrayRef<double> box, at::IntArrayRef division, const OptionalTensor& slots, at::TensorList planes, at::TensorList lines,
                                                                 int64_t resolutions, const OptionalTensor& basis, c10::string_view activation, bool nonlinear, double shift, double scale,
                                                                 double threshold, double stop, int64_t capacity, int64_t list_capacity, int64_t launch, const OptionalTensor& origins,
                                                                 at::IntArrayRef extents) {
    const c10::cuda::CUDAGuard guard(rays.device());
    const int64_t count = rays.size(0);
    TORCH_CHECK(list_capacity < (int64_t{1} << 31), "too many samples for one call");
    LmTrace a = {};
    a.march = march_of(rays, extent, base, slope, crop, occupancy, mask_box, mask_size, mask_threshold);
    a.field = field_of(box, division, slots, planes, lines, resolutions, origins, extents);
    a.basis = basis.has_value() ? data<float>(*basis) : nullptr;
    a.relu = activation == "relu", a.nonlinear = nonlinear;
    a.shift = static_cast<float>(shift), a.scale = static_cast<float>(scale), a.threshold = static_cast<float>(threshold), a.stop = static_cast<float>(stop);
    a.capacity = static_cast<int>(capacity), a.list_capacity = list_capacity;
    const auto ints = rays.options().dtype(at::kInt);
    Tensor stage = at::empty({capacity, count, 2}, rays.options()), found = at::empty({count}, ints), offset = at::empty({count}, ints);
    Tensor sums = at::empty({count / 1024 + 1}, ints), list = at::empty({list_capacity, 4}, ints), status = at::zeros({4}, ints);
    Tensor alpha = at::empty({count}, rays.options()), depth = at::empty({count}, rays.options());
    a.stage = static_cast<float2*>(stage.data_ptr()), a.found = data<int>(found), a.offset = data<int>(offset), a.sums = data<int>(sums);
    a.list = static_cast<int4*>(list.data_ptr()), a.alpha = data<float>(alpha), a.depth = data<float>(depth), a.status = data<int>(status);
    check(lm_trace(&a, static_cast<int>(launch), c10::cuda::getCurrentCUDAStream()), "trace");
    return {list, found, offset, alpha, depth, status};
}

// march_density(rays, extent, base, slope, crop, occupancy, mask_box, mask_size, mask_threshold, box, division, slots, planes, lines,
//               resolutions, basis, capacity, origins, extents)
//   -> ray [cap] int32, t [cap], delta [cap], partial [cap], found [R] int32, offset [R] int32, status [4] int32
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> march_density(const Tensor& rays, const Tensor& extent, const Tensor& base, const Tensor& slope, c10::ArrayRef<double> crop,
                                                                                 at::TensorList occupancy, c10::ArrayRef<double> mask_box, at::IntArrayRef mask_size, double mask_threshold,
                                                                                 c10::ArrayRef<double> box, at::IntArrayRef division, const OptionalTensor& slots, at::TensorList planes,
                                                                                 at::TensorList lines, int64_t resolutions, const OptionalTensor& basis, int64_t capacity, const OptionalTensor& origins,
                                                                                 at::IntArrayRef extents) {
    const c10::cuda::CUDAGuard guard(rays.device());
    const int64_t count = rays.size(0);
    TORCH_CHECK(count * base.size(0) < (int64_t{1} << 31) && capacity >= 0 && capacity < (int64_t{1} << 31), count, " rays of ", base.size(0),
                " samples: fewer than 2^31 samples in one call");
    LmSamples a = {};
    a.march = march_of(rays, extent, base, slope, crop, occupancy, mask_box, mask_size, mask_threshold);
    a.field = field_of(box, division, slots, planes, lines, resolutions, origins, extents);
    a.basis = basis.has_value() ? data<float>(*basis) : nullptr;
    a.capacity = capacity;
    const auto ints = rays.options().dtype(at::kInt);
    Tensor ray = at::empty({capacity}, ints), t = at::empty({capacity}, rays.options()), delta = at::empty({capacity}, rays.options());
    Tensor partial = at::empty({capacity}, rays.options()), found = at::empty({count}, ints), offset = at::empty({count}, ints);
    Tensor sums = at::empty({count / 1024 + 1}, ints), status = at::zeros({4}, ints);
    a.ray = data<int>(ray), a.t = data<float>(t), a.delta = data<float>(delta), a.partial = data<float>(partial);
    a.found = data<int>(found), a.offset = data<int>(offset), a.sums = data<int>(sums), a.status = data<int>(status);
    check(lm_march_density(&a, c10::cuda::getCurrentCUDAStream()), "march_density");
    return {ray, t, delta, partial, found, offset, status};
}

// weigh_list(density [cap], t, delta, found [R] int32, offset, activation, nonlinear, shift, scale, threshold, stop, list_capacity)
//   -> list, found, offset, alpha, depth, status as of trace
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> weigh_list(const Tensor& density, const Tensor& t, const Tensor& delta, const Tensor& found, const Tensor& offset,
                                                                      c10::string_view activation, bool nonlinear, double shift, double scale, double threshold, double stop,
                                                                      int64_t list_capacity) {
    const c10::cuda::CUDAGuard guard(density.device());
    const int64_t count = found.size(0), samples = density.size(0);
    TORCH_CHECK(count < (int64_t{1} << 31) && list_capacity >= 0 && list_capacity < (int64_t{1} << 31), "too many rays or samples for one call");
    TORCH_CHECK(density.is_contiguous() && t.is_contiguous() && delta.is_contiguous() && found.is_contiguous() && offset.is_contiguous() && density.scalar_type() == at::kFloat &&
                    t.size(0) == samples && delta.size(0) == samples && offset.size(0) == count && found.scalar_type() == at::kInt && offset.scalar_type() == at::kInt,
                "density, t, delta: float32 of one length; found, offset: int32 of one length; all contiguous");
    LmWeigh a = {};
    a.density = data<float>(density), a.t = data<float>(t), a.delta = data<float>(delta), a.found = data<int>(found), a.offset = data<int>(offset);
    a.count = static_cast<int>(count), a.samples = samples;
    a.relu = activation == "relu", a.nonlinear = nonlinear;
    a.shift = static_cast<float>(shift), a.scale = static_cast<float>(scale), a.threshold = static_cast<float>(threshold), a.stop = static_cast<float>(stop);
    a.list_capacity = list_capacity;
    const auto ints = found.options();
    Tensor stage = at::empty({samples, 2}, density.options()), coloured = at::empty({count}, ints), place = at::empty({count}, ints);
    Tensor sums = at::empty({count / 1024 + 1}, ints), list = at::empty({list_capacity, 4}, ints), status = at::zeros({4}, ints);
    Tensor alpha = at::empty({count}, density.options()), depth = at::empty({count}, density.options());
    a.stage = static_cast<float2*>(stage.data_ptr()), a.coloured = data<int>(coloured), a.place = data<int>(place), a.sums = data<int>(sums);
    a.list = static_cast<int4*>(list.data_ptr()), a.alpha = data<float>(alpha), a.depth = data<float>(depth), a.status = data<int>(status);
    check(lm_weigh_list(&a, c10::cuda::getCurrentCUDAStream()), "weigh_list");
    return {list, coloured, place, alpha, depth, status};
}

void colour_list(LmShade& a, const Tensor& rays, const Tensor& list, const Tensor& status, const Tensor& matrices, const Tensor& biases, const Tensor& colour, int64_t launch) {
    TORCH_CHECK(matrices.numel() == lm_shade_matrices(a.field.tables) && biases.numel() == 264, "matrices or biases of another size");
    a.rays = data<float>(rays), a.list = static_cast<const int4*>(list.data_ptr()), a.status = data<int>(status), a.list_capacity = list.size(0);
    a.matrices = matrices.data_ptr(), a.biases = data<float>(biases), a.colour = static_cast<float4*>(colour.data_ptr());
    check(lm_shade(&a, static_cast<int>(launch), attribute(cudaDevAttrMultiProcessorCount), c10::cuda::getCurrentCUDAStream()), "shade");
}

void check_shade(const LmField& f, at::TensorList planes) {
    TORCH_CHECK(f.half_precision && f.octets == 6 && f.tables <= 3 && indices_fit(planes), "shade takes up to three fp16 tables of 48 channels and fewer than 2^31 texels");
}

// resolve(colour [L, 4], offset, found) -> rgb [R, 3]: each ray's colours summed in the order of its samples
Tensor resolve(const Tensor& colour, const Tensor& offset, const Tensor& found) {
    const c10::cuda::CUDAGuard guard(colour.device());
    Tensor rgb = at::empty({found.size(0), 3}, colour.options());
    check(lm_resolve(static_cast<const float4*>(colour.data_ptr()), data<int>(offset), data<int>(found), static_cast<int>(found.size(0)), colour.size(0), data<float>(rgb),
                     c10::cuda::getCurrentCUDAStream()),
          "resolve");
    return rgb;
}

Tensor shaded(LmShade& a, const Tensor& rays, const Tensor& list, const Tensor& status, const Tensor& found, const Tensor& offset, const Tensor& matrices, const Tensor& biases, int64_t launch) {
    const Tensor colour = at::empty({list.size(0), 4}, rays.options());
    colour_list(a, rays, list, status, matrices, biases, colour, launch);
    return resolve(colour, offset, found);
}

// shade(rays, list, status, found, offset, box, division, slots, planes, lines, resolutions, matrices, biases, launch, origins, extents) -> rgb [R, 3]
Tensor shade(const Tensor& rays, const Tensor& list, const Tensor& status, const Tensor& found, const Tensor& offset, c10::ArrayRef<double> box, at::IntArrayRef division,
             const OptionalTensor& slots, at::TensorList planes, at::TensorList lines, int64_t resolutions, const Tensor& matrices, const Tensor& biases, int64_t launch,
             const OptionalTensor& origins, at::IntArrayRef extents) {
    const c10::cuda::CUDAGuard guard(rays.device());
    LmShade a = {};
    a.field = field_of(box, division, slots, planes, lines, resolutions, origins, extents);
    check_shade(a.field, planes);
    return shaded(a, rays, list, status, found, offset, matrices, biases, launch);
}

// shade_pass(rays, list, status, box, division, slots, planes, lines, resolutions, matrices, biases, colour [L, 4], launch, origins, extents):
// as shade, before the sums; colours of samples in absent blocks stay as they are
void shade_pass(const Tensor& rays, const Tensor& list, const Tensor& status, c10::ArrayRef<double> box, at::IntArrayRef division, const OptionalTensor& slots, at::TensorList planes,
                at::TensorList lines, int64_t resolutions, const Tensor& matrices, const Tensor& biases, Tensor colour, int64_t launch, const OptionalTensor& origins,
                at::IntArrayRef extents) {
    const c10::cuda::CUDAGuard guard(rays.device());
    LmShade a = {};
    a.field = field_of(box, division, slots, planes, lines, resolutions, origins, extents), a.pass = 1;
    check_shade(a.field, planes);
    TORCH_CHECK(colour.dim() == 2 && colour.size(0) == list.size(0) && colour.size(1) == 4 && colour.is_contiguous() && colour.scalar_type() == at::kFloat, "colour: [",
                list.size(0), ", 4] float32, contiguous");
    colour_list(a, rays, list, status, matrices, biases, colour, launch);
}

// shade_features(rays, list, status, found, offset, features [L, 27], matrices, biases) -> rgb [R, 3]
Tensor shade_features(const Tensor& rays, const Tensor& list, const Tensor& status, const Tensor& found, const Tensor& offset, const Tensor& features, const Tensor& matrices,
                      const Tensor& biases) {
    const c10::cuda::CUDAGuard guard(rays.device());
    TORCH_CHECK(features.dim() == 2 && features.size(0) == list.size(0) && features.size(1) == 27 && features.is_contiguous() && features.scalar_type() == at::kFloat,
                "features: [", list.size(0), ", 27] float32, contiguous");
    LmShade a = {};
    a.features = static_cast<const float*>(features.data_ptr());
    return shaded(a, rays, list, status, found, offset, matrices, biases, 0);
}

// features(rays, list, count, box, division, slots, planes, lines, resolutions, basis, status, origins, extents) -> [count, F]; 0 in absent blocks
Tensor features(const Tensor& rays, const Tensor& list, int64_t count, c10::ArrayRef<double> box, at::IntArrayRef division, const OptionalTensor& slots, at::TensorList planes,
                at::TensorList lines, int64_t resolutions, const Tensor& basis, const OptionalTensor& status, const OptionalTensor& origins, at::IntArrayRef extents) {
    const c10::cuda::CUDAGuard guard(rays.device());
    LmFeatures a = {};
    a.field = field_of(box, division, slots, planes, lines, resolutions, origins, extents);
    TORCH_CHECK(count <= list.size(0) && count < (int64_t{1} << 31), count, " samples of a list of ", list.size(0));
    TORCH_CHECK(!a.field.half_precision || indices_fit(planes), "features takes fp16 tables of fewer than 2^31 texels");
    TORCH_CHECK(basis.is_contiguous() && basis.scalar_type() == at::kFloat && basis.size(1) == static_cast<int64_t>(a.field.tables) * a.field.octets * 8, "the basis has ", basis.size(1),
                " columns");
    Tensor out = at::empty({count, basis.size(0)}, rays.options());
    a.rays = data<float>(rays), a.list = static_cast<const int4*>(list.data_ptr()), a.count = static_cast<int>(count), a.outputs = static_cast<int>(basis.size(0));
    a.basis = data<float>(basis), a.features = data<float>(out), a.status = status.has_value() ? data<int>(*status) : nullptr;
    check(lm_features(&a, attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), c10::cuda::getCurrentCUDAStream()), "features");
    return out;
}

bool shade_fits(int64_t tables) {
    return tables >= 0 && tables <= 3 && lm_shade_bytes(static_cast<int>(tables)) <= attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(landmark_batch, m) {
    m.def("shade_fits(int tables) -> bool", &shade_fits);  // 0: shade_features
}

TORCH_LIBRARY_IMPL(landmark_batch, CUDA, m) {
    m.impl("trace", &trace);
    m.impl("march_density", &march_density);
    m.impl("weigh_list", &weigh_list);
    m.impl("shade", &shade);
    m.impl("shade_pass", &shade_pass);
    m.impl("shade_features", &shade_features);
    m.impl("features", &features);
    m.impl("resolve", &resolve);
}
