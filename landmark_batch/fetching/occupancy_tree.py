"""OccupancyTree: where each block's space is occupied, as boxes inside boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landmark_batch.scene.weights import Box, SceneConfig

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

ROUNDING = 3e-6  # of the size of coordinates: some ten times what float32 arithmetic can be off
LEAVES_A_SIDE = ((64, 64), (1024, 32))  # of a block in scenes of up to so many blocks; fewer in larger ones
FEWEST_LEAVES = 16


@dataclass(frozen=True)
class Level:
    """Nodes of one depth. boxes [n, 6] float32 (x0, y0, z0, x1, y1, z1); node i has the children first[i] .. first[i + 1] - 1 of
    the next level; first is empty in the last level, whose nodes are leaves."""

    boxes: Float32
    first: Int32


@dataclass(frozen=True)
class OccupancyTree:
    """levels[0] has one node for each part of a block that is occupied at all; blocks [n] int32 says of which block.

    The boxes of a node's children lie in its own, and every leaf holds occupied space. All trees are equally deep.
    """

    levels: tuple[Level, ...]
    blocks: Int32

    @property
    def nodes(self) -> int:
        """Nodes of all levels."""
        return sum(len(level.boxes) for level in self.levels)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.blocks.nbytes + sum(level.boxes.nbytes + level.first.nbytes for level in self.levels)


def rounding_of(*boxes: Box) -> float:
    """What coordinates in these boxes may be off in float32, scene units."""
    return ROUNDING * max(abs(value) for box in boxes for corner in box for value in corner)


def build_tree(config: SceneConfig, box: Box, division: tuple[int, int], volume: Bools | None, mask_box: Box) -> OccupancyTree:
    """The tree of a scene's blocks.

    box: samples outside are dropped (the scene's own or a crop). division: blocks along x and y; config.layout says how a sample
    finds its block. volume [Z, Y, X]: occupancy over mask_box, None where all is occupied. A sample can only pass where one of
    the eight voxels around it is set: those cells are what the leaves hold, clipped to block and box.
    """
    pad = rounding_of(config.aabb, box, mask_box)
    low, high = np.asarray(box, dtype=np.float64)
    parts: list[tuple[int, list[tuple[Float64, Int64]]]] = []
    grid = None if volume is None else _CellGrid(volume, mask_box, config.aabb, division)
    for block, start, stop in _regions(config, division, pad):
        start, stop = np.maximum(start, low) - pad, np.minimum(stop, high) + pad
        if bool((start > stop).any()):
            continue
        levels = [(np.concatenate([start, stop])[None], np.zeros(1, dtype=np.int64))] if grid is None else grid.levels(start, stop)
        if levels:
            parts.append((block, levels))
    return _join(parts)


def _regions(config: SceneConfig, division: tuple[int, int], pad: float) -> Iterator[tuple[int, Float64, Float64]]:
    """(block, low [3], high [3]) of all space that counts to a block.

    In a multi-block scene a sample exactly on the far y face takes the next column's index, as LandMark computes it.
    """
    columns, rows = division
    low, high = np.asarray(config.aabb, dtype=np.float64)
    x = low[0] + (high[0] - low[0]) * np.arange(columns + 1) / columns
    y = low[1] + (high[1] - low[1]) * np.arange(rows + 1) / rows
    for column in range(columns):
        for row in range(rows):
            yield column * rows + row, np.array([x[column], y[row], low[2]]), np.array([x[column + 1], y[row + 1], high[2]])
        if config.layout == "multi-block" and column + 1 < columns:
            yield (column + 1) * rows, np.array([x[column], high[1] - pad, low[2]]), np.array([x[column + 1], high[1], high[2]])


class _CellGrid:
    """The cells between voxels, pooled to leaves. Cell i of an axis lies between voxels i and i + 1, from -1 to the voxel count less 1."""

    def __init__(self, volume: Bools, mask_box: Box, aabb: Box, division: tuple[int, int]) -> None:
        self._volume = volume
        self._low, self._high = np.asarray(mask_box, dtype=np.float64)
        self._sizes = np.array(volume.shape[::-1])  # x, y, z
        with np.errstate(divide="ignore"):
            self._pitch = (self._high - self._low) / (self._sizes - 1.0)  # inf: one voxel fills its axis
        extent = np.subtract(*np.asarray(aabb, dtype=np.float64)[::-1]) / [*division, 1]
        blocks = division[0] * division[1]
        wanted = next((side for most, side in LEAVES_A_SIDE if blocks <= most), FEWEST_LEAVES)
        cells = float((extent / self._pitch).max())
        self._shift = max(0, int(np.ceil(np.log2(max(cells, 1) / wanted))))  # a leaf has 2^shift cells an axis
        self._depth = max(1, int(np.ceil(np.log2(max(cells, 1) + 3))) + 1 - self._shift)

    def levels(self, start: Float64, stop: Float64) -> list[tuple[Float64, Int64]]:
        """Leaves first: (boxes [n, 6], index of each node's parent in the next entry [n]); nothing where all is empty."""
        finite = np.isfinite(self._pitch)
        pitch = np.where(finite, self._pitch, 1.0)
        first, last = (np.floor((bound - self._low) / pitch).astype(np.int64) for bound in (start, stop))
        first, last = np.where(finite, np.maximum(first, -1), 0), np.where(finite, np.minimum(last, self._sizes - 1), 0)
        if bool((first > last).any()):
            return []
        pooled = _pool(self._cells(first, last), 1 << self._shift)
        z, y, x = np.nonzero(pooled)
        if not len(x):
            return []
        places = np.stack([x, y, z], axis=1)
        places = places[np.argsort(_interleave(places), kind="stable")]
        edge = 1 << self._shift
        low = np.where(finite, self._low + (first + places * edge) * pitch, start)
        high = np.where(finite, self._low + np.minimum(first + (places + 1) * edge, last + 1) * pitch, stop)
        boxes = np.concatenate([np.maximum(low, start), np.minimum(high, stop)], axis=1)
        return list(_merge(boxes, _interleave(places), self._depth))

    def _cells(self, first: Int64, last: Int64) -> Bools:
        """[z, y, x]: which of the cells first .. last (x, y, z) have a set voxel at a corner."""
        most = self._sizes[::-1]
        begin, end = first[::-1], last[::-1] + 2  # voxels begin .. end - 1 are their corners
        inside = tuple(slice(max(b, 0), min(e, n)) for b, e, n in zip(begin, end, most, strict=True))
        border = [(max(-b, 0), max(e - n, 0)) for b, e, n in zip(begin, end, most, strict=True)]
        voxels = np.pad(self._volume[inside], border)
        voxels = voxels[:-1] | voxels[1:]
        voxels = voxels[:, :-1] | voxels[:, 1:]
        return np.asarray(voxels[:, :, :-1] | voxels[:, :, 1:])


def _pool(cells: Bools, edge: int) -> Bools:
    """Any of edge x edge x edge cells, the last ones in part."""
    for axis in range(3):
        cells = np.moveaxis(cells, axis, 0)
        pooled = cells[::edge].copy()
        for offset in range(1, edge):
            slab = cells[offset::edge]
            pooled[: len(slab)] |= slab
        cells = np.moveaxis(pooled, 0, axis)
    return cells


def _interleave(places: Int64) -> Int64:
    """Morton codes [n] of places [n, 3], 21 bits an axis: what shares a parent at any level shares the code's upper bits."""
    code = np.zeros(len(places), dtype=np.int64)
    for axis in range(3):
        value = places[:, axis].copy()
        for shift, bits in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            value = (value | value << shift) & bits
        code |= value << axis
    return code


def _merge(boxes: Float64, codes: Int64, depth: int) -> Iterator[tuple[Float64, Int64]]:
    """From the leaves up to one node."""
    for level in range(depth):
        codes = codes >> 3 if level < depth - 1 else np.zeros_like(codes)
        starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
        yield boxes, np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(codes))))
        boxes = np.concatenate([np.minimum.reduceat(boxes[:, :3], starts), np.maximum.reduceat(boxes[:, 3:], starts)], axis=1)
        codes = codes[starts]
    yield boxes, np.zeros(len(boxes), dtype=np.int64)


def _join(parts: list[tuple[int, list[tuple[Float64, Int64]]]]) -> OccupancyTree:
    """One tree of all parts, roots in levels[0]."""
    if not parts:
        return OccupancyTree((Level(np.zeros((0, 6), np.float32), np.zeros(0, np.int32)),), np.zeros(0, np.int32))
    depth = len(parts[0][1])
    levels = []
    for place in reversed(range(depth)):
        boxes = np.concatenate([part[place][0] for _, part in parts]).astype(np.float32)
        first = np.zeros(0, dtype=np.int32)
        if place:
            counts = [np.bincount(part[place - 1][1], minlength=len(part[place][0])) for _, part in parts]
            first = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
        levels.append(Level(boxes, first))
    return OccupancyTree(tuple(levels), np.array([block for block, _ in parts], dtype=np.int32))
