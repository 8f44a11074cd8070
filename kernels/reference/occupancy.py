"""The occupancy mask as the march reads it: one byte a cell of eight voxels, under coarse levels that bound what lies near."""

from __future__ import annotations

import torch
from torch import Tensor

BORDER = 2  # fine and coarse cells begin at -2: -1 still touches the mask, -2 is empty and takes everything beyond


def pack_occupancy(volume: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mask [Z, Y, X] bool -> codes, coarse, table.

    codes [Z+3, Y+3, X+3] uint8: bit dz*4 + dy*2 + dx of cell (z, y, x) + 2 is voxel (z+dz, y+dy, x+dx); outside reads 0. A
    trilinear lookup thus needs one byte: 0 is empty, 255 is full.
    coarse [K] uint8: level 0 (one cell, set: 'do not know'), then levels 1 .. `levels` end to end. Level L has coarse cells of
    2^L voxels an axis; cell c + 2 is set if any voxel of the cells c-1 .. c+1 is, so that a box of half size 2^L voxels around a
    point in cell c is empty where it is 0.
    table [levels + 1, 4] int64: offset in coarse, and cells along z, y, x.
    """
    voxels = volume.to(torch.uint8)
    size = voxels.shape
    codes = torch.zeros([n + 3 for n in size], dtype=torch.uint8, device=volume.device)
    for bit in range(8):
        z, y, x = (BORDER - (bit >> shift & 1) for shift in (2, 1, 0))
        codes[z : z + size[0], y : y + size[1], x : x + size[2]] += voxels << bit
    coarse = [torch.ones(1, dtype=torch.uint8, device=volume.device)]
    rows = [[0, 1, 1, 1]]
    offset = 1
    for _ in range(levels):
        voxels = _halve(voxels)
        cells = _dilate(voxels)
        rows.append([offset, *cells.shape])
        coarse.append(cells.view(-1))
        offset += cells.numel()
    return codes, torch.cat(coarse), torch.tensor(rows, dtype=torch.int64, device=volume.device)


def _halve(voxels: Tensor) -> Tensor:
    """Any of 2x2x2, odd sizes rounded up."""
    for axis in range(3):
        size = voxels.shape[axis]
        even = voxels.index_select(axis, torch.arange(0, size, 2, device=voxels.device))
        odd = voxels.index_select(axis, torch.arange(1, size, 2, device=voxels.device))
        even.narrow(axis, 0, odd.shape[axis]).bitwise_or_(odd)
        voxels = even
    return voxels


def _dilate(cells: Tensor) -> Tensor:
    """Any of the 3x3x3 cells around, with a border of two cells on every side."""
    grown = torch.zeros([n + 2 * BORDER for n in cells.shape], dtype=torch.uint8, device=cells.device)
    grown[BORDER:-BORDER, BORDER:-BORDER, BORDER:-BORDER] = cells
    for axis in range(3):
        size = grown.shape[axis] - 2
        middle = grown.clone()
        middle.narrow(axis, 1, size).bitwise_or_(grown.narrow(axis, 0, size)).bitwise_or_(grown.narrow(axis, 2, size))
        grown = middle
    return grown
