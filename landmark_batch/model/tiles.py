"""The fixed tiles a frame is cut into: the unit whose arithmetic never depends on what else is rendered.

A tile's size follows from the number of samples a ray and the device type alone, its place from the frame alone. All tensors of
one tile go through the ops together, so a pixel's bits cannot depend on batches, order, threads or ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CPU_SAMPLES = 2**20  # of a tile, before any is dropped: few enough for a cache, enough to outweigh the cost of a call
CUDA_SAMPLES = 2**23  # enough to fill a GPU
MIN_SIDE, MAX_SIDE = 8, 256
WARP_TILE = (8, 4)  # pixels that a warp of the fused kernels takes: neighbours share texels


@dataclass(frozen=True)
class Tile:
    """Pixels of rows top..bottom-1 and columns left..right-1."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def rays(self) -> int:
        return (self.right - self.left) * (self.bottom - self.top)

    def pixels(self, width: int, device: torch.device) -> Tensor:
        """Indices row * width + column [rays] int64, row by row."""
        import torch

        rows = torch.arange(self.top, self.bottom, device=device)
        columns = torch.arange(self.left, self.right, device=device)
        return (rows[:, None] * width + columns).view(-1)


def tile_side(samples: int, kind: str) -> tuple[int, int]:
    """(columns, rows) of a full tile, powers of two. kind: 'cpu' or 'cuda'."""
    budget = (CPU_SAMPLES if kind == "cpu" else CUDA_SAMPLES) // samples
    columns = rows = MIN_SIDE
    while columns * rows * 2 <= budget and rows < MAX_SIDE:
        if columns == rows:
            columns *= 2
        else:
            rows *= 2
    return columns, rows


def frame_tiles(width: int, height: int, samples: int, kind: str) -> list[Tile]:
    """All tiles of a frame, row by row; those at the right and lower edge are cut off."""
    columns, rows = tile_side(samples, kind)
    return [
        Tile(left, top, min(left + columns, width), min(top + rows, height))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]


@lru_cache(maxsize=4)
def tile_order(width: int, height: int, device: torch.device) -> Tensor:
    """Pixel indices row * width + column [W * H] int64, tile by tile of 8 x 4 pixels."""
    import torch

    columns = torch.arange(width, device=device)
    rows = torch.arange(height, device=device)
    tile = (rows[:, None] // WARP_TILE[1]) * -(-width // WARP_TILE[0]) + columns // WARP_TILE[0]
    inside = (rows[:, None] % WARP_TILE[1]) * WARP_TILE[0] + columns % WARP_TILE[0]
    return (tile * (WARP_TILE[0] * WARP_TILE[1]) + inside).view(-1).argsort()
