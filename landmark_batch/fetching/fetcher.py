"""Fetcher: the blocks of one rank's frames, known before they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
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

from .cache import BlockCache
from .choice import FetchChoice
from .route import Route
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
        )
        self._range: tuple[int, int] | None = None  # positions of the route that the cache expects
        self._position = 0
        self._before: dict[str, int] = {}
        self._unforeseen: dict[int, list[int]] = {}
        self._frustum: FrustumBlocks | None = None

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
        if self._route is None or place is None or frame is None:
            blocks = self._visible(c2w, intrinsics, width, height)
            self._cache.expect([blocks])
            self._range, self._position = None, 0
            return blocks
        blocks = [*self._route.of(frame)]
        position, end = place
        if self._range is None or not (self._range[0] + self._position < position < self._range[1] == end):
            self._cache.expect(self._route.ahead(position, end))
            self._range = (position, end)
        self._position = position - self._range[0]
        return sorted({*blocks, *self._unforeseen.get(frame, ())})

    def hold(self, blocks: Sequence[int]) -> AbstractContextManager[Any]:
        """All of `blocks` are in slots while inside; waits for those that are not yet."""
        return self._cache.hold(blocks, position=self._position)

    def counted(self) -> dict[str, int]:
        """What was fetched since the last call: FETCH_COUNTERS."""
        stats = self._cache.stats
        now = dict(
            zip(
                FETCH_COUNTERS,
                (stats.loads, stats.bytes_read, stats.bytes_copied, stats.stalls, round(stats.stall_seconds * 1e6)),
                strict=True,
            )
        )
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
        self._range = None

    def close(self) -> None:
        self._cache.close()

    def _visible(self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> list[int]:
        if self._frustum is None:
            self._frustum = FrustumBlocks(self.base.config, self.settings, self.base.mask, self.store.division)
        found: list[int] = self._frustum.blocks(c2w, intrinsics, width, height).tolist()
        return found
