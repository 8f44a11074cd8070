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


def pack_bits(volume: Tensor) -> list[Tensor]:
    """Mask volume [Z, Y, X] bool -> bits [Z, Y, ceil(X / 32)] int32 (x fastest, lowest bit first) and coarse bits, as `trace` reads.

    A coarse cell of 8 voxels an axis is set if any voxel in it or next to it is. Works where the volume is, in a few times its bytes.
    """
    z, y, x = volume.shape
    near = volume
    for axis in range(3):
        near = _spread(near, axis)
    padded = torch.nn.functional.pad(near, (0, -x % CELL, 0, -y % CELL, 0, -z % CELL))
    along = [size // CELL for size in padded.shape]
    cells = padded.view(along[0], CELL, along[1], CELL, along[2], CELL).any(5).any(3).any(1)
    return [
        _bits(torch.nn.functional.pad(volume, (0, -x % 32))),
        _bits(torch.nn.functional.pad(cells.reshape(-1), (0, -cells.numel() % 32))),
    ]


def _spread(flags: Tensor, axis: int) -> Tensor:
    """Flags that are set there or on either side along an axis."""
    count, spread = flags.shape[axis], flags.clone()
    if count > 1:
        spread.narrow(axis, 1, count - 1).logical_or_(flags.narrow(axis, 0, count - 1))
        spread.narrow(axis, 0, count - 1).logical_or_(flags.narrow(axis, 1, count - 1))
    return spread


def _bits(flags: Tensor) -> Tensor:
    """Bool [..., 32 n] -> int32 [..., n]."""
    words = flags.new_zeros((*flags.shape[:-1], flags.shape[-1] // 32), dtype=torch.int32)
    for bit in range(32):
        words |= flags[..., bit::32].to(torch.int32) << bit
    return words


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
