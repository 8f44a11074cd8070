"""The pool of single-threaded threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from landmark_batch.model import pool as pools
from landmark_batch.model.pool import TilePool


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_results_come_in_order(threads: int) -> None:
    def slow_when_even(i: int) -> int:
        time.sleep(0.002 if i % 2 == 0 else 0)
        return i * i

    assert list(TilePool(threads).map(slow_when_even, range(20))) == [i * i for i in range(20)]
    assert list(TilePool(threads).map(slow_when_even, [])) == []


def test_threads_are_torchs_only_ones() -> None:
    pool = TilePool(2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        numbers = set(pool.map(lambda _: (threading.current_thread() is threading.main_thread(), torch.get_num_threads()), range(8)))
        assert numbers == {(False, 1)}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        pool.close()


def test_every_thread_has_started_when_the_first_item_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that starts later would set torch's default while somebody else sets it."""
    begun: list[str] = []
    done: list[str] = []

    def slow() -> None:
        begun.append(threading.current_thread().name)
        time.sleep(0.1 * len(begun))
        single()
        done.append(threading.current_thread().name)

    single = pools._use_one_thread
    monkeypatch.setattr(pools, "_use_one_thread", slow)
    tiles = TilePool(3)
    tiles.run(lambda _: None, range(1))
    assert len(done) == 3 and sorted(done) == sorted(begun)
    tiles.close()


def test_no_more_is_made_than_threads_and_one_waiting() -> None:
    started: list[int] = []

    def start(i: int) -> int:
        started.append(i)
        return i

    results = TilePool(2).map(start, range(50))
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 5


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_reaches_the_caller(threads: int) -> None:
    def fail(i: int) -> int:
        if i == 3:
            raise ValueError("tile 3")
        return i

    with pytest.raises(ValueError, match="tile 3"):
        list(TilePool(threads).map(fail, range(10)))


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_run_does_each_item_once(threads: int) -> None:
    pool = TilePool(threads)
    done: list[int] = []
    for items in (range(40), range(1), range(0)):
        done.clear()
        pool.run(done.append, items)
        assert sorted(done) == list(items)
    pool.close()


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("error", [ValueError, IndexError])
def test_run_raises_what_an_item_raises_and_leaves_the_rest(threads: int, error: type[Exception]) -> None:
    begun: list[int] = []
    both = threading.Barrier(max(threads, 1))

    def fail(i: int) -> None:
        begun.append(i)
        both.wait(timeout=60)  # the others have begun theirs
        raise error("tile")

    pool = TilePool(threads)
    with pytest.raises(error, match="tile"):
        pool.run(fail, range(10))
    assert len(begun) == max(threads, 1)
    pool.close()
