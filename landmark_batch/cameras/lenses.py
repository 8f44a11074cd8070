"""Lenses: focal lengths and principal points of every frame, brought to one image size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Flight, Float64
from landmark_batch.errors import CameraError, ConfigError

DEFAULT_FOV = 65.0  # degrees across the image: LandMark's focal of 1483.6378 at 1920 pixels is 65.8


@dataclass(frozen=True)
class CameraTable:
    """Cameras as a file states them, each at its own size. Arrays have one row a frame.

    c2w: [F, 3, 4]. intrinsics: [F, 4] (fl_x, fl_y, cx, cy) in pixels of `size`; focal NaN where the file names none.
    size: [F, 2] int64 (width, height). time: seconds a frame, None where the file is silent.
    """

    c2w: Float64
    intrinsics: Float64
    size: NDArray[np.int64]
    time: Sequence[float | None]
    names: tuple[str, ...]
    fps: float | None
    source: str
    dialect: str
    warnings: tuple[str, ...] = field(default=())

    def place(self, frame: int) -> str:
        return f"{self.source}: frame {frame} ({self.names[frame]})"


def focal_of_fov(fov: float, extent: float) -> float:
    """Focal length in pixels of a field of view (radians) over `extent` pixels."""
    return 0.5 * extent / math.tan(0.5 * fov)


def make_lens(width: int, height: int, focal: float | None = None, fov: float | None = None) -> Float64:
    """[4] intrinsics of a centred pinhole with square pixels. focal: pixels. fov: degrees across the width; default 65.

    Raises ConfigError for a size below 1 pixel, focal ≤ 0, fov outside 0..180, or both focal and fov.
    """
    if width < 1 or height < 1:
        raise ConfigError(f"image size {width}x{height}: at least 1x1 pixels")
    if focal is not None and fov is not None:
        raise ConfigError(f"focal = {focal:g} and fov = {fov:g}: one lens has one of them", remedy="leave one out")
    if fov is not None and not 0 < fov < 180:
        raise ConfigError(f"fov = {fov:g}: degrees between 0 and 180")
    if focal is None:
        focal = focal_of_fov(math.radians(fov if fov is not None else DEFAULT_FOV), width)
    if not (math.isfinite(focal) and focal > 0):
        raise ConfigError(f"focal = {focal:g}: pixels, above 0")
    return np.array([focal, focal, width / 2, height / 2], dtype=np.float64)


def fit_lenses(table: CameraTable, width: int | None, height: int | None, focal: float | None) -> tuple[Float64, int, int]:
    """Intrinsics of every frame at one size: ([F, 4], width, height).

    Neither width nor height: the file's size, which must be one. One of them: the other keeps the aspect (rounded). Both: as given.
    Focal lengths scale by the given width over the file's (by heights where only height is given), on both axes, so pixels stay
    square; with another aspect the picture is cropped or widened above and below, never stretched. The principal point keeps its
    offset from the centre, scaled. `focal` (pixels of the final size) replaces fl_x and fl_y. A frame that has the final size already
    keeps its bits.
    Raises CameraError naming the frame: sizes that differ, no focal.
    """
    sizes = table.size
    given_focal = focal is not None
    if focal is not None and not (math.isfinite(focal) and focal > 0):
        raise CameraError(f"focal = {focal:g}: pixels, above 0", remedy="set cameras.focal to a positive number or leave it out")
    for key, value in (("width", width), ("height", height)):
        if value is not None and value < 1:
            raise CameraError(f"{key} = {value}: at least 1 pixel", remedy=f"set cameras.{key} to 1 or more or leave it out")
    new, old = sizes[:, 0], sizes[:, 0]
    if width is not None:
        new, old = np.full(len(sizes), width, dtype=np.int64), sizes[:, 0]
    elif height is not None:
        new, old = np.full(len(sizes), height, dtype=np.int64), sizes[:, 1]
    final = np.stack(
        [
            new if width is not None else _rescaled(sizes[:, 0], new, old),
            np.full(len(sizes), height, dtype=np.int64) if height is not None else _rescaled(sizes[:, 1], new, old),
        ],
        axis=1,
    )
    other = np.flatnonzero((final != final[0]).any(axis=1))
    if len(other):
        i = int(other[0])
        raise CameraError(
            f"{table.source}: frames of different sizes: frame 0 ({table.names[0]}) is {sizes[0, 0]}x{sizes[0, 1]}, "
            f"frame {i} ({table.names[i]}) is {sizes[i, 0]}x{sizes[i, 1]}",
            remedy="set cameras.width and cameras.height (--width, --height): every focal is scaled to it",
        )
    lens = table.intrinsics.copy()
    out_width, out_height = int(final[0, 0]), int(final[0, 1])
    unscaled, unchanged = (new == old)[:, None], (sizes == final).all(axis=1)[:, None]
    ratio = (new[:, None].astype(np.float64), old[:, None].astype(np.float64))
    lens[:, :2] = np.where(unscaled, lens[:, :2], lens[:, :2] * ratio[0] / ratio[1])
    lens[:, 2:] = np.where(unchanged, lens[:, 2:], final / 2 + (lens[:, 2:] - sizes / 2) * ratio[0] / ratio[1])
    if given_focal:
        lens[:, :2] = focal
    missing = np.flatnonzero(np.isnan(table.intrinsics[:, 0]))
    if len(missing) and not given_focal:
        raise CameraError(
            f"{table.place(int(missing[0]))}: no focal length (read as {table.dialect})",
            remedy="add fl_x (pixels) or camera_angle_x (radians) to the file, or set cameras.focal; "
            "LandMark's path files leave it to render_fov: focal = 0.5 * height / tan(render_fov / 2)",
        )
    return lens, out_width, out_height


def build_flight(table: CameraTable, width: int | None, height: int | None, focal: float | None, default_fps: float) -> Flight:
    """The table at one size, its times counted from the first frame. Raises CameraError as `fit_lenses`."""
    lens, out_width, out_height = fit_lenses(table, width, height, focal)
    time, notes = _times(table, default_fps)
    return Flight(
        c2w=table.c2w,
        intrinsics=lens,
        width=out_width,
        height=out_height,
        time=time,
        names=table.names,
        fps=table.fps,
        source=table.source,
        dialect=table.dialect,
        warnings=tuple(dict.fromkeys((*table.warnings, *notes))),
    )


def frame_times(count: int, fps: float) -> Float64:
    """[count] seconds of frames at a steady rate: index / fps."""
    return np.arange(count, dtype=np.float64) / fps


def _times(table: CameraTable, default_fps: float) -> tuple[Float64, list[str]]:
    steady = frame_times(len(table.names), table.fps if table.fps is not None else default_fps)
    silent = [i for i, value in enumerate(table.time) if value is None]
    if len(silent) == len(table.names):
        return steady, []
    if silent:
        return steady, [f"{table.place(silent[0])} has no time though others have: times are taken as index / fps"]
    time = np.array(table.time, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(time))
    if len(bad):
        raise CameraError(f"{table.place(int(bad[0]))}: time = {time[bad[0]]} is not finite", remedy="time is in seconds")
    back = np.flatnonzero(np.diff(time) < 0)
    notes = [f"{table.place(int(back[0]) + 1)}: time runs backwards ({time[back[0] + 1]:g} s)"] if len(back) else []
    return time - time[0], notes


def _rescaled(side: NDArray[np.int64], new: NDArray[np.int64], old: NDArray[np.int64]) -> NDArray[np.int64]:
    rounded: NDArray[np.int64] = np.maximum(1, (2 * side * new + old) // (2 * old))  # half up, in integers
    return rounded
