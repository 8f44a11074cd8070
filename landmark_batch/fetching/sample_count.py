"""About how many samples of a frame survive: a frame's cost, known before it is rendered, by a process that may have no torch loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from landmark_batch.model.settings import RenderSettings, dense_step
from landmark_batch.scene.mask import StoredMask, occupancy
from landmark_batch.scene.weights import AlphaMask, SceneConfig

RAYS = 256  # of a frame: their samples take a few milliseconds
TESTED = 40_000  # samples of them in all, where rays have many
FULL_BELOW = 0.999  # a voxel's value among occupied ones is 1 up to rounding: certainly above such a threshold

Float32: TypeAlias = NDArray[np.float32]


class SampleCounter:
    """Counts the samples of a few rays that lie in the box and in occupied space, placed as `model.sampling.Sampler` places them: in
    float32, step by step, so that those in a face of the box fall on the same side.
    """

    def __init__(self, config: SceneConfig, settings: RenderSettings, mask: AlphaMask | StoredMask | None) -> None:
        self._config, self._settings = config, settings
        if settings.mode == "hull":
            self._slope = _unit_steps(settings.samples)
            self._base = np.float32(settings.near) * (np.float32(1.0) - self._slope)
        else:
            self._base = np.arange(settings.samples, dtype=np.float32) * np.float32(dense_step(config))
            self._slope = np.ones_like(self._base)
        self._voxels: NDArray[np.uint8] | None = None
        if mask is not None:
            self._voxels = np.pad(occupancy(mask).view(np.uint8), 1)
            self._low = np.asarray(mask.aabb[0], dtype=np.float32)
            self._scale = 1 / (np.asarray(mask.aabb[1], dtype=np.float32) - self._low)

    def estimate(self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> int:
        """Samples of a frame that survive, from those of a regular grid of rays that spans it.

        c2w: [3, 4]. intrinsics: (fl_x, fl_y, cx, cy) in pixels of a frame of width x height.
        """
        rays = max(16, min(RAYS, TESTED // len(self._base)))
        columns = min(width, max(1, round((rays * width / height) ** 0.5)))
        rows = min(height, max(1, round(rays / columns)))
        # the middle of cell a of the grid is pixel (a + 0.5) W / columns - 0.5: the rays of a frame of columns x rows with another lens
        across, down, half = columns / width, rows / height, np.float32(0.5)
        focal_x, focal_y, cx, cy = (float(value) for value in intrinsics)
        centre = 0.5 - self._settings.pixel_center
        x = (np.arange(columns, dtype=np.float32) - np.float32((cx + centre) * across) + half) / np.float32(focal_x * across)
        y = -(np.arange(rows, dtype=np.float32) - np.float32((cy + centre) * down) + half) / np.float32(focal_y * down)
        pose = np.asarray(c2w, dtype=np.float32)[:3, :4]
        right, up, back = pose[:, :3].T
        across_it, down_it = (x[None, :, None] * right).astype(np.float64), y[:, None, None].astype(np.float64) * up
        both = across_it + down_it  # rounded once, as a ray's direction is
        survived = self._count(pose[:, 3], (both.astype(np.float32) - back).reshape(-1, 3))
        return int(survived * width * height / (columns * rows) + 0.5)

    def _count(self, origin: Float32, directions: Float32) -> int:
        """Of rays from one place in directions [R, 3]."""
        with np.errstate(all="ignore"):  # rays that never come down go to infinity, their samples are outside
            t = self._extent(origin, directions)[:, None] * self._slope + self._base
            position = [t * directions[:, axis, None] + origin[axis] for axis in range(3)]
            inside = np.isfinite(t)
            for axis, (low, high) in enumerate(zip(*self._settings.aabb, strict=True)):
                inside &= (position[axis] >= np.float32(low)) & (position[axis] <= np.float32(high))
        if self._voxels is None:
            return int(np.count_nonzero(inside))
        chosen = np.flatnonzero(inside)
        return self._occupied(self._voxels, [values.reshape(-1)[chosen] for values in position])

    def _extent(self, origin: Float32, directions: Float32) -> Float32:
        """t [R] of the scene's floor (hull) or of the entry into its box (dense)."""
        settings, box = self._settings, np.asarray(self._config.aabb, dtype=np.float32)
        if settings.mode == "hull":
            reach = -(origin[2] - box[0, 2]) / directions[:, 2]
            return np.asarray(np.where(directions[:, 2] >= 0, np.float32(settings.far), reach), dtype=np.float32)
        vector = np.where(directions == 0, np.float32(1e-6), directions)
        entry = np.minimum((box[1] - origin) / vector, (box[0] - origin) / vector).max(-1)
        return np.asarray(np.clip(entry, np.float32(settings.near), np.float32(settings.far)), dtype=np.float32)

    def _occupied(self, voxels: NDArray[np.uint8], position: list[Float32]) -> int:
        """Of samples at position [3][M] those where the mask's trilinear value exceeds the threshold."""
        threshold = self._settings.alpha_mask_threshold
        pixels = [(position[axis] - self._low[axis]) * self._scale[axis] * (voxels.shape[2 - axis] - 3) for axis in range(3)]
        floors = [np.floor(pixel) for pixel in pixels]
        near = np.flatnonzero(
            np.logical_and.reduce([(floor >= -1) & (floor <= voxels.shape[2 - axis] - 3) for axis, floor in enumerate(floors)])
        )
        cells = [floor[near].astype(np.int64) + 1 for floor in floors]
        strides = (1, voxels.shape[2], voxels.shape[1] * voxels.shape[2])
        first, flat = sum(cell * stride for cell, stride in zip(cells, strides, strict=True)), voxels.reshape(-1)
        corners = [flat[first + sum(strides[axis] for axis in range(3) if corner >> axis & 1)] for corner in range(8)]
        filled = sum(corners, np.zeros(len(near), dtype=np.uint8))
        mixed = np.flatnonzero((filled > 0) & ((filled < 8) | (threshold >= FULL_BELOW)))
        full = 0 if threshold >= FULL_BELOW else int(np.count_nonzero(filled == 8))
        high = [(pixel[near] - floor[near])[mixed] for pixel, floor in zip(pixels, floors, strict=True)]
        value = np.zeros(len(mixed), dtype=np.float32)
        for corner, bits in enumerate(corners):
            weight = math.prod(part if corner >> axis & 1 else 1 - part for axis, part in enumerate(high))
            value += weight * bits[mixed]
        return full + int(np.count_nonzero(value > np.float32(threshold)))


def _unit_steps(count: int) -> Float32:
    """`count` numbers from 0 to 1 as torch's linspace forms them: from both ends to the middle, each rounded once."""
    place = np.arange(count, dtype=np.float64)
    step = float(np.float32(1.0) / np.float32(max(1, count - 1)))
    steps = np.where(place < max(1, count // 2), step * place, 1.0 - step * (count - 1 - place))
    return steps.astype(np.float32)
