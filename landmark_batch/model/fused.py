"""FusedRenderer: the renderer's CUDA path over fused kernels. Same faces as Renderer, whole frames in few launches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.kernels import fused
from landmark_batch.kernels.tuning import Launches, Shape
from landmark_batch.model.begun import Begun, Sums, begin
from landmark_batch.model.blocks import BlockTables, cut_arguments
from landmark_batch.model.decoder import Decoder
from landmark_batch.model.field import STORAGE
from landmark_batch.model.frame_graph import FrameGraphs
from landmark_batch.model.frame_values import device_camera, host_camera, pixel_planes, pixel_values, pose_and_lens
from landmark_batch.model.output import BegunFrame, RenderOutput
from landmark_batch.model.profile import recording, span, stepwise
from landmark_batch.model.runtime import load_runtime
from landmark_batch.model.sampling import Sampler, flat_box
from landmark_batch.model.settings import RenderSettings
from landmark_batch.model.tiles import tile_order
from landmark_batch.scene.weights import SceneWeights

logger = logging.getLogger(__name__)

# Transmittance below which a ray ends: what is left out is at most this much of alpha, and in no sample has a colour.
STOP = {"fp32": 1e-7, "fp16": 1e-4}
RAYS = 2**21  # at most in a batch, unless the job says otherwise: a frame of 1920x1080 is one
MEMORY_SHARE = 0.25  # of the free memory, for the buffers of a batch
MIN_RAYS = 2**12  # of a batch: below it a GPU is not filled
TUNING_RAYS = 2**16  # fewer rays say little about launch shapes
FEWER_RAYS = "out of GPU memory with %d rays at once: fewer are taken from here on, with the same pixels"


class FusedRenderer:
    """Renders frames of one scene with one set of settings on a CUDA device. Arguments as for Renderer.

    A ray's arithmetic does not depend on the rays beside it, so a frame has the same bits whatever the batch. Buffers for coloured
    samples start small and grow when a frame needs more: that frame is rendered again, none is lost.
    """

    def __init__(
        self,
        weights: SceneWeights,
        settings: RenderSettings,
        device: torch.device | str = "cuda",
        launches: Launches | None = None,
        tables: BlockTables | None = None,
        memory: int | None = None,
    ) -> None:
        """launches: where the kernels' launch shapes are found or kept; None takes the default ones. tables: as for Renderer, with
        channels filled up to whole groups of eight. memory: bytes for the buffers of a batch; None: a share of the device's.
        """
        self._memory = memory
        self._most_rays = RAYS
        self._launches = launches
        self._launch = {"trace": 0, "shade": 0}
        self._graphs = FrameGraphs(torch.device(device))
        self.settings = settings
        self.config = weights.config
        self.device = torch.device(device)
        load_runtime(settings.runtime, self.device.type)
        dtype = STORAGE[settings.precision]
        config = weights.config
        with torch.inference_mode():
            self._sampler = Sampler(config, settings, None, self.device)
            self._occupancy: list[Tensor] = []
            self._mask_box, self._mask_size = flat_box(config.aabb), [0, 0, 0]
            if weights.mask is not None:
                self._occupancy = [bits.to(self.device) for bits in fused.pack_bits(weights.mask.volume)]
                self._mask_box = flat_box(weights.mask.aabb)
                self._mask_size = [int(n) for n in reversed(weights.mask.volume.shape)]
            self._division: Sequence[int] = () if config.layout == "single" else config.division
            self._slots: Tensor | None = None  # every block is in memory
            self._cut = cut_arguments(tables)
            if tables is None:
                self._density = [self._store(group, dtype) for group in (weights.density_planes, weights.density_lines)]
                self._app = [self._store(group, dtype) for group in (weights.app_planes, weights.app_lines)]
            else:
                self._division, self._slots = tables.division, tables.slots
                self._density = [[*tables.density_planes], [*tables.density_lines]]
                self._app = [[*tables.app_planes], [*tables.app_lines]]
            levels = len(self._app[0])
            self._basis_density = None
            if weights.basis_density is not None:
                self._basis_density = fused.pad_basis(weights.basis_density.to(self.device, torch.float32), levels)
            self._basis = fused.pad_basis(weights.basis_mat.to(self.device, torch.float32), levels)
            self._decoder = Decoder(weights, settings.appearance, self.device)
            self._shade: tuple[Tensor, Tensor] | None = None
            widths = [matrix.shape[0] for matrix in self._decoder.weights]
            shape = (config.appearance_channels, levels, dtype, config.app_dim, widths, config.fea_pe, config.view_pe)
            if fused.shade_takes(*shape) and torch.ops.landmark_batch.shade_fits(levels):
                self._shade = fused.pack_shade(self._basis, self._decoder.weights, self._decoder.biases)
        self._capacity = 32
        self._coloured_per_ray = 16.0

    def _store(self, group: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        return [fused.pad_channels(tensor.to(device=self.device, dtype=dtype)) for tensor in group]

    def render(self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> RenderOutput:
        """One frame. c2w: [3, 4] camera to world, OpenGL axes. intrinsics: (fl_x, fl_y, cx, cy) in pixels."""
        with torch.inference_mode():
            order = tile_order(width, height, self.device)
            rgb, depth, alpha, counters = self._sums(c2w, intrinsics, width, order, order)
            return _output(rgb, depth, alpha, counters, width, height)

    def begin(self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> BegunFrame:
        """`render`, whose `finish` gives the frame. Begin the next one before: the device then has it when this one ends."""
        if self._launches is not None:  # the first frame is the one that launch shapes are chosen by
            return BegunFrame(lambda: self.render(c2w, intrinsics, width, height))

        def launch() -> tuple[RenderOutput, Tensor]:
            order = tile_order(width, height, self.device)
            rgb, depth, alpha, status = self._frame(c2w, intrinsics, width, order, order)
            return _output(rgb, depth, alpha, {}, width, height), status

        return begin(launch, self._counted(width * height), lambda: self.render(c2w, intrinsics, width, height))

    def begin_pixels(self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, pixels: Tensor) -> Begun[Sums]:
        """`render_pixels`, whose `finish` gives the pixels. Begin the next frame before, as with `begin`."""

        def launch() -> tuple[Sums, Tensor]:
            rgb, depth, alpha, status = self._frame(c2w, intrinsics, width, pixels, None)
            return Sums(rgb, depth, alpha, {}), status

        def whole() -> Sums:
            return Sums(*self.render_pixels(c2w, intrinsics, width, pixels))

        return begin(launch, self._counted(pixels.shape[0]), whole) if pixels.shape[0] else Begun(whole)

    def _counted(self, rays: int) -> Callable[[Sequence[int]], dict[str, int] | None]:
        """What `begin` asks of the status of a frame that is begun now: one whose buffers were too small is rendered again."""
        capacity, listed = self._capacity, self._coloured_per_ray

        def counted(status: Sequence[int]) -> dict[str, int] | None:
            coloured, most, absent, survived, overfull = status
            if most > capacity or overfull:
                if (capacity, listed) == (self._capacity, self._coloured_per_ray):  # else an earlier frame has let them grow already
                    self._grow(most, bool(overfull), coloured / rays)
                return None
            if absent:
                raise _absent(absent)
            return self._counters(rays, survived, coloured)

        return counted

    def render_pixels(
        self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, pixels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, int]]:
        """Some pixels of a frame, with the bits they have in the whole of it, in their order.

        pixels [P] int64: row * width + column, best a choice from `tile_order`, whose neighbours share texels. Returns rgb [P, 3]
        before the background, depth [P], alpha [P], counters as in RenderOutput.
        """
        with torch.inference_mode():
            return self._sums(c2w, intrinsics, width, pixels, None)

    def _sums(
        self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, pixels: Tensor, place: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, int]]:
        """`render_pixels`; with a place, pixel i in row place[i] of what is returned, on the background."""
        count = pixels.shape[0]
        coloured = survived = 0
        while count:
            try:
                rgb, depth, alpha, status = self._frame(c2w, intrinsics, width, pixels, place)
            except torch.OutOfMemoryError:
                if not self._shrink(count):
                    raise
                continue
            coloured, most, absent, survived, overfull = (int(v) for v in status.tolist())  # waits for the frame
            if not self._grow(most, bool(overfull), coloured / count):
                if absent:
                    raise _absent(absent)
                if self._launches is not None and count >= TUNING_RAYS:
                    self._tune(self._launches, c2w, intrinsics, width, pixels)
                break
        else:
            rgb, depth, alpha = (torch.empty(0, *shape, device=self.device) for shape in ((3,), (), ()))
        return rgb, depth, alpha, self._counters(count, survived, coloured)

    def _counters(self, rays: int, survived: int, coloured: int) -> dict[str, int]:
        return {"rays": rays, "samples": rays * self.settings.samples, "survived": survived, "coloured": coloured}

    def _shrink(self, count: int) -> bool:
        """After a device that was out of memory: half the rays at once. False where they are few already."""
        batch = min(self._batch(), count)
        if batch <= MIN_RAYS:
            return False
        if self._most_rays == RAYS:
            logger.warning(FEWER_RAYS, batch)
        self._most_rays = batch // 2
        self._graphs = FrameGraphs(self.device)
        torch.cuda.empty_cache()
        return True

    def _grow(self, most: int, overfull: bool, coloured_per_ray: float) -> bool:
        """Whether the frame has to be rendered again, with larger buffers."""
        if most > self._capacity:
            self._capacity = -(-most // 16) * 16
        elif not overfull:
            return False
        if overfull:
            self._coloured_per_ray = max(self._coloured_per_ray * 2, coloured_per_ray * 1.25)
        return True

    def _list_capacity(self, rays: int) -> int:
        return max(1024, int(rays * self._coloured_per_ray))

    def _batch(self) -> int:
        """Rays of a batch: what `batch_memory` holds; no pixel depends on it."""
        ray = 8 * self._capacity + 32 * self._coloured_per_ray + 128  # bytes: staged samples, list and colours, the ray itself
        wanted = min(self.settings.rays_per_batch or RAYS, self._most_rays)
        return wanted if self.settings.rays_per_batch else max(MIN_RAYS, min(wanted, int(self.batch_memory() / ray)))

    def batch_memory(self) -> int:
        """Bytes for the buffers of a batch."""
        if self._memory is not None:
            return self._memory // 2  # a graph has buffers of its own, beside those of the steps before it
        if self.device.type != "cuda":
            return 2**30
        left = torch.cuda.get_device_properties(self.device).total_memory - torch.cuda.memory_allocated(self.device)
        return int(left * MEMORY_SHARE)

    def _frame(
        self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, order: Tensor, place: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """rgb, depth, alpha and status of pixels, all still on the device."""
        camera, batch, count = host_camera(c2w, intrinsics, self.device), self._batch(), order.shape[0]
        if self._shade is None or (recording() and stepwise()):  # counts are looked at in between, or every step is measured
            values, status = self._steps(camera.to(self.device, non_blocking=True), width, order, place, batch)
        else:
            buffers = batch, self._capacity, self._coloured_per_ray
            key = (width, order.data_ptr(), count, place is None, *buffers, *self._launch.values())
            with span("replay", self.device):
                values, status = self._graphs.run(key, lambda camera: self._steps(camera, width, order, place, batch), camera)
        return *pixel_planes(values, count), status

    def _steps(self, camera: Tensor, width: int, order: Tensor, place: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """`pixel_values` with rgb, depth and alpha in them, and the status."""
        count = order.shape[0]
        pose, lens = pose_and_lens(camera)
        values = pixel_values(count, self.device)
        rgb, depth, alpha = pixel_planes(values, count)
        totals = []
        for start in range(0, count, batch):
            part = slice(start, min(start + batch, count))
            rows = part if place is None else place[part]
            rays = pixel_rays(pose, lens, self.settings.pixel_center, order[part], width)
            with span("march and density", self.device):
                traced = self._trace(rays)
            colours = self._colours(rays, traced)
            with span("image", self.device):
                rgb[rows], depth[rows], alpha[rows] = colours, traced.depth, traced.alpha
            totals.append(torch.cat([traced.status, traced.status[:1] > traced.list.shape[0]]).to(torch.int64))
        if place is not None:
            if self.settings.background == "white":
                rgb.add_(1.0 - alpha[:, None])
            rgb.clamp_(0.0, 1.0)
        table = torch.stack(totals)
        status = table.sum(0)
        status[1] = table[:, 1].amax()
        return values, status

    def _tune(self, launches: Launches, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, pixels: Tensor) -> None:
        """Choose launch shapes by timing them on a batch of these pixels, unless this GPU's are known. No pixel depends on it."""
        pose, lens = device_camera(c2w, intrinsics, self.device)
        rays = pixel_rays(pose, lens, self.settings.pixel_center, pixels[: self._batch()], width)
        self._launch["trace"] = launches.choose(Shape.of("trace", self._density[0]), lambda launch: self._trace(rays, launch))
        if self._shade is not None:
            traced = self._trace(rays)
            self._launch["shade"] = launches.choose(Shape.of("shade", self._app[0]), lambda launch: self._colours(rays, traced, launch))
        self._launches = None

    def _trace(self, rays: Tensor, launch: int | None = None) -> fused.Traced:
        settings, config = self.settings, self.config
        planes, lines = self._density
        base, slope = self._sampler.tables
        return fused.Traced(
            *fused.trace(
                rays,
                self._sampler.extent(rays),
                base,
                slope,
                flat_box(settings.aabb),
                self._occupancy,
                self._mask_box,
                self._mask_size,
                settings.alpha_mask_threshold,
                flat_box(config.aabb),
                self._division,
                self._slots,
                planes,
                lines,
                len(config.resolutions),
                self._basis_density,
                config.activation,
                config.nonlinear_density,
                config.density_shift,
                settings.distance_scale,
                config.weight_threshold,
                STOP[settings.precision],
                self._capacity,
                self._list_capacity(rays.shape[0]),
                self._launch["trace"] if launch is None else launch,
                **self._cut,
            )
        )

    def _colours(self, rays: Tensor, traced: fused.Traced, launch: int | None = None) -> Tensor:
        """Sum of weight * colour [R, 3] of each ray."""
        planes, lines = self._app
        field = (flat_box(self.config.aabb), self._division, self._slots, planes, lines, len(self.config.resolutions))
        if self._shade is not None:
            with span("appearance and decode", self.device):
                chosen = self._launch["shade"] if launch is None else launch
                lists = (traced.list, traced.status, traced.found, traced.offset)
                rgb: Tensor = fused.shade(rays, *lists, *field, *self._shade, chosen, **self._cut)
            return rgb
        count = min(int(traced.status[0]), traced.list.shape[0])
        samples = traced.list[:count]
        with span("appearance", self.device):
            features = fused.features(rays, samples, count, *field, self._basis, **self._cut)
        return self._decode(features, rays, samples, traced)

    def _decode(self, features: Tensor, rays: Tensor, samples: Tensor, traced: fused.Traced) -> Tensor:
        """Sum of weight * colour [R, 3] of each ray, of the features [C, app_dim] of its listed samples."""
        pe = {"fea_pe": self.config.fea_pe, "view_pe": self.config.view_pe}
        with span("decode", self.device):
            colours = kernels.decode(features, rays, fused.list_ray(samples), self._decoder.weights, self._decoder.biases, **pe)
        with span("accumulate", self.device):
            colour = torch.nn.functional.pad(colours * fused.list_weight(samples)[:, None], (0, 1))
            rgb: Tensor = fused.resolve(colour, traced.offset, traced.found)
        return rgb


def _absent(samples: int) -> kernels.AbsentBlockError:
    return kernels.AbsentBlockError(f"{samples} samples lie in blocks that are not in memory")


def _output(rgb: Tensor, depth: Tensor, alpha: Tensor, counters: dict[str, int], width: int, height: int) -> RenderOutput:
    return RenderOutput(rgb.view(height, width, 3), depth.view(height, width), alpha.view(height, width), counters, {})
