"""The Dask graph of a job: one task a pose chunk, named after the job, fed to the scheduler in windows.

A task carries numbers only (chunk id, frames, attempt) and returns a receipt; poses and weights are read by the worker
from the job's snapshot and the scene, pixels go from the worker to the store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from landmark_batch.chunks import FrameChunk
from landmark_batch.workflows.worker import render_chunk

Task = tuple[Callable[..., Any], str, str, tuple[int, ...], int]  # as in any Dask graph: a function and its arguments


def task_prefix(name: str) -> str:
    """Prefix of a job's keys as Dask's progress bars show it: 'render_' and the name in letters, digits and '_'."""
    return f"render_{re.sub(r'[^0-9A-Za-z]+', '_', name).strip('_') or 'job'}"


class RenderGraph(Mapping[str, Task]):
    """Keys 'render_<job>-<chunk number>-<run>' -> tasks. A repeated attempt is a new task with a new key.

    run: id of this run of the job, so that two jobs of one name can share a scheduler. turn: of graphs of one run.
    """

    def __init__(self, name: str, run: str, chunks: Sequence[FrameChunk], *, turn: int = 0) -> None:
        self.name = name
        self.run = run
        self.turn = turn
        self.chunks = tuple(chunks)
        self._tasks = {self.key(i): self.task(i) for i in range(len(self.chunks))}

    def key(self, number: int, attempt: int = 0) -> str:
        again = f"-{self.turn}-{attempt}" if attempt or self.turn else ""
        return f"{task_prefix(self.name)}-{number:06d}-{self.run}{again}"

    def task(self, number: int, attempt: int = 0, frames: Sequence[int] | None = None) -> Task:
        """The task of a chunk, or of some of its frames."""
        chunk = self.chunks[number]
        return (render_chunk, self.run, chunk.id, chunk.frames if frames is None else tuple(frames), attempt)

    def __getitem__(self, key: str) -> Task:
        return self._tasks[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)
