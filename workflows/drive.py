"""drive: a job from its order to its last frame, resumable at every instant. Runs beside the workers, attached or not.

It owns the store while it works, reads the ledger when it starts, and so may itself be ended and started again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from landmark_batch.chunks import FrameChunk
from landmark_batch.errors import ConfigError, LandmarkError, StoreBusyError, StoreError
from landmark_batch.events import ChunkDone, ChunkFailed, Event, JobDone, JobStarted
from landmark_batch.frames.definition import is_store
from landmark_batch.frames.durable import remove_tree
from landmark_batch.frames.leftovers import remove_leftovers
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.resume import compare, stands
from landmark_batch.frames.store import FrameStore
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.builds import note_build
from landmark_batch.workflows.costs import cut_chunks
from landmark_batch.workflows.driver import Driver
from landmark_batch.workflows.graph import RenderGraph
from landmark_batch.workflows.itinerary import count_chunks, route_chunks
from landmark_batch.workflows.joblog import events_logger, job_log
from landmark_batch.workflows.machine import group_shape
from landmark_batch.workflows.order import ABORT_FILE, STOP_FILE, JobOrder, is_set
from landmark_batch.workflows.outcomes import Steering, WorkerPool
from landmark_batch.workflows.plan import frames_to_render, narrow
from landmark_batch.workflows.predicted import keep_prediction
from landmark_batch.workflows.recorder import RunRecorder
from landmark_batch.workflows.result import RenderResult
from landmark_batch.workflows.snapshot import ROUTE_FILE, JobSnapshot, remove_dead_snapshots, remove_snapshot, write_snapshot

if TYPE_CHECKING:
    from landmark_batch.frames.pictures import PictureOrder

logger = logging.getLogger(__name__)

DONE_SECONDS = 15.0  # between two updates of the store's `done` array, for those who look on
SILENCE_SECONDS = 90.0  # for a store in an object store: past the minute after which a silent owner is dead
OTHERS_SECONDS = 2.0  # between two looks at what processes that share the store have finished

Claim = Callable[[Sequence[int]], tuple[Sequence[int], Sequence[int]]]


class Station(Protocol):
    """Where a driver works: workers, and a line to those who watch."""

    def emit(self, event: Event) -> None: ...

    def begin(self, wanted: Sequence[int], todo: Sequence[int]) -> PictureOrder | None:
        """The store is the job's; these frames it wants, those are still to be rendered. Returns the PNGs that workers may make."""
        ...

    def open_run(self, folder: StorePath, snapshot: JobSnapshot) -> int:
        """Have the workers open a run. Returns their number."""
        ...

    def pool(self, graph: RenderGraph, folder: StorePath, claim: Claim) -> WorkerPool: ...

    def close(self) -> None:
        """The workers forget the run."""
        ...


def drive(order: JobOrder, station: Station) -> RenderResult:
    """Render what is missing of an order's frames. Returns what happened.

    Raises StoreBusyError where another job holds the store, CheckpointError and its like from workers, DiskFullError while writing,
    GroupError when no worker can go on: finished frames stand, the same order (or command) resumes.
    """
    return _Drive(order, station).run()


class _Drive:
    """One run; holds what its steps share."""

    def __init__(self, order: JobOrder, station: Station) -> None:
        self.order = order
        self.request = order.request
        self.job = order.request.job
        self.station = station
        self.record = RunRecorder([station.emit], events_logger(order.run))
        self._lag = time.time() - order.started
        self._started = time.monotonic() - self._lag
        self._done_at = time.monotonic()
        self._workers = 0

    def run(self) -> RenderResult:
        order = self.order
        with job_log(order.log, order.run), _take(order) as owner:
            for warning in order.warnings:
                logger.warning("%s", warning)
            try:
                store = FrameStore.open(order.store)
                store.index = owner.index  # the ledger is read and kept once
                return self._render(store, owner, self._todo(store))
            except LandmarkError as error:
                forget_new_store(order, error, shared=bool(owner.others()))
                raise

    def _todo(self, store: FrameStore) -> tuple[int, ...]:
        """What the order says, unless another was at the store since, or an earlier driver of this order."""
        if stands(self.order.state, store.layout):
            return self.order.todo
        resume = narrow(compare(store, self.request.flight, self.request.settings), self.request.wanted)
        return frames_to_render(resume, self.request.wanted, store.spec)

    def _render(self, store: FrameStore, owner: StoreOwner, todo: tuple[int, ...]) -> RenderResult:
        remove_dead_snapshots(store.path)
        pictures = self.station.begin(self.request.wanted, todo) or self.order.pictures
        if not todo:
            self._tell_start(store, ())
            return self._finish(store)
        if self.order.build is not None:
            note_build(store.path, self.order.build)
        costs = self.request.costs
        if costs is not None and costs.seconds is not None:
            keep_prediction(store.path, store.spec.frames, todo, costs.seconds)
        with ExitStack() as stack:
            snapshot = self._snapshot(store, owner, pictures)
            seen = self.request.blocks.seen if self.request.blocks is not None else None
            folder = write_snapshot(snapshot, self.request.flight, seen=seen, contents=self.request.settings.contents)
            stack.callback(remove_snapshot, folder)
            stack.callback(self.station.close)
            self._drive(store, owner, folder, snapshot, todo)
            self.record.interrupted |= is_set(folder, STOP_FILE, ABORT_FILE) and self.record.fatal is None
            return self._finish(store)

    def _snapshot(self, store: FrameStore, owner: StoreOwner, pictures: PictureOrder | None) -> JobSnapshot:
        placement = self.order.placement
        return JobSnapshot(
            run=self.order.run,
            job=self.job.model_dump(mode="json"),
            settings=dict(self.request.settings.values),
            store=str(store.path),
            device=placement.device if placement else self.job.parallel.device,
            threads=placement.threads if placement else 1,
            generation=owner.generation,
            renderer=dict(self.request.renderer),
            scheduler=self.order.scheduler,
            scene=self.request.scene,
            log=str(self.order.log),
            pictures=None if pictures is None else pictures.as_dict(),
        )

    def _drive(self, store: FrameStore, owner: StoreOwner, folder: StorePath, snapshot: JobSnapshot, todo: tuple[int, ...]) -> None:
        self._workers = self.station.open_run(folder, snapshot)
        self._tell_start(store, todo)
        missing: Sequence[int] = todo
        turn = 0
        while missing and not is_set(folder, STOP_FILE, ABORT_FILE):  # more than one turn only where other processes share the store
            groups = max(1, self._workers // group_shape(self.job.parallel).size)
            parts = cut_chunks(missing, self.order.chunk_frames, store.spec.commit_unit, self.request.costs)
            route = route_chunks(self.request, parts, groups, unit=store.spec.commit_unit)
            chunks = route.chunks
            if self.request.blocks is not None:
                route.itinerary().save(folder / ROUTE_FILE)
            graph = RenderGraph(self.job.name, self.order.run, chunks, turn=turn)
            pool = self.station.pool(graph, folder, lambda frames: _claim(store, owner, frames))
            driver = Driver(
                pool,
                chunks,
                emit=lambda event: self._emit(event, store, owner),
                steering=Steering(folder),
                passing=self.job.parallel.priority > 0,
                costs=route.costs if route.costs is not None else self._chunk_costs(chunks),
                render_timeout=self.job.parallel.render_timeout,
            )
            self.record.add(driver.run(), chunks)
            missing = self._left_to_others(store, owner, folder, missing)
            turn += 1

    def _chunk_costs(self, chunks: Sequence[FrameChunk]) -> list[float] | None:
        """By which ranges are balanced, where the order of chunks does not ask for ranges of equal numbers."""
        costs = self.request.costs
        if costs is None or self.job.output.order == "coarse-to-fine":
            return None
        return [costs.of(chunk.frames) for chunk in chunks]

    def _left_to_others(self, store: FrameStore, owner: StoreOwner, folder: StorePath, frames: Sequence[int]) -> list[int]:
        """Wait for frames that another process has claimed; returns those that became free because it ended without them."""
        while not (self.record.fatal or is_set(folder, STOP_FILE, ABORT_FILE)):
            standing = store.standing()
            missing = [frame for frame in frames if frame not in standing and frame not in self.record.failed]
            if not missing:
                return []
            free = owner.claim(missing)
            if free:
                return free
            time.sleep(OTHERS_SECONDS)
        return []

    # -- events

    def _tell_start(self, store: FrameStore, todo: Sequence[int]) -> None:
        costs = self.request.costs
        unit = store.spec.commit_unit
        chunks = count_chunks(self.request, cut_chunks(todo, self.order.chunk_frames, unit, costs), unit=unit)
        self.record.emit(
            JobStarted(
                name=self.job.name,
                store=str(store.path),
                frames=len(self.request.wanted),
                todo=len(todo),
                chunks=chunks,
                workers=self._workers,
                runtime=self.request.runtime,
                dashboard=self.order.dashboard,
                cost=None if costs is None else costs.of(todo),
            )
        )

    def _emit(self, event: Event, store: FrameStore, owner: StoreOwner) -> None:
        if isinstance(event, ChunkDone) and self.request.costs is not None:
            event = replace(event, cost=self.request.costs.of(event.frames))
        self.record.emit(event)
        if isinstance(event, ChunkDone) or (isinstance(event, ChunkFailed) and event.final):
            owner.release(event.frames, recorded=isinstance(event, ChunkDone))
        now = time.monotonic()
        if now - self._done_at > DONE_SECONDS:
            self._done_at = now
            _refresh_done(store)

    # -- the end

    def _finish(self, store: FrameStore) -> RenderResult:
        _refresh_done(store)
        remove_leftovers(store.layout, sole=False)  # of workers that were killed
        record = self.record
        first = None if record.first_at is None else record.first_at - self._started
        result = outcome(
            self.order,
            store,
            interrupted=record.interrupted and record.fatal is None,
            rendered=record.rendered,
            failures=dict(record.failures),
            seconds=time.monotonic() - self._started,
            startup=first,
        )
        result = replace(
            result,
            render_seconds=record.render_seconds,
            workers=self._workers,
            stages=dict(record.stages),
            counters=dict(record.counters),
            fatal=record.fatal,
            worker_seconds=record.worker_seconds,
        )
        record.emit(JobDone(self.job.name, result.state, record.rendered, result.missing, result.seconds, result.startup_seconds))
        return result


def outcome(
    order: JobOrder,
    store: FrameStore,
    *,
    interrupted: bool,
    rendered: int = 0,
    failures: dict[str, str] | None = None,
    seconds: float | None = None,
    startup: float | None = None,
) -> RenderResult:
    """What a run came to, by what stands in its store."""
    standing, wanted = store.standing(), order.request.wanted
    missing = tuple(frame for frame in wanted if frame not in standing)
    seconds = time.time() - order.started if seconds is None else seconds
    return RenderResult(
        state="complete" if not missing else "interrupted" if interrupted else "incomplete",
        wanted=len(wanted),
        rendered=rendered,
        skipped=max(0, len(wanted) - len(missing) - rendered),
        missing=missing,
        failures=failures or {},
        seconds=seconds,
        startup_seconds=seconds if startup is None else startup,
        render_seconds=0.0,
        workers=0,
        device=order.placement.device if order.placement else order.request.job.parallel.device,
        store=store.path,
        log=order.log,
        dashboard=order.dashboard,
    )


def forget_new_store(order: JobOrder, error: LandmarkError, *, shared: bool) -> None:
    """After an error before the first frame: a store that was made for this run goes again, and a log that says no more than the error."""
    path = order.store
    if not order.created or shared or (is_store(path) and FrameStore.open(path).standing()):
        return
    remove_tree(path)
    if error.exit_code == ConfigError.exit_code and not order.logged:
        order.log.unlink(missing_ok=True)


def _take(order: JobOrder) -> StoreOwner:
    """The store, as soon as the process that gave the order has let it go, or a driver that died on another host is silent for long."""
    patience = order.patience if isinstance(order.store, Path) else max(order.patience, SILENCE_SECONDS)
    deadline = time.monotonic() + patience
    while True:
        try:
            return StoreOwner.acquire(order.store, join=order.join)
        except StoreBusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _refresh_done(store: FrameStore) -> None:
    try:
        store.refresh_done()
    except StoreError as error:  # a disk that is full: what stands is recorded in the ledger all the same
        logger.warning("%s", error)


def _claim(store: FrameStore, owner: StoreOwner, frames: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """(frames this process is to render, frames that stand by now); what is in neither list another process renders."""
    mine = owner.claim(frames)
    if len(mine) == len(frames):
        return mine, ()
    standing = store.standing()
    return mine, [frame for frame in frames if frame in standing and frame not in mine]
