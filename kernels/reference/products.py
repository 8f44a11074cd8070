"""Matrix products whose bits do not depend on how many rows come together."""

from __future__ import annotations

import torch
from torch import Tensor

CPU_ROWS = 1024
CUDA_ROWS = 131072  # large enough to fill a GPU, and few launches a frame


def tile_rows(device: torch.device) -> int:
    """The one row count of every matrix product on a device."""
    return CPU_ROWS if device.type == "cpu" else CUDA_ROWS


def row_tiles(x: Tensor) -> list[Tensor]:
    """x [M, K] cut into tiles of the device's row count, the last one zero-padded."""
    if x.shape[0] == 0:
        return []
    rows = tile_rows(x.device)
    tiles = [x[start : start + rows] for start in range(0, x.shape[0], rows)]
    last = tiles[-1]
    if last.shape[0] < rows:
        tiles[-1] = x.new_zeros(rows, x.shape[1])
        tiles[-1][: last.shape[0]] = last
    return tiles
