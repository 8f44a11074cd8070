"""The driver's worker beats no oftener than is of use, and as rarely as Dask asks of many."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from distributed import Worker

from landmark_batch.workflows.heartbeat import DriverWorker


@pytest.mark.parametrize(("asked", "expected"), [(0.5, 5.0), (6.0, 6.0)])
def test_the_pace_of_heartbeats(monkeypatch: pytest.MonkeyPatch, asked: float, expected: float) -> None:
    beat = SimpleNamespace(callback_time=1000.0)

    async def answered(self: Worker) -> None:
        beat.callback_time = 1000 * asked  # what Dask's scheduler says

    monkeypatch.setattr(Worker, "heartbeat", answered)
    worker = DriverWorker.__new__(DriverWorker)
    worker.__dict__["periodic_callbacks"] = {"heartbeat": beat}
    for _ in range(2):
        asyncio.run(worker.heartbeat())
    assert beat.callback_time == 1000 * expected
