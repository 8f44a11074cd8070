"""Fetcher: the blocks of one rank's frames, known before they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from landmark_batch.model.blocks import FETCH_COUNTERS
from landmark_batch.model.sampling import Sampler
from landmark_batch.model.settings import RenderSettings
from landmark_batch.model.touched import touched_blocks
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore

from .block_sets import AnySets
from .cache import PLAN_FRAMES, BlockCache
from .choice import FetchChoice
from .crowded import frame_regions
from .regions import PassCount, Region, in_turn, pass_count
from .route import Route
from .shared_reads import SharedReads
from .slots import SlotTables
from .stats import FetchStats
from .visibility import FrustumBlocks


class Fetcher:
    """Brings blocks into slots, frame by frame along a route. A `BlockSource` for the frame that was begun last.

    base: the scene without its planes, this rank's channels of it. Raises as BlockStore.base.
    """

    def __init__(
        self,
        store: BlockStore,
        settings: RenderSettings,
        device: torch.device,
        choice: FetchChoice,
        route: Route | None = None,
        *,
        shard: ChannelShard | None = None,
        shared: SharedReads | None = None,
    ) -> None:
        self.store, self.settings, self.device = store, settings, device
        self.base = store.base(shard)
        self._route = route
        self._cache = BlockCache(
            store,
            device,
            slots=choice.slots,
            host_bytes=choice.host_bytes,
            precision=settings.precision,
            shard=shard,
            pad=settings.runtime == "fused" and device.type == "cuda",
            base=self.base,
            shared=shared,
        )
        self._range: tuple[int, int] | None = None  # positions of the route that the cache expects
        self._due: Callable[[], AnySets] | None = None  # what it is to expect from the next hold on
        self._position = 0
        self._place: tuple[int, int] | None = None  # of the frame that was begun last
        self._last: Sequence[int] = ()  # blocks that were held last
        self._before: dict[str, int] = {}
        self._unforeseen: dict[int, list[int]] = {}
        self._looked = False  # at the frame that was begun last

    @property
    def tables(self) -> SlotTables:
        return self._cache.tables

    @property
    def capacity(self) -> int:
        """Slots."""
        return self._cache.capacity

    @property
    def stats(self) -> FetchStats:
        return self._cache.stats

    def begin(self, frame: int | None, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> list[int]:
        """A frame comes. Returns the blocks it needs, ascending. frame: of the route; None for a camera that is on none."""
        place = self._route.place(frame) if self._route is not None and frame is not None else None
        self._place, self._looked = place, False
        if self._route is None or place is None or frame is None:
            blocks: list[int] = self._frustum.blocks(c2w, intrinsics, width, height).tolist()
            self._due = lambda: [blocks]
            self._range, self._position = None, 0
            return blocks
        found = self._unforeseen.get(frame, ())
        self._looked = bool(found)
        position, end = place
        if self._range is None or not (self._range[0] + self._position < position < self._range[1] == end):
            self._due = partial(self._route.ahead, position, end)
            self._range = (position, end)
        self._position = position - self._range[0]
        return sorted({*self._route.of(frame), *found})

    def regions(
        self,
        blocks: Sequence[int],
        c2w: NDArray[np.floating],
        intrinsics: Sequence[float],
        width: int,
        height: int,
        unit: tuple[int, int],
        *,
        passes: PassCount = pass_count,
        wanted: Callable[[Region], bool] | None = None,
    ) -> Iterator[Region]:
        """The regions of the frame that was begun, for a frame that needs more blocks than there are slots. While one is at hand,
        its blocks are those to be held, and those of the next ones are on their way.

        blocks: what the whole frame needs. unit: columns and rows of pixels, of which regions are multiples. passes: how often so many
        rays of the frame go through passes. wanted: whether anything of a region is rendered here; others are left out. A frame that was
        looked at is one region, since what its parts were foreseen to need was not all.
        """
        found = [Region(0, 0, width, height, tuple(blocks))]
        if not self._looked and (parts := frame_regions(self._frustum, c2w, intrinsics, width, height, unit, self.capacity, passes)):
            parts = [region for region in parts if wanted is None or wanted(region)]
            found = in_turn(parts, self.capacity, self._last)
        sets: list[Sequence[int]] = [region.blocks for region in found]
        if self._route is not None and self._place is not None:
            position, end = self._place
            sets += [ids.tolist() for ids in self._route.ahead(position + 1, min(end, position + 1 + PLAN_FRAMES))]
        self._range, self._due = None, None  # the frame after it is planned anew
        self._cache.expect(sets)
        for self._position, region in enumerate(found):
            yield region
            self._last = region.blocks  # of one in passes, too: the same on all ranks, whatever each has read by now

    def hold(self, blocks: Sequence[int]) -> AbstractContextManager[Any]:
        """All of `blocks` are in slots while inside; waits for those that are not yet."""
        if self._due is not None:
            self._cache.expect(self._due())
            self._due = None
        self._last = blocks
        return self._cache.hold(blocks, position=self._position)

    def in_order(self, blocks: Sequence[int], *, last: bool) -> list[int]:
        """Blocks of the frame or the region at hand, more than there are slots, in the order in which passes load fewest.

        Those in slots come first. Of the others those that are needed again soonest come first in a pass that another one follows, which
        begins with what this one leaves, and last in the last pass, after which they stay.
        """
        return self._cache.in_order(blocks, self._position, last=last)

    def counted(self) -> dict[str, int]:
        """What was fetched since the last call: FETCH_COUNTERS."""
        stats = self._cache.stats
        moved = stats.bytes_read, stats.bytes_shared, stats.bytes_copied, stats.bytes_pulled
        now = dict(zip(FETCH_COUNTERS, (stats.loads, *moved, stats.stalls, round(stats.stall_seconds * 1e6)), strict=True))
        found = {name: count - self._before.get(name, 0) for name, count in now.items()}
        self._before = now
        return found

    def look(self, frame: int | None, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> list[int]:
        """Blocks that a frame's samples really lie in, ray by ray: for a frame that met one that was not foreseen."""
        sampler = Sampler(self.base.config, self.settings, self.base.mask, self.device)
        center = self.settings.pixel_center
        found = touched_blocks(
            sampler, self.base.config, self.store.division, c2w, intrinsics, width, height, pixel_center=center, device=self.device
        )
        self._looked = True
        if frame is not None:
            self._unforeseen[frame] = sorted(found)
        return sorted(found)

    def shrink(self) -> None:
        """After a device that was out of memory: half the slots, or as many fewer as it takes; what was in them is gone, and `tables` are
        others. Raises torch.OutOfMemoryError where not even one finds room.
        """
        slots = self.capacity // 2
        while True:
            try:
                self._cache.resize(max(1, slots))
                break
            except torch.OutOfMemoryError:
                if slots <= 1:
                    raise
                slots //= 2
        self._range, self._last = None, ()

    def close(self) -> None:
        self._cache.close()

    @cached_property
    def _frustum(self) -> FrustumBlocks:
        return FrustumBlocks(self.base.config, self.settings, self.base.mask, self.store.division)
