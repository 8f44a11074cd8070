"""Part: what one rank of a group renders of a frame, and which pixels these are: whole tiles, or single rays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from landmark_batch.model.begun import Begun, Sums
from landmark_batch.model.blocks import FrameFetcher, FrameRegion
from landmark_batch.model.fetched import Renewal, render_fetched
from landmark_batch.model.settings import RenderSettings
from landmark_batch.model.tiles import Tile
from landmark_batch.scene.weights import SceneWeights

from .group import RenderGroup
from .orders import Order
from .regions import join_regions, places_inside, region_rule
from .share import FrameShare, ray_shares

FRAME_SIZES = 4  # sizes of frame whose shares are kept


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
        render = partial(self._with_blocks, order, fetcher)
        found = render_fetched(fetcher, camera, render, self.renewal(fetcher), who=f"rank {self.rank}: ")
        return replace(found, counters=found.counters | fetcher.counted())

    def _with_blocks(self, order: Order, fetcher: FrameFetcher, blocks: Sequence[int]) -> Sums:
        if len(blocks) > fetcher.capacity:
            return self._by_regions(order, blocks, fetcher)
        with fetcher.hold(blocks):
            return self.sums(order)

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

    def renewal(self, fetcher: FrameFetcher) -> Renewal | None:
        """For a rank that takes fewer slots by itself. None: tensor ranks have as many, and one of them cannot leave their exchanges."""
        return None

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


class TiledPart(Part):
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


class RaysPart(Part):
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
