"""Route and Itinerary: in which order a worker meets frames, read from a file that may come late, change or be damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from landmark_batch.fetching.flight_blocks import FlightBlocks
from landmark_batch.fetching.route import Itinerary, Route


def seen(frames: list[int] | None = None) -> FlightBlocks:
    """Frame 0 sees {0, 1}, 1 nothing, 2 {2}, 3 {1, 2, 3}."""
    offsets = np.array([0, 2, 2, 3, 6], np.int64)
    return FlightBlocks(offsets, np.array([0, 1, 2, 1, 2, 3], np.int32), np.ones(4, np.int64), np.array(frames or [0, 1, 2, 3]))


def itinerary(*frames: int, bounds: tuple[int, ...] = ()) -> Itinerary:
    return Itinerary(np.array(frames), np.array(bounds or (0, len(frames))))


def test_an_itinerary_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    itinerary(3, 1, 2, bounds=(0, 2, 3)).save(tmp_path / "route.npz")
    found = Itinerary.load(tmp_path / "route.npz")
    assert found.frames.tolist() == [3, 1, 2]
    assert found.bounds.tolist() == [0, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["route.npz"]


def test_without_a_file_frames_come_as_they_stand() -> None:
    route = Route(seen())
    assert [route.place(frame) for frame in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [list(row) for row in route.ahead(2, 4)] == [[2], [1, 2, 3]]


def test_places_and_ranges_of_groups(tmp_path: Path) -> None:
    file = tmp_path / "route.npz"
    itinerary(3, 2, 0, 1, bounds=(0, 1, 4)).save(file)
    route = Route(seen(), file)
    assert [route.place(frame) for frame in (3, 2, 0, 1)] == [(0, 1), (1, 4), (2, 4), (3, 4)]
    assert [list(row) for row in route.ahead(1, 4)] == [[2], [0, 1], []]
    assert route.of(3) == [1, 2, 3]
    assert route.of(1) == []


def test_an_empty_range_before_a_frame_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "route.npz"
    itinerary(2, 0, bounds=(0, 0, 1, 1, 2)).save(file)
    route = Route(seen(), file)
    assert (route.place(2), route.place(0)) == ((0, 1), (1, 2))


def test_a_file_that_comes_later_is_read_for_a_frame_that_is_not_known(tmp_path: Path) -> None:
    file = tmp_path / "route.npz"
    itinerary(0, 1).save(file)
    route = Route(seen(), file)
    assert route.place(3) is None
    itinerary(3, 0).save(file)
    assert route.place(3) == (0, 2)
    assert route.place(1) is None
    whole = file.read_bytes()
    for damaged in (b"", b"damaged", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        assert route.place(2) is None
    assert route.place(3) == (0, 2), "what was read before stays"


def test_an_order_that_is_written_after_the_worker_came_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "route.npz"
    route = Route(seen(), file)
    assert route.place(3) == (3, 4), "the flight's own order"
    itinerary(3, 0, 1, 2).save(file)
    assert route.place(3) == (0, 4)
    assert [list(row) for row in route.ahead(0, 2)] == [[1, 2, 3], [0, 1]]


def test_frames_of_a_part_of_a_flight_keep_their_numbers() -> None:
    route = Route.along(seen([4, 7, 9, 20]), [20, 4])
    assert route.place(20) == (0, 2)
    assert route.place(7) is None
    assert route.of(20) == [1, 2, 3]
    assert [list(row) for row in route.ahead(0, 2)] == [[1, 2, 3], [0, 1]]
    with pytest.raises(KeyError):
        route.of(5)
