"""The city's alpha mask: a shell a few metres thick under every roof, street and facade; empty air and the insides are skipped."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from landmark_batch.scene.city_field import CEILING, FLOOR
from landmark_batch.scene.city_noise import Array

LARGEST = 160_000_000  # voxels


class ShellMask:
    """Collects the height field block by block, in two [Y, X] maps, and makes the packed volume from them.

    half_x, half_y: metres from the middle to the edges. pitch: metres a voxel; more where the volume would pass LARGEST.
    shell: its thickness in metres.
    """

    def __init__(self, half_x: float, half_y: float, pitch: float, shell: float) -> None:
        self._shell = shell
        volume = 4 * half_x * half_y * (CEILING - FLOOR)
        pitch = max(pitch, (volume / LARGEST) ** (1 / 3))
        nx, ny = (8 * max(1, round(2 * half / pitch / 8)) for half in (half_x, half_y))
        self.shape = (max(8, round((CEILING - FLOOR) / pitch)), ny, nx)
        self.x = np.linspace(-half_x, half_x, nx)
        self.y = np.linspace(-half_y, half_y, ny)
        self._high = np.full((ny, nx), FLOOR, np.float32)
        self._low = np.full((ny, nx), CEILING, np.float32)

    def add(self, x: Array, y: Array, height: Array) -> None:
        """One block: height [h, w] at nodes x [w], y [h] metres. Each voxel column takes what lies within one voxel of it."""
        voxel_x, voxel_y = self.x[1] - self.x[0], self.y[1] - self.y[0]
        step = float(x[1] - x[0])
        size = (2 * int(np.ceil(voxel_y / step)) + 1, 2 * int(np.ceil(voxel_x / step)) + 1)
        # a column of the neighbouring block sees this block's edge too
        columns = np.flatnonzero((self.x >= x[0] - 1.5 * voxel_x) & (self.x <= x[-1] + 1.5 * voxel_x))
        rows = np.flatnonzero((self.y >= y[0] - 1.5 * voxel_y) & (self.y <= y[-1] + 1.5 * voxel_y))
        at_x = np.clip(np.rint((self.x[columns] - x[0]) / step).astype(int), 0, len(x) - 1)
        at_y = np.clip(np.rint((self.y[rows] - y[0]) / step).astype(int), 0, len(y) - 1)
        area, pick = np.ix_(rows, columns), np.ix_(at_y, at_x)
        self._high[area] = np.maximum(self._high[area], maximum_filter(height, size)[pick])
        self._low[area] = np.minimum(self._low[area], minimum_filter(height, size)[pick])

    def pack(self) -> tuple[NDArray[np.uint8], float]:
        """(packed bits of the [Z, Y, X] volume, share of voxels occupied)."""
        nz, ny, nx = self.shape
        z = np.linspace(FLOOR, CEILING, nz)
        voxel_z, voxel_x = z[1] - z[0], self.x[1] - self.x[0]
        deep = minimum_filter(self._low, 2 * max(1, round(self._shell / voxel_x)) + 1) - self._shell
        packed = np.empty(nz * ny * nx // 8, np.uint8)
        slab, occupied = ny * nx // 8, 0
        for k in range(nz):
            solid = (z[k] <= self._high + 0.55 * voxel_z) & (z[k] >= deep)
            packed[k * slab : (k + 1) * slab] = np.packbits(solid.reshape(-1))
            occupied += int(solid.sum())
        return packed, occupied / (nz * ny * nx)
