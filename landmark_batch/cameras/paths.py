"""Flights made here: a spline through given poses, an orbit around the scene, a survey over it (`survey`)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from landmark_batch.cameras.check import check_flight
from landmark_batch.cameras.flight import Flight, Float64
from landmark_batch.cameras.lenses import make_lens
from landmark_batch.cameras.poses import film_length, finite, heading_poses, look_at, made_flight, positive
from landmark_batch.cameras.splines import PoseSpline
from landmark_batch.cameras.survey import survey_flight
from landmark_batch.cameras.view import Corners
from landmark_batch.errors import CameraError, ConfigError

__all__ = ["Timing", "interpolate_flight", "orbit_flight", "order_by_proximity", "survey_flight"]

SECONDS_A_LEG = 2.0
SECONDS_A_TURN = 20.0
_SWEEPS = 20  # of 2-opt
ORBIT_PITCH = 35.0  # degrees down, of an orbit that is told nothing

Timing = Literal["distance", "even", "times"]


def interpolate_flight(
    keys: Flight,
    *,
    seconds: float | None = None,
    frames: int | None = None,
    fps: float | None = None,
    order: Literal["file", "proximity"] = "file",
    loop: bool = False,
    timing: Timing = "distance",
    constant_speed: bool = False,
) -> Flight:
    """A smooth flight through the poses of `keys` (photographs, keyframes), at their size; lenses are interpolated.

    seconds, frames, fps: two of them settle the third; default 2 seconds a leg (or the keys' own duration), 24 fps. A path starts on
    its first and ends on its last key; a loop ends one frame before its first key comes again.
    order: the file's, or 'proximity': the next nearest one from the first, then shortened by 2-opt.
    timing of the keys: 'distance' (time grows with the way between them; a quarter turn takes at least an average leg), 'even' (each leg
    alike), 'times' (the keys' own).
    constant_speed: the same way from frame to frame, whatever the timing.
    Raises CameraError (too few keys, times that do not ascend), ConfigError (lengths).
    """
    check_flight(keys, None)
    picked = np.arange(len(keys)) if order == "file" else order_by_proximity(keys.c2w[:, :, 3])
    c2w, lens = keys.c2w[picked], keys.intrinsics[picked]
    if len(keys) < 2:
        raise CameraError(f"{keys.source}: {len(keys)} pose: a path goes through at least 2", remedy="name a camera file with more poses")
    knots = _knots(c2w, keys.time[picked], timing, loop, keys.source)
    default = float(keys.time.max() - keys.time.min()) if timing == "times" and not loop else SECONDS_A_LEG * (len(knots) - 1)
    count, rate = film_length(seconds, frames, fps, default)
    spline = PoseSpline(c2w, lens, knots, loop=loop)
    share = np.arange(count) / count if loop else np.linspace(0.0, 1.0, count)
    t = spline.constant_speed(share) if constant_speed else knots[0] + share * (knots[-1] - knots[0])
    poses, lenses = spline(t)
    return made_flight(poses, lenses, keys.width, keys.height, rate, f"interpolated from {keys.source}")


def order_by_proximity(position: Float64) -> NDArray[np.int64]:
    """[K] indices of `position` [K, 3] along a short open way that starts at the first: nearest neighbour, then 2-opt. Deterministic."""
    count = len(position)
    left = np.ones(count, dtype=bool)
    way = [0]
    left[0] = False
    while left.any():
        there = np.linalg.norm(position - position[way[-1]], axis=1)
        way.append(int(np.argmin(np.where(left, there, np.inf))))
        left[way[-1]] = False
    tour = np.array(way, dtype=np.int64)
    for _ in range(_SWEEPS):
        better = False
        for i in range(1, count - 1):  # reversing tour[i..j] changes the ways into i and out of j; the last one has no way out
            here = position[tour]
            out = np.linalg.norm(np.diff(here[i:], axis=0), axis=1)[1:]  # j to j + 1
            into = np.linalg.norm(here[i + 1 :] - here[i - 1], axis=1)  # i - 1 to j
            across = np.linalg.norm(here[i + 2 :] - here[i], axis=1)  # i to j + 1
            gain = np.linalg.norm(here[i] - here[i - 1]) - into
            gain[:-1] += out - across
            best = int(np.argmax(gain))
            if gain[best] > 1e-9 * np.abs(here).max():
                j = i + 1 + best
                tour[i : j + 1] = tour[i : j + 1][::-1]
                better = True
        if not better:
            break
    return tour


def orbit_flight(
    aabb: Corners,
    *,
    width: int = 1920,
    height: int = 1080,
    focal: float | None = None,
    fov: float | None = None,
    centre: tuple[float, float] | None = None,
    radius: float | None = None,
    altitude: float | None = None,
    look_at_height: float | None = None,
    pitch: float | None = None,
    turns: float = 1.0,
    start: float = 0.0,
    clockwise: bool = False,
    seconds: float | None = None,
    frames: int | None = None,
    fps: float | None = None,
) -> Flight:
    """Circles around the middle of the scene's box, looking inwards. Scene units, degrees; heights above the box's floor.

    centre: x, y; default the box's middle. radius: default 0.4 of the box's shorter side. altitude: of the camera; default so that
    the view goes down by 35 degrees, clear of the box's top. look_at_height: the point on the axis that stays in the middle of the
    picture; default a quarter of the box. pitch (−90 = down) holds the camera's tilt instead. start: direction of the first frame
    seen from the centre, 0 = +x. One turn of 20 seconds at 24 fps unless told otherwise; a whole number of turns loops without a jump.
    width, height, focal, fov: the lens, see `make_lens`.
    Raises ConfigError for values out of range, CameraError for a frame that sees nothing of the box.
    """
    low, high = np.asarray(aabb[0], dtype=np.float64), np.asarray(aabb[1], dtype=np.float64)
    finite(start=start, turns=turns, altitude=altitude, look_at_height=look_at_height)
    positive(turns=abs(turns), radius=radius)
    if pitch is not None and look_at_height is not None:
        raise ConfigError(
            f"pitch = {pitch:g} and look_at_height = {look_at_height:g}: one of them tilts the camera", remedy="leave one out"
        )
    if pitch is not None and not -90 <= pitch <= 90:
        raise ConfigError(f"pitch = {pitch:g}: degrees from -90 (down) to 90 (up)")
    lens = make_lens(width, height, focal, fov)
    sides = high - low
    middle = np.array(centre, dtype=np.float64) if centre is not None else (low + high)[:2] / 2
    finite(centre=float(middle.sum()))
    radius = radius if radius is not None else 0.4 * float(sides[:2].min())
    target = low[2] + (look_at_height if look_at_height is not None else 0.25 * sides[2])
    tilt = -pitch if pitch is not None and 0 > pitch > -80 else ORBIT_PITCH
    z = low[2] + altitude if altitude is not None else max(target + radius * math.tan(math.radians(tilt)), high[2] + 0.1 * sides[2])
    count, rate = film_length(seconds, frames, fps, SECONDS_A_TURN * abs(turns))
    angle = math.radians(start) + 2 * math.pi * turns * (-1 if clockwise else 1) * np.arange(count) / count
    position = np.stack([middle[0] + radius * np.cos(angle), middle[1] + radius * np.sin(angle), np.full(count, z)], axis=1)
    if pitch is not None:
        c2w = heading_poses(position, angle + math.pi, math.radians(pitch))
    else:
        c2w = look_at(position, np.array([middle[0], middle[1], target]))
    flight = made_flight(c2w, np.tile(lens, (count, 1)), width, height, rate, "orbit")
    check_flight(flight, aabb)
    return flight


def _knots(c2w: Float64, time: Float64, timing: Timing, loop: bool, source: str) -> Float64:
    """Times of the keys, [K] or, of a loop, [K + 1]."""
    count = len(c2w) + loop
    if timing == "even":
        return np.arange(count, dtype=np.float64)
    if timing == "times":
        if loop:
            raise ConfigError(
                "timing = times: a loop's way back to its first pose has no time", remedy="use timing distance or even for a loop"
            )
        back = np.flatnonzero(np.diff(time) <= 0)
        if len(back):
            i = int(back[0]) + 1
            raise CameraError(
                f"{source}: pose {i}: time {time[i]:g} s is not after {time[i - 1]:g} s", remedy="use timing distance or even"
            )
        return time
    index = np.arange(count) % len(c2w)
    step = np.linalg.norm(np.diff(c2w[index, :, 3], axis=0), axis=1)
    turned = np.einsum("kij,kij->k", c2w[index[1:], :, :3], c2w[index[:-1], :, :3])  # trace of the rotation between two keys
    angle = np.arccos(np.clip((turned - 1) / 2, -1, 1))
    mean = step.mean() if step.any() else 1.0
    return np.concatenate([[0.0], np.cumsum(np.maximum(step, mean * np.maximum(angle / (math.pi / 2), 0.05)))])
