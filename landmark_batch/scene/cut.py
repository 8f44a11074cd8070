"""A scene of whole planes cut into blocks: which texels of each plane the samples of a block read."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from landmark_batch.scene.weights import PLANE_AXES, SceneConfig

FINEST = 512  # texels of a side of a block's finest plane, about, where no division is asked for
_MARGIN = 2e-6  # of an axis: several times what float32 can shift a coordinate, a block's border or a texel


def cut_axis(size: int, count: int) -> tuple[NDArray[np.int32], int]:
    """(first texel of each of `count` equal parts of an axis of `size` texels, texels of a part).

    A coordinate v in [-1, 1] lies in part floor((v + 1) / (2 / count)), clamped, and reads the texels floor(p) and floor(p) + 1 of
    p = (v + 1) / 2 · (size - 1), clamped to the axis: every texel that a part's coordinates read lies in its range, also where float32
    puts a coordinate on the other side of a border. Neighbouring parts overlap. All parts are as long as the longest.
    """
    if size == 1:
        return np.zeros(count, np.int32), 1
    margin = _MARGIN * size
    lows, highs = [], []
    for part in range(count):
        first = math.floor(part / count * (size - 1) - margin)
        last = math.floor((part + 1) / count * (size - 1) + margin)
        lows.append(min(max(first, 0), size - 2))
        highs.append(min(max(last, 0), size - 2) + 2)
    length = max(high - low for low, high in zip(lows, highs, strict=True))
    return np.minimum(np.asarray(lows, np.int32), np.int32(size - length)), length


def cut_planes(config: SceneConfig, division: tuple[int, int]) -> tuple[NDArray[np.int32], tuple[tuple[int, int], ...]]:
    """(origins [blocks, levels, 2] int32 = first column and row of each block's part, (h, w) of a part by level).

    Block b = column · division[1] + row. Planes of dims 1 and 2 (x, z and y, z) are cut along x or y alone.
    """
    sizes = config.level_sizes()
    count = len(config.resolutions)
    origins = np.zeros((division[0], division[1], len(sizes), 2), np.int32)
    parts: list[tuple[int, int]] = []
    for level, (h, w, _) in enumerate(sizes):
        across, down = PLANE_AXES[level // count]
        columns, width = cut_axis(w, division[across]) if across < 2 else (np.zeros(1, np.int32), w)
        rows, height = cut_axis(h, division[down]) if down < 2 else (np.zeros(1, np.int32), h)
        origins[:, :, level, 0] = columns[:, None] if across == 0 else columns[None, :]
        if down == 1:
            origins[:, :, level, 1] = rows[None, :]
        parts.append((height, width))
    return origins.reshape(-1, len(sizes), 2), tuple(parts)


def default_division(config: SceneConfig) -> tuple[int, int]:
    """Blocks along x and y such that a block's finest plane has about FINEST texels a side, or fewer."""
    h, w, _ = max(config.level_sizes()[: len(config.resolutions)])
    return -(-w // FINEST), -(-h // FINEST)
