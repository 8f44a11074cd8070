"""Checks of poses and of what they see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from landmark_batch.cameras.check import check_flight
from landmark_batch.cameras.poses import look_at
from landmark_batch.cameras.view import box_depths, box_in_view, corner_rays
from landmark_batch.errors import CameraError
from tests.cameras.conftest import BOX, Pose, make_flight, nadir, rotations

GOOD = np.array(nadir())[:3]


def altered(change: Pose | list[list[float]]) -> Pose:
    """A pose whose rotation is multiplied by `change`."""
    pose: Pose = look_at([0.3, 0.2, 1.5], [0.0, 0.1, 0.0])[0]
    pose[:, :3] = pose[:, :3] @ np.asarray(change)
    return pose


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        (altered(np.diag([1.0, 1.0, -1.0])), "mirrored (determinant -1)"),
        (altered(np.eye(3) * 0.01), "scaled (its columns have lengths 0.01, 0.01, 0.01, not 1)"),
        (altered(np.diag([1.0, 1.0, 1.1])), "scaled (its columns have lengths 1, 1, 1.1, not 1)"),
        (altered([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]]), "skewed (its columns x and y meet at 84.289 degrees"),
        (altered(np.diag([1.0, 1.0, 0.0])), "singular"),
        (altered(np.zeros((3, 3))), "singular"),
        (altered([[1, 1, 0], [0, 0, 0], [0, 0, 1]]), "singular"),
        (altered(np.diag([1e200, 1e200, 1e200])), "scaled"),
    ],
)
def test_what_is_no_rotation_is_named(pose: Pose, words: str) -> None:
    flight = make_flight(np.stack([GOOD, pose, GOOD, pose]))
    with pytest.raises(CameraError) as caught:
        check_flight(flight, None)
    assert f"test: frame 1 (f1): the pose is {words}" in caught.value.message
    assert "one more frame alike" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(value: float) -> None:
    poses = np.stack([GOOD] * 5)
    poses[2:, 1, 3] = value
    with pytest.raises(CameraError, match=rf"test: frame 2 \(f2\): pose\[1\]\[3\] = {value} is not finite; 2 more frames alike"):
        check_flight(make_flight(poses), None)


@given(st.floats(1e-6, 4.9e-4), st.integers(0, 2), st.integers(0, 2))
def test_slightly_off_is_used_as_it_stands(off: float, i: int, j: int) -> None:
    change = np.eye(3)
    change[i, j] += off
    flight = make_flight(altered(change)[None])
    before = flight.c2w.copy()
    warnings = check_flight(flight, BOX)
    assert np.array_equal(flight.c2w, before)
    error = np.abs(change.T @ change - np.eye(3)).max()
    assume(abs(error - 1e-4) > 1e-9)
    assert len(warnings) == (error > 1e-4)
    worse = altered(np.eye(3) + (change - np.eye(3)) * 3e-3 / off)
    with pytest.raises(CameraError):
        check_flight(make_flight(worse[None]), None)


def test_empty_sizes_lenses_shapes() -> None:
    flight = make_flight(np.stack([GOOD, GOOD]))
    with pytest.raises(CameraError, match="no frames"):
        check_flight(make_flight(np.zeros((0, 3, 4))), None)
    with pytest.raises(CameraError, match="image size 0x54"):
        check_flight(replace(flight, width=0), None)
    for column, value in ((0, 0.0), (1, -2.0), (0, math.nan), (2, math.inf)):
        lens = flight.intrinsics.copy()
        lens[1, column] = value
        with pytest.raises(CameraError, match=rf"frame 1 \(f1\): .* = {value:g}"):
            check_flight(replace(flight, intrinsics=lens), None)
    with pytest.raises(CameraError, match="shapes"):
        check_flight(replace(flight, names=("one",)), None)


def test_view_of_the_box() -> None:
    away = look_at([0.0, 0.0, 1.5], [0.0, 3.0, 4.0])
    outside = np.array(nadir(50.0, 50.0))[None, :3]
    inside_up = look_at([0.0, 0.0, 0.1], [0.0, 0.0, 5.0])  # in the box: whatever it looks at begins there
    assert check_flight(make_flight(np.concatenate([GOOD[None], inside_up])), BOX) == []
    for bad in (away, outside):
        with pytest.raises(CameraError, match=r"frame 1 \(f1\): sees nothing of the scene's box \(-2.8, -2.8, -0.2\) to") as caught:
            check_flight(make_flight(np.concatenate([GOOD[None], bad])), BOX)
        assert "--frames" in str(caught.value)
        assert check_flight(make_flight(np.concatenate([GOOD[None], bad])), BOX, (0.2, 0.5), frames=[0])
        assert check_flight(make_flight(np.concatenate([GOOD[None], bad])), BOX, frames=[0]) == []


def test_near_and_far_are_warned_of() -> None:
    flight = make_flight(np.stack([np.array(nadir(z=z))[:3] for z in (1.5, 9.0, 0.9)]))
    assert check_flight(flight, BOX) == []
    assert check_flight(flight, BOX, (0.2, 20.0)) == []
    (far,) = check_flight(flight, BOX, (0.2, 2.2))
    assert "frame 1 (f1): all of the box lies farther than far = 2.2 (t = 8.4 to 9.2)" in far
    (near,) = check_flight(flight, BOX, (1.3, 20.0))
    assert "frame 2 (f2): all of the box lies nearer than near = 1.3 (t = 0.3 to 1.1)" in near


def sees_by_linear_program(c2w: Pose, lens: Pose, width: int, height: int, low: Pose, high: Pose) -> tuple[bool, bool]:
    """(surely sees, surely sees nothing): is there a point of the box in the cone of the corner rays? Box grown and shrunk a little."""
    rays = corner_rays(lens[None], width, height)[0] @ c2w[:, :3].T
    found = []
    for grow in (-1e-6, 1e-6):
        bounds = [(0, None)] * 4
        upper = np.concatenate([rays.T, -rays.T])
        limits = np.concatenate([high + grow - c2w[:, 3], -(low - grow) + c2w[:, 3]])
        found.append(linprog(np.zeros(4), A_ub=upper, b_ub=limits, bounds=bounds).status == 0)
    return found[0], not found[1]


@settings(max_examples=150, deadline=None)
@given(
    rotations(),
    st.lists(st.floats(-6, 6), min_size=3, max_size=3),
    st.lists(st.floats(-4, 4), min_size=3, max_size=3),
    st.lists(st.floats(0.05, 3), min_size=3, max_size=3),
    st.floats(20, 400),
    st.floats(-30, 130),
)
def test_box_in_view_agrees_with_a_linear_program(
    rotation: Pose, origin: list[float], low: list[float], sides: list[float], focal: float, cx: float
) -> None:
    c2w, lens = np.column_stack([rotation, origin]), np.array([focal, focal * 1.2, cx, 27.0])
    high = np.array(low) + sides
    sees, blind = sees_by_linear_program(c2w, lens, 96, 54, np.array(low), high)
    box = ((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    seen = bool(box_in_view(c2w[None], lens[None], 96, 54, box)[0])
    assert seen or not sees
    assert not (seen and blind)


def test_box_depths() -> None:
    nearest, farthest = box_depths(GOOD[None], BOX)
    assert (nearest[0], farthest[0]) == pytest.approx((0.9, 1.7))
