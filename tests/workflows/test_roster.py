"""Who renders: the scheduler's long list is asked for when somebody has come, not at every look."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from landmark_batch.workflows.roster import Roster
from landmark_batch.workflows.worker import DRIVER_RESOURCE


class FakeScheduler:
    def __init__(self) -> None:
        self.running = {"a": 2, "d": 1}
        self.listed = {"a": "w0", "d": "driver"}
        self.asked = 0

    def ncores_running(self) -> dict[str, int]:
        return dict(self.running)

    def identity(self) -> dict[str, Any]:
        self.asked += 1
        return {
            "workers": {
                address: {"name": name, "host": "h", "resources": {DRIVER_RESOURCE: 1} if name == "driver" else {}}
                for address, name in self.listed.items()
            }
        }


def test_roster() -> None:
    scheduler = FakeScheduler()
    client = SimpleNamespace(scheduler=scheduler, sync=lambda call: call())
    roster = Roster(cast(Any, client))

    def names() -> dict[str, str]:
        return {address: worker.name for address, worker in roster.running().items()}

    assert names() == names() == {"a": "w0"} and scheduler.asked == 1, "who drives jobs renders none"
    scheduler.listed["b"], scheduler.running["b"] = "w1", 2
    assert names() == names() == {"a": "w0", "b": "w1"} and scheduler.asked == 2
    del scheduler.running["a"]  # paused, or about to go
    assert names() == {"b": "w1"} and scheduler.asked == 2
    scheduler.running["a"], scheduler.listed["a"] = 2, "w2"  # another at the same address
    assert names() == {"a": "w2", "b": "w1"}
    scheduler.running["c"] = 1
    del scheduler.listed["b"], scheduler.running["b"]
    assert names() == {"a": "w2"}, "c has gone between the two questions"
    scheduler.listed["c"] = "w3"
    assert names() == {"a": "w2", "c": "w3"}, "it is asked for again"
