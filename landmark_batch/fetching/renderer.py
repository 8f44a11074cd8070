"""FetchingRenderer: a scene rendered by one device that holds some of its blocks at a time. Same bits as with all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from landmark_batch import kernels
from landmark_batch.kernels.tuning import Launches
from landmark_batch.model.fused import FusedRenderer, tile_order
from landmark_batch.model.fused_passes import RayPasses
from landmark_batch.model.output import RenderOutput
from landmark_batch.model.passes import TilePasses
from landmark_batch.model.renderer import Renderer

from .fetcher import Fetcher
from .stats import FetchStats

logger = logging.getLogger(__name__)


class FetchingRenderer:
    """Renders frames of a fetcher's scene. Arguments as for Renderer and FusedRenderer.

    A frame that needs more blocks than there are slots is rendered in passes. One that meets a block that was not foreseen is
    thrown away and rendered again with it. Out of GPU memory, slots are given up.
    """

    def __init__(
        self, fetcher: Fetcher, *, threads: int | None = None, launches: Launches | None = None, memory: int | None = None
    ) -> None:
        self._fetcher = fetcher
        self._threads, self._launches, self._memory = threads, launches, memory
        self._open()

    def _open(self) -> None:
        fetcher = self._fetcher
        settings, device, base, tables = fetcher.settings, fetcher.device, fetcher.base, fetcher.tables
        self._fused: FusedRenderer | None = None
        self._plain: Renderer | None = None
        if settings.runtime == "fused" and device.type == "cuda":
            self._fused = FusedRenderer(base, settings, device, self._launches, tables, self._memory)
            self._ray_passes = RayPasses(self._fused, tables)
        else:
            self._plain = Renderer(base, settings, device, threads=self._threads, tables=tables)
            self._tile_passes = TilePasses(self._plain, fetcher.store.division)

    def render(
        self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int, *, frame: int | None = None
    ) -> RenderOutput:
        """One frame, as Renderer.render. frame: its number in the flight, for the fetcher's route. counters say what was fetched, too.

        Raises CheckpointError or StoreError for a block that is missing or damaged.
        """
        fetcher = self._fetcher
        blocks = fetcher.begin(frame, c2w, intrinsics, width, height)
        looked = False
        while True:
            try:
                output = self._render(c2w, intrinsics, width, height, blocks)
                return replace(output, counters={**output.counters, **fetcher.counted()})
            except kernels.AbsentBlockError:
                if looked:
                    raise
                looked = True
                blocks = sorted({*blocks, *fetcher.look(frame, c2w, intrinsics, width, height)})
                logger.info("frame %s met a block that was not foreseen: rendered again", frame)
            except torch.OutOfMemoryError:
                if fetcher.capacity < 2:
                    raise
                before = fetcher.capacity
                self._shut()
                torch.cuda.empty_cache()
                fetcher.shrink()
                self._open()
                logger.warning("out of GPU memory with %d slots: %d from here on, with the same pixels", before, fetcher.capacity)
                blocks = fetcher.begin(frame, c2w, intrinsics, width, height)

    @property
    def stats(self) -> FetchStats:
        """What was fetched so far."""
        return self._fetcher.stats

    def close(self) -> None:
        """End the threads."""
        self._shut()
        self._fetcher.close()

    def _shut(self) -> None:
        if self._plain is not None:
            self._plain.close()
        self._plain = self._fused = None

    def _render(
        self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int, blocks: Sequence[int]
    ) -> RenderOutput:
        fetcher = self._fetcher
        renderer = self._fused or self._plain
        if renderer is None:
            raise RuntimeError("the renderer was closed")
        if len(blocks) <= fetcher.capacity:
            with fetcher.hold(blocks):
                return renderer.render(c2w, intrinsics, width, height)
        if self._fused is not None:
            order = tile_order(width, height, fetcher.device)
            return self._ray_passes.render(c2w, intrinsics, width, height, order, blocks, fetcher)
        assert self._plain is not None
        tiles = self._plain.tiles(width, height)
        return self._plain.assemble(self._tile_passes.render_tiles(c2w, intrinsics, width, tiles, fetcher), width, height)
