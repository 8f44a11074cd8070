"""The driver's worker beats no oftener than is of use, and as rarely as Dask asks of many."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from distributed import Scheduler, Worker

from landmark_batch.workflows.heartbeat import DriverWorker, calm


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


@pytest.mark.parametrize(("shown", "seconds", "ticks"), [(True, 5.0, True), (False, 30.0, False)])
def test_a_calm_server_seldom_looks_at_itself(shown: bool, seconds: float, ticks: bool) -> None:
    async def looks() -> dict[str, tuple[float, bool]]:
        async with Scheduler(port=0, dashboard=False) as scheduler:
            calm(scheduler, shown=shown)
            return {name: (look.callback_time, look.is_running()) for name, look in scheduler.periodic_callbacks.items()}

    found = asyncio.run(looks())
    assert {found[name] for name in ("idle-timeout", "no-workers-timeout", "monitor")} == {(1000 * seconds, True)}
    assert {found[name][1] for name in ("tick", "ticks", "shift_counters")} == {ticks}
    assert found["worker-ttl"][1], "hung workers are found as before"
