"""Flights through given poses and around the box."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.cameras.check import check_flight
from landmark_batch.cameras.formats import load_flight
from landmark_batch.cameras.paths import interpolate_flight, orbit_flight, order_by_proximity
from landmark_batch.cameras.poses import film_length, heading_poses, look_at
from landmark_batch.cameras.splines import PoseSpline
from landmark_batch.errors import CameraError, ConfigError
from tests.cameras.conftest import BOX, Pose, make_flight, nadir, poses, rotations, transforms

Save = Callable[..., Path]


def steps(c2w: Pose) -> Pose:
    return np.asarray(np.linalg.norm(np.diff(c2w[:, :, 3], axis=0), axis=1))


def arc(count: int, turn: float = 1.5) -> Pose:
    """Cameras on a quarter circle, looking at its middle."""
    angle = np.linspace(0, turn, count)
    return look_at(np.column_stack([2 * np.cos(angle), 2 * np.sin(angle), np.full(count, 1.5)]), [0.0, 0.0, 0.0])


@settings(max_examples=40, deadline=None)
@given(poses(least=3, most=8), st.booleans(), st.integers(1, 5))
def test_interpolation_passes_through_its_keys(keys: Pose, loop: bool, between: int) -> None:
    legs = len(keys) if loop else len(keys) - 1
    count = legs * between + (0 if loop else 1)
    flight = interpolate_flight(make_flight(keys), frames=count, timing="even", loop=loop)
    assert len(flight) == count
    assert np.allclose(flight.c2w[::between], keys, rtol=0, atol=1e-9 * (1 + np.abs(keys).max()))
    assert np.array_equal(flight.intrinsics, np.tile([50.0, 50.0, 48.0, 27.0], (count, 1)))
    assert check_flight(flight, None) == []


@settings(max_examples=25, deadline=None)
@given(poses(least=2, most=6), st.integers(2, 60), st.sampled_from(["distance", "even", "times"]), st.booleans())
def test_a_path_starts_and_ends_on_its_keys(keys: Pose, count: int, timing: Any, constant: bool) -> None:
    flight = interpolate_flight(make_flight(keys), frames=count, timing=timing, constant_speed=constant)
    assert np.allclose(flight.c2w[[0, -1]], keys[[0, -1]], rtol=0, atol=1e-6 * (1 + np.abs(keys).max()))


def test_the_spline_is_twice_differentiable_also_where_a_loop_closes() -> None:
    keys = arc(6, 5.2)
    times = np.array([0.0, 1.0, 1.7, 3.0, 4.0, 5.5, 6.0])
    spline = PoseSpline(keys, np.tile([50.0, 50.0, 48.0, 27.0], (6, 1)), times, loop=True)
    h = 1e-3
    for knot in times[1:-1]:
        before, after = (spline(knot + side * h * np.array([0, 1, 2]))[0] for side in (-1, 1))
        assert np.allclose((after[1] - after[0]), (before[0] - before[1]), atol=20 * h * h)
    start, end = spline(h * np.array([0.0, 1, 2]))[0], spline(6.0 - h * np.array([0.0, 1, 2]))[0]
    assert np.allclose(start[0], end[0], atol=1e-9)
    assert np.allclose((start[1] - start[0]) / h, (end[0] - end[1]) / h, atol=0.05)
    bend_start, bend_end = ((x[2] - 2 * x[1] + x[0]) / h**2 for x in (start, end))
    assert np.allclose(bend_start, bend_end, atol=0.1)


def test_constant_speed_and_timing() -> None:
    keys = arc(7)
    keys[3:, 0, 3] += 4.0  # one long leg
    even = interpolate_flight(make_flight(keys), frames=400, timing="even")
    assert steps(even.c2w).max() / steps(even.c2w).min() > 5
    for timing in ("distance", "even"):
        steady = interpolate_flight(make_flight(keys), frames=400, timing=timing, constant_speed=True)
        assert steps(steady.c2w).max() / steps(steady.c2w).min() < 1.05  # a chord across a bend is shorter than the way
    slow = replace(make_flight(keys[:3]), time=np.array([0.0, 9.0, 10.0]))
    timed = interpolate_flight(slow, timing="times", fps=10)
    assert len(timed) == 100 and timed.fps == 10
    assert np.allclose(interpolate_flight(slow, timing="times", frames=11).c2w[9], keys[1], atol=1e-9)


def test_lengths() -> None:
    keys = make_flight(arc(4))
    assert (len(interpolate_flight(keys)), len(interpolate_flight(keys, loop=True))) == (144, 192)  # 2 s a leg at 24 fps
    flight = interpolate_flight(keys, seconds=2, frames=10)
    assert (len(flight), flight.fps, flight.time[-1]) == (10, 5, 9 / 5)
    assert interpolate_flight(keys, seconds=3, fps=30).names[89] == "frame_00089"
    assert film_length(None, 1, 12.0, 5.0) == (1, 12.0)
    for bad in ({"seconds": 1.0, "frames": 24, "fps": 24.0}, {"frames": 0}, {"seconds": -1.0}, {"fps": math.inf}, {"seconds": 1e9}):
        with pytest.raises(ConfigError):
            film_length(bad.get("seconds"), bad.get("frames"), bad.get("fps"), 5.0)  # type: ignore[arg-type]


def test_a_changing_focal_is_interpolated_without_overshoot() -> None:
    keys = make_flight(arc(4))
    zoom = keys.intrinsics.copy()
    zoom[:, 0] = [50, 50, 200, 200]
    flight = interpolate_flight(replace(keys, intrinsics=zoom), frames=301, timing="even")
    focal = flight.intrinsics[:, 0]
    assert focal[[0, 100, 200, 300]].tolist() == pytest.approx([50, 50, 200, 200])
    assert focal.min() >= 50 - 1e-9 and focal.max() <= 200 + 1e-9 and (np.diff(focal) >= -1e-9).all()
    assert (flight.intrinsics[:, 1:] == [50.0, 48.0, 27.0]).all()


def test_turning_on_the_spot_and_repeated_poses() -> None:
    spot = heading_poses(np.zeros((3, 3)), np.array([0.0, 1.0, 2.0]), -0.5)
    for constant in (False, True):
        flight = interpolate_flight(make_flight(spot), frames=21, constant_speed=constant)
        assert np.allclose(flight.c2w[10], spot[1], atol=1e-9)
    assert check_flight(interpolate_flight(make_flight(arc(3)[[0, 1, 1, 2]])), None) == []


def test_real_photographs_become_a_flight(reference_dir: Path) -> None:
    keys = load_flight(reference_dir / "brighton" / "transforms_all.json", width=384)
    flight = interpolate_flight(keys, seconds=10, constant_speed=True)
    assert (len(flight), flight.width, flight.height, flight.fps) == (240, 384, 216, 24)
    assert check_flight(flight, BOX) == []
    assert steps(flight.c2w).max() / steps(flight.c2w).min() < 1.02
    again = interpolate_flight(keys, seconds=10, constant_speed=True)
    assert np.array_equal(flight.c2w, again.c2w)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=12))
def test_order_by_proximity_is_a_permutation_that_nothing_simple_shortens(points: list[tuple[float, float, float]]) -> None:
    place = np.array(points)
    order = order_by_proximity(place)
    assert sorted(order.tolist()) == list(range(len(points))) and order[0] == 0
    length = np.linalg.norm(np.diff(place[order], axis=0), axis=1).sum()
    for i in range(1, len(order)):
        for j in range(i + 1, len(order)):
            other = np.concatenate([order[:i], order[i : j + 1][::-1], order[j + 1 :]])
            assert length <= np.linalg.norm(np.diff(place[other], axis=0), axis=1).sum() + 1e-6


def test_proximity_mends_a_shuffled_strip() -> None:
    keys = np.stack([np.array(nadir(0.3 * i))[:3] for i in range(12)])
    shuffled = keys[[0, 7, 3, 11, 5, 1, 9, 2, 8, 4, 10, 6]]
    flight = interpolate_flight(make_flight(shuffled), order="proximity", frames=50)
    assert (np.diff(flight.c2w[:, 0, 3]) > 0).all()


def test_interpolation_refuses(save: Save) -> None:
    with pytest.raises(CameraError, match="1 pose: a path goes through at least 2"):
        interpolate_flight(load_flight(save(transforms(1))))
    with pytest.raises(CameraError, match="2 poses: a loop goes through at least 3"):
        interpolate_flight(make_flight(arc(2)), loop=True)
    backwards = replace(make_flight(arc(3)), time=np.array([0.0, 2.0, 2.0]))
    with pytest.raises(CameraError, match="pose 2: time 2 s is not after 2 s"):
        interpolate_flight(backwards, timing="times")
    with pytest.raises(ConfigError, match="loop's way back"):
        interpolate_flight(make_flight(arc(3)), timing="times", loop=True)
    with pytest.raises(CameraError, match="not finite"):
        interpolate_flight(make_flight(arc(3) * np.nan))


@given(rotations(), st.floats(-math.pi, math.pi), st.floats(-math.pi / 2, math.pi / 2))
def test_made_poses_are_rotations_that_look_where_they_should(rotation: Pose, heading: float, pitch: float) -> None:
    (pose,) = heading_poses([1.0, 2.0, 3.0], [heading], pitch)
    ahead = [math.cos(pitch) * math.cos(heading), math.cos(pitch) * math.sin(heading), math.sin(pitch)]
    assert np.allclose(-pose[:, 2], ahead, atol=1e-12)
    assert abs(pose[2, 0]) < 1e-12 and pose[2, 1] > -1e-12  # level, and not upside down
    target = rotation[:, 0] * 5
    (seen,) = look_at([0.0, 0.0, 0.0], target)
    assert np.allclose(-seen[:, 2] * 5, target, atol=1e-9)
    assert check_flight(make_flight(np.stack([pose, seen])), None) == []


def test_look_straight_down_and_at_nothing() -> None:
    assert look_at([0.0, 0.0, 2.0], [0.0, 0.0, 0.0])[0].tolist() == np.array(nadir(z=2.0))[:3].tolist()
    with pytest.raises(ConfigError, match="point it looks at"):
        look_at([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 3), st.floats(0.8, 4), st.floats(-360, 360), st.integers(1, 3), st.booleans())
def test_orbit(radius: float, altitude: float, start: float, turns: int, clockwise: bool) -> None:
    flight = orbit_flight(
        BOX, radius=radius, altitude=altitude, start=start, turns=turns, clockwise=clockwise, frames=36, width=96, height=54
    )
    place = flight.c2w[:, :, 3]
    assert np.allclose(np.hypot(place[:, 0], place[:, 1]), radius)
    assert np.allclose(place[:, 2], -0.2 + altitude)
    angle = np.unwrap(np.arctan2(place[:, 1], place[:, 0]))
    assert np.allclose(np.diff(angle), (-1 if clockwise else 1) * 2 * math.pi * turns / 36)
    assert math.cos(angle[0] - math.radians(start)) == pytest.approx(1)
    target = np.array([0.0, 0.0, 0.0])  # the middle, a quarter of the box above its floor
    view = (target - place) / np.linalg.norm(target - place, axis=1, keepdims=True)
    assert np.allclose(-flight.c2w[:, :, 2], view, atol=1e-12)


def test_orbit_defaults_pitch_and_refusals() -> None:
    flight = orbit_flight(BOX)
    assert (len(flight), flight.fps, flight.width, flight.height) == (480, 24, 1920, 1080)
    assert check_flight(flight, BOX) == []
    down = orbit_flight(BOX, pitch=-90, centre=(1.0, -1.0), frames=8)
    assert np.allclose(down.c2w[:, 2, 2], 1.0)
    assert np.allclose(down.c2w[:, :2, 3].mean(axis=0), [1, -1])
    tilted = orbit_flight(BOX, pitch=-20, frames=8)
    assert np.allclose(tilted.c2w[:, 2, 2], math.sin(math.radians(20)))
    for bad in (
        {"radius": 0.0},
        {"turns": 0.0},
        {"pitch": -91.0},
        {"pitch": -30.0, "look_at_height": 0.1},
        {"altitude": math.nan},
        {"fov": 0.0},
    ):
        with pytest.raises(ConfigError):
            orbit_flight(BOX, **bad)  # type: ignore[arg-type]
    with pytest.raises(CameraError, match="sees nothing"):
        orbit_flight(BOX, pitch=60, altitude=2.0)
