from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from landmark_batch.fetching.belady import NEVER, FetchPlan, Lookahead, belady, lru
from landmark_batch.fetching.block_sets import BlockSets, block_sets

small_sets = st.lists(st.frozensets(st.integers(0, 5), max_size=5), max_size=8)


def fewest_loads(frames: list[frozenset[int]], slots: int) -> int:
    """The optimum over every choice of what stays: search over all contents of the slots."""

    @cache
    def least(position: int, held: frozenset[int]) -> int:
        if position == len(frames):
            return 0
        need = frames[position]
        if len(need) > slots:  # both passes load whole blocks; any `slots` of the frame's blocks may be left
            loads = 2 * len(need) - slots - len(held & need)
            return loads + min(least(position + 1, frozenset(kept)) for kept in combinations(sorted(need), slots))
        others = sorted(held - need)
        stay = min(len(others), slots - len(need))
        return len(need - held) + min(least(position + 1, need | set(kept)) for kept in combinations(others, stay))

    return least(0, frozenset())


def replay(plan: FetchPlan, frames: list[frozenset[int]]) -> None:
    """Carry the plan out: slots hold what it says, and every frame finds what it needs."""
    slots: dict[int, int] = {}
    loads = sorted(zip(plan.frame.tolist(), range(plan.loads), strict=True))
    assert [i for _, i in loads] == list(range(plan.loads))
    done = 0
    for position, need in enumerate(frames):
        seen = [set(slots.values()) & need]
        while done < plan.loads and plan.frame[done] == position:
            slot, block = int(plan.slot[done]), int(plan.block[done])
            assert 0 <= slot < plan.slots
            assert slots.get(slot, -1) == plan.leaving[done]
            assert block not in slots.values()
            slots[slot] = block
            seen.append({block})
            done += 1
        if len(need) <= plan.slots:
            assert need <= set(slots.values())
        else:
            assert len(seen) - 1 == 2 * len(need) - plan.slots - len(seen[0])
            assert set().union(*seen) == need == set(plan.block[plan.frame == position].tolist()) | seen[0]
    assert done == plan.loads


@given(small_sets, st.integers(1, 5))
@example([frozenset({0}), frozenset({0, 1}), frozenset({1})], 1)
@settings(max_examples=150, deadline=None)
def test_belady_is_the_optimum_and_can_be_carried_out(frames: list[frozenset[int]], slots: int) -> None:
    plan = belady([sorted(frame) for frame in frames], slots)
    fewest = fewest_loads(frames, slots)
    pairs = sum(len(frame) == 2 for frame in frames) if slots == 1 else 0  # block, other, block: one slot ends on what it began with
    assert fewest <= plan.loads <= fewest + pairs
    assert plan.passes == sum(len(frame) > slots for frame in frames)
    replay(plan, frames)


@given(st.lists(st.frozensets(st.integers(0, 12), max_size=8), max_size=40), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_demand_fetching_is_exact_and_never_moves_less(frames: list[frozenset[int]], slots: int) -> None:
    demand = lru([sorted(frame) for frame in frames], slots)
    replay(demand, frames)
    assert belady([sorted(frame) for frame in frames], slots).loads <= demand.loads


def test_the_least_recently_used_block_leaves() -> None:
    plan = lru([[0], [1], [0], [2], [0], [1]], 2)
    assert plan.block.tolist() == [0, 1, 2, 1]
    assert plan.leaving.tolist() == [-1, -1, 1, 2]
    assert plan.frame.tolist() == [0, 1, 3, 5]


def test_a_frame_in_passes_loads_both_kinds_of_what_does_not_fit() -> None:
    plan = belady([[0, 1, 2, 3, 4]] * 2, 3)
    assert plan.passes == 2
    assert plan.loads == (5 + 2) + (2 + 2)  # densities, appearances; three blocks are held when the second frame starts


@pytest.mark.parametrize("make", [belady, lru])
def test_a_flight_without_frames_or_blocks_loads_nothing(make: object) -> None:
    assert callable(make)
    assert make([], 1).loads == 0
    assert make([[], []], 1).loads == 0
    with pytest.raises(ValueError, match="slots = 0"):
        make([[1]], 0)


@given(st.lists(st.frozensets(st.integers(0, 9), max_size=4), max_size=12), st.lists(st.integers(0, 13), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_lookahead_knows_the_next_use_of_every_block(frames: list[frozenset[int]], stops: list[int]) -> None:
    future = Lookahead([sorted(frame) for frame in frames])
    for start in stops:
        future.advance(start)
        for block in range(11):
            uses = [i for i in range(start, len(frames)) if block in frames[i]]
            assert future.next_use(block) == (uses[0] if uses else NEVER)


def test_sets_come_as_lists_or_flat() -> None:
    flat = block_sets([[3, 1, 3], [], [2]])
    assert flat.offsets.tolist() == [0, 2, 2, 3]
    assert flat.ids.tolist() == [1, 3, 2]
    again = BlockSets(flat.offsets, flat.ids)
    assert [blocks.tolist() for blocks in again] == [[1, 3], [], [2]]
    assert [blocks.tolist() for blocks in again.take([2, 0])] == [[2], [1, 3]]
    assert [blocks.tolist() for blocks in again.unions([[0, 2], [1], []])] == [[1, 2, 3], [], []]


def test_a_repeat_needs_the_same_blocks_as_the_frame_before() -> None:
    sets = block_sets([[1, 2], [1, 2], [1, 3], [1], [], [], [1]])
    assert sets.repeats().tolist() == [False, True, False, False, False, True, False]
