"""What `passes` is for tiles, for whole batches of rays and the fused CUDA kernels."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.kernels import fused
from landmark_batch.model.blocks import BlockSource, BlockTables, in_passes
from landmark_batch.model.frame_values import device_camera
from landmark_batch.model.fused import FEWER_RAYS, RAYS, STOP, FusedRenderer
from landmark_batch.model.sampling import flat_box

SAMPLE_BYTES = 4 * 7 + 8  # ray, t, delta, the share of a pass, their sum, what is staged of it
COLOURED_BYTES = 2 * 16 + 8  # list and colour, what is staged of it
FEATURE_BYTES = 2 * 4  # a feature and its sum over passes, where the decoder is not the usual one
MIN_RAYS = 2**10  # of a batch

logger = logging.getLogger(__name__)


class RayPasses:
    """Renders by a `FusedRenderer` whose blocks sit in slots, fewer than a frame needs."""

    def __init__(self, renderer: FusedRenderer, tables: BlockTables) -> None:
        self._renderer = renderer
        self._tables = tables
        self._samples_per_ray = 24.0
        self._coloured_per_ray = 12.0
        self._most_rays = RAYS

    def render_pixels(
        self,
        c2w: NDArray[np.floating],
        intrinsics: Sequence[float],
        width: int,
        pixels: Tensor,
        blocks: Sequence[int],
        source: BlockSource,
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, int]]:
        """As `FusedRenderer.render_pixels`. Raises AbsentBlockError where a sample lies in none of `blocks`."""
        renderer = self._renderer
        if not pixels.shape[0]:
            return renderer.render_pixels(c2w, intrinsics, width, pixels)
        with torch.inference_mode():
            pose, lens = device_camera(c2w, intrinsics, renderer.device)
            parts, survived, coloured, start = [], 0, 0, 0
            while start < pixels.shape[0]:
                chosen = pixels[start : start + self._batch()]
                try:
                    rays = pixel_rays(pose, lens, renderer.settings.pixel_center, chosen, width)
                    *sums, found, listed = self._render(rays, blocks, source)
                except torch.OutOfMemoryError:
                    if not self._shrink(chosen.shape[0]):
                        raise
                    continue
                parts.append(sums)
                survived, coloured, start = survived + found, coloured + listed, start + chosen.shape[0]
            rgb, depth, alpha = (torch.cat(columns) for columns in zip(*parts, strict=True))
        count = pixels.shape[0]
        counters = {"rays": count, "samples": count * renderer.settings.samples, "survived": survived, "coloured": coloured}
        return rgb, depth, alpha, counters

    def _shrink(self, count: int) -> bool:
        """After a device that was out of memory with so many rays: half of them at once. False where they are few already."""
        if count <= MIN_RAYS:
            return False
        if self._most_rays == RAYS:
            logger.warning(FEWER_RAYS, count)
        self._most_rays = count // 2
        return True

    def _batch(self) -> int:
        """Rays whose samples fit into memory; no pixel depends on it."""
        features = 0 if self._renderer._shade is not None else FEATURE_BYTES * self._renderer.config.app_dim
        ray = self._samples_per_ray * SAMPLE_BYTES + self._coloured_per_ray * (COLOURED_BYTES + features) + 128
        wanted = min(self._renderer.settings.rays_per_batch or RAYS, self._most_rays)
        return max(MIN_RAYS, min(wanted, int(self._renderer.batch_memory() / ray)))

    def _render(self, rays: Tensor, blocks: Sequence[int], source: BlockSource) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """rgb, depth, alpha of rays; samples that survived, samples that are coloured."""
        groups = in_passes(blocks, source.capacity)
        marched = self._list(rays, blocks)
        density = torch.zeros_like(marched.partial)
        for group in groups:
            with source.hold(group):
                density += self._march(rays, density.shape[0], self._tables.slots).partial  # 0 in absent blocks
        traced = self._weigh(density, marched)
        coloured, survived = int(traced.status[0]), int(traced.status[3])  # those behind the end of a ray do not count
        colours = self._colours(rays, traced, coloured, groups[::-1], source)  # those of the last pass are there still
        return colours, traced.depth, traced.alpha, survived, coloured

    def _list(self, rays: Tensor, blocks: Sequence[int]) -> fused.Marched:
        """All samples of rays; that each lies in one of `blocks` is looked up in a table of its own, in which they are all there."""
        every = torch.full_like(self._tables.slots, -1)
        every[torch.tensor([*blocks], dtype=torch.int64, device=every.device)] = 0
        while True:
            capacity = max(1024, int(rays.shape[0] * self._samples_per_ray))
            marched = self._march(rays, capacity, every)
            found, overfull, absent, _ = (int(v) for v in marched.status.tolist())
            if absent:
                raise kernels.AbsentBlockError(f"{absent} samples lie in blocks that were not foreseen")
            if not overfull:
                return marched
            self._samples_per_ray = max(found / rays.shape[0] * 1.25, self._samples_per_ray * 1.25)

    def _march(self, rays: Tensor, capacity: int, slots: Tensor) -> fused.Marched:
        renderer = self._renderer
        planes, lines = renderer._density
        return fused.Marched(
            *fused.march_density(
                rays,
                renderer._sampler.extent(rays),
                *renderer._sampler.tables,
                flat_box(renderer.settings.aabb),
                renderer._occupancy,
                renderer._mask_box,
                renderer._mask_size,
                renderer.settings.alpha_mask_threshold,
                flat_box(renderer.config.aabb),
                renderer._division,
                slots,
                planes,
                lines,
                len(renderer.config.resolutions),
                renderer._basis_density,
                capacity,
                **renderer._cut,
            )
        )

    def _weigh(self, density: Tensor, marched: fused.Marched) -> fused.Traced:
        config, settings = self._renderer.config, self._renderer.settings
        while True:
            capacity = max(1024, int(marched.found.shape[0] * self._coloured_per_ray))
            traced = fused.Traced(
                *fused.weigh_list(
                    density,
                    marched.t,
                    marched.delta,
                    marched.found,
                    marched.offset,
                    config.activation,
                    config.nonlinear_density,
                    config.density_shift,
                    settings.distance_scale,
                    config.weight_threshold,
                    STOP[settings.precision],
                    capacity,
                )
            )
            found, overfull, _, _ = (int(v) for v in traced.status.tolist())
            if not overfull:
                return traced
            self._coloured_per_ray = max(found / marched.found.shape[0] * 1.25, self._coloured_per_ray * 1.25)

    def _colours(self, rays: Tensor, traced: fused.Traced, count: int, groups: Sequence[Sequence[int]], source: BlockSource) -> Tensor:
        renderer = self._renderer
        planes, lines = renderer._app
        field = (flat_box(renderer.config.aabb), renderer._division, self._tables.slots, planes, lines, len(renderer.config.resolutions))
        if renderer._shade is not None:
            colour = rays.new_zeros(traced.list.shape[0], 4)
            for group in groups:
                with source.hold(group):
                    fused.shade_pass(rays, traced.list, traced.status, *field, *renderer._shade, colour, **renderer._cut)
            rgb: Tensor = fused.resolve(colour, traced.offset, traced.found)
            return rgb
        samples = traced.list[:count]
        features = rays.new_zeros(count, renderer.config.app_dim)
        for group in groups:
            with source.hold(group):
                features += fused.features(rays, samples, count, *field, renderer._basis, **renderer._cut)  # 0 in absent blocks
        return renderer._decode(features, rays, samples, traced)
