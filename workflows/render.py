"""run_render: a job from its plan to its last frame, resumable at every instant."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from landmark_batch.chunks import split_frames
from landmark_batch.errors import ConfigError, LandmarkError, StoreError
from landmark_batch.events import ChunkDone, ChunkFailed, Event, EventSink, JobDone, JobStarted, Preparing
from landmark_batch.frames.adopt import adopt
from landmark_batch.frames.definition import is_store
from landmark_batch.frames.leftovers import remove_leftovers
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.resume import compare
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob, load_job
from landmark_batch.workflows.builds import note_build
from landmark_batch.workflows.compiled import prepare_kernels
from landmark_batch.workflows.driver import Driver
from landmark_batch.workflows.joblog import job_log, quiet_dask
from landmark_batch.workflows.machine import Machine, describe_machine
from landmark_batch.workflows.measured import record_speed
from landmark_batch.workflows.plan import (
    RenderPlan,
    build_of,
    frames_to_render,
    make_plan,
    narrow,
    plan_request,
    refuse_differing,
    speed_key,
)
from landmark_batch.workflows.recorder import RunRecorder
from landmark_batch.workflows.request import RenderRequest
from landmark_batch.workflows.result import RenderResult
from landmark_batch.workflows.snapshot import STOP_FILE, JobSnapshot, new_run_id, remove_dead_snapshots, remove_snapshot, write_snapshot

logger = logging.getLogger(__name__)

ExportOpener = Callable[[tuple[int, ...], tuple[int, ...]], EventSink]
DONE_SECONDS = 15.0  # between two updates of the store's `done` array, for those who look on
OTHERS_SECONDS = 2.0  # between two looks at what processes that share the store have finished


def render(job: RenderJob | Path | str, overrides: Iterable[str] = (), **options: Any) -> RenderResult:
    """Render a job, from a script: `render("city.toml", ["cameras.frames=0-23"])`. options: those of `run_render`.

    Raises LandmarkError kinds for bad input, RenderIncompleteError or RenderInterrupted where frames are missing at the end.
    Worker processes do not import the calling script: it needs no `if __name__ == "__main__"`.
    """
    if not isinstance(job, RenderJob):
        job = load_job(Path(job), overrides)
    elif tuple(overrides):
        raise TypeError("overrides apply to job files; change a RenderJob with model_copy(update=...)")
    result = run_render(job, **options)
    error = result.error()
    if error is not None:
        raise error
    return result


def run_render(
    job: RenderJob,
    *,
    update: bool = False,
    overwrite: bool = False,
    join: bool = False,
    scheduler: str | None = None,
    sinks: Sequence[EventSink] = (),
    stop: threading.Event | None = None,
    exports: ExportOpener | None = None,
    log: Path | None = None,
    dashboard: bool = True,
    machine: Machine | None = None,
    request: RenderRequest | None = None,
) -> RenderResult:
    """Render what is missing of a job, here or on a running cluster.

    update: finished frames of other settings are replaced; overwrite: all wanted ones are. join: share the store with other
    processes that render it. scheduler: address of a Dask scheduler. sinks: get every event, one after another, from this thread.
    stop: once set, the chunks in hand are finished and no more begun; a KeyboardInterrupt ends workers at once, and the store stays
    good. exports: called once with (frames wanted, frames to render) when the store is the job's and nothing is rendered yet; what it
    returns gets every event too (an ExportSession; end it yourself). log: file of the job's log, default `job.log_path`.
    request: resolved already (benches).

    Returns what happened. Raises whatever `make_plan` refuses, StoreBusyError, DiskFullError while writing, CheckpointError from a
    worker, GroupError when no worker can go on: finished frames stand, the same call resumes.
    """
    started = time.monotonic()
    machine = machine or describe_machine()
    flags = {"update": update, "overwrite": overwrite, "scheduler": scheduler}
    plan = make_plan(job, machine=machine, **flags) if request is None else plan_request(request, machine, **flags)  # type: ignore[arg-type]
    instead = prepare_kernels(plan, lambda what, share: _tell(sinks, Preparing(what, share)))
    if instead is not None:
        plan = make_plan(instead, machine=machine, **flags)  # type: ignore[arg-type]
    run = _Run(plan, machine, sinks, stop or threading.Event(), exports, log or job.log_path, started)
    return run.run(update=update, overwrite=overwrite, join=join, scheduler=scheduler, dashboard=dashboard)


def _tell(sinks: Sequence[EventSink], event: Event) -> None:
    for sink in sinks:
        sink(event)


class _Run:
    """One run of a job; holds what its steps share."""

    def __init__(
        self,
        plan: RenderPlan,
        machine: Machine,
        sinks: Sequence[EventSink],
        stop: threading.Event,
        exports: ExportOpener | None,
        log: Path,
        started: float,
    ) -> None:
        self.plan = plan
        self.request = plan.request
        self.job = plan.job
        self.machine = machine
        self.stop = stop
        self.log = log
        self.id = new_run_id()
        self.record = RunRecorder(sinks)
        self._exports = exports
        self._started = self._done_at = started
        self._dashboard: str | None = None
        self._workers = 0
        self._handler: logging.Handler = logging.NullHandler()

    def run(self, *, update: bool, overwrite: bool, join: bool, scheduler: str | None, dashboard: bool) -> RenderResult:
        request, path = self.request, self.job.store_path
        created, logged = not is_store(path), self.log.exists()
        FrameStore.open_or_create(path, request.spec, request.flight, request.settings, info=request.info)
        with StoreOwner.acquire(path, join=join) as owner:
            try:
                with job_log(self.log) as self._handler:
                    for warning in self.plan.warnings:
                        logger.warning("%s", warning)
                    store = FrameStore.open(path)
                    resume = compare(store, request.flight, request.settings)
                    if resume.differing and not (update or overwrite):
                        raise refuse_differing(path, resume)
                    resume = narrow(resume, request.wanted, overwrite=overwrite)
                    adopt(store, owner, resume, request.flight, request.settings, info=request.info, update=update or overwrite)
                    store.reload()
                    return self._render(store, owner, frames_to_render(resume, request.wanted, store.spec), scheduler, dashboard)
            except LandmarkError as error:
                if created and not FrameStore.open(path).finished() and not owner.others():  # nothing rendered: nothing stays behind
                    shutil.rmtree(path, ignore_errors=True)
                    if error.exit_code == ConfigError.exit_code and not logged:
                        self.log.unlink(missing_ok=True)
                raise

    def _render(self, store: FrameStore, owner: StoreOwner, todo: tuple[int, ...], scheduler: str | None, dashboard: bool) -> RenderResult:
        remove_dead_snapshots(store.path)
        if self._exports is not None:
            self.record.sinks.append(self._exports(self.request.wanted, todo))
        if not todo:
            self._tell_start(store, 0)
            return self._finish(store)
        if self.plan.placement is not None:
            note_build(store.path, build_of(self.request, self.machine))
        with ExitStack() as stack:
            folder = write_snapshot(self._snapshot(store, owner), self.request.flight)
            stack.callback(remove_snapshot, folder)
            try:
                if not self.stop.is_set():
                    self._drive(store, owner, folder, todo, scheduler, dashboard, stack)
            except KeyboardInterrupt:
                self.record.interrupted = True
            self.record.interrupted |= self.stop.is_set()
            return self._finish(store)

    def _snapshot(self, store: FrameStore, owner: StoreOwner) -> JobSnapshot:
        placement = self.plan.placement
        return JobSnapshot(
            run=self.id,
            job=self.job.model_dump(mode="json"),
            settings=dict(self.request.settings.values),
            store=str(store.path),
            device=placement.device if placement else self.job.parallel.device,
            threads=placement.threads if placement else 1,
            generation=owner.generation,
            renderer=dict(self.request.renderer),
        )

    def _drive(
        self,
        store: FrameStore,
        owner: StoreOwner,
        folder: Path,
        todo: tuple[int, ...],
        scheduler: str | None,
        dashboard: bool,
        stack: ExitStack,
    ) -> None:
        from landmark_batch.workflows.cluster import join_cluster, start_cluster
        from landmark_batch.workflows.graph import RenderGraph
        from landmark_batch.workflows.pool import DaskPool

        stack.enter_context(quiet_dask(self._handler))
        size = max(len(chunk.frames) for chunk in self.plan.chunks) if self.plan.chunks else self.job.output.chunk_frames
        if self.plan.placement is None:
            cluster = join_cluster(str(scheduler))
        else:
            cluster = start_cluster(self.plan.placement, log=self.log, dashboard=dashboard)
        try:
            cluster.open_run(self.id, folder)
            self._dashboard, self._workers = cluster.dashboard, len(cluster.workers())
            self._tell_start(store, len(todo))
            missing: Sequence[int] = todo
            for turn in range(1_000_000):  # more than one only where other processes share the store
                chunks = split_frames(missing, size)
                graph = RenderGraph(self.job.name, self.id, chunks, turn=turn)
                pool = DaskPool(cluster, graph, stop_file=folder / STOP_FILE, claim=lambda frames: _claim(store, owner, frames))
                driver = Driver(pool, chunks, emit=lambda event: self._emit(event, store, owner), stop=self.stop)
                self.record.add(driver.run(), chunks)
                missing = self._left_to_others(store, owner, missing)
                if not missing:
                    break
        finally:
            cluster.close()

    def _left_to_others(self, store: FrameStore, owner: StoreOwner, frames: Sequence[int]) -> list[int]:
        """Wait for frames that another process has claimed; returns those that became free because it ended without them."""
        while not (self.record.fatal or self.stop.is_set()):
            finished = store.finished()
            missing = [frame for frame in frames if frame not in finished and frame not in self.record.failed]
            if not missing:
                return []
            free = owner.claim(missing)
            if free:
                return free
            self.stop.wait(OTHERS_SECONDS)
        return []

    # -- events

    def _tell_start(self, store: FrameStore, todo: int) -> None:
        self.record.emit(
            JobStarted(
                name=self.job.name,
                store=str(store.path),
                frames=len(self.request.wanted),
                todo=todo,
                chunks=len(self.plan.chunks) if todo else 0,
                workers=self._workers,
                runtime=self.request.runtime,
                dashboard=self._dashboard,
            )
        )

    def _emit(self, event: Event, store: FrameStore, owner: StoreOwner) -> None:
        self.record.emit(event)
        if isinstance(event, ChunkDone) or (isinstance(event, ChunkFailed) and event.final):
            owner.release(event.frames)
        now = time.monotonic()
        if now - self._done_at > DONE_SECONDS:
            self._done_at = now
            self._refresh_done(store)

    def _refresh_done(self, store: FrameStore) -> None:
        try:
            store.refresh_done()
        except StoreError as error:  # a disk that is full: what stands is recorded in the ledger all the same
            logger.warning("%s", error)

    # -- the end

    def _finish(self, store: FrameStore) -> RenderResult:
        self._refresh_done(store)
        remove_leftovers(store.layout, sole=False)  # of workers that were killed
        record, wanted = self.record, self.request.wanted
        finished = store.finished()
        missing = tuple(frame for frame in wanted if frame not in finished)
        state = "complete" if not missing else "interrupted" if record.interrupted and record.fatal is None else "incomplete"
        seconds = time.monotonic() - self._started
        startup = record.first_at - self._started if record.first_at is not None else seconds
        result = RenderResult(
            state=state,
            wanted=len(wanted),
            rendered=record.rendered,
            skipped=max(0, len(wanted) - len(missing) - record.rendered),
            missing=missing,
            failures=dict(record.failures),
            seconds=seconds,
            startup_seconds=startup,
            render_seconds=record.render_seconds,
            workers=self._workers,
            device=self.plan.placement.device if self.plan.placement else self.job.parallel.device,
            store=store.path,
            log=self.log,
            dashboard=self._dashboard,
            stages=dict(record.stages),
            counters=dict(record.counters),
        )
        self._remember_speed(result)
        record.emit(JobDone(self.job.name, state, record.rendered, missing, seconds, startup))
        if record.fatal is not None:
            raise record.fatal
        return result

    def _remember_speed(self, result: RenderResult) -> None:
        """Seconds a worker needed for a megasample, for the next plan."""
        placement = self.plan.placement
        if placement is None or not self.request.scene or not result.rendered or self.record.worker_seconds <= 0:
            return
        samples = result.rendered * self.request.pixels * self.request.samples / 1e6
        key = speed_key(self.request, placement, self.machine)
        record_speed(key, self.request.scene, self.record.worker_seconds / samples)


def _claim(store: FrameStore, owner: StoreOwner, frames: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """(frames this process is to render, frames that stand by now); what is in neither list another process renders."""
    mine = owner.claim(frames)
    if len(mine) == len(frames):
        return mine, ()
    finished = store.finished()
    return mine, [frame for frame in frames if frame in finished and frame not in mine]
