"""What the fused ops read and write beside planes and lines: mask bits, and lists of coloured samples.

A list [L, 4] int32 has one row for each coloured sample, in the order of rays and of their samples: ray, t (bits), weight (bits), and
the row whose turn it is at this place where samples of neighbouring rays at the same depth are to be looked up together. The turns
of a list are a permutation of its rows; a kernel may follow them or not. Rows beyond the list's samples are not written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CELL = 8  # voxels of a coarse cell, on each axis
_GATHER = 0x0102040810204080  # byte i of a number, where it is 0 or 1, to bit 56 + i of the product


def pack_bits(volume: Tensor) -> list[Tensor]:
    """Mask volume [Z, Y, X] bool -> bits [Z, Y, ceil(X / 32)] int32 (x fastest, lowest bit first) and coarse bits, as `trace` reads.

    A coarse cell of 8 voxels an axis is set if any voxel in it or next to it is. Works where the volume is, in half its bytes.
    """
    z, y, x = volume.shape
    along = -(-x // CELL)
    rows = torch.zeros((z, y, -(-x // 32) * 4), dtype=torch.uint8, device=volume.device)  # a byte: the voxels of a cell along x
    for layer, packed in zip(volume, rows, strict=True):  # one by one: a layer stays in a processor's cache
        packed[:, :along] = _bytes(layer)
    near = _near(_near(rows[..., :along], 0), 1)
    cells = near != 0
    cells[..., 1:] |= near[..., :-1] >= 1 << (CELL - 1)  # the last voxel of the cell before
    cells[..., :-1] |= (near[..., 1:] & 1) != 0  # the first one of the cell behind
    flags = torch.nn.functional.pad(cells.reshape(-1), (0, -cells.numel() % 32))
    return [rows.view(torch.int32), _bytes(flags).view(torch.int32)]


def _near(rows: Tensor, axis: int) -> Tensor:
    """Along an axis one entry a cell: the bits of its CELL rows, and of the row on either side of it."""
    rows = rows.movedim(axis, 0)
    count = -(-rows.shape[0] // CELL)
    cells = torch.zeros((count, *rows.shape[1:]), dtype=torch.uint8, device=rows.device)
    for row in range(CELL):
        some = rows[row::CELL]
        cells[: some.shape[0]] |= some
    cells[1:] |= rows[CELL - 1 :: CELL][: count - 1]
    cells[:-1] |= rows[CELL::CELL][: count - 1]
    return cells.movedim(0, axis)


def _bytes(flags: Tensor) -> Tensor:
    """Bool [..., n] -> uint8 [..., ceil(n / 8)], lowest bit first: eight flags taken as one number, times _GATHER, stand in its upper byte.

    They are copied, filled up with 0: of a crop, even a contiguous one, strides and offset may be no multiples of eight.
    """
    more = -flags.shape[-1] % CELL
    whole = torch.nn.functional.pad(flags, (0, more)) if more else flags.clone(memory_format=torch.contiguous_format)
    return ((whole.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def unpack_bits(bits: Tensor, size: Sequence[int]) -> Tensor:
    """bits [Z, Y, words] -> volume [Z, Y, X] bool; size (X, Y, Z)."""
    flags = bits[..., None] >> torch.arange(32, device=bits.device, dtype=torch.int32) & 1
    return flags.flatten(-2)[..., : size[0]].to(torch.bool).contiguous()


def list_ray(samples: Tensor) -> Tensor:
    """Ray [L] int32 of each row of a list."""
    return samples[:, 0].contiguous()


def list_weight(samples: Tensor) -> Tensor:
    """Weight [L] float32 of each row of a list."""
    return samples[:, 2].contiguous().view(torch.float32)


def make_list(ray: Tensor, t: Tensor, weight: Tensor, capacity: int) -> Tensor:
    """List [capacity, 4] of samples ray, t, weight [C], each in its own turn; what does not fit is left out, the rest is 0."""
    turn = torch.arange(ray.shape[0], dtype=torch.int32, device=ray.device)
    rows = torch.stack([ray, t.view(torch.int32), weight.view(torch.int32), turn], dim=1)
    return fitted(rows, capacity)


def fitted(rows: Tensor, capacity: int) -> Tensor:
    """rows [N, ...] cut or filled with zeros to `capacity` rows, a tensor of its own."""
    out = rows.new_zeros(capacity, *rows.shape[1:])
    kept = min(capacity, rows.shape[0])
    out[:kept] = rows[:kept]
    return out
