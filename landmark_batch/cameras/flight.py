"""Flight: every camera of a path, checked, at the size it will be rendered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Flight:
    """All frames of a camera file, in the file's order; frame i is index i everywhere.

    c2w: [F, 3, 4] float64, camera to world, OpenGL axes (x right, y up, looks along -z).
    intrinsics: [F, 4] float64, (fl_x, fl_y, cx, cy) in pixels of the rendered size. LandMark: cx = W/2, cy = H/2.
    width, height: pixels of every frame.
    time: [F] float64 seconds from the first frame.
    names: F names (file_path of the camera file, or 'frame_00000').
    fps: frames a second if the camera file says so.
    source: path of the camera file, or 'job file' for inline frames.
    dialect: how the camera file was read, for people ('nerfstudio camera_path.json'); '' for a flight made in memory.
    warnings: what of the camera file is not rendered as it says (lens distortion, a crop box).
    """

    c2w: Float64
    intrinsics: Float64
    width: int
    height: int
    time: Float64
    names: tuple[str, ...]
    fps: float | None
    source: str
    dialect: str = ""
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.c2w.shape[0])
