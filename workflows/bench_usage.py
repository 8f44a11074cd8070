"""What a run takes of its host beside its devices: CPU time and memory of this process and of its workers, as the run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

from landmark_batch.events import ChunkDone, ChunkStarted, Event
from landmark_batch.workflows.machine import resident_memory

QUARTERS = 4
LOOK_SHARE = 0.02  # of its time that the thread looks, at most
_CHILDREN_TURNS = (
    20  # looks at processes between two at which of them there are: that reads all of the machine's, and counts as the client's
)


@dataclass(frozen=True)
class Usage:
    """At one moment. client: this process (scheduler, client and driver of a job on this machine), workers: all processes it started.

    cpu: seconds since they began; memory: bytes as `resident_memory` counts them; (client, workers).
    """

    done: int
    cpu: tuple[float, float]
    memory: tuple[int, int]


class UsageWatch:
    """An event sink that looks at every quarter of a run, and a thread that keeps the largest memory. A context manager.

    frames: of the run. at: Usage when the first chunk began, and when a quarter, a half, three quarters and all of the frames stood.
    peak: largest sum of the workers' memory, bytes.
    """

    def __init__(self, frames: int, *, every: float = 0.25) -> None:
        self.at: list[Usage] = []
        self.peak = 0
        self.chunks = 0
        self._frames, self._done, self._every = frames, 0, every
        self._process = psutil.Process()
        self._children: Sequence[psutil.Process] = ()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="usage", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def __call__(self, event: Event) -> None:
        if isinstance(event, ChunkStarted) and not self.at:
            self.at.append(self._look())
        if isinstance(event, ChunkDone):
            before, self._done = self._done * QUARTERS // self._frames, self._done + len(event.frames)
            self.chunks += 1
            if self._done * QUARTERS // self._frames > before:
                self.at.append(self._look())

    @property
    def client_cpu(self) -> float:
        """Seconds of this process from the first chunk's beginning to the last frame."""
        return self.at[-1].cpu[0] - self.at[0].cpu[0] if self.at else 0.0

    def _look(self) -> Usage:
        self._children = _children(self._process)
        mine, theirs = _taken([self._process]), _taken(self._children)
        return Usage(self._done, (mine[0], theirs[0]), (mine[1], theirs[1]))

    def _watch(self) -> None:
        turn, pause = 0, self._every
        while not self._over.wait(pause):
            began = time.perf_counter()
            if turn % _CHILDREN_TURNS == 0:
                self._children = _children(self._process)
            turn += 1
            self.peak = max(self.peak, _taken(self._children)[1])
            pause = max(self._every, (time.perf_counter() - began) / LOOK_SHARE)


def _children(process: psutil.Process) -> Sequence[psutil.Process]:
    with suppress(psutil.Error):
        return list(process.children(recursive=True))
    return []


def _taken(processes: Sequence[psutil.Process]) -> tuple[float, int]:
    """(CPU seconds, resident bytes) of processes together; of those that have just ended nothing."""
    cpu, memory = 0.0, 0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            cpu, memory = cpu + times.user + times.system, memory + resident_memory(process)
    return cpu, memory
