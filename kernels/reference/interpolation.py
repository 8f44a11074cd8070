"""Reading planes and lines: linear interpolation with zeros outside, as grid_sample with align_corners=True."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Neighbours(NamedTuple):
    """The two texels around each sample on one axis: index [M] int32, clamped inside, and weight [M], 0 where it was outside."""

    low: Tensor
    high: Tensor
    low_weight: Tensor
    high_weight: Tensor


def axis_neighbours(xyz: Tensor, sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Neighbours]:
    """Neighbours for each (axis, texels). xyz [3, M] in [-1, 1]; texel 0 sits at -1, the last at 1. NaN stays NaN in the weights."""
    halves = xyz.add(1).mul_(0.5)
    pixel = xyz.new_empty(len(sizes), xyz.shape[1])
    for row, (axis, size) in enumerate(sizes):
        torch.mul(halves[axis], size - 1, out=pixel[row])
    floor = pixel.floor()
    low = floor.to(torch.int32)
    high_weight = pixel - floor
    low_weight = floor.add_(1).sub_(pixel)
    high = low + 1
    last = torch.tensor([[size - 1] for _, size in sizes], dtype=torch.int32, device=xyz.device)
    if not bool(xyz.abs().amax() <= 1):  # else all is inside but `high` at 1, whose weight is 0
        low_weight *= (low >= 0) & (low <= last)
        high_weight *= (high >= 0) & (high <= last)
        low = torch.minimum(low.clamp_(min=0), last)
        high.clamp_(min=0)
    high = torch.minimum(high, last)
    return {key: Neighbours(low[row], high[row], low_weight[row], high_weight[row]) for row, key in enumerate(sizes)}


def read_plane(plane: Tensor, block: Tensor | None, x: Neighbours, y: Neighbours) -> Tensor:
    """plane [S, h, w, C] -> [M, C] float32, sample m in block[m] (0 if None)."""
    slots, height, width, _ = plane.shape
    dtype = torch.int32 if slots * height * width < 2**31 else torch.int64
    top, bottom = y.low.to(dtype) * width, y.high.to(dtype) * width
    if block is not None:
        start = block.to(dtype) * (height * width)
        top, bottom = top.add_(start), bottom.add_(start)
    index = torch.stack([top + x.low, top + x.high, bottom + x.low, bottom + x.high], dim=1)
    weight = torch.stack(
        [
            x.low_weight * y.low_weight,
            x.high_weight * y.low_weight,
            x.low_weight * y.high_weight,
            x.high_weight * y.high_weight,
        ],
        dim=1,
    )
    return _weighted_rows(plane, index, weight)


def read_line(line: Tensor, block: Tensor | None, z: Neighbours, factor: Tensor | None) -> Tensor:
    """line [S, n, C] -> [M, C] float32, times factor [M] if given."""
    low, high = z.low, z.high
    if block is not None:
        start = block * line.shape[1]
        low, high = low + start, high + start
    low_weight, high_weight = z.low_weight, z.high_weight
    if factor is not None:
        low_weight, high_weight = low_weight * factor, high_weight * factor
    return _weighted_rows(line, torch.stack([low, high], dim=1), torch.stack([low_weight, high_weight], dim=1))


def _weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sum over j of weight[m, j] * row index[m, j], in that order, in float32."""
    rows = table.view(-1, table.shape[-1])
    if rows.dtype == torch.float32:
        return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weight)
    total = rows.index_select(0, index[:, 0]).to(torch.float32).mul_(weight[:, :1])
    for j in range(1, index.shape[1]):
        total += rows.index_select(0, index[:, j]).to(torch.float32).mul_(weight[:, j : j + 1])
    return total
