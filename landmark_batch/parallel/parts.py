"""What one rank of a group renders of a frame: whole tiles, single rays, or its share of the rays over tensor ranks."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.model.begun import Begun, Sums
from landmark_batch.model.blocks import FETCH_COUNTERS, FrameFetcher, FrameRegion
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.fused_passes import RayPasses
from landmark_batch.model.passes import TilePasses
from landmark_batch.model.pool import TilePool
from landmark_batch.model.renderer import STAGES, Renderer, TileOutput
from landmark_batch.model.settings import RenderSettings
from landmark_batch.model.tiles import Tile
from landmark_batch.scene.weights import SceneWeights

from .exchange import TensorExchange
from .fused_tensor import FusedTensorStages
from .group import RenderGroup
from .orders import Order
from .regions import join_regions, places_inside, region_rule
from .share import FrameShare, ray_shares
from .stages import TensorStages
from .tensor import run_tiles, tile_steps
from .tensor_frame import TensorFrames

logger = logging.getLogger(__name__)

COUNTERS = ("rays", "samples", "survived", "coloured", "tensor_bytes", *FETCH_COUNTERS)
TIMES = (*STAGES, "exchange")
FRAME_SIZES = 4  # sizes of frame whose shares are kept


def open_part(
    group: RenderGroup,
    weights: SceneWeights,
    settings: RenderSettings,
    device: torch.device,
    threads: int,
    fetcher: FrameFetcher | None = None,
    memory: int | None = None,
) -> Part:
    """This rank's part of the frames of a scene, by shape of the group, runtime and device. fetcher, memory: as for GroupRenderer."""
    fused = settings.runtime == "fused" and device.type == "cuda"
    if group.membership.shape.tensor > 1:
        kind: type[Part] = FusedTensorPart if fused else TensorPart
    else:
        kind = RayPart if fused else TilePart
    return kind(group, weights, settings, device, threads, fetcher, memory)


class Part(ABC):
    """What this rank renders of a frame."""

    def __init__(
        self,
        group: RenderGroup,
        weights: SceneWeights,
        settings: RenderSettings,
        device: torch.device,
        threads: int,
        fetcher: FrameFetcher | None,
        memory: int | None,
    ) -> None:
        self.shape, self.rank = group.membership.shape, group.rank
        self.row = group.membership.data_index
        self.settings, self.device = settings, device
        self.fetcher, self.memory = fetcher, memory
        self.tables = fetcher.tables if fetcher is not None else None
        self.open(group, weights, threads)

    def begin(self, order: Order) -> Begun[Sums]:
        """`render`, whose `finish` gives the pixels; it does all of the work where no device can do it by itself. Begin a frame before the
        one before it is finished, and finish frames in their order.
        """
        return Begun(lambda: self.render(order))

    def render(self, order: Order) -> Sums:
        """This rank's pixels; with a fetcher, of a scene whose blocks come as they are needed."""
        fetcher = self.fetcher
        if fetcher is None:
            return self.sums(order)
        camera = order.frame, order.c2w, order.intrinsics, order.width, order.height
        blocks, looked = fetcher.begin(*camera), False
        while True:
            try:
                if len(blocks) <= fetcher.capacity:
                    with fetcher.hold(blocks):
                        found = self.sums(order)
                else:
                    found = self._by_regions(order, blocks, fetcher)
                return replace(found, counters=found.counters | fetcher.counted())
            except kernels.AbsentBlockError:
                if looked:
                    raise
                looked = True
                blocks = sorted({*blocks, *fetcher.look(*camera)})
                logger.info("rank %d: frame %s met a block that was not foreseen: rendered again", self.rank, order.frame)

    def _by_regions(self, order: Order, blocks: Sequence[int], fetcher: FrameFetcher) -> Sums:
        """With fewer slots than the blocks it needs: region by region, the same ones in the same order on all tensor ranks of a row."""
        rule = region_rule(self.shape, self.settings, self.device.type)
        camera = order.c2w, order.intrinsics, order.width, order.height
        found = fetcher.regions(blocks, *camera, rule.unit, passes=rule.passes, wanted=partial(self.meets, order))
        own = self.pixels(order.width, order.height)[self.rank]
        return Sums(*join_regions(own, order.width, ((region, self._of_region(order, region, fetcher)) for region in found)))

    def _of_region(self, order: Order, region: FrameRegion, fetcher: FrameFetcher) -> Sums:
        if len(region.blocks) > fetcher.capacity:
            return self.sums_in_passes(order, region, fetcher)
        with fetcher.hold(region.blocks):
            return self.sums(order, region)

    @abstractmethod
    def open(self, group: RenderGroup, weights: SceneWeights, threads: int) -> None:
        """Make what renders."""

    @abstractmethod
    def sums(self, order: Order, region: FrameRegion | None = None) -> Sums:
        """With all blocks present that it needs. region: what of the frame, None for all."""

    @abstractmethod
    def sums_in_passes(self, order: Order, region: FrameRegion, fetcher: FrameFetcher) -> Sums:
        """Of a region, with fewer slots than the blocks it needs."""

    @abstractmethod
    def meets(self, order: Order, region: FrameRegion) -> bool:
        """Whether this rank's row renders anything of a region."""

    @abstractmethod
    def pixels(self, width: int, height: int) -> Sequence[Tensor]:
        """Pixels [P] int64 of each rank."""

    @abstractmethod
    def sizes(self, width: int, height: int) -> Sequence[int]:
        """Pixels of each rank."""

    def close(self) -> None:
        """End the threads, those of the fetcher too."""
        if self.fetcher is not None:
            self.fetcher.close()


class _TiledPart(Part):
    """Tiles go to the data rows, runs of their rays to the tensor ranks."""

    def open(self, group: RenderGroup, weights: SceneWeights, threads: int) -> None:
        self.frame_share = lru_cache(maxsize=FRAME_SIZES)(
            lambda width, height: FrameShare.of_tiles(width, height, self.settings.samples, self.shape, self.device)
        )

    def tiles(self, order: Order, region: FrameRegion | None) -> Sequence[Tile]:
        """Those of this rank's row, in a region."""
        tiles = self.frame_share(order.width, order.height).tiles[self.row]
        if region is None:
            return tiles
        return [tile for tile in tiles if region.left <= tile.left < region.right and region.top <= tile.top < region.bottom]

    def meets(self, order: Order, region: FrameRegion) -> bool:
        return bool(self.tiles(order, region))

    def pixels(self, width: int, height: int) -> Sequence[Tensor]:
        return self.frame_share(width, height).pixels

    def sizes(self, width: int, height: int) -> Sequence[int]:
        return self.frame_share(width, height).sizes


class _RaysPart(Part):
    """Squares of rays go to the ranks."""

    def open(self, group: RenderGroup, weights: SceneWeights, threads: int) -> None:
        self._shares = lru_cache(maxsize=FRAME_SIZES)(partial(ray_shares, count=self.shape.size, device=self.device))
        self._row = lru_cache(maxsize=FRAME_SIZES)(self._row_pixels)

    def row_pixels(self, order: Order, region: FrameRegion | None) -> tuple[Tensor, ...]:
        """Pixels of each tensor rank of this rank's row, in a region; of whole frames of a size always the same tensors."""
        row = self._row(order.width, order.height)
        return row if region is None else tuple(own[places_inside(own, order.width, region)] for own in row)

    def meets(self, order: Order, region: FrameRegion) -> bool:
        return any(own.shape[0] for own in self.row_pixels(order, region))

    def _row_pixels(self, width: int, height: int) -> tuple[Tensor, ...]:
        first = self.row * self.shape.tensor
        return tuple(self.pixels(width, height)[first : first + self.shape.tensor])

    def pixels(self, width: int, height: int) -> Sequence[Tensor]:
        return self._shares(width, height)

    def sizes(self, width: int, height: int) -> Sequence[int]:
        return [pixels.shape[0] for pixels in self._shares(width, height)]


class TilePart(_TiledPart):
    """Whole tiles, by the renderer of one rank."""

    def open(self, group: RenderGroup, weights: SceneWeights, threads: int) -> None:
        super().open(group, weights, threads)
        self._renderer = Renderer(weights, self.settings, self.device, threads=threads, tables=self.tables)
        if self.fetcher is not None:
            self._passes = TilePasses(self._renderer, self.fetcher.tables.division)

    def sums(self, order: Order, region: FrameRegion | None = None) -> Sums:
        return self._joined(self._renderer.render_tiles(order.c2w, order.intrinsics, order.width, self.tiles(order, region)))

    def sums_in_passes(self, order: Order, region: FrameRegion, fetcher: FrameFetcher) -> Sums:
        return self._joined(self._passes.render_tiles(order.c2w, order.intrinsics, order.width, self.tiles(order, region), fetcher))

    def _joined(self, outputs: Iterable[TileOutput]) -> Sums:
        counters, seconds = dict.fromkeys(COUNTERS, 0), dict.fromkeys(STAGES, 0.0)
        parts = []
        for part in outputs:
            parts.append((part.rgb, part.depth, part.alpha))
            for name, count in part.counters.items():
                counters[name] += count
            for name, value in part.stages.items():
                seconds[name] += value
        return Sums(*_joined(parts, self.device), counters, seconds)

    def close(self) -> None:
        self._renderer.close()
        super().close()


class RayPart(_RaysPart):
    """Single rays, by the fused renderer of one GPU."""

    def open(self, group: RenderGroup, weights: SceneWeights, threads: int) -> None:
        super().open(group, weights, threads)
        self._renderer = FusedRenderer(weights, self.settings, self.device, tables=self.tables, memory=self.memory)
        if self.tables is not None:
            self._passes = RayPasses(self._renderer, self.tables)

    def begin(self, order: Order) -> Begun[Sums]:
        if self.fetcher is not None:  # what a frame needs is held until it is rendered
            return super().begin(order)
        pixels = self.pixels(order.width, order.height)[self.rank]
        return self._renderer.begin_pixels(order.c2w, order.intrinsics, order.width, pixels)

    def sums(self, order: Order, region: FrameRegion | None = None) -> Sums:
        (pixels,) = self.row_pixels(order, region)
        if region is not None:
            self._renderer._graphs.forget()  # a region comes once: a graph of it would be recorded in vain
        return Sums(*self._renderer.render_pixels(order.c2w, order.intrinsics, order.width, pixels))

    def sums_in_passes(self, order: Order, region: FrameRegion, fetcher: FrameFetcher) -> Sums:
        (pixels,) = self.row_pixels(order, region)
        return Sums(*self._passes.render_pixels(order.c2w, order.intrinsics, order.width, pixels, region.blocks, fetcher))


class TensorPart(_TiledPart):
    """A run of rays of each tile of this rank's row, by all tensor ranks together."""

    def open(self, group: RenderGroup, weights: SceneWeights, threads: int) -> None:
        super().open(group, weights, threads)
        self._stages = TensorStages(weights, self.settings, self.device, self.tables)
        self._exchange = TensorExchange(group.tensor)
        self._pool = TilePool(threads if self.device.type == "cpu" else 0)
        self._single = TilePool(min(1, self._pool.threads))

    def sums(self, order: Order, region: FrameRegion | None = None) -> Sums:
        return self._run(order, region, self._pool)

    def sums_in_passes(self, order: Order, region: FrameRegion, fetcher: FrameFetcher) -> Sums:
        with self._stages.in_passes(fetcher):  # one tile at a time: one hold ends before the next begins
            return self._run(order, region, self._single)

    def _run(self, order: Order, region: FrameRegion | None, pool: TilePool) -> Sums:
        pose, lens = _camera(order, self.device)
        before = self._exchange.sent
        tiles = self.tiles(order, region)
        begin = [partial(tile_steps, self._stages, self._exchange, pose, lens, order.width, tile) for tile in tiles]
        try:
            owned, waited = run_tiles(begin, pool, self._stages.running)
        except kernels.AbsentBlockError:
            pool.close()  # no tile of this frame may still be computed when it is rendered again
            raise
        rgb, depth, alpha = _joined([(part.rgb, part.depth, part.alpha) for part in owned], self.device)
        counters = {
            "rays": rgb.shape[0],
            "samples": rgb.shape[0] * self.settings.samples,
            "survived": sum(part.survived for part in owned),
            "coloured": sum(part.coloured for part in owned),
            "tensor_bytes": self._exchange.sent - before,
        }
        return Sums(rgb, depth, alpha, counters, {"exchange": waited} if self.device.type == "cpu" else {})

    def close(self) -> None:
        self._pool.close()
        self._single.close()
        super().close()


class FusedTensorPart(_RaysPart):
    """Single rays, by the fused kernels of all GPUs of a row together."""

    def open(self, group: RenderGroup, weights: SceneWeights, threads: int) -> None:
        super().open(group, weights, threads)
        self._exchange = TensorExchange(group.tensor)
        self._stages = FusedTensorStages(weights, self.settings, self.device, self.tables)
        self._frames = TensorFrames(self._stages, self._exchange, memory=self.memory)

    def sums_in_passes(self, order: Order, region: FrameRegion, fetcher: FrameFetcher) -> Sums:
        with self._stages.in_passes(region.blocks, fetcher):
            return self.sums(order, region)

    def sums(self, order: Order, region: FrameRegion | None = None) -> Sums:
        before = self._exchange.sent
        camera, pixels = _camera(order, self.device), self.row_pixels(order, region)
        rgb, depth, alpha, counters = self._frames.render(*camera, order.width, pixels, self.shape.size, partly=region is not None)
        rays = rgb.shape[0]
        counted = {"rays": rays, "samples": rays * self.settings.samples, "tensor_bytes": self._exchange.sent - before}
        return Sums(rgb, depth, alpha, counters | counted)


def _camera(order: Order, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pose [3, 4] and lens [4] on the device."""
    pose = torch.as_tensor(order.c2w.astype(np.float32)).to(device)
    return pose, torch.tensor(order.intrinsics, dtype=torch.float32, device=device)


def _joined(parts: Sequence[tuple[Tensor, Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """rgb, depth and alpha of all parts, one after another."""
    nothing = torch.empty(0, device=device)
    rgb, depth, alpha = (list(column) for column in zip((torch.empty(0, 3, device=device), nothing, nothing), *parts, strict=True))
    return torch.cat(rgb), torch.cat(depth), torch.cat(alpha)
