"""FetchingRenderer: a scene rendered by one device that holds some of its blocks at a time. Same bits as with all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.kernels.tuning import Launches
from landmark_batch.model.fetched import Renewal, render_fetched
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.fused_passes import RayPasses
from landmark_batch.model.output import RenderOutput, on_background
from landmark_batch.model.passes import TilePasses
from landmark_batch.model.renderer import Renderer, TileOutput
from landmark_batch.model.tiles import WARP_TILE, tile_order, tile_side

from .fetcher import Fetcher
from .regions import Region
from .stats import FetchStats


class FetchingRenderer:
    """Renders frames of a fetcher's scene. Arguments as for Renderer and FusedRenderer.

    A frame that needs more blocks than there are slots is rendered by regions of the picture that do not, and in passes where even a
    small one does. A frame that meets a block that was not foreseen is thrown away and rendered again with it. Out of GPU memory,
    slots are given up.
    """

    def __init__(
        self, fetcher: Fetcher, *, threads: int | None = None, launches: Launches | None = None, memory: int | None = None
    ) -> None:
        self._fetcher = fetcher
        self._threads, self._launches, self._memory = threads, launches, memory
        self._closed = False
        self._open()

    def _open(self) -> None:
        fetcher = self._fetcher
        settings, device, base, tables = fetcher.settings, fetcher.device, fetcher.base, fetcher.tables
        self._fused: FusedRenderer | None = None
        self._plain: Renderer | None = None
        self._ray_passes: RayPasses | None = None
        if settings.runtime == "fused" and device.type == "cuda":
            self._fused = FusedRenderer(base, settings, device, self._launches, tables, self._memory)
            self._ray_passes = RayPasses(self._fused, tables)
        else:
            self._plain = Renderer(base, settings, device, threads=self._threads, tables=tables)

    def render(
        self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int, *, frame: int | None = None
    ) -> RenderOutput:
        """One frame, as Renderer.render. frame: its number in the flight, for the fetcher's route. counters say what was fetched, too.

        Raises CheckpointError or StoreError for a block that is missing or damaged.
        """
        fetcher = self._fetcher
        if not self._closed and self._fused is None and self._plain is None:  # there was no memory for one slot: there may be now
            fetcher.shrink()
            self._open()
        output = render_fetched(
            fetcher,
            (frame, c2w, intrinsics, width, height),
            lambda blocks: self._render(c2w, intrinsics, width, height, blocks),
            Renewal(self._shut, self._open),
        )
        return replace(output, counters={**output.counters, **fetcher.counted()})

    @property
    def stats(self) -> FetchStats:
        """What was fetched so far."""
        return self._fetcher.stats

    def close(self) -> None:
        """End the threads."""
        self._closed = True
        self._shut()
        self._fetcher.close()

    def _shut(self) -> None:
        if self._plain is not None:
            self._plain.close()
        self._plain = self._fused = self._ray_passes = None

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
            regions = fetcher.regions(blocks, c2w, intrinsics, width, height, WARP_TILE)
            return self._join_rays(self._fused, regions, c2w, intrinsics, width, height)
        assert self._plain is not None
        unit = tile_side(fetcher.settings.samples, fetcher.device.type)
        regions = fetcher.regions(blocks, c2w, intrinsics, width, height, unit)
        return self._plain.assemble(self._tiles(self._plain, regions, c2w, intrinsics, width, height), width, height)

    def _tiles(
        self,
        renderer: Renderer,
        regions: Iterable[Region],
        c2w: NDArray[np.floating],
        intrinsics: Sequence[float],
        width: int,
        height: int,
    ) -> Iterator[TileOutput]:
        """The tiles of a frame, region by region."""
        tiles, passes = renderer.tiles(width, height), TilePasses(renderer, self._fetcher.store.division)
        for region in regions:
            inside = [tile for tile in tiles if region.left <= tile.left < region.right and region.top <= tile.top < region.bottom]
            if len(region.blocks) > self._fetcher.capacity:
                yield from passes.render_tiles(c2w, intrinsics, width, inside, self._fetcher)
            else:
                with self._fetcher.hold(region.blocks):
                    yield from renderer.render_tiles(c2w, intrinsics, width, inside)

    def _join_rays(
        self,
        renderer: FusedRenderer,
        regions: Iterable[Region],
        c2w: NDArray[np.floating],
        intrinsics: Sequence[float],
        width: int,
        height: int,
    ) -> RenderOutput:
        """A frame by the fused kernels, region by region."""
        device = self._fetcher.device
        rgb = torch.empty(width * height, 3, device=device)
        depth, alpha = torch.empty(width * height, device=device), torch.empty(width * height, device=device)
        counters = Counter[str]()
        for region in regions:
            pixels = region_order(width, height, region, device)
            if len(region.blocks) > self._fetcher.capacity:
                assert self._ray_passes is not None
                parts = self._ray_passes.render_pixels(c2w, intrinsics, width, pixels, region.blocks, self._fetcher)
            else:
                renderer._graphs.forget()  # a region comes once: a graph of it would be recorded in vain
                with self._fetcher.hold(region.blocks):
                    parts = renderer.render_pixels(c2w, intrinsics, width, pixels)
            rgb[pixels], depth[pixels], alpha[pixels] = parts[:3]
            counters.update(parts[3])
        rgb = on_background(rgb, alpha, self._fetcher.settings.background)
        return RenderOutput(rgb.view(height, width, 3), depth.view(height, width), alpha.view(height, width), dict(counters), {})


@lru_cache(maxsize=8)
def region_order(width: int, height: int, region: Region, device: torch.device) -> Tensor:
    """The pixels [P] int64 of a region of a frame, in the frame's `tile_order`."""
    order = tile_order(width, height, device)
    row, column = order // width, order % width
    return order[(column >= region.left) & (column < region.right) & (row >= region.top) & (row < region.bottom)]
