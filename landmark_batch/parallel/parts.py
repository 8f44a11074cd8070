"""What one rank of a group renders of a frame: whole tiles, single rays, or its share of tiles over tensor ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.pool import TilePool
from landmark_batch.model.renderer import STAGES, Renderer
from landmark_batch.model.settings import RenderSettings
from landmark_batch.scene.weights import SceneWeights

from .exchange import TensorExchange
from .fused_tensor import FusedTensorStages, fused_tile_steps
from .group import RenderGroup
from .orders import Order
from .share import FrameShare, ray_shares
from .stages import TensorStages
from .tensor import TileSteps, run_tiles, tile_steps

COUNTERS = ("rays", "samples", "survived", "coloured", "tensor_bytes")
TIMES = (*STAGES, "exchange")
FRAME_SIZES = 4  # sizes of frame whose shares are kept

Sums = tuple[Tensor, dict[str, int], dict[str, float]]  # [P, 5] rgb, depth, alpha of this rank's pixels; counters; seconds by stage


def open_part(group: RenderGroup, weights: SceneWeights, settings: RenderSettings, device: torch.device, threads: int) -> Part:
    """This rank's part of the frames of a scene, by shape of the group, runtime and device."""
    if group.membership.shape.tensor > 1:
        return TensorPart(group, weights, settings, device, threads)
    if settings.runtime == "fused" and device.type == "cuda":
        return RayPart(group, weights, settings, device)
    return TilePart(group, weights, settings, device, threads)


class Part(ABC):
    """What this rank renders of a frame."""

    def __init__(self, group: RenderGroup, settings: RenderSettings, device: torch.device) -> None:
        self.shape, self.rank = group.membership.shape, group.rank
        self.row = group.membership.data_index
        self.settings, self.device = settings, device
        self.frame_share = lru_cache(maxsize=FRAME_SIZES)(
            lambda width, height: FrameShare.of_tiles(width, height, settings.samples, self.shape, device)
        )
        self.order = lru_cache(maxsize=FRAME_SIZES)(lambda width, height: torch.cat([*self.pixels(width, height)]))

    @abstractmethod
    def render(self, order: Order) -> Sums: ...

    def pixels(self, width: int, height: int) -> Sequence[Tensor]:
        """Pixels [P] int64 of each rank."""
        return self.frame_share(width, height).pixels

    def sizes(self, width: int, height: int) -> Sequence[int]:
        """Pixels of each rank."""
        return self.frame_share(width, height).sizes

    def close(self) -> None:
        return


class TilePart(Part):
    """Whole tiles, by the renderer of one rank."""

    def __init__(self, group: RenderGroup, weights: SceneWeights, settings: RenderSettings, device: torch.device, threads: int) -> None:
        super().__init__(group, settings, device)
        self._renderer = Renderer(weights, settings, device, threads=threads)

    def render(self, order: Order) -> Sums:
        tiles = self.frame_share(order.width, order.height).tiles[self.row]
        counters, seconds = dict.fromkeys(COUNTERS, 0), dict.fromkeys(STAGES, 0.0)
        rows = [torch.empty(0, 5, device=self.device)]
        for part in self._renderer.render_tiles(order.c2w, order.intrinsics, order.width, tiles):
            rows.append(_columns(part.rgb, part.depth, part.alpha))
            for name, count in part.counters.items():
                counters[name] += count
            for name, value in part.stages.items():
                seconds[name] += value
        return torch.cat(rows), counters, seconds

    def close(self) -> None:
        self._renderer.close()


class RayPart(Part):
    """Single rays, by the fused renderer of one GPU."""

    def __init__(self, group: RenderGroup, weights: SceneWeights, settings: RenderSettings, device: torch.device) -> None:
        super().__init__(group, settings, device)
        self._renderer = FusedRenderer(weights, settings, device)
        self._shares = lru_cache(maxsize=FRAME_SIZES)(partial(ray_shares, data=self.shape.data, device=device))

    def render(self, order: Order) -> Sums:
        pixels = self.pixels(order.width, order.height)[self.row]
        rgb, depth, alpha, counters = self._renderer.render_pixels(order.c2w, order.intrinsics, order.width, pixels)
        return _columns(rgb, depth, alpha), counters | {"tensor_bytes": 0}, {}

    def pixels(self, width: int, height: int) -> Sequence[Tensor]:
        return self._shares(width, height)

    def sizes(self, width: int, height: int) -> Sequence[int]:
        return [pixels.shape[0] for pixels in self._shares(width, height)]


class TensorPart(Part):
    """A run of rays of each tile of this rank's row, by all tensor ranks together."""

    def __init__(self, group: RenderGroup, weights: SceneWeights, settings: RenderSettings, device: torch.device, threads: int) -> None:
        super().__init__(group, settings, device)
        fused = settings.runtime == "fused" and device.type == "cuda"
        self._stages = FusedTensorStages(weights, settings, device) if fused else TensorStages(weights, settings, device)
        self._steps: Callable[..., TileSteps] = fused_tile_steps if fused else tile_steps
        kind, patches = self._stages.tiles, self._stages.patches
        self.frame_share = lru_cache(maxsize=FRAME_SIZES)(
            lambda width, height: FrameShare.of_tiles(width, height, settings.samples, self.shape, device, kind, patches=patches)
        )
        self._exchange = TensorExchange(group.tensor)
        self._pool = TilePool(threads if device.type == "cpu" else 0)

    def render(self, order: Order) -> Sums:
        pose = torch.as_tensor(order.c2w.astype(np.float32)).to(self.device)
        lens = torch.tensor(order.intrinsics, dtype=torch.float32, device=self.device)
        before = self._exchange.sent
        tiles = self.frame_share(order.width, order.height).tiles[self.row]
        begin = [partial(self._steps, self._stages, self._exchange, pose, lens, order.width, tile) for tile in tiles]
        owned, waited = run_tiles(begin, self._pool, self._stages.running)
        rows = torch.cat([torch.empty(0, 5, device=self.device), *(_columns(part.rgb, part.depth, part.alpha) for part in owned)])
        counters = {
            "rays": rows.shape[0],
            "samples": rows.shape[0] * self.settings.samples,
            "survived": sum(part.survived for part in owned),
            "coloured": sum(part.coloured for part in owned),
            "tensor_bytes": self._exchange.sent - before,
        }
        return rows, counters, {"exchange": waited} if self.device.type == "cpu" else {}

    def close(self) -> None:
        self._pool.close()


def _columns(rgb: Tensor, depth: Tensor, alpha: Tensor) -> Tensor:
    """[R, 5]."""
    return torch.cat([rgb, depth[:, None], alpha[:, None]], dim=1)
