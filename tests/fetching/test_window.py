from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.fetching.window import window_traffic

DIVISION = (8, 6)


def block(column: int, row: int) -> int:
    return column * DIVISION[1] + row


def test_a_straight_flight_loads_a_window_for_each_new_middle() -> None:
    places = np.stack([np.arange(0.5, 7.55, 0.1), np.full(71, 2.5)], axis=1)
    found = window_traffic([[block(int(x), 2)] for x, _ in places], places, DIVISION, 3)
    assert found.window == (3, 3)
    assert found.slots == 18
    assert found.refills == 6  # the first; then around columns 2 to 6: at the ends the window stays inside the scene
    assert found.loads == 54
    assert found.fresh == 9 + 5 * 3
    assert (found.dropped, found.short_frames) == (0.0, 0)


def test_blocks_outside_the_window_are_dropped_by_their_frames_samples() -> None:
    places = np.array([[3.5, 2.5], [3.5, 2.5], [3.5, 2.5]])
    sets = [[block(3, 2), block(4, 2)], [block(3, 2), block(5, 2)], [block(6, 2)]]  # columns 2 to 4 are held
    found = window_traffic(sets, places, DIVISION, 3, np.array([100, 60, 40]))
    assert found.refills == 1
    assert found.short_frames == 2
    assert found.dropped == pytest.approx((30 + 40) / 200)
    assert window_traffic(sets, places, DIVISION, 3).dropped == pytest.approx(1.5 / 3)


def test_the_camera_has_to_leave_the_middle_by_more_than_half_a_block_and_the_frame_that_does_sees_the_old_window() -> None:
    xs = np.array([3.5, 4.005, 4.02, 4.02, 3.995, 3.98])
    places = np.stack([xs, np.full(6, 2.5)], axis=1)
    sets = [[block(5, 2)]] * 4 + [[block(2, 2)]] * 2
    found = window_traffic(sets, places, DIVISION, 3)
    assert found.refills == 3  # at 4.02 around column 4, at 3.98 around column 3 again, each shown one frame later
    assert found.short_frames == 3 + 2
    assert found.fresh == 9 + 3 + 3


def test_what_only_the_far_face_can_touch_is_not_counted_as_dropped() -> None:
    """By LandMark's numbering (column, 6) is (column + 1, 0), at the other side of the scene."""
    place = np.array([[6.5, 5.5]])
    assert window_traffic([[block(6, 5), block(7, 0), block(7, 5)]], place, DIVISION, 3).dropped == 0.0
    assert window_traffic([[block(6, 5), block(7, 0), block(7, 1)]], place, DIVISION, 3).dropped > 0.0


@given(st.lists(st.tuples(st.floats(-2, 10), st.floats(-2, 8)), max_size=30), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_the_cameras_block_is_held_one_frame_after_it_is_reached(points: list[tuple[float, float]], side: int) -> None:
    """And a window never lies outside the scene, whatever the flight."""
    places = np.repeat(np.array(points).reshape(-1, 2), 2, axis=0)
    inside = np.clip(np.floor(places).astype(int), 0, [7, 5])
    sets = [[block(int(x), int(y))] for x, y in inside]
    found = window_traffic(sets, places, DIVISION, side)
    assert found.window == (side if side < 8 else 8, side if side < 6 else 6)
    assert found.loads == found.refills * found.window[0] * found.window[1] >= found.fresh
    assert found.refills <= len(points)
    if side > 2:  # a block's neighbours are held with it: being 0.01 late over a seam never shows
        assert found.short_frames <= max(found.refills - 1, 0)


def test_a_flight_without_frames_moves_nothing() -> None:
    found = window_traffic([], np.zeros((0, 2)), DIVISION, 3, np.zeros(0, dtype=np.int64))
    assert (found.refills, found.loads, found.fresh, found.dropped) == (0, 0, 0, 0.0)
    with pytest.raises(ValueError, match="side = 0"):
        window_traffic([], np.zeros((0, 2)), DIVISION, 0)
