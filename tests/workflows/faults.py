"""Faults put into the processes of a fleet, and looks into them: functions that travel there by name."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, Scheduler, Worker
from distributed.diagnostics.plugin import WorkerPlugin

from landmark_batch.frames.store import FrameStore
from landmark_batch.workflows.order import ABORT_FILE, PAUSE_FILE, STOP_FILE, is_set
from landmark_batch.workflows.session import RenderSession
from landmark_batch.workflows.worker import DRIVER_RESOURCE

INJECTED = "injected fault"
ALL = 10**9  # frames: an allowance without a limit
_released = threading.Event()


def raise_once_in_exchange() -> None:
    """The next exchange of this rank raises."""
    from landmark_batch.parallel.channel import Channel

    original = Channel.exchange

    def exchange(self: Channel, *arguments: Any) -> Any:
        Channel.exchange = original  # type: ignore[method-assign]
        raise RuntimeError(INJECTED)

    Channel.exchange = exchange  # type: ignore[method-assign]


def block_once_in_exchange() -> None:
    """The next exchange of this rank waits for `release`; its peers hang in theirs."""
    from landmark_batch.parallel.channel import Channel

    original = Channel.exchange
    _released.clear()

    def exchange(self: Channel, *arguments: Any) -> Any:
        Channel.exchange = original  # type: ignore[method-assign]
        _released.wait(120)
        return original(self, *arguments)

    Channel.exchange = exchange  # type: ignore[method-assign]


def release() -> None:
    _released.set()


def spoil_poses() -> None:
    """The next chunk that this leader renders has poses of a wrong dtype, the one after it of a wrong shape."""
    original = RenderSession._rendered
    left = [lambda pose: pose.astype(np.complex128), lambda pose: pose[:2]]

    def rendered(self: RenderSession, frames: Sequence[int]) -> Iterator[Any]:
        if not left:
            RenderSession._rendered = original  # type: ignore[method-assign]
            yield from original(self, frames)
            return
        poses, spoil = self._poses, left.pop(0)
        self._frames.drop()  # begun with the last chunk's, with good poses
        self._poses = {**dict(enumerate(poses)), **{frame: spoil(poses[frame]) for frame in frames}}  # type: ignore[assignment]
        try:
            yield from original(self, frames)
        finally:
            self._poses = poses

    RenderSession._rendered = rendered  # type: ignore[method-assign]


class PoisonedPose(WorkerPlugin):  # type: ignore[misc]
    """Whichever rank renders this pose fails in the middle of the group's work, in every process now and later.

    how: 'raise' an exception, or 'abort' the process as a failed assertion in C++ does. rank: that fails.
    """

    name = "poisoned-pose"

    def __init__(self, c2w: Any, how: str = "raise", rank: int = 0) -> None:
        self.c2w, self.how, self.rank = np.asarray(c2w)[:3], how, rank

    def setup(self, worker: Worker) -> None:
        self._thread = threading.Thread(target=self._patch, daemon=True)  # torch takes seconds, the loop must not wait
        self._thread.start()

    def _patch(self) -> None:
        from landmark_batch.parallel.renderer import GroupRenderer

        original = GroupRenderer._render

        def render(renderer: GroupRenderer, order: Any) -> Any:
            if renderer.group.rank == self.rank and np.array_equal(order.c2w, self.c2w):
                if self.how == "abort":
                    os.abort()
                raise RuntimeError(INJECTED)
            return original(renderer, order)

        GroupRenderer._render = render  # type: ignore[method-assign]
        self._restore = lambda: setattr(GroupRenderer, "_render", original)

    def teardown(self, worker: Worker) -> None:
        self._thread.join()  # of a process that has just begun
        self._restore()


def _at_chunks(worker: Worker, before: Callable[[RenderSession, str], None], within: Callable[[RenderSession], None]) -> Callable[[], None]:
    """Has before(session, chunk) called before each chunk of this process, and within(session) when its rendering has begun.

    Returns what ends that.
    """
    if DRIVER_RESOURCE in worker.state.total_resources:
        return lambda: None  # it renders nothing, and may be a thread of the test's own process
    original = RenderSession.render

    def render(session: RenderSession, chunk: str, frames: Any, attempt: int, begun: Callable[[], None] | None = None) -> dict[str, Any]:
        def both() -> None:
            if begun is not None:
                begun()
            within(session)

        before(session, chunk)
        return original(session, chunk, frames, attempt, both)

    RenderSession.render = render  # type: ignore[method-assign]
    return lambda: setattr(RenderSession, "render", original)


def _standing(session: RenderSession) -> int:
    return len(FrameStore.open(session._store.path).finished())


class KilledOnce(WorkerPlugin):  # type: ignore[misc]
    """The first worker that begins a chunk while so many frames stand is killed in it. marker: file that is there from then on."""

    name = "killed-once"

    def __init__(self, frames: int, marker: Path) -> None:
        self.frames, self.marker = frames, str(marker)

    def setup(self, worker: Worker) -> None:
        self._restore = _at_chunks(worker, lambda session, chunk: None, self._kill)

    def _kill(self, session: RenderSession) -> None:
        if _standing(session) >= self.frames:
            try:
                Path(self.marker).touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    def teardown(self, worker: Worker) -> None:
        self._restore()


class Allowance(WorkerPlugin):  # type: ignore[misc]
    """Workers begin chunks only while fewer frames stand than a file says, or where the job has been told to stop or to pause."""

    name = "allowance"

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def setup(self, worker: Worker) -> None:
        self._restore = _at_chunks(worker, self._wait, lambda session: None)

    def _wait(self, session: RenderSession, chunk: str) -> None:
        end = time.monotonic() + 240
        while not is_set(session._folder, STOP_FILE, PAUSE_FILE, ABORT_FILE):
            if _standing(session) < int(Path(self.file).read_text()):
                break
            assert time.monotonic() < end, f"chunk {chunk} was not allowed"
            time.sleep(0.02)

    def teardown(self, worker: Worker) -> None:
        self._restore()


class ShortMemory(WorkerPlugin):  # type: ignore[misc]
    """Workers, or one of that name, are out of GPU memory with more than so many slots. way: 'render' or 'tables', where it shows."""

    name = "short-memory"

    def __init__(self, slots: int, way: str, only: str = "") -> None:
        self.slots, self.way, self.only = slots, way, only

    def setup(self, worker: Worker) -> None:
        from tests.fetching.short_memory import room_for, room_for_tables

        self._stack = ExitStack()
        if self.only in ("", str(worker.name)):
            self._stack.enter_context({"render": room_for, "tables": room_for_tables}[self.way](self.slots))

    def teardown(self, worker: Worker) -> None:
        self._stack.close()


@contextmanager
def allowance(client: Client, folder: Path, frames: int) -> Iterator[Callable[[int], None]]:
    """Jobs on a cluster stand still once so many frames stand, so that none is over before a test has done what it does in its midst.

    Gives allow(frames), which lets them go on until so many stand.
    """
    file = folder / "allowance"

    def allow(frames: int) -> None:
        (folder / "allowance.new").write_text(str(frames))
        (folder / "allowance.new").replace(file)

    allow(frames)
    client.register_plugin(Allowance(file))
    try:
        yield allow
    finally:
        allow(ALL)
        client.unregister_worker_plugin(Allowance.name)


async def heartbeat_ages(seconds: float, dask_scheduler: Scheduler) -> dict[str, float]:
    """Name of each worker -> the oldest that its last heartbeat became, over so many seconds."""
    oldest: dict[str, float] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for state in dask_scheduler.workers.values():
            oldest[str(state.name)] = max(oldest.get(str(state.name), 0.0), time.time() - state.last_seen)
        await asyncio.sleep(0.05)
    return oldest


def heartbeat_interval(dask_scheduler: Scheduler) -> float:
    """Dask's own, for a cluster of this size."""
    from distributed.scheduler import heartbeat_interval as interval

    return float(interval(len(dask_scheduler.workers)))


def task_keys(dask_scheduler: Scheduler) -> list[str]:
    return [str(key) for key in dask_scheduler.tasks]


def workers_page(dask_scheduler: Scheduler) -> dict[str, list[Any]]:
    """Columns of the table on the dashboard's page of workers."""
    from distributed.dashboard.components.scheduler import WorkerTable

    table = WorkerTable(dask_scheduler)
    table.update()
    return {name: [*values] for name, values in table.source.data.items()}
