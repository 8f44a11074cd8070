// The CPU kernels as torch ops: checks that the compiled code relies on, scratch memory, outputs. The only file with torch headers.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace landmark {
namespace {

using at::Tensor;
using Doubles = at::ArrayRef<double>;

bool supported(const Kernels& kernels) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (&kernels == &kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
    if (&kernels == &kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
#endif
    return &kernels == &kernels_portable;
}

const Kernels* const variants[] = {
#if defined(__x86_64__)
    &kernels_avx512, &kernels_avx2,
#endif
    &kernels_portable};

const Kernels* chosen = *std::find_if(std::begin(variants), std::end(variants), [](const Kernels* k) { return supported(*k); });

// Memory of this thread that a call may use until it returns; kept from call to call.
template <class T>
T* scratch(int which, size_t count) {
    static thread_local std::vector<char> memory[4];
    std::vector<char>& block = memory[which];
    if (block.size() < count * sizeof(T) + 64) block.resize(std::max(count * sizeof(T) + 64, 2 * block.size()));
    return (T*)(((uintptr_t)block.data() + 63) & ~(uintptr_t)63);
}

Tensor copy_out(const void* from, int64_t count, const Tensor& like, at::ScalarType type) {
    Tensor out = at::empty({count}, like.options().dtype(type));
    if (count) std::memcpy(out.data_ptr(), from, (size_t)count * out.element_size());
    return out;
}

Tensor pixel_rays(const Tensor& pose_in, const Tensor& lens_in, double center, const Tensor& index_in, int64_t width) {
    const Tensor pose = pose_in.contiguous(), lens = lens_in.contiguous(), index = index_in.contiguous();
    Pixels p{};
    std::copy_n(pose.const_data_ptr<float>(), 12, p.pose);
    std::copy_n(lens.const_data_ptr<float>(), 4, p.lens);
    p.center = (float)center, p.index = index.const_data_ptr<int64_t>(), p.count = index.size(0), p.width = width;
    Tensor rays = at::empty({p.count, 6}, pose.options());
    chosen->pixel_rays(p, rays.mutable_data_ptr<float>());
    return rays;
}

Tensor ray_hull(const Tensor& rays_in, double far, double floor) {
    const Tensor rays = rays_in.contiguous();
    Tensor reach = at::empty({rays.size(0)}, rays.options());
    const float *ray = rays.const_data_ptr<float>(), low = (float)floor, most = (float)far;
    float* out = reach.mutable_data_ptr<float>();
    for (int64_t r = 0; r < rays.size(0); r++, ray += 6) out[r] = ray[5] >= 0 ? most : -((ray[2] - low) / ray[5]);
    return reach;
}

Tensor ray_box(const Tensor& rays_in, Doubles box, double near, double far) {
    const Tensor rays = rays_in.contiguous();
    Tensor entry = at::empty({rays.size(0)}, rays.options());
    const float* ray = rays.const_data_ptr<float>();
    float* out = entry.mutable_data_ptr<float>();
    for (int64_t r = 0; r < rays.size(0); r++, ray += 6) {
        float latest = 0;
        for (int a = 0; a < 3; a++) {
            const float direction = ray[3 + a] == 0 ? 1e-6f : ray[3 + a];
            const float upper = ((float)box[3 + a] - ray[a]) / direction, lower = ((float)box[a] - ray[a]) / direction;
            const float first = lower != lower || lower < upper ? lower : upper;  // NaN stays NaN, as in torch
            if (a == 0 || first != first || first > latest) latest = latest != latest && a ? latest : first;
        }
        if (latest < (float)near) latest = (float)near;
        out[r] = latest > (float)far ? (float)far : latest;
    }
    return entry;
}

std::tuple<Tensor, Tensor, Tensor> march(
    const Tensor& rays_in, const Tensor& extent_in, const Tensor& base_in, const Tensor& slope_in, Doubles box, at::TensorList occupancy,
    Doubles mask_box, double threshold) {
    const Tensor rays = rays_in.contiguous(), extent = extent_in.contiguous(), base = base_in.contiguous(), slope = slope_in.contiguous();
    const int64_t samples = base.size(0), count = rays.size(0);
    TORCH_CHECK(samples < (1 << 24), "march: ", samples, " samples a ray");
    March m{};
    m.rays = rays.const_data_ptr<float>(), m.extent = extent.const_data_ptr<float>(), m.samples = (int)samples;
    float* tables = scratch<float>(0, 2 * (samples + 32) + march_group_floats((int)samples));
    float *bases = tables, *slopes = bases + samples + 32, *groups = slopes + samples + 32;
    for (int64_t k = 0; k < samples + 32; k++) {  // the sample after the last repeats it: delta 0
        bases[k] = base.const_data_ptr<float>()[std::min(k, samples - 1)];
        slopes[k] = slope.const_data_ptr<float>()[std::min(k, samples - 1)];
    }
    chosen->march_groups(bases, slopes, m.samples, groups);
    m.base = bases, m.slope = slopes, m.groups = groups;
    for (int64_t k = 0; k < samples; k++) m.base_most = std::max(m.base_most, std::fabs(bases[k])), m.slope_most = std::max(m.slope_most, std::fabs(slopes[k]));
    m.scratch = scratch<int32_t>(2, march_scratch(m.samples));
    for (int i = 0; i < 6; i++) m.box[i] = (float)box[i];
    Tensor codes, coarse, levels;
    if (!occupancy.empty()) {
        codes = occupancy[0].contiguous(), coarse = occupancy[1].contiguous(), levels = occupancy[2].contiguous();
        m.codes = codes.const_data_ptr<uint8_t>(), m.coarse = coarse.const_data_ptr<uint8_t>(), m.levels = levels.const_data_ptr<int64_t>();
        m.level_count = (int)levels.size(0);
        for (int a = 0; a < 3; a++) {
            m.cells[a] = codes.size(2 - a);
            m.mask_low[a] = (float)mask_box[a];
            m.mask_inverse[a] = 1.0f / ((float)mask_box[3 + a] - (float)mask_box[a]) * 2.0f;
        }
        m.threshold = (float)threshold, m.full_passes = threshold < 0.999;  // in a full cell the trilinear value is 1 up to rounding
    }
    Survivors found{nullptr, nullptr, nullptr, 0, 0};
    std::vector<std::tuple<Tensor, Tensor, Tensor>> parts;
    for (int64_t r = 0; r < count;) {
        if (found.count || !found.capacity) {
            const int64_t room = std::max<int64_t>(16 * samples + 16, std::min<int64_t>((count - r) * samples + 16, 1 << 20));
            float* memory = scratch<float>(1, 3 * room);
            if (found.count)
                parts.emplace_back(copy_out(found.ray, found.count, rays, at::kInt), copy_out(found.t, found.count, rays, at::kFloat), copy_out(found.delta, found.count, rays, at::kFloat));
            found = {(int32_t*)memory, memory + room, memory + 2 * room, room, 0};
        }
        r = chosen->march(m, r, count, found);
    }
    int64_t total = found.count;
    for (auto& part : parts) total += std::get<0>(part).size(0);
    Tensor ray = at::empty({total}, rays.options().dtype(at::kInt)), t = at::empty({total}, rays.options()), delta = at::empty({total}, rays.options());
    int64_t place = 0;
    auto append = [&](const int32_t* r, const float* x, const float* d, int64_t n) {
        if (!n) return;
        std::memcpy(ray.mutable_data_ptr<int32_t>() + place, r, 4 * n);
        std::memcpy(t.mutable_data_ptr<float>() + place, x, 4 * n);
        std::memcpy(delta.mutable_data_ptr<float>() + place, d, 4 * n);
        place += n;
    };
    for (auto& [r, x, d] : parts) append(r.const_data_ptr<int32_t>(), x.const_data_ptr<float>(), d.const_data_ptr<float>(), r.size(0));
    append(found.ray, found.t, found.delta, found.count);
    return {ray, t, delta};
}

// Everything of density and appearance but the basis.
struct FieldCall {
    Field field{};
    std::vector<Table> tables;
    Tensor rays, ray, t, slots, origins;
    Points points{};

    FieldCall(const Tensor& rays_in, const Tensor& ray_in, const Tensor& t_in, Doubles box, at::IntArrayRef division, const std::optional<Tensor>& slots_in,
              at::TensorList planes, at::TensorList lines, int64_t resolutions, const std::optional<Tensor>& origins_in, at::IntArrayRef extents)
        : rays(rays_in.contiguous()), ray(ray_in.contiguous()), t(t_in.contiguous()) {
        TORCH_CHECK(extents.size() == (origins_in ? 2 * planes.size() : 0), "extents has ", extents.size(), " numbers for ", planes.size(), " planes");
        for (size_t i = 0; i < planes.size(); i++) {
            const Tensor &plane = planes[i], &line = lines[i];
            TORCH_CHECK(plane.is_contiguous() && line.is_contiguous(), "table ", i, " is not contiguous");
            TORCH_CHECK(plane.size(1) * plane.size(2) < (int64_t)1 << 31, "plane ", i, " has ", plane.size(1) * plane.size(2), " texels a block: at most 2^31");
            const int64_t height = origins_in ? extents[2 * i] : plane.size(1), width = origins_in ? extents[2 * i + 1] : plane.size(2);
            tables.push_back({plane.const_data_ptr(), line.const_data_ptr(), plane.size(1), plane.size(2), height, width, line.size(1), (int)plane.size(3), (int)((int64_t)i / resolutions), plane.scalar_type() == at::kHalf, line.scalar_type() == at::kHalf});
        }
        field.tables = tables.data(), field.count = (int)tables.size();
        for (int a = 0; a < 3; a++) {
            field.low[a] = (float)box[a];
            field.inverse[a] = 1.0f / ((float)box[3 + a] - (float)box[a]) * 2.0f;
        }
        if (!division.empty()) field.division[0] = (int)division[0], field.division[1] = (int)division[1];
        if (slots_in) slots = slots_in->contiguous(), field.slots = slots.const_data_ptr<int64_t>();
        if (origins_in) {
            origins = origins_in->contiguous(), field.origins = origins.const_data_ptr<int32_t>();
            TORCH_CHECK(!division.empty() && origins.numel() == division[0] * division[1] * 2 * (int64_t)planes.size(), "origins: [blocks, planes, 2] int32");
        }
        field.scratch = scratch<char>(0, chosen->field_scratch(field));
        points = {rays.const_data_ptr<float>(), ray.const_data_ptr<int32_t>(), t.const_data_ptr<float>(), t.size(0)};
    }
};

void present(bool all) { TORCH_CHECK(all, "a sample lies in a block that is not in memory"); }

Tensor density(const Tensor& rays, const Tensor& ray, const Tensor& t, Doubles box, at::IntArrayRef division, const std::optional<Tensor>& slots,
               at::TensorList planes, at::TensorList lines, int64_t resolutions, const std::optional<Tensor>& basis, const std::optional<Tensor>& origins,
               at::IntArrayRef extents) {
    FieldCall call(rays, ray, t, box, division, slots, planes, lines, resolutions, origins, extents);
    Tensor feature = at::empty({call.t.size(0)}, call.t.options());
    Tensor weights = basis ? basis->contiguous() : Tensor();
    present(chosen->density(call.field, call.points, basis ? weights.const_data_ptr<float>() : nullptr, feature.mutable_data_ptr<float>()));
    return feature;
}

Tensor appearance(const Tensor& rays, const Tensor& ray, const Tensor& t, Doubles box, at::IntArrayRef division, const std::optional<Tensor>& slots,
                  at::TensorList planes, at::TensorList lines, int64_t resolutions, const Tensor& basis, const std::optional<Tensor>& origins, at::IntArrayRef extents) {
    FieldCall call(rays, ray, t, box, division, slots, planes, lines, resolutions, origins, extents);
    const Tensor matrix = basis.contiguous();
    Tensor features = at::empty({call.t.size(0), matrix.size(0)}, call.t.options());
    float* products = scratch<float>(1, appearance_floats(matrix.size(1), (int)matrix.size(0)));
    present(chosen->appearance(call.field, call.points, matrix.const_data_ptr<float>(), (int)matrix.size(0), products, features.mutable_data_ptr<float>()));
    return features;
}

std::tuple<Tensor, Tensor> composite(const Tensor& feature_in, const Tensor& ray_in, const Tensor& delta_in, int64_t, std::string_view activation,
                                     double shift, bool nonlinear, double scale, double threshold, double stop) {
    const Tensor feature = feature_in.contiguous(), ray = ray_in.contiguous(), delta = delta_in.contiguous();
    Composite c{feature.const_data_ptr<float>(), ray.const_data_ptr<int32_t>(), delta.const_data_ptr<float>(), feature.size(0),
                activation == "softplus", nonlinear, (float)shift, (float)scale, (float)threshold, (float)stop};
    Tensor weights = at::empty({feature.size(0)}, feature.options());
    int64_t* coloured = scratch<int64_t>(0, (size_t)c.count + 1);
    const int64_t found = chosen->composite(c, weights.mutable_data_ptr<float>(), coloured);
    return {weights, copy_out(coloured, found, feature, at::kLong)};
}

std::tuple<Tensor, Tensor> weigh(const Tensor& rays, const Tensor& ray, const Tensor& t, const Tensor& delta_in, int64_t, Doubles box, at::IntArrayRef division,
                                 const std::optional<Tensor>& slots, at::TensorList planes, at::TensorList lines, int64_t resolutions,
                                 const std::optional<Tensor>& basis, std::string_view activation, double shift, bool nonlinear, double scale,
                                 double threshold, double stop, const std::optional<Tensor>& origins, at::IntArrayRef extents) {
    FieldCall call(rays, ray, t, box, division, slots, planes, lines, resolutions, origins, extents);
    const Tensor delta = delta_in.contiguous(), matrix = basis ? basis->contiguous() : Tensor();
    TORCH_CHECK(call.points.count < (int64_t)1 << 31, "weigh: ", call.points.count, " samples");
    Composite c{nullptr, call.points.ray, delta.const_data_ptr<float>(), call.points.count, activation == "softplus", nonlinear, (float)shift, (float)scale, (float)threshold, (float)stop};
    Tensor weights = at::empty({c.count}, call.t.options());
    int64_t *coloured = scratch<int64_t>(1, (size_t)c.count + 1), found = 0;
    present(chosen->weigh(call.field, call.points, basis ? matrix.const_data_ptr<float>() : nullptr, c, weights.mutable_data_ptr<float>(), coloured, &found));
    return {weights, copy_out(coloured, found, weights, at::kLong)};
}

Tensor decode(const Tensor& features_in, const Tensor& rays_in, const Tensor& ray_in, at::TensorList weights, at::TensorList biases, int64_t fea_pe, int64_t view_pe) {
    const Tensor features = features_in.contiguous(), rays = rays_in.contiguous(), ray = ray_in.contiguous();
    Decoder d{};
    d.features = features.const_data_ptr<float>(), d.inputs = (int)features.size(1), d.rays = rays.const_data_ptr<float>();
    d.ray = ray.const_data_ptr<int32_t>(), d.count = features.size(0), d.fea_pe = (int)fea_pe, d.view_pe = (int)view_pe;
    Tensor kept[6];
    for (int i = 0; i < 3; i++) {
        kept[i] = weights[i].contiguous(), d.weights[i] = kept[i].const_data_ptr<float>();
        if (!biases.empty()) kept[3 + i] = biases[i].contiguous(), d.biases[i] = kept[3 + i].const_data_ptr<float>();
    }
    d.columns = (int)kept[0].size(1), d.hidden[0] = (int)kept[0].size(0), d.hidden[1] = (int)kept[1].size(0);
    d.scratch = scratch<float>(0, chosen->decode_scratch(d));
    Tensor rgb = at::empty({features.size(0), 3}, features.options());
    chosen->decode(d, rgb.mutable_data_ptr<float>());
    return rgb;
}

std::tuple<Tensor, Tensor, Tensor> accumulate(const Tensor& weights_in, const Tensor& t_in, const Tensor& ray_in, const Tensor& coloured_in, const Tensor& rgb_in, int64_t count) {
    const Tensor weights = weights_in.contiguous(), t = t_in.contiguous(), ray = ray_in.contiguous(), coloured = coloured_in.contiguous(), rgb = rgb_in.contiguous();
    Tensor sums = at::empty({count, 3}, rgb.options()), depth = at::empty({count}, rgb.options()), alpha = at::empty({count}, rgb.options());
    const float *w = weights.const_data_ptr<float>(), *x = t.const_data_ptr<float>(), *colour = rgb.const_data_ptr<float>();
    const int32_t* r = ray.const_data_ptr<int32_t>();
    const int64_t *chosen_samples = coloured.const_data_ptr<int64_t>(), samples = weights.size(0), colours = coloured.size(0);
    float *rgb_out = sums.mutable_data_ptr<float>(), *depth_out = depth.mutable_data_ptr<float>(), *alpha_out = alpha.mutable_data_ptr<float>();
    int64_t m = 0, c = 0;
    for (int64_t i = 0; i < count; i++) {
        float d = 0, a = 0, sum[3] = {0, 0, 0};
        for (; m < samples && r[m] == i; m++) d += w[m] * x[m], a += w[m];
        for (; c < colours && chosen_samples[c] < m; c++)
            for (int k = 0; k < 3; k++) sum[k] += colour[3 * c + k] * w[chosen_samples[c]];
        depth_out[i] = d, alpha_out[i] = a;
        std::memcpy(rgb_out + 3 * i, sum, sizeof sum);
    }
    return {sums, depth, alpha};
}

}  // namespace
}  // namespace landmark

extern "C" {

// Name of the instruction set in use; `name`, if given and supported here, is used from now on (for tests: not while ops run).
__attribute__((visibility("default"))) const char* landmark_cpu_variant(const char* name) {
    for (const landmark::Kernels* kernels : landmark::variants)
        if (name && !std::strcmp(kernels->name, name) && landmark::supported(*kernels)) landmark::chosen = kernels;
    return landmark::chosen->name;
}
}

TORCH_LIBRARY_IMPL(landmark_batch, CPU, m) {
    m.impl("pixel_rays", landmark::pixel_rays);
    m.impl("ray_hull", landmark::ray_hull);
    m.impl("ray_box", landmark::ray_box);
    m.impl("march", landmark::march);
    m.impl("density", landmark::density);
    m.impl("appearance", landmark::appearance);
    m.impl("composite", landmark::composite);
    m.impl("weigh", landmark::weigh);
    m.impl("decode", landmark::decode);
    m.impl("accumulate", landmark::accumulate);
}
