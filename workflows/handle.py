"""Handles on a job's driver, for the client that gave the order: its events as they come, its end."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from distributed import Client, fire_and_forget

from landmark_batch.errors import GroupError, LandmarkError
from landmark_batch.events import Event
from landmark_batch.workflows.graph import task_prefix
from landmark_batch.workflows.messages import events_topic, told_events
from landmark_batch.workflows.order import JobOrder
from landmark_batch.workflows.result import RenderResult
from landmark_batch.workflows.station import drive_task, drive_with
from landmark_batch.workflows.worker import DRIVER_RESOURCE

RETRIES = 2  # of a driver that fails with an error that is none of ours


class DriverHandle(Protocol):
    def poll(self) -> RenderResult | LandmarkError | None:
        """What came of the job; None while it goes on."""
        ...

    def lost(self) -> bool:
        """The driver is gone with its scheduler: the order has to be given again."""
        ...


class TaskHandle:
    """A driver that is a task of the cluster. It goes on whether its client lives or not."""

    def __init__(self, client: Client, order: JobOrder, watch: Callable[[Event], None]) -> None:
        client.subscribe_topic(events_topic(order.run), lambda event: _hand_on(watch, event[1]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph")  # the poses of a long flight travel once
            self._future = client.submit(
                drive_task,
                order,
                key=f"drive_{task_prefix(order.request.job.name).removeprefix('render_')}-{order.run}",
                resources={DRIVER_RESOURCE: 1},
                retries=RETRIES,
                pure=False,
                priority=1000,
            )
        fire_and_forget(self._future)

    def poll(self) -> RenderResult | LandmarkError | None:
        if self._future.status == "finished":
            outcome: RenderResult | LandmarkError = self._future.result(timeout=30)
            return outcome
        if self._future.status == "error":
            error = self._future.exception(timeout=30)
            return GroupError(f"the job's driver failed: {type(error).__name__}: {error}", remedy="the same command goes on")
        return None

    def lost(self) -> bool:
        return self._future.status in ("lost", "cancelled")


class ThreadHandle:
    """A driver in a thread here, for clusters that have no worker for drivers."""

    def __init__(self, client: Client, order: JobOrder, watch: Callable[[Event], None]) -> None:
        self._outcome: RenderResult | LandmarkError | None = None
        client.subscribe_topic(events_topic(order.run), lambda event: _hand_on(watch, event[1]))
        threading.Thread(target=self._run, args=(client, order), name="driver", daemon=True).start()

    def _run(self, client: Client, order: JobOrder) -> None:
        try:
            self._outcome = drive_with(client, order, client.log_event)
        except Exception as error:  # noqa: BLE001  handed to whoever waits
            self._outcome = GroupError(f"the job's driver failed: {type(error).__name__}: {error}", remedy="the same command goes on")

    def poll(self) -> RenderResult | LandmarkError | None:
        return self._outcome

    def lost(self) -> bool:
        return False


def subscribe(client: Client, run: str, watch: Callable[[Event], None]) -> list[Event]:
    """For those who attach: events from now on go to `watch`; returns those that were."""
    client.subscribe_topic(events_topic(run), lambda event: _hand_on(watch, event[1]))
    past: list[tuple[float, Mapping[str, Any]]] = client.get_events(events_topic(run)) or []
    return [event for _, message in past for event in told_events(message)]


def _hand_on(watch: Callable[[Event], None], message: Mapping[str, Any]) -> None:
    for event in told_events(message):
        watch(event)
