"""How a job ends before all is done: stopped, out of disk, without workers, or because nothing works."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from landmark_batch.chunks import FrameChunk, split_frames
from landmark_batch.errors import CheckpointError, DiskFullError, GroupError, RenderIncompleteError
from landmark_batch.events import Event
from landmark_batch.workflows.driver import Driver
from landmark_batch.workflows.outcomes import Failed, Finished, Message
from tests.workflows.test_driver import FakePool, Wishes, drive


@pytest.fixture
def chunks() -> list[FrameChunk]:
    return split_frames(range(40), 4)


def test_stop_waits_for_the_chunks_in_hand_and_feeds_no_more(chunks: list[FrameChunk]) -> None:
    wishes = Wishes()
    pool = FakePool(chunks, ["a", "b"])

    def script(number: int, attempt: int, _: str) -> Message:
        if len(pool.submitted) == 6:
            wishes.stopped = True
        if pool.held or len(pool.submitted) == 6:
            return Finished(number, attempt, {"stopped": True})
        return pool.finished(number, attempt)

    pool.script = script
    result, _ = drive(pool, wishes)
    assert result.interrupted
    assert pool.held
    assert len(pool.submitted) == 6
    assert result.rendered == 20


def test_a_full_disk_ends_the_job_after_the_chunks_in_hand(chunks: list[FrameChunk]) -> None:
    full = DiskFullError("flight.zarr: the disk is full")
    pool = FakePool(chunks, ["a", "b"])
    pool.script = lambda number, attempt, _: Failed(number, attempt, full) if number == 1 else pool.finished(number, attempt)
    result, _ = drive(pool)
    assert result.fatal is full
    assert not result.interrupted
    assert len(pool.submitted) < len(chunks)


def test_a_scene_no_worker_can_load_ends_the_job_at_once(chunks: list[FrameChunk]) -> None:
    broken = CheckpointError("scene.th is truncated")
    pool = FakePool(chunks, ["a", "b"], lambda number, attempt, _: Failed(number, attempt, broken, setup=True))
    result, _ = drive(pool)
    assert result.fatal is broken
    assert result.rendered == 0


def test_workers_that_cannot_open_the_job_for_another_reason_are_tried_three_times(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a"], lambda number, attempt, _: Failed(number, attempt, MemoryError("out of memory"), setup=True))
    result, _ = drive(pool)
    assert isinstance(result.fatal, GroupError)
    assert "out of memory" in str(result.fatal)


def test_a_job_of_nothing_but_failures_gives_up() -> None:
    pool = FakePool(split_frames(range(400), 4), ["a", "b"], lambda number, attempt, _: Failed(number, attempt, ValueError("NaN")))
    result, _ = drive(pool)
    assert isinstance(result.fatal, RenderIncompleteError)
    assert len(pool.submitted) < 50


@pytest.mark.parametrize("bad", [range(10, 22), range(0, 12), range(24, 40), [*range(4, 16), *range(20, 32)]])
@pytest.mark.parametrize("workers", ["a", "ab", "abcdefgh"])
def test_a_bad_place_that_many_chunks_see_costs_no_other_frame(bad: Sequence[int], workers: str) -> None:
    pool = FakePool(split_frames(range(160), 4), list(workers))
    pool.script = lambda number, attempt, _: (
        Failed(number, attempt, ValueError("block 7 is damaged")) if number in bad else pool.finished(number, attempt)
    )
    result, _ = drive(pool)
    assert result.fatal is None
    assert sorted(result.failed) == sorted(bad)
    assert result.rendered == 160 - 4 * len(bad)
    assert pool.excluded == []  # no worker is blamed for what fails on others, too


def test_a_job_in_which_nothing_works_any_more_gives_up() -> None:
    """As many chunks are tried in vain, all over the rest of the flight, as were rendered before."""
    pool = FakePool(split_frames(range(800), 4), ["a", "b"])
    pool.script = lambda number, attempt, _: (
        pool.finished(number, attempt) if len(pool.submitted) <= 30 else Failed(number, attempt, OSError("input/output error"))
    )
    result, _ = drive(pool)
    assert isinstance(result.fatal, RenderIncompleteError)
    assert "input/output error" in str(result.fatal)
    assert 30 <= len(result.failed) <= 34  # and those in hand
    tried = sorted(result.failed)
    assert max(b - a for a, b in pairwise([0, *tried, 199])) < 40


def test_without_any_worker_the_job_ends_after_the_timeout(chunks: list[FrameChunk]) -> None:
    now = iter(range(0, 100_000, 10))
    pool = FakePool(chunks, [])
    events: list[Event] = []
    driver = Driver(pool, chunks, emit=events.append, steering=Wishes(), poll=0.0, worker_timeout=60, clock=lambda: float(next(now)))
    result = driver.run()
    assert isinstance(result.fatal, GroupError)
    assert "no worker" in str(result.fatal)
    assert "a group needs 4" in str(result.fatal)
