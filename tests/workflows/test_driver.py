"""The driver against a pool that needs no processes: every policy of failure, loss and stopping."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from landmark_batch.chunks import FrameChunk, split_frames
from landmark_batch.errors import CheckpointError
from landmark_batch.events import ChunkDone, ChunkFailed, ChunkStarted, Event
from landmark_batch.workflows.driver import KILLS, Driver, DriverResult
from landmark_batch.workflows.outcomes import Failed, Finished, Lost, Message, Refused

Script = Callable[[int, int, str], Message | None]


def receipt(chunk: FrameChunk, rendering: float = 2.0) -> dict[str, object]:
    times = {"seconds": rendering + 0.5, "began": 1000.0, "ended": 1000.0 + rendering}
    return {"frames": list(chunk.frames), "skipped": [], **times, "stages": {"render": rendering}, "counters": {"rays": 7}}


@dataclass
class Wishes:
    """What people ask of the run, set by a test at any moment."""

    stopped: bool = False
    aborted: bool = False
    paused: bool = False

    def stop(self) -> bool:
        return self.stopped or self.aborted

    def abort(self) -> bool:
        return self.aborted

    def pause(self) -> bool:
        return self.paused


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
        self.tired: set[str] = set()
        self.dismissed: list[str] = []
        self.replaced: list[str] = []
        self.excluded: list[str] = []
        self.pauses: list[bool] = []
        self.on_their_way = False

    def workers(self) -> Mapping[str, str]:
        return self.present

    def resting(self) -> frozenset[str]:
        return frozenset(self.tired)

    def dismiss(self, address: str) -> None:
        self.dismissed.append(address)
        self.present.pop(address, None)

    def replace(self, address: str, reason: str) -> None:
        self.replaced.append(address)
        self.present[f"{address}'"] = self.present.pop(address)

    def exclude(self, address: str, reason: str) -> None:
        self.excluded.append(address)
        self.tired.add(address)

    def coming(self) -> bool:
        return self.on_their_way

    def lacking(self) -> str:
        return "2 workers are there, a group needs 4"

    def pause(self, paused: bool) -> None:
        self.pauses.append(paused)

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


def drive(pool: FakePool, wishes: Wishes | None = None, **options: float) -> tuple[DriverResult, list[Event]]:
    events: list[Event] = []
    driver = Driver(pool, pool.chunks, emit=events.append, steering=wishes or Wishes(), poll=options.pop("poll", 0.0), **options)  # type: ignore[arg-type]
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
    assert (events[0].chunk, events[0].stages, events[0].counters) == ("000000-000003+4", {"render": 2.0}, {"rays": 7})


@pytest.mark.parametrize(("rendering", "passing", "deep"), [(2.0, False, 2), (0.2, False, 3), (2.0, True, 3), (0.2, True, 4)])
def test_quick_chunks_are_three_deep(rendering: float, passing: bool, deep: int) -> None:
    chunks = split_frames(range(96), 4)
    pool = FakePool(chunks, ["a"])
    pool.script = lambda number, attempt, _: Finished(number, attempt, receipt(chunks[number], rendering))
    result, _ = drive(pool, passing=passing)
    assert result.rendered == 96 and pool.in_hand_most == deep


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


@pytest.mark.parametrize(("own", "tries"), [(True, 3), (False, KILLS)])
def test_a_chunk_that_ends_its_workers_is_set_aside(chunks: list[FrameChunk], own: bool, tries: int) -> None:
    """After three crashes of its own; kills from outside are no fault of a chunk's until they are suspiciously many."""
    pool = FakePool(chunks, ["a"])
    pool.script = lambda number, attempt, _: (
        Lost(number, attempt, "its process died", own=own) if number == 4 else pool.finished(number, attempt)
    )
    result, events = drive(pool)
    assert result.rendered == 36
    assert list(result.failed) == [4]
    assert "worker died" in result.failed[4]
    finals = [event.final for event in events if isinstance(event, ChunkFailed) and event.chunk == chunks[4].id]
    assert finals == [False] * (tries - 1) + [True]


def test_a_group_that_takes_fewer_slots_is_held_against_nobody(chunks: list[FrameChunk]) -> None:
    """However often, and though it had more chunks in hand; people read one line each time."""
    pool = FakePool(chunks, ["a", "b"])
    times = KILLS + 1
    pool.script = lambda number, attempt, _: (
        Lost(number, attempt, "fewer slots", own=True, excused=True) if number == 4 and attempt < times else pool.finished(number, attempt)
    )
    result, events = drive(pool)
    assert (result.rendered, result.failed, pool.excluded) == (40, {}, [])
    failed = [event for event in events if isinstance(event, ChunkFailed)]
    assert [(event.chunk, event.error, event.final) for event in failed] == [(chunks[4].id, "fewer slots", False)] * times


def test_a_worker_on_which_three_chunks_fail_gets_no_more(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a", "b"])
    pool.present |= {"a": "w0", "b": "w1"}
    pool.script = lambda number, attempt, address: (
        Failed(number, attempt, ValueError("bad memory")) if address == "a" else pool.finished(number, attempt)
    )
    result, _ = drive(pool)
    assert pool.excluded == ["a"]
    assert pool.dismissed == ["a"]
    assert len(result.done) == len(chunks) - len(result.failed)
    assert sum(address == "a" for _, _, address in pool.submitted) <= 5


def test_the_last_worker_is_never_taken_out(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a"])
    pool.script = lambda number, attempt, _: Failed(number, attempt, ValueError("NaN")) if number < 4 else pool.finished(number, attempt)
    result, _ = drive(pool)
    assert (pool.excluded, sorted(result.failed)) == ([], [0, 1, 2, 3])


def test_a_resting_worker_finishes_what_it_has_and_is_dismissed(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a", "b"])

    def script(number: int, attempt: int, address: str) -> Message:
        if len(pool.submitted) == 3:
            pool.tired.add("a")
        return pool.finished(number, attempt)

    pool.script = script
    result, events = drive(pool)
    assert result.rendered == 40
    assert pool.dismissed == ["a"]
    assert not [event for event in events if isinstance(event, ChunkFailed)]
    assert sum(address == "a" for _, _, address in pool.submitted) <= 3


def test_a_worker_that_is_silent_for_ten_times_the_slowest_chunk_is_replaced(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a"])
    now = [0.0]

    def script(number: int, attempt: int, address: str) -> Message | None:
        now[0] += 1.0
        if number == 5 and address == "a":
            pool.waiting.append(ChunkStarted(chunks[5].id, "w"))
            return None
        return pool.finished(number, attempt)

    pool.script = script
    waited: list[float] = []

    def wait(timeout: float) -> Message | None:
        if not pool.waiting:
            now[0] += 5.0
            waited.append(now[0])
        return pool.waiting.popleft() if pool.waiting else None

    pool.next = wait  # type: ignore[method-assign]
    result, events = drive(pool, clock=lambda: now[0])  # type: ignore[arg-type]
    assert result.rendered == 40
    assert pool.replaced == ["a"]
    assert waited[-1] - waited[0] >= 25  # a chunk takes 0.5 s here: the limit is 30 s, not 5
    assert next(event.final for event in events if isinstance(event, ChunkFailed)) is False


def test_a_paused_job_lets_go_of_its_workers_and_goes_on(chunks: list[FrameChunk]) -> None:
    wishes, pool = Wishes(), FakePool(chunks, ["a", "b"])
    looks = [0]

    def script(number: int, attempt: int, _: str) -> Message:
        wishes.paused = len(pool.submitted) >= 5 and not pool.pauses
        return pool.finished(number, attempt)

    def wait(timeout: float) -> Message | None:
        if pool.pauses == [True]:
            looks[0] += 1
            wishes.paused = looks[0] < 10
        return pool.waiting.popleft() if pool.waiting else None

    pool.script = script
    pool.next = wait  # type: ignore[method-assign]
    result, _ = drive(pool, wishes)
    assert pool.pauses == [True, False]
    assert (result.rendered, result.interrupted) == (40, False)


def test_an_aborted_job_waits_for_nobody(chunks: list[FrameChunk]) -> None:
    wishes, pool = Wishes(), FakePool(chunks, ["a", "b"], lambda *_: None)
    pool.next = lambda timeout: setattr(wishes, "aborted", True)  # type: ignore[method-assign, assignment]
    result, _ = drive(pool, wishes)
    assert (result.interrupted, result.rendered) == (True, 0)


def test_word_that_the_job_cannot_be_opened_ends_it_without_any_chunk(chunks: list[FrameChunk]) -> None:
    pool, broken = FakePool(chunks, []), CheckpointError("host b: scene.th is another scene")
    pool.waiting.append(Refused(broken))
    assert drive(pool)[0].fatal is broken


def test_a_lost_receipt_costs_one_more_look_not_the_worker(chunks: list[FrameChunk]) -> None:
    pool = FakePool(chunks, ["a"])
    pool.script = lambda number, attempt, _: (
        Lost(number, attempt, "timeout", worker_gone=False) if attempt == 0 else pool.finished(number, attempt)
    )
    result, events = drive(pool)
    assert (result.rendered, pool.forgotten) == (40, [])
    assert not [event for event in events if isinstance(event, ChunkFailed)]


def test_a_group_that_loads_its_scene_for_long_is_waited_for(chunks: list[FrameChunk]) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 10.0
        if now > 1000:  # far past the timeout
            pool.on_their_way = False
            pool.present["a"] = "w"
        return now

    pool = FakePool(chunks, [])
    pool.on_their_way = True
    result = Driver(pool, chunks, emit=list[Event]().append, steering=Wishes(), poll=0.0, worker_timeout=60, clock=clock).run()
    assert result.fatal is None
    assert result.rendered == sum(len(chunk.frames) for chunk in chunks)


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
