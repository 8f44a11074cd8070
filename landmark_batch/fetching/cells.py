"""Which blocks each cell of a grid over a frame can touch: one walk through the occupied space for all cells together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .occupancy_tree import ROUNDING, OccupancyTree
from .visibility import STEEPEST, Bools, Float64, FrustumBlocks, _View


def cell_blocks(
    frustum: FrustumBlocks,
    c2w: NDArray[np.floating],
    intrinsics: Sequence[float],
    columns: Sequence[int],
    rows: Sequence[int],
) -> Bools:
    """[rows, columns, blocks] whether a cell's valid samples can touch a block: never short, as `FrustumBlocks.blocks`.

    columns, rows: edges of the cells in pixels, ascending from 0 to the frame's width and height: one more than there are cells.
    """
    pose = np.asarray(c2w, dtype=np.float32)[:3, :4].astype(np.float64)
    lens = np.asarray(intrinsics, dtype=np.float32).astype(np.float64)
    shape = len(rows) - 1, len(columns) - 1
    touched = np.zeros((frustum.division[0] * frustum.division[1], *shape), dtype=np.bool_)
    if np.linalg.cond(pose[:, :3]) > STEEPEST:
        touched[frustum.tree.blocks] = True
        return np.moveaxis(touched, 0, 2)
    inward = np.asarray(np.linalg.inv(pose[:, :3] * [1.0, 1.0, -1.0]), dtype=np.float64)
    center = frustum.settings.pixel_center
    # one plane for each edge, through the last pixel before it: pixels on both sides of an edge lie within it
    x = (np.maximum(np.asarray(columns, dtype=np.float64) - 1.0, 0.0) - lens[2] + center) / lens[0]
    y = -(np.maximum(np.asarray(rows, dtype=np.float64) - 1.0, 0.0) - lens[3] + center) / lens[1]
    planes = np.concatenate([_edges(inward, 0, x, np.sign(lens[0])), _edges(inward, 1, y, -np.sign(lens[1]))])
    pad = frustum._rounding + ROUNDING * float(np.abs(pose[:, 3]).max())
    for view in frustum._views(pose, lens, columns[-1], rows[-1], pad):
        _descend(frustum.tree, view, planes if view.forward @ inward[2] > 0 else -planes, len(columns), pose[:, 3], pad, touched)
    return np.moveaxis(touched, 0, 2)


def _edges(inward: Float64, axis: int, bounds: Float64, sign: float) -> Float64:
    """Normals [E, 3] of what lies beyond each edge, in the direction in which pixels are counted."""
    return np.asarray(sign * (inward[axis] - bounds[:, None] * inward[2]))


def _descend(tree: OccupancyTree, view: _View, planes: Float64, across: int, origin: Float64, pad: float, touched: Bools) -> None:
    """Mark in touched [blocks, rows, columns] what has a leaf that may meet view and cell. across: how many of `planes` are columns' edges.

    A node that lies in one cell alone and in the view settles that cell; others are looked into until every cell they meet is settled.
    """
    reach = np.abs(planes).T
    slack = pad * reach.sum(0)
    forward, tilt = view.forward, np.abs(view.forward)
    room = pad * float(tilt.sum())
    far = room + abs(view.end) * 1e-6 if np.isfinite(view.end) else 0.0
    start = float(view.offsets[4])
    nodes, blocks = np.arange(len(tree.blocks)), tree.blocks
    for depth, level in enumerate(tree.levels):
        boxes = level.boxes[nodes].astype(np.float64)
        half = (boxes[:, 3:] - boxes[:, :3]) * 0.5
        middle = boxes[:, :3] + half - origin
        depths, spread = middle @ forward, half @ tilt
        met = (depths - start + spread >= -room) & ((depths - spread <= view.end + far) | (boxes[:, 2] <= view.above + pad))
        met &= boxes[:, 2] <= view.below + pad
        nodes, blocks, boxes, half, middle = nodes[met], blocks[met], boxes[met], half[met], middle[met]
        distance, radius = middle @ planes.T, half @ reach
        beyond, before = distance + radius >= -slack, distance - radius <= slack  # a part of the box is
        wide = beyond[:, : across - 1] & before[:, 1:across]
        high = beyond[:, across:-1] & before[:, across + 1 :]
        cells = high[:, :, None] & wide[:, None, :]
        cells &= ~touched[blocks]
        if depth < len(tree.levels) - 1:
            contained = (depths[met] - start >= spread[met]) & ((depths[met] + spread[met] <= view.end) | (boxes[:, 5] < view.above))
            contained &= boxes[:, 5] <= view.below
            contained &= (wide.sum(1) == 1) & (high.sum(1) == 1)
            contained &= (distance[:, [0, across]] >= radius[:, [0, across]]).all(1)
            contained &= (distance[:, [across - 1, -1]] <= -radius[:, [across - 1, -1]]).all(1)
            settled = np.flatnonzero(contained)
        else:
            settled = np.arange(len(nodes))
        node, row, column = np.nonzero(cells[settled])
        touched[blocks[settled[node]], row, column] = True
        if depth == len(tree.levels) - 1:
            return
        open_ = (cells & ~touched[blocks]).any((1, 2))
        nodes, blocks = nodes[open_], blocks[open_]
        counts = level.first[nodes + 1] - level.first[nodes]
        ends = np.cumsum(counts)
        children = np.arange(ends[-1] if len(ends) else 0) + np.repeat(level.first[nodes] - (ends - counts), counts)
        nodes, blocks = children, np.repeat(blocks, counts)
