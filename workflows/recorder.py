"""What a run counts while it goes: events to their sinks, receipts to sums, the clock of the first chunk and the last."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from landmark_batch.chunks import FrameChunk
from landmark_batch.errors import LandmarkError
from landmark_batch.events import ChunkDone, ChunkStarted, Event, EventSink, LogSink
from landmark_batch.workflows.driver import DriverResult

logger = logging.getLogger(__name__)


class RunRecorder:
    """rendered: frames. failures: chunk id -> error, failed: their frames.

    stages: seconds by name, over all workers. counters: rays, samples, ... interrupted, fatal: as in DriverResult.
    first_at, last_at: time.monotonic() of the first chunk's beginning and the last receipt.
    """

    def __init__(self, sinks: Sequence[EventSink], log: logging.Logger | None = None) -> None:
        self.sinks: list[EventSink] = [LogSink(log), *sinks]
        self.rendered = 0
        self.failures: dict[str, str] = {}
        self.failed: set[int] = set()
        self.stages: defaultdict[str, float] = defaultdict(float)
        self.counters: Counter[str] = Counter()
        self.interrupted = False
        self.fatal: LandmarkError | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self._spans: dict[tuple[str, int], list[tuple[float, float]]] = {}  # (began, ended) of chunks, by worker process

    def emit(self, event: Event) -> None:
        """To every sink; one that fails is logged and does not stop the job."""
        now = time.monotonic()
        if isinstance(event, ChunkStarted) and self.first_at is None:
            self.first_at = now - max(0.0, time.time() - event.at)
        for sink in self.sinks:
            try:
                sink(event)
            except Exception:
                logger.exception("a sink failed on %s", type(event).__name__)
        if isinstance(event, ChunkDone):
            self.last_at = now

    def add(self, result: DriverResult, chunks: Sequence[FrameChunk]) -> None:
        self.rendered += result.rendered
        self.interrupted |= result.interrupted
        self.fatal = self.fatal or result.fatal
        for number, error in result.failed.items():
            self.failures[chunks[number].id] = error
            self.failed.update(chunks[number].frames)
        for receipt in result.receipts:
            for name, seconds in receipt["stages"].items():
                self.stages[name] += seconds
            self.counters.update(receipt["counters"])
            if receipt["frames"]:
                self._spans.setdefault((receipt["host"], receipt["pid"]), []).append((receipt["began"], receipt["ended"]))
        self.stages["idle"] = _gaps(self._spans.values())

    @property
    def worker_seconds(self) -> float:
        """Of rendering and of waiting between chunks, over all workers."""
        return sum(end - begin for spans in self._spans.values() for begin, end in spans) + self.stages["idle"]

    @property
    def render_seconds(self) -> float:
        """Wall time from the first chunk's beginning to the last receipt."""
        return self.last_at - self.first_at if self.first_at is not None and self.last_at is not None else 0.0


def _gaps(workers: Iterable[Sequence[tuple[float, float]]]) -> float:
    """Seconds between the chunks of each worker, over all workers."""
    return sum((max(0.0, after[0] - before[1]) for spans in workers for before, after in pairwise(sorted(spans))), 0.0)
