"""Pause, continue, cancel and attach: act on the job that writes a store, from anywhere that sees the store."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import ConfigError, RenderIncompleteError, StoreError
from landmark_batch.events import Event, EventSink, JobDone, JobStarted
from landmark_batch.frames.definition import is_store
from landmark_batch.frames.store import FrameStore
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.order import ABORT_FILE, PAUSE_FILE, STOP_FILE
from landmark_batch.workflows.snapshot import JobSnapshot, live_snapshots

if TYPE_CHECKING:
    from distributed.security import Security

LOOK_SECONDS = 1.0  # between two looks at the store of a job that one is attached to


@dataclass(frozen=True)
class RunningJob:
    """A job that writes a store now. folder: of its run. paused, stopping: what it was asked."""

    name: str
    run: str
    folder: StorePath
    scheduler: str | None
    host: str
    paused: bool
    stopping: bool

    def describe(self) -> str:
        where = f" on {self.scheduler}" if self.scheduler else ""
        state = "stopping" if self.stopping else "paused" if self.paused else "running"
        return f"{self.name} (run {self.run}, driven on {self.host}{where}), {state}"


def running_jobs(store: StorePath) -> list[RunningJob]:
    """The jobs that write `store` now, the newest last. Raises StoreError where there is no store."""
    if not is_store(store):
        raise StoreError(f"{store}: no such store", remedy="name the store that the job writes (FILE.zarr)")
    return [_job(folder, snapshot) for folder, snapshot in live_snapshots(store)]


def _job(folder: StorePath, snapshot: JobSnapshot) -> RunningJob:
    return RunningJob(
        name=str(snapshot.job.get("name", "")),
        run=snapshot.run,
        folder=folder,
        scheduler=snapshot.scheduler,
        host=str(snapshot.process.get("host", "")),
        paused=(folder / PAUSE_FILE).exists(),
        stopping=(folder / STOP_FILE).exists() or (folder / ABORT_FILE).exists(),
    )


def require_jobs(store: StorePath) -> list[RunningJob]:
    """As `running_jobs`; raises ConfigError where none runs."""
    jobs = running_jobs(store)
    if not jobs:
        raise ConfigError(f"{store}: no job writes it now", remedy="start one with `landmark-batch render`")
    return jobs


def pause(store: StorePath) -> list[RunningJob]:
    """Chunks in hand are finished, then the workers free their memory and wait. Raises ConfigError where no job runs."""
    return _leave_word(store, PAUSE_FILE)


def cancel(store: StorePath) -> list[RunningJob]:
    """Chunks in hand are finished, then the job ends; `render` goes on with it whenever asked. Raises as `pause`."""
    jobs = _leave_word(store, STOP_FILE)
    for job in jobs:
        (job.folder / PAUSE_FILE).unlink(missing_ok=True)
    return jobs


def go_on(store: StorePath) -> list[RunningJob]:
    """A paused job goes on. Raises ConfigError where none is paused."""
    jobs = [job for job in require_jobs(store) if job.paused]
    if not jobs:
        raise ConfigError(f"{store}: the job that writes it is not paused", remedy="see `landmark-batch status` for what it does")
    for job in jobs:
        (job.folder / PAUSE_FILE).unlink(missing_ok=True)
    return jobs


def _leave_word(store: StorePath, word: str) -> list[RunningJob]:
    jobs = require_jobs(store)
    for job in jobs:
        try:
            (job.folder / word).touch()
        except FileNotFoundError:
            continue  # it has just ended
        except OSError as error:
            raise StoreError(f"{job.folder}: cannot write there: {error.strerror}", remedy="act as the user who started the job") from None
    return jobs


def attach(store: StorePath, sinks: Sequence[EventSink], *, security: Security | None = None) -> None:
    """Watch the job that writes `store` until it ends: its events, those that were included, go to `sinks`.

    Raises ConfigError where no job runs or its scheduler does not answer; RenderIncompleteError where it ends with frames missing.
    A KeyboardInterrupt leaves the job as it is.
    """
    from landmark_batch.workflows.cluster import join_cluster
    from landmark_batch.workflows.handle import subscribe

    job = require_jobs(store)[-1]
    if not job.scheduler:
        raise ConfigError(f"{store}: the job runs on no scheduler that others reach", remedy="`landmark-batch status` shows how far it is")
    cluster = join_cluster(job.scheduler, security=security)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    try:
        past = subscribe(cluster.client, job.run, events.put)
        told = _told(past)
        for event in told:
            for sink in sinks:
                sink(event)
        end = next((event for event in told if isinstance(event, JobDone)), None)
        while end is None:
            with suppress(queue.Empty):
                event = events.get(timeout=LOOK_SECONDS)
                for sink in sinks:
                    sink(event)
                end = event if isinstance(event, JobDone) else None
                continue
            if not job.folder.exists():  # it is over; its last word did not come
                time.sleep(LOOK_SECONDS)
                if events.empty():
                    break
    finally:
        cluster.close()
    _say_missing(store, job, end)


def _told(past: Sequence[Event]) -> Sequence[Event]:
    """From the newest beginning on: a driver that was started again begins anew."""
    starts = [i for i, event in enumerate(past) if isinstance(event, JobStarted)]
    return past[starts[-1] :] if starts else past


def _say_missing(store: StorePath, job: RunningJob, end: JobDone | None) -> None:
    """end: the job's last word, which knows what it wanted; without one, all frames of the store are looked for."""
    found = FrameStore.open(store)
    missing = list(end.missing) if end is not None else sorted(set(range(found.spec.frames)) - found.standing())
    if missing:
        raise RenderIncompleteError(
            f"job {job.name} has ended; of {found.spec.frames} frames of {store} {len(missing)} missing: {format_frame_ranges(missing)}",
            remedy="`landmark-batch render` goes on with it",
        )
