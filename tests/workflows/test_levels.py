"""Orders that show the whole flight early: every frame once, levels that halve the gaps, groups that keep step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark_batch.workflows.feeder import Feeder
from landmark_batch.workflows.levels import coarse_to_fine, deal_levels


def test_every_second_frame_of_a_level_stands_before_the_next() -> None:
    levels = coarse_to_fine(range(16), 2, flight=range(16))
    assert [[chunk.frames for chunk in level] for level in levels] == [
        [(0, 8)],
        [(4, 12)],
        [(2, 6), (10, 14)],
        [(1, 3), (5, 7), (9, 11), (13, 15)],
    ]
    assert [[chunk.frames for chunk in level] for level in coarse_to_fine(range(3), 8, flight=range(3))] == [[(0, 1, 2)]]
    assert coarse_to_fine([], 8, flight=range(9)) == []


def test_levels_are_those_of_the_flight_whatever_stands_already() -> None:
    levels = coarse_to_fine([1, 2, 6, 15], 2, flight=range(16))
    assert [[chunk.frames for chunk in level] for level in levels] == [[(2, 6)], [(1, 15)]]
    strided = coarse_to_fine(range(0, 80, 10), 2, flight=range(0, 80, 10))
    assert [[chunk.frames for chunk in level] for level in strided] == [[(0, 40)], [(20, 60)], [(10, 30), (50, 70)]]


def test_frames_of_one_file_stay_together() -> None:
    levels = coarse_to_fine(range(18), 4, flight=range(18), unit=4)  # files 0-3, 4-7, 8-11, 12-15, 16-17
    assert [[chunk.frames for chunk in level] for level in levels] == [
        [(0, 1, 2, 3)],
        [(16, 17)],
        [(8, 9, 10, 11)],
        [(4, 5, 6, 7), (12, 13, 14, 15)],
    ]


@given(
    wanted=st.sets(st.integers(0, 400), min_size=1, max_size=120),
    size=st.integers(1, 12),
    unit=st.integers(1, 5),
    groups=st.integers(1, 7),
    data=st.data(),
)
def test_each_frame_goes_out_once_and_coarse_levels_first(wanted: set[int], size: int, unit: int, groups: int, data: st.DataObject) -> None:
    todo = {frame for frame in wanted if data.draw(st.booleans())} if unit == 1 else wanted
    size *= unit
    levels = coarse_to_fine(todo, size, flight=wanted, unit=unit)
    assert sorted(frame for level in levels for chunk in level for frame in chunk.frames) == sorted(todo)
    assert all(len(chunk.frames) <= size and list(chunk.frames) == sorted(chunk.frames) for level in levels for chunk in level)
    ids = [chunk.id for level in levels for chunk in level]
    assert len(set(ids)) == len(ids)
    holder = {frame // unit: chunk.id for level in levels for chunk in level for frame in chunk.frames}
    assert all(holder[frame // unit] == chunk.id for level in levels for chunk in level for frame in chunk.frames), "files are whole"
    dealt, cuts = deal_levels(levels, groups)
    assert sorted(chunk.id for chunk in dealt) == sorted(ids)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, len(dealt), groups + 1)
    number = {chunk.id: place for place, level in enumerate(levels) for chunk in level}
    for low, high in pairwise(cuts):
        passed = [number[chunk.id] for chunk in dealt[low:high]]
        assert passed == sorted(passed)


@given(count=st.integers(1, 300), size=st.integers(1, 9), seen=st.integers(0, 9))
def test_after_a_level_gaps_are_even(count: int, size: int, seen: int) -> None:
    levels = coarse_to_fine(range(count), size, flight=range(count))
    assert len(levels[0]) == 1
    done = sorted(frame for level in levels[: seen + 1] for chunk in level for frame in chunk.frames)
    gaps = {b - a for a, b in pairwise([*done])}
    assert len(gaps) <= 1, "evenly spread"
    step = gaps.pop() if gaps else count
    assert done[0] == 0
    assert count - done[-1] <= step


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_the_feeder_cuts_where_the_levels_were_dealt(groups: int) -> None:
    dealt, cuts = deal_levels(coarse_to_fine(range(100), 3, flight=range(100)), groups)
    feeder = Feeder(len(dealt), range(groups), depth=1)
    assert [feeder.take(worker) for worker in range(groups)] == list(cuts[:-1])
