"""The mixed mode with fused CUDA kernels: what a batch of rays takes, on compact lists of samples.

The rays of a batch are shared out to the tensor ranks. All ranks march all of them, each with its channels; a ray's samples matter
only to its owner. Three exchanges a batch, each straight from one rank to another and nothing to itself:

    densities   4 B a sample                 to the ray's owner, which adds those of all ranks in rank order and composites
    lists       8 B a coloured sample        ray and t of the owner's coloured samples, to all, with their number
    features    4 B x app_dim a coloured one to the ray's owner, which adds them in rank order and decodes

Owners march and list their rays apart from those of others, so that what goes to a rank begins at a known place: no length has to
be known on the host. Tensors have the lengths of a capacity that all ranks know; how many samples there were stays on the device
until the frame is over.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.kernels import fused
from landmark_batch.model.blocks import BlockSource, BlockTables, cut_arguments, in_passes
from landmark_batch.model.decoder import Decoder
from landmark_batch.model.field import STORAGE
from landmark_batch.model.fused import STOP
from landmark_batch.model.profile import span
from landmark_batch.model.runtime import load_runtime
from landmark_batch.model.sampling import Sampler, flat_box
from landmark_batch.model.settings import RenderSettings
from landmark_batch.scene.weights import SceneWeights

from .exchange import TensorExchange, add_in_rank_order, digest
from .tensor import Step

STATUS = 4  # numbers of an op's status


@dataclass(frozen=True)
class Batch:
    """pixels: row * width + column [R] int64 of each owner. samples, coloured: room for those of one owner's rays."""

    pixels: Sequence[Tensor]
    samples: int
    coloured: int


@dataclass(frozen=True)
class BatchSums:
    """rgb [R, 3] before the background, depth [R], alpha [R] of the rays this rank owns.

    status [6] int64, on the device: most samples of an owner, most coloured samples of an owner, samples in absent blocks, 1 where
    ranks have sampled differently; samples of this rank's rays, coloured ones. The first four are the same on all ranks. A batch with
    more samples than room has to be rendered again.
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor
    status: Tensor


BatchSteps = Generator[Step, Tensor, BatchSums]


class FusedTensorStages:
    """The ops of the mixed mode with a share of a scene's channels."""

    def __init__(self, weights: SceneWeights, settings: RenderSettings, device: torch.device, tables: BlockTables | None = None) -> None:
        """tables: where blocks sit that are fetched."""
        self._tables = tables
        self._passes: tuple[Sequence[int], BlockSource] | None = None
        self._cut = cut_arguments(tables)
        self.settings, self.config, self.device = settings, weights.config, device
        load_runtime(settings.runtime, device.type)
        config, dtype = self.config, STORAGE[settings.precision]
        with torch.inference_mode():
            self._decoder = Decoder(weights, settings.appearance, device)
            self._sampler = Sampler(config, settings, None, device)
            self._occupancy: list[Tensor] = []
            self._mask_box, self._mask_size = flat_box(config.aabb), [0, 0, 0]
            if weights.mask is not None:
                self._occupancy = [bits.to(device) for bits in fused.pack_bits(weights.mask.volume)]
                self._mask_box = flat_box(weights.mask.aabb)
                self._mask_size = [int(n) for n in reversed(weights.mask.volume.shape)]
            division: Sequence[int] = () if config.layout == "single" else config.division
            if tables is None:
                density, app = (
                    [[fused.pad_channels(tensor.to(device=device, dtype=dtype)) for tensor in group] for group in groups]
                    for groups in ((weights.density_planes, weights.density_lines), (weights.app_planes, weights.app_lines))
                )
            else:
                division = tables.division
                density = [[*tables.density_planes], [*tables.density_lines]]
                app = [[*tables.app_planes], [*tables.app_lines]]
            grid = (flat_box(config.aabb), division, tables.slots if tables is not None else None)
            self._density = (*grid, *density, len(config.resolutions))
            self._app = (*grid, *app, len(config.resolutions))
            count = len(app[0])
            self._basis = fused.pad_basis(weights.basis_mat.to(device, torch.float32), count)
            self._basis_density = None
            if weights.basis_density is not None:
                self._basis_density = fused.pad_basis(weights.basis_density.to(device, torch.float32), count)
            self._packed: tuple[Tensor, Tensor] | None = None
            widths = [matrix.shape[0] for matrix in self._decoder.weights]
            usual = (fused.SHADE_CHANNELS, 1, dtype, config.app_dim, widths, config.fea_pe, config.view_pe)
            if device.type == "cuda" and fused.shade_takes(*usual) and torch.ops.landmark_batch.shade_fits(0):
                self._packed = fused.pack_decoder(self._decoder.weights, self._decoder.biases)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Where the methods are called: they remember nothing for gradients."""
        with torch.inference_mode():
            yield

    def identity(self) -> Tensor:
        """A number [1] int64 that ranks whose rays have other samples do not share, but for chance. The mask is in no setting."""
        base, slope = self._sampler.tables
        found = digest(base.view(torch.int32), slope)
        box = torch.tensor(self._mask_box, dtype=torch.float32, device=self.device)
        for bits in (box.view(torch.int32), *self._occupancy):
            words = bits.reshape(-1)
            found = found * 31 + digest(words, words.view(torch.float32))
        return found

    @contextmanager
    def in_passes(self, blocks: Sequence[int], source: BlockSource) -> Iterator[None]:
        """Inside, the ops bring `blocks`, all that the frame needs, a few at a time."""
        self._passes = blocks, source
        try:
            yield
        finally:
            self._passes = None

    def march(self, rays: Tensor, capacity: int) -> fused.Marched:
        """The samples of rays [R, 6] with this rank's part of their density features."""
        with span("march and density", self.device):
            if self._passes is None or self._tables is None:
                return self._march(rays, capacity, self._tables.slots if self._tables is not None else None)
            blocks, source = self._passes
            every = torch.full_like(self._tables.slots, -1)
            every[torch.tensor([*blocks], dtype=torch.int64, device=self.device)] = 0
            marched = self._march(rays, capacity, every)  # with a status that tells whether each sample lies in one of them
            total = torch.zeros_like(marched.partial)
            for group in in_passes(source.in_order(blocks, last=False), source.capacity):
                with source.hold(group):
                    total += self._march(rays, capacity, self._tables.slots).partial  # 0 in absent blocks
            return marched._replace(partial=total)

    def _march(self, rays: Tensor, capacity: int, slots: Tensor | None) -> fused.Marched:
        settings = self.settings
        box, division, _, planes, lines, resolutions = self._density
        return fused.Marched(
            *fused.march_density(
                rays,
                self._sampler.extent(rays),
                *self._sampler.tables,
                flat_box(settings.aabb),
                self._occupancy,
                self._mask_box,
                self._mask_size,
                settings.alpha_mask_threshold,
                box,
                division,
                slots,
                planes,
                lines,
                resolutions,
                self._basis_density,
                capacity,
                **self._cut,
            )
        )

    def weigh(self, density: Tensor, marched: fused.Marched, capacity: int) -> fused.Traced:
        """Composite own rays. density [M]: summed over ranks, of the first M samples."""
        config, settings, count = self.config, self.settings, density.shape[0]
        with span("weigh", self.device):
            return fused.Traced(
                *fused.weigh_list(
                    density,
                    marched.t[:count],
                    marched.delta[:count],
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

    def features(self, rays: Tensor, rows: Tensor, status: Tensor) -> Tensor:
        """This rank's part [C, app_dim] of the features of a list's rows [C, 4], of which status [4] tells how many are meant."""
        with span("appearance", self.device):
            if self._passes is None:
                return self._features(rays, rows, status)
            blocks, source = self._passes
            total = rays.new_zeros(rows.shape[0], self.config.app_dim)
            for group in in_passes(source.in_order(blocks, last=True), source.capacity):
                with source.hold(group):
                    total += self._features(rays, rows, status)  # 0 in absent blocks
            return total

    def _features(self, rays: Tensor, rows: Tensor, status: Tensor) -> Tensor:
        found: Tensor = fused.features(rays, rows, rows.shape[0], *self._app, self._basis, status, **self._cut)
        return found

    def colours(self, rays: Tensor, traced: fused.Traced, features: Tensor) -> Tensor:
        """rgb [R, 3] before the background of own rays [R, 6]; features [C, app_dim]: of their list's first C rows, summed over ranks."""
        count = features.shape[0]
        if count == 0 or rays.shape[0] == 0:
            return rays.new_zeros(rays.shape[0], 3)
        samples = traced.list[:count]
        with span("decode", self.device):
            if self._packed is not None:
                rgb: Tensor = fused.shade_features(rays, samples, traced.status, traced.found, traced.offset, features, *self._packed)
                return rgb
            pe = {"fea_pe": self.config.fea_pe, "view_pe": self.config.view_pe}
            listed = torch.arange(count, device=self.device) < traced.status[0]
            ray = fused.list_ray(samples).where(listed, 0)  # what lies beyond the list was never written
            colours = kernels.decode(features.where(listed[:, None], 0.0), rays, ray, self._decoder.weights, self._decoder.biases, **pe)
            weighted = torch.nn.functional.pad(colours * fused.list_weight(samples)[:, None], (0, 1))
            rgb = fused.resolve(weighted, traced.offset, traced.found)
            return rgb


def batch_steps(
    stages: FusedTensorStages, exchange: TensorExchange, pose: Tensor, lens: Tensor, width: int, batch: Batch, *, padded: bool
) -> BatchSteps:
    """One batch. pose [3, 4], lens [4]: as for pixel_rays. padded: densities and features are exchanged with the batch's capacity,
    without a look at the device; otherwise with the lengths that it tells. No bit depends on it.
    """
    rank = exchange.rank
    rays = [pixel_rays(pose, lens, stages.settings.pixel_center, pixels, width) for pixels in batch.pixels]
    marched = [stages.march(own, batch.samples) for own in rays]
    mine, room = marched[rank], _lengths([part.status for part in marched], batch.samples, padded=padded)
    counts = torch.stack([part.status for part in marched]).to(torch.int64)
    mark = digest(torch.cat([part.offset for part in marched]), torch.cat([part.found for part in marched]).view(torch.float32))
    parts = [part.partial[:length] for part, length in zip(marched, room, strict=True)]
    del marched  # lists of others' rays are only needed for their densities
    received = yield lambda: exchange.swap(parts, room[rank])
    density = add_in_rank_order(received, parts[rank], rank)
    traced = stages.weigh(density, mine, batch.coloured)
    parts = []
    del received, density

    listed = torch.cat([traced.list[:, :2].reshape(-1), traced.status, mark.view(torch.int32)])
    received = yield lambda: exchange.swap([listed] * exchange.size, listed.shape[0])
    told = [listed if other == rank else part for other, part in enumerate(received.unbind(0))]
    statuses = [part[-STATUS - 2 : -2] for part in told]
    marks = torch.stack([part[-2:] for part in told])
    room = _lengths(statuses, batch.coloured, padded=padded)
    features = [
        stages.features(own, torch.nn.functional.pad(part[: 2 * length].view(length, 2), (0, 2)), status)
        for own, part, length, status in zip(rays, told, room, statuses, strict=True)
    ]
    coloured = torch.stack(statuses)[:, 0].to(torch.int64)
    received = yield lambda: exchange.swap(features, room[rank])
    total = add_in_rank_order(received, features[rank], rank)
    rgb = stages.colours(rays[rank], traced, total)
    differ = (marks != marks[0]).any().to(torch.int64)
    status = torch.stack([counts[:, 0].amax(), coloured.amax(), counts[:, 2].sum(), differ, counts[rank, 0], coloured[rank]])
    return BatchSums(rgb, traced.depth, traced.alpha, status)


def _lengths(statuses: Sequence[Tensor], capacity: int, *, padded: bool) -> list[int]:
    """Rows of each owner to exchange: a capacity, or what each status [4] tells, for which the host waits."""
    if padded:
        return [capacity] * len(statuses)
    found: list[int] = torch.stack(list(statuses))[:, 0].clamp(max=capacity).tolist()
    return found
