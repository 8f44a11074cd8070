// The thin torch side of what stands before and behind the kernels that march and shade: rays, finished frames and their PNGs.
#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "abi.h"
#include "binding.h"

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int PNG_SHARED = 36 * 1024;  // bytes for a row: with what the kernels take beside it, any device has them

// pixel_rays(c2w [3, 4], intrinsics [4], pixel_center, pixel_index [R], width) -> [R, 6]
Tensor pixel_rays(const Tensor& c2w, const Tensor& intrinsics, double pixel_center, const Tensor& pixel_index, int64_t width) {
    const c10::cuda::CUDAGuard guard(pixel_index.device());
    const Tensor pose = c2w.contiguous(), lens = intrinsics.contiguous(), index = pixel_index.contiguous();
    TORCH_CHECK(pose.is_cuda() && lens.is_cuda() && pose.scalar_type() == at::kFloat && lens.scalar_type() == at::kFloat && index.scalar_type() == at::kLong && pose.numel() == 12 &&
                    lens.numel() == 4,
                "pixel_rays takes float32 [3, 4] and [4], and int64, on one device");
    Tensor rays = at::empty({index.size(0), 6}, pose.options());
    check(lm_pixel_rays(data<float>(pose), data<float>(lens), static_cast<float>(pixel_center), data<int64_t>(index), index.size(0), width, data<float>(rays),
                        c10::cuda::getCurrentCUDAStream()),
          "pixel_rays");
    return rays;
}

// ray_hull(rays [R, 6], far, floor) -> [R]
Tensor ray_hull(const Tensor& rays, double far, double floor) {
    const c10::cuda::CUDAGuard guard(rays.device());
    const Tensor read = rays.contiguous();
    TORCH_CHECK(read.scalar_type() == at::kFloat && read.dim() == 2 && read.size(1) == 6, "rays: [R, 6] float32");
    Tensor extent = at::empty({read.size(0)}, read.options());
    check(lm_ray_hull(data<float>(read), read.size(0), static_cast<float>(far), static_cast<float>(floor), data<float>(extent), c10::cuda::getCurrentCUDAStream()), "ray_hull");
    return extent;
}

// quantise(values [..., C], alpha, limit, out, wrong [n] int32, index): out gets the values in its type, wrong[index] 1 where one cannot be stored
void quantise(const Tensor& values, const OptionalTensor& alpha, double limit, Tensor out, Tensor wrong, int64_t index) {
    const c10::cuda::CUDAGuard guard(values.device());
    const int64_t count = out.numel();
    TORCH_CHECK(values.scalar_type() == at::kFloat && values.is_contiguous() && out.is_contiguous() && wrong.scalar_type() == at::kInt && wrong.is_contiguous() && index >= 0 &&
                    index < wrong.numel(),
                "values: float32, contiguous, as out is; wrong: int32, of more than ", index, " values");
    TORCH_CHECK(out.device() == values.device() && wrong.device() == values.device() && (!alpha.has_value() || alpha->device() == values.device()), "one device for all");
    TORCH_CHECK(reinterpret_cast<uintptr_t>(values.data_ptr()) % 16 == 0 && reinterpret_cast<uintptr_t>(out.data_ptr()) % 16 == 0, "values and out: at multiples of 16 bytes");
    if (alpha.has_value()) {
        TORCH_CHECK(alpha->scalar_type() == at::kFloat && alpha->is_contiguous() && values.numel() == 3 * alpha->numel() && count == 4 * alpha->numel(), "alpha: one float32 a pixel");
    } else {
        TORCH_CHECK(values.numel() == count, "out: as many values as there are");
    }
    int kind = LM_FLOAT32;
    switch (out.scalar_type()) {
        case at::kByte: kind = LM_UINT8; break;
        case at::kShort: kind = LM_UINT16; break;
        case at::kHalf: kind = LM_FLOAT16; break;
        case at::kFloat: break;
        default: TORCH_CHECK(false, "out: uint8, int16 (of unsigned values), float16 or float32");
    }
    check(lm_quantise(data<float>(values), alpha.has_value() ? data<float>(*alpha) : nullptr, count, static_cast<float>(limit), kind, data<void>(out), data<int>(wrong) + index,
                      c10::cuda::getCurrentCUDAStream()),
          "quantise");
}

// png_stream(pixels [H, W, 3] uint8, out [N] uint8): out gets the length and the checksum of a stream, and the stream
void png_stream(const Tensor& pixels, Tensor out) {
    const c10::cuda::CUDAGuard guard(pixels.device());
    TORCH_CHECK(pixels.dim() == 3 && pixels.size(2) == 3 && pixels.scalar_type() == at::kByte && pixels.is_contiguous() && pixels.numel() > 0 && pixels.size(0) < (1 << 20) &&
                    pixels.numel() < (int64_t{1} << 31),
                "pixels: [H, W, 3] uint8, contiguous, less than 2^20 rows and 2^31 bytes");
    TORCH_CHECK(out.device() == pixels.device() && out.dim() == 1 && out.scalar_type() == at::kByte && out.is_contiguous() && out.numel() >= 256 && out.numel() % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(out.data_ptr()) % 4 == 0,
                "out: [N] uint8 on the pixels' device, N a multiple of 4 and at least 256");
    const int64_t rows = pixels.size(0), bytes = 3 * pixels.size(1);
    TORCH_CHECK(bytes < (1 << 20) && lm_png_shared(static_cast<int>(bytes)) <= PNG_SHARED, "rows of ", pixels.size(1), " pixels are too long");
    out.zero_();
    const at::TensorOptions options = pixels.options();
    const Tensor lines = at::empty({rows, LM_PNG_LINE(bytes)}, options.dtype(at::kInt)), sums = at::empty({rows, 2}, options.dtype(at::kLong));
    const Tensor pieces = at::empty({rows, LM_PNG_PIECES(bytes), 2}, options.dtype(at::kLong)), row_bits = at::empty({rows}, options.dtype(at::kInt));
    const Tensor counts = at::zeros({LM_PNG_SYMBOLS}, options.dtype(at::kInt)), table = at::empty({LM_PNG_SYMBOLS}, options.dtype(at::kInt));
    const Tensor row_counts = at::empty({rows, LM_PNG_SYMBOLS}, options.dtype(at::kShort));
    LmPng a = {};
    a.pixels = data<unsigned char>(pixels), a.rows = static_cast<int>(rows), a.bytes = static_cast<int>(bytes), a.lines = data<unsigned>(lines), a.pieces = pieces.data_ptr();
    a.sums = sums.data_ptr(), a.counts = data<int>(counts), a.row_counts = data<unsigned short>(row_counts), a.table = data<unsigned>(table), a.row_bits = data<int>(row_bits);
    a.out = data<unsigned>(out), a.words = out.numel() / 4;
    check(lm_png_stream(&a, c10::cuda::getCurrentCUDAStream()), "png_stream");
}

// As quantise() takes it.
Tensor aligned(const Tensor& plane) {
    const Tensor packed = plane.contiguous();
    return reinterpret_cast<uintptr_t>(packed.data_ptr()) % 16 == 0 ? packed : packed.clone();
}

// By torch, whose allocator of pinned memory then knows of the copy.
void to_host(const Tensor& from, const Tensor& place) {
    TORCH_CHECK(place.is_cpu() && place.sizes() == from.sizes() && place.scalar_type() == from.scalar_type(), "a place in host memory has another shape or type");
    place.copy_(from, /*non_blocking=*/true);
}

// read_back(planes, alphas, limits, places, wrong [n] int32, picture, index): planes rounded and copied to places in host memory, wrong likewise;
// picture gets the png_stream of output `index`, unless the device has no memory for it
void read_back(at::TensorList planes, const c10::List<OptionalTensor>& alphas, c10::ArrayRef<double> limits, at::TensorList places, Tensor wrong, const OptionalTensor& picture, int64_t index) {
    TORCH_CHECK(!planes.empty() && alphas.size() == planes.size() && limits.size() == planes.size() && places.size() == planes.size(), "as many planes as limits and places");
    const c10::cuda::CUDAGuard guard(planes[0].device());
    const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
    const Tensor words = at::zeros({static_cast<int64_t>(planes.size())}, planes[0].options().dtype(at::kInt));
    for (size_t i = 0; i < planes.size(); i++) {
        const OptionalTensor alpha = alphas.get(i);
        c10::cuda::CUDACachingAllocator::recordStream(planes[i].storage().data_ptr(), stream);  // not another's before this stream has read it
        if (alpha.has_value()) c10::cuda::CUDACachingAllocator::recordStream(alpha->storage().data_ptr(), stream);
        const Tensor out = at::empty(places[i].sizes(), planes[i].options().dtype(places[i].scalar_type()));
        quantise(aligned(planes[i]), alpha.has_value() ? OptionalTensor(aligned(*alpha)) : alpha, limits[i], out, words, static_cast<int64_t>(i));
        to_host(out, places[i]);
        if (!picture.has_value() || index != static_cast<int64_t>(i)) continue;
        try {
            const Tensor made = at::empty({picture->numel()}, out.options());
            png_stream(out, made);
            to_host(made, *picture);
        } catch (const c10::OutOfMemoryError&) {
        }
    }
    to_host(words, wrong);
}

bool png_fits(int64_t width) { return width > 0 && width < (1 << 18) && lm_png_shared(static_cast<int>(3 * width)) <= PNG_SHARED; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(landmark_batch, m) { m.def("png_fits(int width) -> bool", &png_fits); }

TORCH_LIBRARY_IMPL(landmark_batch, CUDA, m) {
    m.impl("pixel_rays", &pixel_rays);
    m.impl("ray_hull", &ray_hull);
    m.impl("png_stream", &png_stream);
    m.impl("read_back", &read_back);
}
