"""Faults put into the processes of a fleet, and looks into them: functions that travel there by name."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import numpy as np
from distributed import Scheduler, Worker
from distributed.diagnostics.plugin import WorkerPlugin

INJECTED = "injected fault"
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
    """The next pose that this leader gets has a wrong dtype, the one after it a wrong shape."""
    from landmark_batch.workflows.session import RenderSession

    original = RenderSession._frame
    left = [lambda pose: pose.astype(np.complex128), lambda pose: pose[:2]]

    def frame(self: RenderSession, number: int) -> Any:
        if not left:
            RenderSession._frame = original  # type: ignore[method-assign]
            return original(self, number)
        poses, spoil = self._poses, left.pop(0)
        self._poses = {number: spoil(poses[number])}  # type: ignore[assignment]
        try:
            return original(self, number)
        finally:
            self._poses = poses

    RenderSession._frame = frame  # type: ignore[method-assign]


class PoisonedPose(WorkerPlugin):  # type: ignore[misc]
    """Whichever rank renders this pose fails in the middle of the group's work, in every process now and later.

    how: 'raise' an exception, or 'abort' the process as a failed assertion in C++ does. rank: that fails.
    """

    name = "poisoned-pose"

    def __init__(self, c2w: Any, how: str = "raise", rank: int = 0) -> None:
        self.c2w, self.how, self.rank = np.asarray(c2w)[:3], how, rank

    def setup(self, worker: Worker) -> None:
        threading.Thread(target=self._patch, daemon=True).start()  # torch takes seconds, the loop must not wait

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
        self._restore()


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
