"""Poses from positions and directions: camera to world, OpenGL axes, z up in the world. And the length of a film."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from landmark_batch.cameras.flight import Flight, Float64
from landmark_batch.cameras.lenses import frame_times
from landmark_batch.errors import ConfigError

MAX_FRAMES = 1_000_000


def look_at(position: ArrayLike, target: ArrayLike) -> Float64:
    """[N, 3, 4] poses at `position` [N, 3] whose view axis goes through `target` [N, 3] or [3]; image up is world z.

    A camera that looks straight up or down has world y as its image's up. Raises ConfigError where target and position are one point.
    """
    origin = np.atleast_2d(np.asarray(position, dtype=np.float64))
    view = np.asarray(target, dtype=np.float64) - origin
    length = np.linalg.norm(view, axis=1, keepdims=True)
    if (length == 0).any():
        raise ConfigError("a camera stands on the point it looks at", remedy="move the target, or choose another radius or altitude")
    back = -view / length
    up = np.where(np.abs(back[:, 2:]) > 1 - 1e-12, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    right = np.cross(up, back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(back, right), back, origin], axis=2)


def heading_poses(position: ArrayLike, heading: ArrayLike, pitch: float) -> Float64:
    """[N, 3, 4] poses at `position` [N, 3], turned to `heading` [N] (radians, 0 = +x, towards +y) and pitched (radians, −π/2 = down).

    The image's up points along the heading when the camera looks straight down.
    """
    origin = np.atleast_2d(np.asarray(position, dtype=np.float64))
    yaw = np.broadcast_to(np.asarray(heading, dtype=np.float64), len(origin))
    ahead = np.stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)], axis=1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], axis=1)
    z = np.array([0.0, 0.0, 1.0])
    cosine, sine = math.cos(pitch), math.sin(pitch)
    up = -sine * ahead + cosine * z
    back = -(cosine * ahead + sine * z)
    return np.stack([right, up, back, origin], axis=2)


def made_flight(c2w: Float64, intrinsics: Float64, width: int, height: int, fps: float, source: str) -> Flight:
    """A flight of poses [F, 3, 4] at a steady rate, its frames named by their numbers."""
    names = tuple(f"frame_{i:05d}" for i in range(len(c2w)))
    return Flight(c2w, intrinsics, width, height, frame_times(len(c2w), fps), names, fps, source)


def film_length(seconds: float | None, frames: int | None, fps: float | None, default_seconds: float) -> tuple[int, float]:
    """(frames, frames a second) of a film: two of seconds, frames and fps settle it. fps is 24, the length `default_seconds` unless given.

    Raises ConfigError: a value not above 0, all three given, more than a million frames.
    """
    if seconds is not None and frames is not None and fps is not None:
        raise ConfigError(
            f"seconds = {seconds:g}, frames = {frames} and fps = {fps:g}: two of them settle the third", remedy="leave one out"
        )
    for key, value in (("seconds", seconds), ("frames", frames), ("fps", fps)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{key} = {value:g} must be above 0", remedy=f"set {key} to a positive number or leave it out")
    if fps is None:
        fps = frames / seconds if frames is not None and seconds is not None else 24.0
    length = frames if frames is not None else (seconds if seconds is not None else default_seconds) * fps
    return check_count(length), fps


def check_count(frames: float) -> int:
    """A number of frames, rounded, at least 1. Raises ConfigError above a million (or where it is not finite)."""
    if not frames <= MAX_FRAMES:
        raise ConfigError(
            f"{frames:.6g} frames are more than {MAX_FRAMES}", remedy="fly faster, higher, shorter or at fewer frames a second"
        )
    return max(1, round(frames))


def finite(**values: float | None) -> None:
    """Raises ConfigError naming the first value that is not finite."""
    for key, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{key} = {value} is not finite", remedy=f"set {key} to a number or leave it out")


def positive(**values: float | None) -> None:
    """Raises ConfigError naming the first value that is not finite and above 0."""
    for key, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{key} = {value:g} must be above 0", remedy=f"set {key} to a positive number or leave it out")
