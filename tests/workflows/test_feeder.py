from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark_batch.workflows.feeder import Feeder


def drain(feeder: Feeder[str], speeds: dict[str, int]) -> dict[str, list[int]]:
    """Run to the end: every worker takes what it may, then finishes `speed` chunks a round."""
    order: dict[str, list[int]] = {worker: [] for worker in speeds}
    while feeder.left or feeder.out:
        for worker in speeds:
            while (chunk := feeder.take(worker)) is not None:
                order[worker].append(chunk)
        for worker, speed in speeds.items():
            for chunk in feeder.in_hand(worker)[:speed]:
                assert feeder.done(worker, chunk)
    return order


@given(st.integers(0, 200), st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 4))
def test_every_chunk_goes_out_exactly_once_in_few_contiguous_runs(count: int, speeds: list[int], depth: int) -> None:
    workers = {f"w{i}": speed for i, speed in enumerate(speeds)}
    order = drain(Feeder(count, workers, depth=depth), workers)
    assert sorted(chunk for chunks in order.values() for chunk in chunks) == list(range(count))
    breaks = sum(b != a + 1 for chunks in order.values() for a, b in pairwise(chunks))
    assert breaks <= len(workers) * (count.bit_length() + 1)  # halving the longest range


@given(st.integers(1, 300), st.integers(1, 8))
def test_equal_workers_get_equal_contiguous_ranges(count: int, workers: int) -> None:
    names = [f"w{i}" for i in range(workers)]
    order = drain(Feeder(count, names, depth=1), dict.fromkeys(names, 1))
    sizes = [len(chunks) for chunks in order.values()]
    assert max(sizes) - min(sizes) <= 1
    assert all(chunks == list(range(chunks[0], chunks[0] + len(chunks))) for chunks in order.values() if chunks)


@given(st.data())
def test_nothing_is_lost_when_workers_come_and_go(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 60))
    feeder: Feeder[int] = Feeder(count, range(data.draw(st.integers(0, 3))), depth=data.draw(st.integers(1, 3)))
    finished: list[int] = []
    fresh = 100
    for _ in range(data.draw(st.integers(0, 120))):
        action = data.draw(st.sampled_from(["take", "done", "give_back", "remove", "add"]))
        if action == "add":
            feeder.add_worker(fresh)
            fresh += 1
        elif feeder.workers:
            worker = data.draw(st.sampled_from(feeder.workers))
            if action == "take":
                feeder.take(worker)
            elif action == "remove":
                feeder.remove_worker(worker)
            elif feeder.in_hand(worker):
                chunk = data.draw(st.sampled_from(feeder.in_hand(worker)))
                if action == "done":
                    feeder.done(worker, chunk)
                    finished.append(chunk)
                else:
                    feeder.give_back(worker, chunk)
        assert len(finished) + feeder.left + feeder.out == count
    feeder.add_worker(-1)
    for worker in [w for w in feeder.workers if w != -1]:
        feeder.remove_worker(worker)
    while (chunk := feeder.take(-1)) is not None:
        feeder.done(-1, chunk)
        finished.append(chunk)
    assert sorted(finished) == list(range(count))


def test_an_idle_worker_takes_the_back_half_of_the_longest_range() -> None:
    feeder: Feeder[str] = Feeder(20, ["slow", "fast"], depth=1)
    assert feeder.take("slow") == 0  # 1..9 are left to it
    for expected in range(10, 20):
        assert feeder.take("fast") == expected
        feeder.done("fast", expected)
    assert feeder.take("fast") == 5
    assert feeder.take("slow") is None  # its hand is full
    feeder.done("slow", 0)
    assert feeder.take("slow") == 1


def test_chunks_taken_apart_halve_the_longest_range_left() -> None:
    feeder = Feeder(16, ["a"], depth=16)
    assert [feeder.take("a") for _ in range(2)] == [0, 1]
    assert [feeder.take("a", apart=True) for _ in range(4)] == [9, 5, 13, 3]
    assert [feeder.take("a"), feeder.take("a")] == [4, 2]  # it goes on there, then with what was left behind
    assert sorted(filter(None, iter(lambda: feeder.take("a"), None))) == [6, 7, 8, 10, 11, 12, 14, 15]
    assert feeder.take("a", apart=True) is None


def test_a_chunk_taken_apart_may_be_of_anothers_range() -> None:
    feeder = Feeder(12, ["a", "b"], depth=2)
    assert [feeder.take("a"), feeder.take("b")] == [0, 6]
    assert feeder.take("a", apart=True) == 3
    assert feeder.done("a", 0) and feeder.done("a", 3)
    assert feeder.take("a", apart=True) == 9
    assert feeder.take("b") == 7
    assert feeder.left == 12 - 5


def test_what_a_lost_worker_had_goes_out_first() -> None:
    feeder: Feeder[str] = Feeder(8, ["a", "b"], depth=2)
    assert [feeder.take("a"), feeder.take("a"), feeder.take("a")] == [0, 1, None]
    assert feeder.remove_worker("a") == (0, 1)
    assert feeder.take("b") == 0
    assert not feeder.done("a", 0)  # a late word from the lost worker changes nothing
    assert feeder.in_hand("b") == (0,)
    feeder.add_worker("c")
    assert [feeder.take("c"), feeder.take("c")] == [1, 2]  # and it inherits the lost worker's range


def test_a_dropped_chunk_does_not_go_out_again() -> None:
    feeder: Feeder[str] = Feeder(2, ["a"], depth=1)
    assert feeder.take("a") == 0
    assert feeder.give_back("a", 0)
    feeder.drop(0)
    assert feeder.take("a") == 1
    assert feeder.left == 0


@given(st.lists(st.integers(0, 50), max_size=60), st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(1, 3))
def test_with_costs_too_every_chunk_goes_out_exactly_once(costs: list[int], speeds: list[int], depth: int) -> None:
    workers = {f"w{i}": speed for i, speed in enumerate(speeds)}
    order = drain(Feeder(len(costs), workers, depth=depth, costs=costs), workers)
    assert sorted(chunk for chunks in order.values() for chunk in chunks) == list(range(len(costs)))


def test_first_ranges_are_balanced_by_cost() -> None:
    feeder: Feeder[str] = Feeder(10, ["a", "b"], depth=10, costs=[9, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    assert feeder.take("a") == 0
    assert feeder.take("b") == 1


def test_an_idle_worker_takes_the_back_half_of_the_dearest_range() -> None:
    feeder: Feeder[str] = Feeder(9, ["a", "b", "idle"], depth=1, costs=[1, 1, 1, 1, 10, 1, 1, 6, 6])
    assert [feeder.take("a"), feeder.take("b"), feeder.take("idle")] == [0, 4, 7]
    feeder.done("idle", 7)
    assert feeder.take("idle") == 8
    feeder.done("idle", 8)
    assert feeder.take("idle") == 2  # 1, 2, 3 are left to a, of cost 3; 5, 6 to b, of cost 2
    feeder.done("idle", 2)
    assert feeder.take("idle") == 3


def test_equal_costs_are_taken_like_no_costs() -> None:
    def run(costs: list[float] | None) -> list[int | None]:
        feeder: Feeder[str] = Feeder(23, ["slow", "fast"], depth=1, costs=costs)
        order = [feeder.take("slow")]
        while (chunk := feeder.take("fast")) is not None:
            order.append(chunk)
            feeder.done("fast", chunk)
        return order

    assert run([2.5] * 23) == run(None)


@pytest.mark.parametrize("costs", [[1.0], [1.0, -1.0], [1.0, float("inf")], [1.0, float("nan")]])
def test_impossible_costs_are_refused(costs: list[float]) -> None:
    with pytest.raises(ValueError, match="costs"):
        Feeder(2, depth=1, costs=costs)


@pytest.mark.parametrize(("count", "depth"), [(-1, 1), (1, 0)])
def test_impossible_sizes_are_refused(count: int, depth: int) -> None:
    with pytest.raises(ValueError, match="count"):
        Feeder(count, depth=depth)
