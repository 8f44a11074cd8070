"""What a driver and its workers tell each other: how chunks ended, who is there, what people ask of the run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

from landmark_batch.events import ChunkStarted
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.order import ABORT_FILE, PAUSE_FILE, STOP_FILE, is_set

LOOK_SECONDS = 0.2  # between two looks at the steering files


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
    """The chunk's outcome is lost; with worker_gone, its worker and all it had in hand are. own: the chunk's work ended the worker.
    excused: nobody is to blame, as often as it happens.
    """

    number: int
    attempt: int
    reason: str
    worker_gone: bool = True
    own: bool = False
    excused: bool = False


@dataclass(frozen=True)
class Refused:
    """Workers cannot open the job, chunk or no chunk."""

    error: BaseException


Message = Finished | Failed | Lost | Refused | ChunkStarted


class WorkerPool(Protocol):
    """What the driver needs of a cluster. Workers are known by an address that is never used twice."""

    def workers(self) -> Mapping[str, str]:
        """Address -> name of every worker that is there now."""
        ...

    def resting(self) -> AbstractSet[str]:
        """Addresses of workers that shall get no more chunks; once their hands are empty they are dismissed."""
        ...

    def dismiss(self, address: str) -> None:
        """A resting worker has nothing in hand any more."""
        ...

    def replace(self, address: str, reason: str) -> None:
        """End a worker that hangs; a fresh one comes for it under another address."""
        ...

    def exclude(self, address: str, reason: str) -> None:
        """A worker has failed too often: it rests from now on, for the whole job."""
        ...

    def coming(self) -> bool:
        """Whether a worker is on its way: it loads its scene, which may take long."""
        ...

    def lacking(self) -> str:
        """What is missing for a worker to be there, in words; '' if nothing is known."""
        ...

    def pause(self, paused: bool) -> None:
        """Have the workers free their memory, or open the job again."""
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


class Steering:
    """What people ask of a run, by files in its folder; see `order`."""

    def __init__(self, folder: StorePath) -> None:
        self._folder = folder
        self._looked_at = float("-inf")
        self._set: frozenset[str] = frozenset()

    def stop(self) -> bool:
        return not self._look().isdisjoint((STOP_FILE, ABORT_FILE))

    def abort(self) -> bool:
        return ABORT_FILE in self._look()

    def pause(self) -> bool:
        return PAUSE_FILE in self._look()

    def _look(self) -> frozenset[str]:
        now = time.monotonic()
        if now - self._looked_at > LOOK_SECONDS:
            self._looked_at = now
            self._set = frozenset(name for name in (STOP_FILE, ABORT_FILE, PAUSE_FILE) if is_set(self._folder, name))
        return self._set
