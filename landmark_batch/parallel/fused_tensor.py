"""The mixed mode with fused CUDA kernels: what `stages` and `tensor` are for plain ops, on compact lists of samples.

A rank marches all rays of a tile and has the partial sums of its channels in one op; the owner of a ray composites it and lists its
coloured samples; the list goes to all ranks, whose partial features come back summed. Between exchanges nothing but their sizes is
looked at by the host.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.kernels import fused
from landmark_batch.model.field import STORAGE
from landmark_batch.model.fused import STOP
from landmark_batch.model.profile import span
from landmark_batch.model.sampling import Sampler, flat_box
from landmark_batch.model.tiles import Tile
from landmark_batch.scene.weights import SceneWeights

from .exchange import TensorExchange, digest, sum_in_rank_order
from .share import owned_rays, tile_pixels
from .stages import TensorStages
from .tensor import OwnedRays, TileSteps, differing_samples, no_samples


class FusedTensorStages(TensorStages):
    """weights: a share of a scene's channels. Buffers for samples start small and grow when a tile needs more."""

    patches = True

    def _load(self, weights: SceneWeights) -> None:
        self.tiles = "fused"
        config, device, dtype = self.config, self.device, STORAGE[self.settings.precision]
        self._sampler = Sampler(config, self.settings, None, device)
        self._occupancy: list[Tensor] = []
        self._mask_box, self._mask_size = flat_box(config.aabb), [0, 0, 0]
        if weights.mask is not None:
            self._occupancy = fused.pack_bits(weights.mask.volume.to(device))
            self._mask_box = flat_box(weights.mask.aabb)
            self._mask_size = [int(n) for n in reversed(weights.mask.volume.shape)]
        density, app = (
            [[fused.pad_channels(tensor.to(device=device, dtype=dtype)) for tensor in group] for group in groups]
            for groups in ((weights.density_planes, weights.density_lines), (weights.app_planes, weights.app_lines))
        )
        grid = (flat_box(config.aabb), () if config.layout == "single" else config.division, None)
        self._density = (*grid, *density, len(config.resolutions))
        self._app = (*grid, *app, len(config.resolutions))
        tables = len(app[0])
        self._basis = fused.pad_basis(weights.basis_mat.to(device, torch.float32), tables)
        self._basis_density = None
        if weights.basis_density is not None:
            self._basis_density = fused.pad_basis(weights.basis_density.to(device, torch.float32), tables)
        self._packed: tuple[Tensor, Tensor] | None = None
        widths = [matrix.shape[0] for matrix in self._decoder.weights]
        usual = (fused.SHADE_CHANNELS, 1, dtype, config.app_dim, widths, config.fea_pe, config.view_pe)
        if device.type == "cuda" and fused.shade_takes(*usual) and torch.ops.landmark_batch.shade_fits(0):
            self._packed = fused.pack_decoder(self._decoder.weights, self._decoder.biases)
        self._samples_per_ray = 16.0

    def march_all(self, rays: Tensor) -> tuple[fused.Marched, int]:
        """All samples of rays [R, 6] with this rank's part of their density features, and their number."""
        settings = self.settings
        with span("march and density", self.device):
            while True:
                capacity = max(1024, int(rays.shape[0] * self._samples_per_ray))
                marched = fused.Marched(
                    *fused.march_density(
                        rays,
                        self._sampler.extent(rays),
                        *self._sampler.tables,
                        flat_box(settings.aabb),
                        self._occupancy,
                        self._mask_box,
                        self._mask_size,
                        settings.alpha_mask_threshold,
                        *self._density,
                        self._basis_density,
                        capacity,
                    )
                )
                found = int(marched.status[0])  # waits for the device
                if found <= capacity:
                    return marched, found
                self._samples_per_ray = found / rays.shape[0] * 1.25

    def weigh_own(self, density: Tensor, marched: fused.Marched, first: int, last: int, most: int) -> fused.Traced:
        """Composite rays first..last - 1 of a tile. density: summed for their samples; most: so many samples they have.

        Rays of the list count from `first`.
        """
        config, settings = self.config, self.settings
        with span("weigh", self.device):
            return fused.Traced(
                *fused.weigh_list(
                    density,
                    marched.t,
                    marched.delta,
                    marched.found[first:last],
                    marched.offset[first:last],
                    config.activation,
                    config.nonlinear_density,
                    config.density_shift,
                    settings.distance_scale,
                    config.weight_threshold,
                    STOP[settings.precision],
                    max(1, most),
                )
            )

    def features(self, rays: Tensor, rows: Tensor) -> Tensor:
        """This rank's part [C, app_dim] of the features of samples; rows [C, 2] int32: their ray, the bits of their t."""
        with span("appearance", self.device):
            samples = torch.cat([rows, torch.zeros_like(rows)], dim=1)
            found: Tensor = fused.features(rays, samples, rows.shape[0], *self._app, self._basis)
            return found

    def colours(self, rays: Tensor, traced: fused.Traced, count: int, features: Tensor) -> Tensor:
        """rgb [R, 3] before the background of own rays [R, 6]; features [count, app_dim]: of their list, summed over ranks."""
        if count == 0:
            return rays.new_zeros(rays.shape[0], 3)
        samples = traced.list[:count]
        with span("decode", self.device):
            if self._packed is not None:
                rgb: Tensor = fused.shade_features(
                    rays, samples, traced.status, traced.found, traced.offset, features.contiguous(), *self._packed
                )
                return rgb
            pe = {"fea_pe": self.config.fea_pe, "view_pe": self.config.view_pe}
            colours = kernels.decode(features, rays, fused.list_ray(samples), self._decoder.weights, self._decoder.biases, **pe)
            weighted = torch.nn.functional.pad(colours * fused.list_weight(samples)[:, None], (0, 1))
            rgb = fused.resolve(weighted, traced.offset, traced.found)
            return rgb


def fused_tile_steps(stages: FusedTensorStages, exchange: TensorExchange, pose: Tensor, lens: Tensor, width: int, tile: Tile) -> TileSteps:
    """One tile; as `tensor.tile_steps`. Raises GroupError where ranks have sampled the tile differently."""
    size, rank = exchange.size, exchange.rank
    rays = pixel_rays(pose, lens, stages.settings.pixel_center, tile_pixels(tile, width, stages.device, patches=True), width)
    first, last = owned_rays(tile.rays, rank, size)
    own = rays[first:last].contiguous()

    marched, found = stages.march_all(rays)
    starts = torch.tensor([owned_rays(tile.rays, r, size)[0] for r in range(size)], device=stages.device)
    places = torch.cat([marched.offset, marched.offset.new_full((1,), found)]).to(torch.int64)
    bounds = [*places[starts].tolist(), found]
    header = torch.cat([digest(marched.ray[:found], marched.t[:found]), torch.tensor(bounds, device=stages.device)])
    headers = (yield lambda: exchange.share(header, [header.shape[0]] * size)).view(size, -1)
    if not bool((headers == header).all()):
        raise differing_samples(tile, headers)
    if found == 0:
        return no_samples(own)

    start, stop = bounds[rank], bounds[rank + 1]
    received = yield lambda: exchange.partial_sums(marched.partial[:found], bounds)
    density = marched.partial
    density[start:stop] = sum_in_rank_order(received, size)
    traced = stages.weigh_own(density, marched, first, last, stop - start)
    counts = (yield lambda: exchange.share(traced.status[:1].to(torch.int64), [1] * size)).tolist()
    if not any(counts):
        return OwnedRays(own.new_zeros(last - first, 3), traced.depth, traced.alpha, stop - start, 0)

    mine = traced.list[: counts[rank], :2].clone()
    mine[:, 0] += first
    rows = yield lambda: exchange.share(mine, counts)
    part = stages.features(rays, rows)
    shares = [0, *accumulate(counts)]
    features = sum_in_rank_order((yield lambda: exchange.partial_sums(part, shares)), size)
    rgb = stages.colours(own, traced, counts[rank], features)
    return OwnedRays(rgb, traced.depth, traced.alpha, stop - start, counts[rank])
