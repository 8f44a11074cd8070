"""Flights written are read back bit for bit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.formats import load_flight
from landmark_batch.cameras.paths import interpolate_flight, orbit_flight, survey_flight
from landmark_batch.cameras.write import write_transforms
from landmark_batch.errors import CameraError
from tests.cameras.conftest import BOX, Pose, make_flight, poses


def assert_same(back: Flight, flight: Flight) -> None:
    for name in ("c2w", "intrinsics", "time"):
        assert np.array_equal(getattr(back, name), getattr(flight, name)), name
    assert (back.width, back.height, back.names, back.fps) == (flight.width, flight.height, flight.names, flight.fps)


@settings(max_examples=60, deadline=None)
@given(
    poses(),
    st.integers(1, 65536),
    st.integers(1, 65536),
    st.sampled_from([None, 24.0, 29.97, 1 / 3]),
    st.booleans(),
    st.lists(st.floats(1, 1e5), min_size=6, max_size=6),
    st.lists(st.floats(1e-3, 1e5), min_size=8, max_size=8),
)
def test_round_trip(c2w: Pose, width: int, height: int, fps: float | None, timed: bool, waits: list[float], lens: list[float]) -> None:
    count = len(c2w)
    time = np.concatenate([[0.0], np.cumsum(waits)])[:count] if timed else np.arange(count) / (fps or 24.0)
    lenses = np.array([lens[(i % 2) * 4 : (i % 2) * 4 + 4] for i in range(count)])
    names = tuple(f'./b "{i}" ü.png' for i in range(count))
    flight = Flight(c2w, lenses, width, height, time, names, fps, "test")
    with tempfile.TemporaryDirectory() as folder:
        path = write_transforms(flight, Path(folder) / "new" / "flight.json")
        back = load_flight(path)
        assert [item.name for item in path.parent.iterdir()] == ["flight.json"]
        text = path.read_text()
        assert write_transforms(back, path).read_text() == text
    assert_same(back, flight)
    assert len(text.splitlines()) < 14 + count  # a frame is a line


def test_made_flights_round_trip(tmp_path: Path) -> None:
    keys = make_flight(orbit_flight(BOX, frames=5).c2w)
    for i, flight in enumerate(
        (orbit_flight(BOX, frames=7), survey_flight(BOX, overlap=0.5), interpolate_flight(keys, seconds=2, frames=9))
    ):
        assert_same(load_flight(write_transforms(flight, tmp_path / f"{i}.json")), flight)


def test_real_flight_round_trips_at_another_size(reference_dir: Path, tmp_path: Path) -> None:
    flight = load_flight(reference_dir / "brighton" / "path.json", width=384)
    assert_same(load_flight(write_transforms(flight, tmp_path / "small.json")), flight)


def test_a_frame_can_be_inserted_by_hand(tmp_path: Path) -> None:
    path = write_transforms(orbit_flight(BOX, frames=4, fps=10), tmp_path / "flight.json")
    raw = json.loads(path.read_text())
    assert "time" not in raw["frames"][0]
    raw["frames"].insert(2, raw["frames"][0])
    path.write_text(json.dumps(raw))
    assert load_flight(path).time.tolist() == [0, 0.1, 0.2, 0.3, 0.4]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    flight = orbit_flight(BOX, frames=2)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "flight.json", tmp_path / "folder"):
        with pytest.raises(CameraError, match="cannot write it"):
            write_transforms(flight, path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]
