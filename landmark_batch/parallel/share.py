"""Which pixels of a frame a rank renders: known to every rank beforehand, so that no size has to be sent.

Tiles go to the data rows along diagonals, so that every row gets its share of sky and of city whatever the frame's height and
width. Inside a tile, each tensor rank owns a run of rays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from landmark_batch.model.tiles import Tile, frame_tiles, tile_order, tile_side

from .shape import GroupShape

MACRO = (64, 32)  # pixels that stay together where single rays are shared out, whole tiles of tile_order


def owned_rays(rays: int, index: int, size: int) -> tuple[int, int]:
    """(start, stop) of the rays of a tile that tensor rank `index` of `size` owns; all shares differ by one at most."""
    return index * rays // size, (index + 1) * rays // size


def row_tiles(width: int, height: int, samples: int, device_type: str, data: int) -> list[list[Tile]]:
    """The tiles of a frame of `model.tiles` for each of `data` data rows."""
    columns, rows = tile_side(samples, device_type)
    share: list[list[Tile]] = [[] for _ in range(data)]
    for tile in frame_tiles(width, height, samples, device_type):
        share[(tile.left // columns + tile.top // rows) % data].append(tile)
    return share


@lru_cache(maxsize=64)
def tile_pixels(tile: Tile, width: int, device: torch.device) -> Tensor:
    """Indices row * width + column [rays] int64 of a tile, row by row."""
    return tile.pixels(width, device)


@dataclass(frozen=True)
class FrameShare:
    """tiles: of each data row. sizes: pixels of each rank. pixels: [sizes[rank]] int64 of each rank, in the order it renders them."""

    width: int
    height: int
    shape: GroupShape
    tiles: tuple[tuple[Tile, ...], ...]
    sizes: tuple[int, ...]
    device: torch.device

    @classmethod
    def of_tiles(cls, width: int, height: int, samples: int, shape: GroupShape, device: torch.device) -> FrameShare:
        """Whole tiles to data rows, runs of each tile's rays to tensor ranks."""
        tiles = row_tiles(width, height, samples, device.type, shape.data)
        sizes = []
        for rank in range(shape.size):
            shares = [owned_rays(tile.rays, shape.tensor_index(rank), shape.tensor) for tile in tiles[shape.data_index(rank)]]
            sizes.append(sum(stop - start for start, stop in shares))
        return cls(width, height, shape, tuple(tuple(row) for row in tiles), tuple(sizes), device)

    @cached_property
    def pixels(self) -> tuple[Tensor, ...]:
        return tuple(self._pixels(rank) for rank in range(self.shape.size))

    def _pixels(self, rank: int) -> Tensor:
        parts = [torch.empty(0, dtype=torch.int64, device=self.device)]
        for tile in self.tiles[self.shape.data_index(rank)]:
            start, stop = owned_rays(tile.rays, self.shape.tensor_index(rank), self.shape.tensor)
            parts.append(tile_pixels(tile, self.width, self.device)[start:stop])
        return torch.cat(parts)


def ray_shares(width: int, height: int, count: int, device: torch.device) -> list[Tensor]:
    """Pixels [P] int64 of each of `count` shares where the unit is the ray: squares of MACRO pixels along diagonals, inside them the
    order of `tile_order`.
    """
    order = tile_order(width, height, device)
    column, row = _square(order, width)
    return [order[(column + row) % count == index] for index in range(count)]


def ray_batches(pixels: Tensor, width: int, shares: int, count: int) -> list[Tensor]:
    """Places [B] int64 in `pixels`, one of so many `ray_shares`, of each of `count` batches: whole squares from all over the frame,
    so that batches find about as many samples.
    """
    if count == 1:
        return [torch.arange(pixels.shape[0], device=pixels.device)]
    column, row = _square(pixels, width)
    batch = (torch.div(column, shares, rounding_mode="floor") + row) % count
    return [(batch == index).nonzero().view(-1) for index in range(count)]


def _square(pixels: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Column and row [P] of the squares in which pixels lie."""
    row = torch.div(pixels, width, rounding_mode="floor")
    column = torch.div(pixels - row * width, MACRO[0], rounding_mode="floor")
    return column, torch.div(row, MACRO[1], rounding_mode="floor")
