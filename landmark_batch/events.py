"""What happens in a job, as values, and where it goes: a log, JSON lines, a progress bar (made by the command line)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Preparing:
    """Something that takes long is being made before the job starts (compiled kernels). share: done of it, 0 to 1."""

    what: str
    share: float
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class JobStarted:
    """frames: all frames the job wants. todo: those still to render. cost: of these in any unit, where it is known; see ChunkDone."""

    name: str
    store: str
    frames: int
    todo: int
    chunks: int
    workers: int
    runtime: str
    dashboard: str | None
    cost: float | None = None
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class ChunkStarted:
    chunk: str
    worker: str
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class ChunkDone:
    """A chunk stands in the store. seconds: wall time of the chunk on its worker; stages: seconds by stage name.

    cost: what it was expected to take, in the unit of JobStarted's.
    """

    chunk: str
    frames: tuple[int, ...]
    worker: str
    attempt: int
    seconds: float
    stages: dict[str, float]
    counters: dict[str, int]
    cost: float | None = None
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class ChunkFailed:
    chunk: str
    frames: tuple[int, ...]
    worker: str
    error: str
    final: bool
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class JobDone:
    """state: 'complete', 'incomplete' or 'interrupted'. missing: frames the job wanted and did not get."""

    name: str
    state: str
    rendered: int
    missing: tuple[int, ...]
    seconds: float
    startup_seconds: float
    at: float = field(default_factory=time.time)


Event = Preparing | JobStarted | ChunkStarted | ChunkDone | ChunkFailed | JobDone


class EventSink(Protocol):
    def __call__(self, event: Event) -> None: ...


def event_record(event: Event) -> dict[str, object]:
    """The event as a JSON-ready dict with its kind under 'event'."""
    return {"event": type(event).__name__, **vars(event)}


def event_from_record(record: Mapping[str, Any]) -> Event:
    """The event that `event_record` made a record of, also after a way through JSON or msgpack."""
    kind = _KINDS[str(record["event"])]
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items() if name != "event"}
    return kind(**values)


_KINDS: dict[str, Callable[..., Event]] = {
    kind.__name__: kind
    for kind in (
        Preparing,
        JobStarted,
        ChunkStarted,
        ChunkDone,
        ChunkFailed,
        JobDone,
    )
}


class LogSink:
    """One log line an event."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._log = logger or logging.getLogger("landmark_batch.job")

    def __call__(self, event: Event) -> None:
        level = logging.WARNING if isinstance(event, ChunkFailed) else logging.INFO
        values = {k: v for k, v in event_record(event).items() if k not in ("event", "at")}
        self._log.log(level, "%s %s", type(event).__name__, json.dumps(values, sort_keys=False))


class JsonLinesSink:
    """Appends one JSON object an event to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, event: Event) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event_record(event)) + "\n")
