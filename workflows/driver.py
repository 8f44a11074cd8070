"""Runs a job's chunks through a pool of workers: feeds windows, counts failures, pauses and stops when asked. Knows no Dask.

A worker is whatever takes a chunk: a process, or the leader of a group of them. The pool says what happened to a chunk; the driver
decides what follows. A chunk whose worker died goes out again; a chunk that failed with its own error, or crashed its worker, goes
out up to three times in all and is then set aside; a full disk or a scene that no worker can load ends the job. A worker that is
silent for too long is replaced. The store's ledger, not this module, says which frames stand.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from landmark_batch.chunks import FrameChunk
from landmark_batch.errors import DiskFullError, GroupError, LandmarkError, RenderIncompleteError
from landmark_batch.events import ChunkDone, ChunkFailed, ChunkStarted, Event
from landmark_batch.workflows.feeder import Feeder
from landmark_batch.workflows.in_hand import CHUNKS, PASSING, QUICK_SECONDS, SLOW_CHUNKS
from landmark_batch.workflows.outcomes import Failed, Finished, Lost, Refused, Steering, WorkerPool
from landmark_batch.workflows.setbacks import Setbacks

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # own errors, and separately crashes of its worker, after which a chunk is set aside
KILLS = 10  # times that a chunk's worker was killed from outside (also by the system, for its memory), after which it is, too
SILENCE = (10.0, 30.0)  # times the slowest chunk so far, and at least so many seconds, until a worker counts as hung
LOOK_POLLS = (2, 4)  # waits for a word between two looks at which workers are there: while some lack, and while all that were are;
# whoever loses its chunk is known at once
SETUP_FAILURES = 3  # workers that could not open the job, before the job gives up


@dataclass
class DriverResult:
    """failed: chunk number -> its last error. fatal: what ended the job before its time. receipts: `frames` counted, no lists."""

    done: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    rendered: int = 0
    interrupted: bool = False
    fatal: LandmarkError | None = None
    receipts: list[Mapping[str, Any]] = field(default_factory=list)


class Driver:
    """One run of a job's chunks. `run` returns when nothing is left, the job is stopped, or it cannot go on."""

    def __init__(
        self,
        pool: WorkerPool,
        chunks: Sequence[FrameChunk],
        *,
        emit: Callable[[Event], None],
        steering: Steering,
        passing: bool = False,
        costs: Sequence[float] | None = None,
        worker_timeout: float = 120.0,
        render_timeout: float = 0.0,
        poll: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._chunks = chunks
        self._emit = emit
        self._steering = steering
        self._names: dict[str, str] = dict(pool.workers())
        self._more = PASSING if passing else 0
        self._feeder: Feeder[str] = Feeder(len(chunks), self._names, depth=SLOW_CHUNKS + self._more, costs=costs)
        self._attempt: Counter[int] = Counter()
        self._out: dict[int, tuple[int, str]] = {}  # chunk -> (attempt, address) now in hand
        self._errors: Counter[int] = Counter()
        self._deaths: Counter[int] = Counter()
        self._kills: Counter[int] = Counter()
        self._setup_failures = 0
        self._setbacks = Setbacks()
        self._begun: dict[int, float] = {}  # chunk -> when its rendering began
        self._slowest = 0.0
        self._failures: dict[str, tuple[str, str]] = {}  # worker's name -> address and error of its last failure
        self._excluded: set[str] = set()  # addresses
        self._worker_timeout = worker_timeout
        self._render_timeout = render_timeout
        self._poll = poll
        self._clock = clock
        self._looked_at = self._worker_seen_at = clock()
        self._most = 0  # workers that were there at once
        self._look_every = LOOK_POLLS[0] * poll
        self._result = DriverResult()
        self._holding = self._paused = False

    def run(self) -> DriverResult:
        result = self._result
        while True:
            self._steer()
            if not self._holding and not self._paused:
                self._feed()
            if not self._out and (self._holding or not (self._feeder.left or self._paused)):
                return result
            message = self._pool.next(self._poll)
            if isinstance(message, ChunkStarted):
                self._start(message)
            elif isinstance(message, Refused):
                self._refuse(message.error)
            elif message is not None and self._out.get(message.number, (None, ""))[0] == message.attempt:
                self._handle(message)
            if self._clock() - self._looked_at >= self._look_every:
                self._look()

    def _steer(self) -> None:
        steering = self._steering
        if steering.stop() and not self._holding:
            self._result.interrupted = True
            self._hold()
        if steering.abort():
            self._out.clear()
        paused = steering.pause() and not self._holding
        if paused and not self._paused and not self._out:
            logger.info("paused: workers free their memory")
            self._pool.pause(True)
            self._paused = True
        elif self._paused and not paused:
            logger.info("the job goes on")
            if not self._holding:
                self._pool.pause(False)
            self._paused = False
            self._worker_seen_at = self._clock()

    def _hold(self) -> None:
        self._holding = True
        self._pool.hold()

    def _feed(self) -> None:
        if self._steering.pause():
            return
        resting = self._pool.resting()
        fed = True
        while fed:  # one chunk a worker and round, so that nobody waits for another's second
            fed = False
            for address in self._feeder.workers:
                number = None if address in resting else self._feeder.take(address, apart=self._setbacks.apart)
                if number is not None:
                    self._setbacks.taken(number)
                    attempt = self._attempt[number]
                    self._attempt[number] += 1
                    self._out[number] = (attempt, address)
                    self._pool.submit(number, attempt, address)
                    fed = True

    def _start(self, event: ChunkStarted) -> None:
        for number in self._out:
            if self._chunks[number].id == event.chunk:
                self._begun[number] = self._clock()
        self._emit(event)

    def _look(self) -> None:
        """Which workers are there now? Chunks in the hands of those that are gone go out again."""
        now = self._clock()
        self._looked_at = now
        present = dict(self._pool.workers())
        resting = self._pool.resting()
        for address in self._feeder.workers:
            if address not in present:
                self._lose_worker(address, "it left the cluster")
            elif address in resting and not self._feeder.in_hand(address):
                self._feeder.remove_worker(address)
                self._pool.dismiss(address)
        for address, name in present.items():
            self._names[address] = name
            if address not in resting:
                self._feeder.add_worker(address)
        self._most = max(self._most, len(present))
        self._look_every = LOOK_POLLS[len(present) == self._most and not resting] * self._poll
        self._replace_hung(now)
        if present or self._paused or self._pool.coming():
            self._worker_seen_at = now
        elif now - self._worker_seen_at > self._worker_timeout:
            lacking = self._pool.lacking()
            self._result.fatal = GroupError(
                f"no worker has been there for {now - self._worker_seen_at:.0f} seconds{': ' if lacking else ''}{lacking}",
                remedy="the log file says why they ended; the same command goes on where this one stopped",
            )
            self._holding = True
            self._out.clear()

    def _replace_hung(self, now: float) -> None:
        limit = self._render_timeout or (max(SILENCE[0] * self._slowest, SILENCE[1]) if self._slowest else 0.0)
        for number, began in list(self._begun.items()):
            if number not in self._out:
                del self._begun[number]
            elif limit and now - began > limit:
                reason = f"it has not finished a chunk for {now - began:.0f} seconds (limit {limit:.0f})"
                address = self._out[number][1]
                self._pool.replace(address, reason)
                self._lose_worker(address, reason)

    def _handle(self, message: Finished | Failed | Lost) -> None:
        number = message.number
        _, address = self._out[number]
        if isinstance(message, Lost) and message.worker_gone:
            if message.excused:
                self._excuse(address, message.reason)
            else:
                self._lose_worker(address, message.reason, own=message.own)
            return
        del self._out[number]
        self._begun.pop(number, None)
        if isinstance(message, Lost):
            logger.info("chunk %s goes out again: %s", self._chunks[number].id, message.reason)
            self._feeder.give_back(address, number)
            return
        if isinstance(message, Failed):
            self._fail(number, address, message)
            return
        receipt = message.receipt
        if receipt.get("stopped"):
            self._feeder.give_back(address, number)
            return
        self._feeder.done(address, number)
        self._setup_failures = 0
        self._slowest = max(self._slowest, float(receipt["seconds"]))
        if receipt["frames"]:
            quick = float(receipt["ended"]) - float(receipt["began"]) < QUICK_SECONDS
            self._feeder.depth = (CHUNKS if quick else SLOW_CHUNKS) + self._more
        result = self._result
        result.done.add(number)
        again = receipt["skipped"] if message.attempt else ()  # an earlier attempt rendered them, its receipt was lost
        rendered = len(receipt["frames"]) + len(again)
        result.rendered += rendered
        if rendered:
            self._setbacks.rendered(number, self._names.get(address, address))
            self._exclude_suspects()
        told = {key: value for key, value in receipt.items() if key not in ("digests", "skipped")}
        result.receipts.append({**told, "frames": len(receipt["frames"])})
        self._emit(
            ChunkDone(
                chunk=self._chunks[number].id,
                frames=tuple(sorted([*receipt["frames"], *receipt["skipped"]])),
                worker=self._names.get(address, address),
                attempt=message.attempt,
                seconds=float(receipt["seconds"]),
                stages=dict(receipt["stages"]),
                counters=dict(receipt["counters"]),
            )
        )

    def _lose_worker(self, address: str, reason: str, *, own: bool = False) -> None:
        """Everything the worker had in hand is rendered again; its death is held against the chunk it was rendering."""
        lost = self._take_back(address, reason)
        deaths, limit = (self._deaths, ATTEMPTS) if own else (self._kills, KILLS)
        for i, number in enumerate(lost):
            if i == 0:
                deaths[number] += 1
            text = f"its worker died: {reason}" if i == 0 else f"it waited behind chunk {self._chunks[lost[0]].id}"
            self._report(number, address, text, final=i == 0 and deaths[number] >= limit)
        if lost and own:
            self._blame(address, lost[0], reason)
        if lost and deaths[lost[0]] >= limit:
            self._set_aside(lost[0])

    def _excuse(self, address: str, reason: str) -> None:
        """Everything the worker had in hand is rendered again, as often as it takes; one word of it is enough."""
        for number in self._take_back(address, reason)[:1]:
            self._report(number, address, reason, final=False)

    def _take_back(self, address: str, reason: str) -> tuple[int, ...]:
        """What a worker that is gone had in hand, in its order."""
        lost = self._feeder.remove_worker(address)
        logger.info("worker %s is lost (%s), chunks in its hand: %s", self._names.get(address, address), reason, list(lost))
        for number in lost:
            attempt, _ = self._out.pop(number)
            self._begun.pop(number, None)
            self._pool.forget(number, attempt)
        return tuple(lost)

    def _blame(self, address: str, number: int, reason: str) -> None:
        name = self._names.get(address, address)
        self._failures[name] = address, reason
        self._setbacks.failed(number, name)
        self._exclude_suspects()

    def _exclude_suspects(self) -> None:
        """Workers that are at fault themselves rest, unless one is the last."""
        for name in self._setbacks.suspects:
            address, reason = self._failures[name]
            if address not in self._excluded and set(self._pool.workers()) - self._pool.resting() - {address}:
                self._excluded.add(address)
                count = self._setbacks.failures_of(name)
                logger.warning(
                    "worker %s gets no more chunks: %d different ones failed on it alone, the last with: %s", name, count, reason
                )
                self._pool.exclude(address, reason)

    def _fail(self, number: int, address: str, message: Failed) -> None:
        error = message.error
        text = describe_error(error)
        self._feeder.give_back(address, number, failed=True)
        if isinstance(error, DiskFullError):
            self._give_up(error)
        elif message.setup:
            self._refuse(error)
        else:
            self._errors[number] += 1
            self._blame(address, number, text)
        final = self._errors[number] >= ATTEMPTS
        self._report(number, address, text, final=final)
        if final:
            self._set_aside(number)

    def _refuse(self, error: BaseException) -> None:
        self._setup_failures += 1
        if isinstance(error, LandmarkError):
            self._give_up(error)
        elif self._setup_failures >= SETUP_FAILURES:
            text = describe_error(error)
            self._give_up(GroupError(f"workers cannot open the job: {text}", remedy="the log file holds the whole error"))

    def _give_up(self, error: LandmarkError) -> None:
        if self._result.fatal is None:
            self._result.fatal = error
            self._hold()

    def _set_aside(self, number: int) -> None:
        self._feeder.drop(number)
        self._setbacks.set_aside(number)
        if self._setbacks.hopeless:
            self._give_up(
                RenderIncompleteError(
                    f"{self._setbacks.row} chunks from all over the flight failed one after another,"
                    f" the last with: {self._result.failed[number]}",
                    remedy="the log file holds every error; the same command goes on where this one stopped",
                )
            )

    def _report(self, number: int, address: str, text: str, *, final: bool) -> None:
        chunk = self._chunks[number]
        if final:
            self._result.failed[number] = text
        self._emit(ChunkFailed(chunk=chunk.id, frames=chunk.frames, worker=self._names.get(address, address), error=text, final=final))


def describe_error(error: BaseException) -> str:
    """One line for people: the message of our own errors, kind and message of others."""
    text = str(error).strip().replace("\n", " ")
    return text if isinstance(error, LandmarkError) else f"{type(error).__name__}: {text}" if text else type(error).__name__
