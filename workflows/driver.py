"""Runs a job's chunks through a pool of workers: feeds windows, counts failures, stops when asked. Knows no Dask.

The pool says what happened to a chunk; the driver decides what follows. A chunk whose worker died goes out again; a chunk
that failed with its own error goes out up to three times in all and is then set aside; a full disk or a scene that no
worker can load ends the job. The store's ledger, not this module, says which frames stand.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from landmark_batch.chunks import FrameChunk
from landmark_batch.errors import DiskFullError, GroupError, LandmarkError, RenderIncompleteError
from landmark_batch.events import ChunkDone, ChunkFailed, ChunkStarted, Event
from landmark_batch.workflows.feeder import Feeder

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # own errors, and separately deaths of its worker, after which a chunk is set aside
SETUP_FAILURES = 3  # workers that could not open the job, before the job gives up
HOPELESS = 10  # chunks set aside one after another, none rendered between, before the job gives up


@dataclass(frozen=True)
class Finished:
    """The chunk's frames stand. receipt: see worker.render_chunk."""

    number: int
    attempt: int
    receipt: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """The chunk's task raised. setup: the worker could not even open the job."""

    number: int
    attempt: int
    error: BaseException
    setup: bool = False


@dataclass(frozen=True)
class Lost:
    """The chunk's outcome is lost; with worker_gone, its worker and all it had in hand are."""

    number: int
    attempt: int
    reason: str
    worker_gone: bool = True


Message = Finished | Failed | Lost | ChunkStarted


class WorkerPool(Protocol):
    """What the driver needs of a cluster. Workers are known by an address that is never used twice."""

    def workers(self) -> Mapping[str, str]:
        """Address -> name of every worker that takes chunks now."""
        ...

    def submit(self, number: int, attempt: int, address: str) -> None: ...

    def forget(self, number: int, attempt: int) -> None:
        """Drop a task whose outcome no longer matters."""
        ...

    def next(self, timeout: float) -> Message | None:
        """The next outcome (or word that a chunk has begun), None after `timeout` seconds without one."""
        ...

    def hold(self) -> None:
        """Chunks that have not begun return at once, unrendered."""
        ...


@dataclass
class DriverResult:
    """failed: chunk number -> its last error. fatal: what ended the job before its time."""

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
        stop: threading.Event,
        depth: int = 2,
        worker_timeout: float = 120.0,
        poll: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._chunks = chunks
        self._emit = emit
        self._stop = stop
        self._names: dict[str, str] = dict(pool.workers())
        self._feeder: Feeder[str] = Feeder(len(chunks), self._names, depth=depth)
        self._attempt: Counter[int] = Counter()
        self._out: dict[int, tuple[int, str]] = {}  # chunk -> (attempt, address) now in hand
        self._errors: Counter[int] = Counter()
        self._deaths: Counter[int] = Counter()
        self._setup_failures = 0
        self._set_aside_in_a_row = 0
        self._worker_timeout = worker_timeout
        self._poll = poll
        self._clock = clock
        self._looked_at = self._worker_seen_at = clock()
        self._result = DriverResult()
        self._holding = False

    def run(self) -> DriverResult:
        result = self._result
        while True:
            if self._stop.is_set() and not self._holding:
                result.interrupted = True
                self._hold()
            if not self._holding:
                self._feed()
            if not self._out and (self._holding or not self._feeder.left):
                return result
            message = self._pool.next(self._poll)
            if isinstance(message, ChunkStarted):
                self._emit(message)
            elif message is not None and self._out.get(message.number, (None, ""))[0] == message.attempt:
                self._handle(message)
            if self._clock() - self._looked_at >= self._poll:
                self._look()

    def _hold(self) -> None:
        self._holding = True
        self._pool.hold()

    def _feed(self) -> None:
        fed = True
        while fed:  # one chunk a worker and round, so that nobody waits for another's second
            fed = False
            for address in self._feeder.workers:
                number = self._feeder.take(address)
                if number is not None:
                    attempt = self._attempt[number]
                    self._attempt[number] += 1
                    self._out[number] = (attempt, address)
                    self._pool.submit(number, attempt, address)
                    fed = True

    def _look(self) -> None:
        """Which workers are there now? Chunks in the hands of those that are gone go out again."""
        now = self._clock()
        self._looked_at = now
        present = dict(self._pool.workers())
        for address in self._feeder.workers:
            if address not in present:
                self._lose_worker(address, "it left the cluster")
        for address, name in present.items():
            self._names[address] = name
            self._feeder.add_worker(address)
        if present:
            self._worker_seen_at = now
        elif now - self._worker_seen_at > self._worker_timeout:
            self._result.fatal = GroupError(
                f"no worker has been there for {now - self._worker_seen_at:.0f} seconds",
                remedy="the log file says why they ended; the same command goes on where this one stopped",
            )
            self._holding = True
            self._out.clear()

    def _handle(self, message: Finished | Failed | Lost) -> None:
        number = message.number
        _, address = self._out[number]
        if isinstance(message, Lost) and message.worker_gone:
            self._lose_worker(address, message.reason)
            return
        del self._out[number]
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
        self._setup_failures = self._set_aside_in_a_row = 0
        result = self._result
        result.done.add(number)
        again = receipt["skipped"] if message.attempt else ()  # an earlier attempt rendered them, its receipt was lost
        result.rendered += len(receipt["frames"]) + len(again)
        result.receipts.append({key: value for key, value in receipt.items() if key != "digests"})
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

    def _lose_worker(self, address: str, reason: str) -> None:
        """Everything the worker had in hand is rendered again; its death is held against the chunk it was rendering."""
        lost = self._feeder.remove_worker(address)
        logger.info("worker %s is lost (%s), chunks in its hand: %s", self._names.get(address, address), reason, list(lost))
        for i, number in enumerate(lost):
            attempt, _ = self._out.pop(number)
            self._pool.forget(number, attempt)
            if i == 0:
                self._deaths[number] += 1
            self._report(
                number,
                address,
                f"its worker died: {reason}" if i == 0 else f"it waited on a worker that died: {reason}",
                final=self._deaths[number] >= ATTEMPTS,
            )
        if lost and self._deaths[lost[0]] >= ATTEMPTS:
            self._set_aside(lost[0])

    def _fail(self, number: int, address: str, message: Failed) -> None:
        error = message.error
        text = describe_error(error)
        self._feeder.give_back(address, number)
        if isinstance(error, DiskFullError):
            self._give_up(error)
        elif message.setup:
            self._setup_failures += 1
            if isinstance(error, LandmarkError):
                self._give_up(error)
            elif self._setup_failures >= SETUP_FAILURES:
                self._give_up(GroupError(f"workers cannot open the job: {text}", remedy="the log file holds the whole error"))
        else:
            self._errors[number] += 1
        final = self._errors[number] >= ATTEMPTS
        self._report(number, address, text, final=final)
        if final:
            self._set_aside(number)

    def _give_up(self, error: LandmarkError) -> None:
        if self._result.fatal is None:
            self._result.fatal = error
            self._hold()

    def _set_aside(self, number: int) -> None:
        self._feeder.drop(number)
        self._set_aside_in_a_row += 1
        if self._set_aside_in_a_row >= HOPELESS:
            self._give_up(
                RenderIncompleteError(
                    f"{HOPELESS} chunks failed one after another, the last with: {self._result.failed[number]}",
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
