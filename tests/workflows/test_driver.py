"""The driver against a pool that needs no processes: every policy of failure, loss and stopping."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping

import pytest

from landmark_batch.chunks import FrameChunk, split_frames
from landmark_batch.errors import CheckpointError, DiskFullError, GroupError, RenderIncompleteError
from landmark_batch.events import ChunkDone, ChunkFailed, Event
from landmark_batch.workflows.driver import Driver, DriverResult, Failed, Finished, Lost, Message

Script = Callable[[int, int, str], Message | None]


def receipt(chunk: FrameChunk) -> dict[str, object]:
    return {"frames": list(chunk.frames), "skipped": [], "seconds": 0.5, "stages": {"render": 0.4}, "counters": {"rays": 7}}


class FakePool:
    """Outcomes come in the order of submission; `script(number, attempt, address)` says what they are (None = it never ends)."""

    def __init__(self, chunks: list[FrameChunk], workers: list[str], script: Script | None = None) -> None:
        self.chunks = chunks
        self.present = dict.fromkeys(workers, "w")
        self.script = script
        self.submitted: list[tuple[int, int, str]] = []
        self.forgotten: list[tuple[int, int]] = []
        self.waiting: deque[Message] = deque()
        self.held = False
        self.in_hand_most = 0

    def workers(self) -> Mapping[str, str]:
        return self.present

    def submit(self, number: int, attempt: int, address: str) -> None:
        assert address in self.present
        self.submitted.append((number, attempt, address))
        self.in_hand_most = max(self.in_hand_most, len(self.waiting) + 1)
        message = self.script(number, attempt, address) if self.script else self.finished(number, attempt)
        if message is not None:
            self.waiting.append(message)

    def finished(self, number: int, attempt: int) -> Finished:
        return Finished(number, attempt, receipt(self.chunks[number]))

    def forget(self, number: int, attempt: int) -> None:
        self.forgotten.append((number, attempt))

    def next(self, timeout: float) -> Message | None:
        return self.waiting.popleft() if self.waiting else None

    def hold(self) -> None:
        self.held = True


def drive(pool: FakePool, stop: threading.Event | None = None, **options: float) -> tuple[DriverResult, list[Event]]:
    events: list[Event] = []
    driver = Driver(pool, pool.chunks, emit=events.append, stop=stop or threading.Event(), poll=options.pop("poll", 0.0), **options)  # type: ignore[arg-type]
    return driver.run(), events


@pytest.fixture
def chunks() -> list[FrameChunk]:
    return split_frames(range(40), 4)


def test_a_calm_run_submits_each_chunk_once_two_deep(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a", "b"])
    result, events = drive(pool)
    assert sorted(number for number, _, _ in pool.submitted) == list(range(10))
    assert pool.in_hand_most <= 4
    assert (result.rendered, result.failed, result.interrupted, result.fatal) == (40, {}, False, None)
    assert [type(event) for event in events] == [ChunkDone] * 10
    assert isinstance(events[0], ChunkDone)
    assert (events[0].chunk, events[0].stages, events[0].counters) == ("000000-000003+4", {"render": 0.4}, {"rays": 7})


def test_a_chunk_that_fails_three_times_is_set_aside_and_the_rest_goes_on(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a", "b"])
    pool.script = lambda number, attempt, _: (
        Failed(number, attempt, ValueError("frame 12 holds NaN")) if number == 3 else pool.finished(number, attempt)
    )
    result, events = drive(pool)
    assert result.rendered == 36
    assert result.failed == {3: "ValueError: frame 12 holds NaN"}
    failures = [event for event in events if isinstance(event, ChunkFailed)]
    assert [event.final for event in failures] == [False, False, True]
    assert failures[-1].frames == (12, 13, 14, 15)
    assert [attempt for number, attempt, _ in pool.submitted if number == 3] == [0, 1, 2]


def test_a_failure_that_passes_is_forgotten(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a"])
    pool.script = lambda number, attempt, _: Failed(number, attempt, OSError("once")) if attempt < 2 else pool.finished(number, attempt)
    result, _ = drive(pool)
    assert (result.rendered, result.failed) == (40, {})


def test_all_a_dead_worker_had_is_rendered_again_by_another(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a", "b"])

    def script(number: int, attempt: int, address: str) -> Message | None:
        if address == "a":
            pool.present.pop("a", None)
            return Lost(number, attempt, "its process died") if number == 0 else None
        return pool.finished(number, attempt)

    pool.script = script
    pool.present = {"a": "w0", "b": "w1"}
    real_workers = pool.workers
    calls = iter(range(1_000_000))
    pool.workers = lambda: {"a": "w0", "b": "w1"} if next(calls) == 0 else real_workers()  # type: ignore[method-assign]
    pool_submit = pool.submit

    def submit(number: int, attempt: int, address: str) -> None:
        pool.present.setdefault(address, "w")
        pool_submit(number, attempt, address)

    pool.submit = submit  # type: ignore[method-assign]
    result, events = drive(pool)
    assert (result.rendered, result.failed) == (40, {})
    assert (1, 0) in pool.forgotten  # the chunk waiting behind the dead one's is taken out of Dask's hands
    assert [event.chunk for event in events if isinstance(event, ChunkFailed)] == ["000000-000003+4", "000004-000007+4"]


def test_a_worker_that_silently_vanished_is_noticed(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a", "b"])
    pool.script = lambda number, attempt, address: None if address == "a" else pool.finished(number, attempt)
    looks = iter(range(1_000_000))
    pool.workers = lambda: {"a": "w0", "b": "w1"} if next(looks) < 5 else {"b": "w1", "a2": "w0"}  # type: ignore[method-assign]
    pool.present["a2"] = "w0"
    result, _ = drive(pool)
    assert (result.rendered, result.failed) == (40, {})
    assert {address for _, _, address in pool.submitted} == {"a", "b", "a2"}


def test_a_chunk_that_ends_three_workers_is_set_aside(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a"])
    pool.script = lambda number, attempt, _: Lost(number, attempt, "its process died") if number == 4 else pool.finished(number, attempt)
    result, events = drive(pool)
    assert result.rendered == 36
    assert list(result.failed) == [4]
    assert "worker died" in result.failed[4]
    assert [event.final for event in events if isinstance(event, ChunkFailed) and event.chunk == chunks[4].id] == [False, False, True]


def test_a_lost_receipt_costs_one_more_look_not_the_worker(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a"])
    pool.script = lambda number, attempt, _: (
        Lost(number, attempt, "timeout", worker_gone=False) if attempt == 0 else pool.finished(number, attempt)
    )
    result, events = drive(pool)
    assert (result.rendered, pool.forgotten) == (40, [])
    assert not [event for event in events if isinstance(event, ChunkFailed)]


def test_stop_waits_for_the_chunks_in_hand_and_feeds_no_more(chunks: list[FrameChunk]) -> None:
    stop = threading.Event()
    pool = FakePool(chunks, ["a", "b"])

    def script(number: int, attempt: int, _: str) -> Message:
        if len(pool.submitted) == 6:
            stop.set()
        if pool.held or len(pool.submitted) == 6:
            return Finished(number, attempt, {"stopped": True})
        return pool.finished(number, attempt)

    pool.script = script
    result, _ = drive(pool, stop)
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


def test_without_any_worker_the_job_ends_after_the_timeout(chunks: list[FrameChunk]) -> None:
    now = iter(range(0, 100_000, 10))
    pool = FakePool(chunks, [])
    events: list[Event] = []
    driver = Driver(pool, chunks, emit=events.append, stop=threading.Event(), poll=0.0, worker_timeout=60, clock=lambda: float(next(now)))
    result = driver.run()
    assert isinstance(result.fatal, GroupError)
    assert "no worker" in str(result.fatal)


def test_late_words_of_an_earlier_attempt_are_ignored(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks[:1], ["a"])

    def script(number: int, attempt: int, _: str) -> Message:
        if attempt == 0:
            return Lost(number, attempt, "receipt", worker_gone=False)
        pool.waiting.append(Finished(number, 0, receipt(chunks[0])))  # attempt 0 after all
        return pool.finished(number, attempt)

    pool.script = script
    result, events = drive(pool)
    assert result.rendered == 4
    assert [event.attempt for event in events if isinstance(event, ChunkDone)] == [1]
