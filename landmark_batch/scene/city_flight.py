"""The demo's flight: a closed, sweeping aerial path over the whole city, from the horizon to nearly straight down."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import uniform_filter1d

from landmark_batch.cameras.flight import Flight, Float64
from landmark_batch.cameras.lenses import make_lens
from landmark_batch.cameras.poses import look_at, made_flight
from landmark_batch.scene.city_field import METRES

FPS = 24.0
FOV = 62.0
ONE_LOOP = 300.0  # metres: a city of no larger half side is flown around once
AIM_SMOOTHED = 360.0  # metres of the way that the camera's aim is averaged over, to turn calmly

# keys of the loop: place and aim in half sides of the city, heights in metres
_LOOP = (
    (-0.95, -0.80, 150.0, 0.10, -0.05),
    (-0.30, -0.98, 120.0, 0.25, 0.10),
    (0.45, -0.72, 135.0, 0.15, 0.15),
    (0.72, -0.10, 165.0, 0.10, 0.10),
    (0.55, 0.42, 190.0, 0.30, 0.25),
    (0.10, 0.62, 150.0, -0.20, 0.05),
    (-0.45, 0.72, 120.0, -0.30, -0.10),
    (-0.92, 0.25, 135.0, -0.10, 0.00),
)


def city_flight(half_x: float, half_y: float, frames: int, width: int, height: int) -> Flight:
    """A Flight over a city of half_x x half_y metres: one loop around a small one, a weave over all blocks of a large one."""
    around = max(half_x, half_y) <= ONE_LOOP
    place, aim = _around(half_x, half_y, frames) if around else _weave(half_x, half_y, frames)
    lens = make_lens(width, height, fov=FOV)
    return made_flight(look_at(place / METRES, aim / METRES), np.tile(lens, (frames, 1)), width, height, FPS, "demo")


def _around(half_x: float, half_y: float, frames: int) -> tuple[Float64, Float64]:
    keys = np.asarray([*_LOOP, _LOOP[0]]) * [half_x, half_y, 1.0, half_x, half_y]
    curve = CubicSpline(np.arange(len(keys)), keys, bc_type="periodic")
    at = curve(np.arange(frames) * (len(keys) - 1) / frames)
    return at[:, :3], np.column_stack([at[:, 3:], np.full(frames, 10.0)])


def _weave(half_x: float, half_y: float, frames: int) -> tuple[Float64, Float64]:
    """A Lissajous curve whose lanes lie about 400 m apart, at even speed; the camera looks ahead along it, a little inwards."""
    lanes = max(2, round(min(half_x, half_y) / 200))
    turns = (1, lanes) if half_x < half_y else (lanes, 1)
    s = np.linspace(0, 2 * np.pi, 4096 * lanes + 1)
    curve = np.column_stack([0.7 * half_x * np.sin(turns[0] * s + 0.4), 0.7 * half_y * np.sin(turns[1] * s)])
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    even = np.arange(0.0, way[-1], 2.0)  # the curve every 2 metres
    path = np.column_stack([np.interp(even, way, curve[:, k]) for k in range(2)])
    calm = uniform_filter1d(path, round(AIM_SMOOTHED / 2), axis=0, mode="wrap")
    phase = 2 * np.pi * np.arange(frames) / frames
    at = np.arange(frames) / frames * len(path)
    ahead = at + (200 + 110 * np.sin(7 * phase)) / 2
    place = np.column_stack([_along(path, at), 155 + 35 * np.sin(5 * phase)])
    return place, np.column_stack([0.85 * _along(calm, ahead), np.full(frames, 8.0)])


def _along(points: Float64, index: Float64) -> Float64:
    """[F, 2]: points of a closed curve at fractional indices."""
    low = np.floor(index).astype(np.int64)
    share = (index - low)[:, None]
    return np.asarray(points[low % len(points)] * (1 - share) + points[(low + 1) % len(points)] * share, dtype=np.float64)
