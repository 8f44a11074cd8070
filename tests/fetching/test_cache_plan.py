from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark_batch.fetching.belady import belady
from landmark_batch.fetching.slot_plan import EMPTY, SlotPlan

flights = st.lists(st.frozensets(st.integers(0, 8), max_size=4), max_size=25)


def run(frames: list[frozenset[int]], slots: int, *, early: bool, plan_frames: int, queue: int) -> int:
    """Render by the plan, beginning every load as soon as it may or as late as it must; the number of loads."""
    plan = SlotPlan([sorted(blocks) for blocks in frames], slots)
    content = [EMPTY] * slots
    loads = 0
    for position, blocks in enumerate(frames):
        plan.extend(position, plan_frames, queue)
        for load in list(plan.queue):
            if load.position <= position or (early and load.after < position):
                assert load.after < position and content[load.slot] not in blocks
                content[load.slot] = load.block
                plan.queue.remove(load)
                loads += 1
        assert blocks <= set(content)
    return loads


@given(frames=flights, slots=st.integers(4, 7), early=st.booleans(), plan_frames=st.integers(0, 9), queue=st.integers(0, 6))
def test_the_plan_loads_as_little_as_can_be_however_early(
    frames: list[frozenset[int]], slots: int, early: bool, plan_frames: int, queue: int
) -> None:
    assert run(frames, slots, early=early, plan_frames=plan_frames, queue=queue) == belady([sorted(f) for f in frames], slots).loads


def test_a_load_may_begin_when_the_last_frame_that_reads_its_slot_is_over() -> None:
    plan = SlotPlan([[0, 1], [0], [0], [2]], 2)
    plan.extend(0, 10, 10)
    assert [(load.block, load.position, load.after) for load in plan.queue] == [(0, 0, -1), (1, 0, -1), (2, 3, 0)]


def test_of_blocks_needed_equally_late_the_one_that_is_free_first_leaves() -> None:
    plan = SlotPlan([[0, 1], [1], [2]], 2)
    plan.extend(0, 10, 10)
    first, _, third = plan.queue
    assert first.block == 0 and third.slot == first.slot and third.after == 0


def test_planning_stops_at_a_frame_of_more_blocks_than_slots() -> None:
    plan = SlotPlan([[0], [1, 2, 3], [0]], 2)
    plan.extend(0, 10, 10)
    assert plan.cursor == 1 and plan.too_many(1) and not plan.too_many(0) and not plan.too_many(3)
    assert plan.order(9) == [0, 1, 2, 3] and plan.order(2) == [0, 1]
    plan.restart(1, [0, EMPTY])
    plan.demand(1, [1, 2], [5, 4])
    assert {(load.block, load.slot) for load in plan.queue} == {(1, 1), (2, 0)} and plan.cursor == 1


def test_long_flights_are_planned_a_little_at_a_time() -> None:
    random = np.random.default_rng(1)
    sets = [sorted(set((frame // 50 + random.integers(0, 4, 6)).tolist())) for frame in range(3000)]
    plan = SlotPlan(sets, 8)
    plan.extend(0, 64, 1000)
    assert plan.cursor == 64
    plan.extend(1, 64, 4)
    assert plan.cursor < 70


@pytest.mark.parametrize("block", [1, 7])
def test_a_block_that_no_frame_needs_is_needed_latest(block: int) -> None:
    plan = SlotPlan([[0], [2], [0]], 1)
    plan.extend(0, 1, 10)
    assert plan.need(block) > plan.need(0)
    assert plan.need(2) < plan.need(0)  # 0 is in a slot, so that its copy is of no use soon
