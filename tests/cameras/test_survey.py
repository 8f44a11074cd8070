"""Surveys cover the floor of the box with the overlap they promise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.cameras.check import check_flight
from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.paths import survey_flight
from landmark_batch.cameras.survey import footprint
from landmark_batch.errors import ConfigError
from tests.cameras.conftest import BOX, Pose

FLOOR = -0.2


def sees(flight: Flight, points: Pose) -> Pose:
    """[F, P] whether each frame shows each point."""
    local = np.einsum("fpd,fdk->fpk", points[None] - flight.c2w[:, None, :, 3], flight.c2w[:, :, :3])
    depth = -local[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        x = flight.intrinsics[:, None, 0] * local[..., 0] / depth + flight.intrinsics[:, None, 2]
        y = flight.intrinsics[:, None, 3] - flight.intrinsics[:, None, 1] * local[..., 1] / depth
    slack = 1e-6 * flight.width
    inside = (depth > 0) & (x >= -slack) & (x <= flight.width + slack) & (y >= -slack) & (y <= flight.height + slack)
    return np.asarray(inside)


def hits(flight: Flight, frame: int, pixel: tuple[float, float]) -> Pose:
    """Where the ray of a pixel meets the floor, x and y."""
    fx, fy, cx, cy = flight.intrinsics[frame]
    ray = flight.c2w[frame, :, :3] @ np.array([(pixel[0] - cx) / fx, -(pixel[1] - cy) / fy, -1.0])
    origin = flight.c2w[frame, :, 3]
    return np.asarray((origin + ray * (FLOOR - origin[2]) / ray[2])[:2])


def lines_of(flight: Flight, heading: float) -> list[list[int]]:
    """Frames of each straight line: those that face along or against the heading, between the turns."""
    ahead = np.array([math.cos(math.radians(heading)), math.sin(math.radians(heading))])
    facing = flight.c2w[:, :2, 0] @ np.array([ahead[1], -ahead[0]])  # image right against the heading's right
    across = flight.c2w[:, :2, 3] @ np.array([-ahead[1], ahead[0]])
    straight = [i for i in range(len(flight)) if abs(abs(facing[i]) - 1) < 1e-9]
    return [list(group) for _, group in itertools.groupby(straight, key=lambda i: round(float(across[i]), 9))]


@settings(max_examples=30, deadline=None)
@given(
    st.floats(0.6, 4),
    st.sampled_from([-90.0, -75.0, -55.0]),
    st.floats(0, 0.85),
    st.floats(0, 0.8),
    st.floats(-180, 180),
    st.sampled_from(["arc", "jump"]),
    st.floats(-0.5, 0.5),
)
def test_survey_covers_the_box_with_the_promised_overlap(
    altitude: float, pitch: float, overlap: float, sidelap: float, heading: float, turns: Any, margin: float
) -> None:
    keys: dict[str, Any] = {"pitch": pitch, "heading": heading, "turns": turns, "margin": margin}
    flight = survey_flight(BOX, width=96, height=54, altitude=altitude, overlap=overlap, sidelap=sidelap, **keys)
    assert check_flight(flight, BOX) == list(flight.warnings)
    assert np.allclose(flight.c2w[:, 2, 3], FLOOR + altitude)

    side = np.linspace(-2.8 - min(margin, 0.0), 2.8 + min(margin, 0.0), 23)
    x, y = np.meshgrid(side, side)
    points = np.column_stack([x.ravel(), y.ravel(), np.full(x.size, FLOOR)])
    assert sees(flight, points).any(axis=0).all()

    lines = lines_of(flight, heading)
    middle = (flight.width / 2, 0.0), (flight.width / 2, float(flight.height))
    length = float(np.linalg.norm(hits(flight, 0, middle[0]) - hits(flight, 0, middle[1])))
    near = hits(flight, 0, (0.0, 54.0)), hits(flight, 0, (96.0, 54.0))
    width = float(np.linalg.norm(near[0] - near[1]))
    for line in lines:
        gaps = np.linalg.norm(np.diff(flight.c2w[line][:, :, 3], axis=0), axis=1)
        assert (gaps <= length * (1 - overlap) + 1e-9).all()
    places = [flight.c2w[line[0], :2, 3] @ np.array([-math.sin(math.radians(heading)), math.cos(math.radians(heading))]) for line in lines]
    assert all(0 < b - a <= width * (1 - sidelap) + 1e-6 for a, b in itertools.pairwise(places))


def test_lawn_mower_order_and_arcs() -> None:
    flight = survey_flight(BOX, width=96, height=54, altitude=1.5, speed=1.0, fps=24, sidelap=0.5)
    lines = lines_of(flight, 0.0)
    senses = [float(flight.c2w[line[0], 1, 0]) for line in lines]
    assert len(lines) > 3
    assert senses == [pytest.approx(-1.0 if i % 2 == 0 else 1.0) for i in range(len(lines))]
    place = flight.c2w[:, :, 3]
    gaps = np.linalg.norm(np.diff(place, axis=0), axis=1)
    assert gaps.max() <= 1 / 24 + 1e-12 and gaps.min() > 0.8 / 24  # one pace, through the turns too
    yaw = np.unwrap(np.arctan2(flight.c2w[:, 1, 1], flight.c2w[:, 0, 1]))
    radius = (place[lines[1][0], 1] - place[lines[0][0], 1]) / 2
    assert np.abs(np.diff(yaw)).max() <= 1 / 24 / radius * 1.2
    jump = survey_flight(BOX, width=96, height=54, altitude=1.5, speed=1.0, fps=24, sidelap=0.5, turns="jump")
    assert len(jump) < len(flight)
    assert sum(len(line) for line in lines_of(jump, 0.0)) == len(jump)


def test_pace() -> None:
    cover = footprint(np.array([100.0, 100.0, 50.0, 25.0]), 100, 50, 2.0, -math.pi / 2)
    assert (cover.back, cover.front, cover.width) == pytest.approx((-0.5, 0.5, 2.0))
    lens: dict[str, Any] = {"width": 100, "height": 50, "focal": 100.0, "altitude": 2.0}

    def gap(**keys: Any) -> float:
        place = survey_flight(BOX, **lens, **keys).c2w[:2, :, 3]
        return float(np.linalg.norm(place[1] - place[0]))

    assert gap(overlap=0.75) == pytest.approx(0.25, rel=0.05)
    assert gap(speed=1.2, fps=12) == pytest.approx(0.1, rel=0.05)
    assert gap() == pytest.approx(1 / 96, rel=0.05)  # a footprint's length in 4 s at 24 fps
    assert gap(overlap=0.75, speed=6.0) == pytest.approx(0.25, rel=0.05)
    with pytest.raises(ConfigError, match=r"speed = 10 at 24 fps leaves an overlap of 0.58, not 0.75") as caught:
        survey_flight(BOX, **lens, overlap=0.75, speed=10.0)
    assert "fly at 6 or slower" in str(caught.value)


def test_defaults_from_a_checkpoint() -> None:
    flight = survey_flight(BOX, near_far=(0.7, 2.2))
    assert flight.c2w[0, 2, 3] == pytest.approx(FLOOR + 0.7 + 1.2 * 0.8)
    assert check_flight(flight, BOX, (0.7, 2.2)) == []
    assert (flight.fps, flight.width, flight.height) == (24, 1920, 1080)
    raised = survey_flight(BOX, near_far=(0.7, 2.2), ground=0.1)
    assert raised.c2w[0, 2, 3] == pytest.approx(flight.c2w[0, 2, 3])
    assert len(raised) > len(flight)
    assert np.array_equal(survey_flight(BOX, near_far=(0.7, 2.2)).c2w, flight.c2w)


def test_one_frame_that_covers_everything() -> None:
    flight = survey_flight(BOX, width=100, height=100, altitude=40.0, overlap=0.0)
    assert len(flight) == 1
    assert flight.c2w[0, :2, 3].tolist() == pytest.approx([0, 0])


def test_a_slanted_camera_does_not_render_its_turns_over_nothing() -> None:
    flight = survey_flight(BOX, pitch=-50.0, heading=30.0)
    assert "see nothing of the box and are left out" in flight.warnings[0]
    assert check_flight(flight, BOX) == list(flight.warnings)
    assert survey_flight(BOX, pitch=-50.0, heading=30.0, turns="jump").warnings == ()


@pytest.mark.parametrize(
    "bad",
    [
        {"pitch": 0.0},
        {"pitch": -91.0},
        {"pitch": -1.0, "fov": 10.0},
        {"overlap": 1.0},
        {"sidelap": -0.1},
        {"speed": 0.0},
        {"altitude": -1.0},
        {"margin": -3.0},
        {"margin": math.inf},
        {"heading": math.nan},
        {"ground": 9.0},
        {"speed": 1e-6},
        {"altitude": 1e-9},
        {"fps": 0.0},
    ],
)
def test_bad_values(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        survey_flight(BOX, **bad)  # type: ignore[arg-type]
