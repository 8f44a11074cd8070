"""What renders a rank's part of a frame: tiles or single rays by itself, or its share of the rays along with its tensor ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.model.begun import Begun, Sums
from landmark_batch.model.blocks import FETCH_COUNTERS, FrameFetcher, FrameRegion
from landmark_batch.model.fetched import Renewal
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.fused_passes import RayPasses
from landmark_batch.model.passes import TilePasses
from landmark_batch.model.pool import TilePool
from landmark_batch.model.renderer import STAGES, Renderer, TileOutput
from landmark_batch.model.settings import RenderSettings
from landmark_batch.scene.weights import SceneWeights

from .exchange import TensorExchange
from .fused_tensor import FusedTensorStages
from .group import RenderGroup
from .orders import Order
from .part import Part, RaysPart, TiledPart
from .stages import TensorStages
from .tensor import run_tiles, tile_steps
from .tensor_frame import TensorFrames

COUNTERS = ("rays", "samples", "survived", "coloured", "tensor_bytes", *FETCH_COUNTERS)
TIMES = (*STAGES, "exchange")


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


class TilePart(TiledPart):
    """Whole tiles, by the renderer of one rank."""

    def open(self, group: RenderGroup, weights: SceneWeights, threads: int) -> None:
        super().open(group, weights, threads)
        self._threads = threads
        self._open_renderer(weights)

    def renewal(self, fetcher: FrameFetcher) -> Renewal:
        return Renewal(self._close_renderer, partial(self._open_renderer, fetcher.base))

    def _open_renderer(self, weights: SceneWeights) -> None:
        self._renderer = Renderer(weights, self.settings, self.device, threads=self._threads, tables=self.tables)

    def _close_renderer(self) -> None:
        self._renderer.close()
        del self._renderer

    def sums(self, order: Order, region: FrameRegion | None = None) -> Sums:
        return self._joined(self._renderer.render_tiles(order.c2w, order.intrinsics, order.width, self.tiles(order, region)))

    def sums_in_passes(self, order: Order, region: FrameRegion, fetcher: FrameFetcher) -> Sums:
        passes = TilePasses(self._renderer, fetcher.tables.division)
        return self._joined(passes.render_tiles(order.c2w, order.intrinsics, order.width, self.tiles(order, region), fetcher))

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
        if hasattr(self, "_renderer"):  # there was memory for one, the last time it was made
            self._close_renderer()
        super().close()


class RayPart(RaysPart):
    """Single rays, by the fused renderer of one GPU."""

    def open(self, group: RenderGroup, weights: SceneWeights, threads: int) -> None:
        super().open(group, weights, threads)
        self._open_renderer(weights)

    def renewal(self, fetcher: FrameFetcher) -> Renewal:
        return Renewal(self._close_renderer, partial(self._open_renderer, fetcher.base))

    def _close_renderer(self) -> None:
        del self._renderer, self._passes

    def _open_renderer(self, weights: SceneWeights) -> None:
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


class TensorPart(TiledPart):
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


class FusedTensorPart(RaysPart):
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
