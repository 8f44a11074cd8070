"""The grid field: block lookup, density feature and appearance features of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..absent import MESSAGE, AbsentBlockError
from .interpolation import Neighbours, axis_neighbours, read_line, read_plane
from .products import tile_rows

PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # columns, rows of the plane of each dim
LINE_AXES = (2, 1, 0)
CPU_CHUNK = 2**14  # samples whose products stay in a core's cache
CUDA_CHUNK = 2**20


class Grid(NamedTuple):
    """Where planes and lines lie and how to find a sample in them; arguments as in `kernels.density`."""

    box: Sequence[float]
    division: Sequence[int]
    slots: Tensor | None
    planes: Sequence[Tensor]
    lines: Sequence[Tensor]
    resolutions: int
    origins: Tensor | None
    extents: Sequence[int]

    def axes(self, level: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(axis, texels) of the plane's columns, of its rows, and of the line."""
        dim = level // self.resolutions
        across, down = PLANE_AXES[dim]
        height, width = self.planes[level].shape[1:3] if self.origins is None else self.extents[2 * level : 2 * level + 2]
        return (across, width), (down, height), (LINE_AXES[dim], self.lines[level].shape[1])


def density(
    rays: Tensor,
    ray: Tensor,
    t: Tensor,
    box: Sequence[float],
    division: Sequence[int],
    slots: Tensor | None,
    planes: Sequence[Tensor],
    lines: Sequence[Tensor],
    resolutions: int,
    basis: Tensor | None,
    origins: Tensor | None = None,
    extents: Sequence[int] = (),
) -> Tensor:
    """Density feature [M]: plane * line summed over dims and resolutions, then over channels; each times its weight in `basis`."""
    grid = Grid(box, division, slots, planes, lines, resolutions, origins, extents)
    feature = torch.empty_like(t)
    for part in _chunks(t):
        total: Tensor | None = None
        columns = 0
        for product in _products(rays, ray[part], t[part], grid):
            if basis is not None:
                product *= basis[0, columns : columns + product.shape[1]]
                columns += product.shape[1]
            total = product if total is None else total.add_(product)
        assert total is not None
        torch.sum(total, dim=1, out=feature[part])
    return feature


def appearance(
    rays: Tensor,
    ray: Tensor,
    t: Tensor,
    box: Sequence[float],
    division: Sequence[int],
    slots: Tensor | None,
    planes: Sequence[Tensor],
    lines: Sequence[Tensor],
    resolutions: int,
    basis: Tensor,
    origins: Tensor | None = None,
    extents: Sequence[int] = (),
) -> Tensor:
    """Appearance features [C, F] = products [C, K] times `basis` [F, K]; columns in the order dim, resolution, channel."""
    grid = Grid(box, division, slots, planes, lines, resolutions, origins, extents)
    features = t.new_empty(t.shape[0], basis.shape[0])
    rows = tile_rows(t.device)
    for part in _chunks(t):
        count = t[part].shape[0]
        padded = -(-count // rows) * rows
        products = t.new_empty(padded, basis.shape[1])
        products[count:] = 0
        columns = 0
        for product in _products(rays, ray[part], t[part], grid):
            products[:count, columns : columns + product.shape[1]] = product
            columns += product.shape[1]
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            features[part][start:stop] = F.linear(products[start : start + rows], basis)[: stop - start]
    return features


def sample_blocks(rays: Tensor, ray: Tensor, t: Tensor, box: Sequence[float], division: Sequence[int], *, cut: bool) -> Tensor:
    """Block [M] int64 that each sample's features come from, -1 for none. cut: the division is of a scene's whole planes."""
    xyz = _normalise(rays, ray, t, box)
    if cut:
        return _find_blocks(xyz, division).to(torch.int64)
    block, exists = _enter_blocks(xyz, division)
    return torch.where(exists, block, -1).to(torch.int64)


def _chunks(t: Tensor) -> Iterator[slice]:
    """Slices of the samples, whole matrix-product tiles long. What is computed for a sample does not depend on its chunk."""
    size = CPU_CHUNK if t.device.type == "cpu" else CUDA_CHUNK
    for start in range(0, t.shape[0], size):
        yield slice(start, start + size)


def _products(rays: Tensor, ray: Tensor, t: Tensor, grid: Grid) -> Iterator[Tensor]:
    """plane * line [M, C] of each dim and resolution in turn."""
    xyz = _normalise(rays, ray, t, grid.box)
    block: Tensor | None = None
    factor: Tensor | None = None
    origin: Tensor | None = None
    if grid.division:
        if grid.origins is None:
            block, exists = _enter_blocks(xyz, grid.division)
        else:
            block, exists = _find_blocks(xyz, grid.division), xyz.new_ones((), dtype=torch.bool)
            origin = grid.origins.index_select(0, block)
        if grid.slots is not None:
            block = grid.slots.index_select(0, block)
            if bool(((block < 0) & exists).any()):
                raise AbsentBlockError(MESSAGE)
            block.clamp_(min=0)
        if not bool(exists.all()):
            factor = exists.to(t.dtype)
    axes = [grid.axes(level) for level in range(len(grid.planes))]
    neighbours = axis_neighbours(xyz, list(dict.fromkeys(key for level in axes for key in level)))
    for level, ((across, down, along), plane, line) in enumerate(zip(axes, grid.planes, grid.lines, strict=True)):
        x, y = neighbours[across], neighbours[down]
        if origin is not None:
            x, y = _in_tile(x, origin[:, level, 0], plane.shape[2]), _in_tile(y, origin[:, level, 1], plane.shape[1])
        product = read_plane(plane, block, x, y)
        yield product.mul_(read_line(line, block, neighbours[along], factor))


def _normalise(rays: Tensor, ray: Tensor, t: Tensor, box: Sequence[float]) -> Tensor:
    """Sample coordinates in the box, [3, M] in [-1, 1]."""
    bounds = torch.tensor(box, dtype=rays.dtype, device=rays.device).view(2, 3, 1)
    chosen = rays.index_select(0, ray).t().contiguous()
    return (t * chosen[3:]).add_(chosen[:3]).sub_(bounds[0]).mul_(2.0 / (bounds[1] - bounds[0])).sub_(1)


def _enter_blocks(xyz: Tensor, division: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Replace x and y by coordinates in the sample's block. Returns block [M] int32 (clamped) and whether it exists [M].

    The block index is floor(bx) * division_y + floor(by) and the local frame is derived back from that index, as in
    LandMark's assign_blocks_to_samples: a sample exactly on the far y face takes the next column's index.
    """
    width, height = 2 / division[0], 2 / division[1]
    index = xyz[0].add(1).div_(width).floor_().mul_(division[1])
    index += xyz[1].add(1).div_(height).floor_()
    column = torch.div(index, division[1], rounding_mode="floor")
    row = torch.remainder(index, division[1])
    for axis, (cell, size) in enumerate(((column, width), (row, height))):
        low = (cell * size).sub_(1)
        high = (cell + 1).mul_(size).sub_(1)
        xyz[axis].sub_(low).mul_(2).div_(high.sub_(low)).sub_(1)
    block = index.to(torch.int32)
    blocks = division[0] * division[1]
    return block.clamp(0, blocks - 1), (block >= 0) & (block < blocks)


def _find_blocks(xyz: Tensor, division: Sequence[int]) -> Tensor:
    """Block [M] int32 of samples in a cut scene: the nearest one of those outside."""
    sizes = torch.tensor([[2 / n] for n in division], dtype=xyz.dtype, device=xyz.device)  # a tensor, so that devices divide alike
    cell = (xyz[:2] + 1).div_(sizes).floor_()
    column, row = (cell[axis].clamp_(0, n - 1).to(torch.int32).clamp_(min=0) for axis, n in enumerate(division))
    return column * division[1] + row


def _in_tile(whole: Neighbours, origin: Tensor, size: int) -> Neighbours:
    """Neighbours on an axis of the whole plane -> in the tile of `size` texels that begins at `origin` [M]; weights stay."""
    low, high = (index.sub(origin).clamp_(0, size - 1) for index in (whole.low, whole.high))
    return whole._replace(low=low, high=high)
