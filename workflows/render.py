"""run_render: a job from its plan to its last frame, resumable at every instant.

Here the store is made ready and the order given; a driver beside the workers carries it out (`drive`). This side submits and watches,
on a cluster of its own or of others, the same way.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landmark_batch.errors import ConfigError, GroupError, LandmarkError
from landmark_batch.events import Event, EventSink, JobDone, JobStarted, Preparing
from landmark_batch.frames.adopt import adopt
from landmark_batch.frames.definition import is_store
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.resume import Comparison, stands, state_of
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob, load_job
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.compiled import prepare_kernels
from landmark_batch.workflows.drive import drive, forget_new_store, outcome
from landmark_batch.workflows.joblog import job_log, quiet_dask
from landmark_batch.workflows.machine import Machine, describe_machine
from landmark_batch.workflows.measured import record_speed
from landmark_batch.workflows.order import ABORT_FILE, STOP_FILE, ExportOrder, JobOrder
from landmark_batch.workflows.plan import (
    build_of,
    frames_to_render,
    make_plan,
    narrow,
    plan_request,
    refuse_differing,
    speed_key,
)
from landmark_batch.workflows.render_plan import RenderPlan
from landmark_batch.workflows.request import RenderRequest
from landmark_batch.workflows.result import RenderResult
from landmark_batch.workflows.snapshot import new_run_id, run_folder
from landmark_batch.workflows.start_clock import StartClock

if TYPE_CHECKING:
    from distributed.security import Security

    from landmark_batch.workflows.cluster import RenderCluster
    from landmark_batch.workflows.export_session import ExportSession
    from landmark_batch.workflows.handle import DriverHandle
    from landmark_batch.workflows.warm import WarmStart

logger = logging.getLogger(__name__)

ExportOpener = Callable[[tuple[int, ...], tuple[int, ...]], "ExportSession"]
LAST_WORDS_SECONDS = 5.0  # for the last events to come in after the job's end
ABORT_SECONDS = 5.0  # for a driver that was told to end at once
PATIENCE_SECONDS = 600.0  # for a scheduler that went away to come back


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
    security: Security | None = None,
    detach: ExportOrder | None = None,
    sinks: Sequence[EventSink] = (),
    stop: threading.Event | None = None,
    exports: ExportOpener | None = None,
    log: Path | None = None,
    profile: bool = False,
    dashboard: bool = True,
    machine: Machine | None = None,
    request: RenderRequest | None = None,
    cluster: Callable[[Callable[[], bool]], RenderCluster] | None = None,
    warm: WarmStart | None = None,
) -> RenderResult:
    """Render what is missing of a job, here or on a running cluster.

    update: finished frames of other settings are replaced; overwrite: all wanted ones are. join: share the store with other
    processes that render it. scheduler: address of a Dask scheduler; security: TLS credentials for it. detach: return when the job
    has started; it goes on without this process, with these exports. cluster: makes the cluster to render on, where it is neither
    this machine's nor at an address yet; called with what tells whether to stop waiting for it. sinks: get every event, one after
    another, from this thread. stop: once set, the chunks in hand are finished and no more begun; a KeyboardInterrupt ends workers at
    once, and the store stays good. exports: called once with (frames wanted, frames to render) when the store is the job's; what it
    returns gets every event too: end it yourself. log: file of the job's log, default `job.log_path`. profile: every worker writes a
    Chrome trace beside the log. request: resolved already (benches). warm: has begun; workers on this machine are forked from it.

    Returns what happened. Raises whatever `make_plan` refuses, StoreBusyError, DiskFullError while writing, CheckpointError from a
    worker, GroupError when no worker can go on: finished frames stand, the same call resumes.
    """
    started, clock = time.time(), StartClock()
    elsewhere = scheduler or ("cluster" if cluster is not None else None)
    machine = machine or describe_machine(renders=elsewhere is None)
    flags = {"update": update, "overwrite": overwrite, "scheduler": elsewhere}
    plan = make_plan(job, machine=machine, **flags) if request is None else plan_request(request, machine, **flags)  # type: ignore[arg-type]
    clock.done("plan")
    instead = prepare_kernels(plan, lambda what, share: _tell(sinks, Preparing(what, share)))
    if instead is not None:
        plan = make_plan(instead, machine=machine, **flags)  # type: ignore[arg-type]
    if profile:
        plan = replace(plan, request=replace(plan.request, renderer={**plan.request.renderer, "profile": True}))
    call = _Call(plan, machine, sinks, stop or threading.Event(), log or plan.job.log_path, started)
    clock.done("kernels")
    order = call.prepare(update=update, overwrite=overwrite, join=join, exports=exports)
    plan = call.plan
    clock.done("store")

    def make() -> RenderCluster:
        from landmark_batch.workflows.cluster import join_cluster, start_cluster

        if cluster is not None:
            made = cluster(call.stop.is_set)
        elif plan.placement is None:
            made = join_cluster(str(scheduler), security=security)
        else:
            made = start_cluster(plan.placement, log=order.log, dashboard=dashboard, warm=warm)
        clock.done("workers")
        logger.info("%s", clock)
        return made

    return call.run(order, make, detach)


def _tell(sinks: Sequence[EventSink], event: Event) -> None:
    for sink in sinks:
        try:
            sink(event)
        except Exception:
            logger.exception("a sink failed on %s", type(event).__name__)


class _Call:
    """One call of `run_render`; holds what its steps share."""

    def __init__(
        self, plan: RenderPlan, machine: Machine, sinks: Sequence[EventSink], stop: threading.Event, log: Path, started: float
    ) -> None:
        self.plan = plan
        self.machine = machine
        self.sinks = list(sinks)
        self.stop = stop
        self.log = log
        self._started = started
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._begun = self._over = False

    def prepare(self, *, update: bool, overwrite: bool, join: bool, exports: ExportOpener | None) -> JobOrder:
        """Make the store the job's: what it is to replace is given up, what only moved is kept. Returns the order.

        What the plan found in the store is used where nothing has changed since, and let go: a long flight's records are large.
        """
        found, self.plan = self.plan.found, replace(self.plan, found=None)
        plan, request, path = self.plan, self.plan.request, self.plan.job.store_path
        order = JobOrder(
            run=new_run_id(),
            request=request,
            chunk_frames=plan.chunk_frames,
            placement=plan.placement,
            log=self.log,
            join=join,
            created=not is_store(path),
            logged=self.log.exists(),
            warnings=plan.warnings,
            build=build_of(request, self.machine) if plan.placement is not None else None,
            started=self._started,
        )
        FrameStore.open_or_create(path, request.spec, request.flight, request.settings, info=request.info)
        with StoreOwner.acquire(path, join=join) as owner:
            try:
                if found is None or not stands(found.state, found.store.layout):
                    found = Comparison.make(FrameStore.open(path), request.flight, request.settings)
                store, resume = found.store, found.resume
                if resume.differing and not (update or overwrite):
                    raise refuse_differing(path, resume)
                resume = narrow(resume, request.wanted, overwrite=overwrite)
                adopt(store, owner, resume, request.flight, request.settings, info=request.info, update=update or overwrite)
                store.reload()
                todo = frames_to_render(resume, request.wanted, store.spec)
                if exports is not None:
                    self.sinks.append(session := exports(request.wanted, todo))
                    order = replace(order, pictures=getattr(session, "pictures", None))
            except LandmarkError as error:
                forget_new_store(order, error, shared=bool(owner.others()))
                raise
            return replace(order, todo=todo, state=state_of(store.layout))

    def run(self, order: JobOrder, make: Callable[[], RenderCluster], detach: ExportOrder | None) -> RenderResult:
        if not order.todo:
            return drive(order, _NoStation(self.sinks))
        if self.stop.is_set():
            return outcome(order, FrameStore.open(order.store), interrupted=True)
        try:
            with job_log(order.log, order.run) as handler:
                import distributed  # noqa: F401  its import gives its loggers the terminal that quiet_dask takes away

                with quiet_dask(handler):
                    result = self._on_cluster(order, make, detach)
        except LandmarkError as error:
            if not isinstance(error, GroupError):
                forget_new_store(order, error, shared=False)
            raise
        if result.fatal is not None:
            raise result.fatal
        self._remember_speed(result)
        return result

    def _on_cluster(self, order: JobOrder, make: Callable[[], RenderCluster], detach: ExportOrder | None) -> RenderResult:
        cluster = None
        try:
            cluster = make()
            order = replace(order, scheduler=cluster.address, dashboard=cluster.dashboard, exports=detach)
            if detach is not None and not cluster.has_driver():
                raise ConfigError(
                    f"{cluster.address}: this cluster has no worker that drives jobs, so a job cannot go on without its client",
                    remedy="start it with `landmark-batch scheduler`, or leave --detach out",
                )
            handle = cluster.start(order, self._events.put)
            return self._watch(order, cluster, handle, detached=detach is not None)
        except KeyboardInterrupt:
            return self._abort(order, None)
        finally:
            if cluster is not None:
                cluster.close()

    def _watch(self, order: JobOrder, cluster: RenderCluster, handle: DriverHandle, *, detached: bool) -> RenderResult:
        """Hand on events, carry the user's word, until the job is over (detached: until it has begun)."""
        ended: float | None = None
        try:
            while True:
                self._hand_on(0.1 if self._over else 0.25)
                if self.stop.is_set():
                    self._ask(order, STOP_FILE)
                if detached and self._begun:
                    return replace(outcome(order, FrameStore.open(order.store), interrupted=False), state="detached")
                came = handle.poll()
                if came is None:
                    if handle.lost():
                        order, handle = self._give_again(order, cluster)
                    continue
                ended = ended or time.monotonic()
                if isinstance(came, LandmarkError):
                    self._hand_on(0.2)
                    raise came
                if self._over or time.monotonic() - ended > LAST_WORDS_SECONDS:
                    return came
        except KeyboardInterrupt:
            return self._abort(order, handle)

    def _hand_on(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            self._begun |= isinstance(event, JobStarted)
            self._over |= isinstance(event, JobDone)
            _tell(self.sinks, event)
            if self._over or self.stop.is_set():
                return

    def _ask(self, order: JobOrder, word: str) -> None:
        """Leave a word in the run's folder, as soon as its driver has made it, and while it is there."""
        folder = run_folder(order.store, order.run)
        if folder.is_dir() and not (folder / word).exists():
            with suppress(FileNotFoundError):  # the job has just ended
                (folder / word).touch()

    def _give_again(self, order: JobOrder, cluster: RenderCluster) -> tuple[JobOrder, DriverHandle]:
        """The scheduler went away, and with it the driver: wait for another at its address."""
        logger.warning("the scheduler at %s went away: waiting for it to come back", cluster.address)
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and not self.stop.is_set():
            with suppress(OSError):
                if cluster.has_driver():
                    order = replace(order, run=new_run_id(), created=False, patience=90.0)
                    return order, cluster.start(order, self._events.put)
            time.sleep(1.0)
        raise GroupError(
            f"the scheduler at {cluster.address} went away and did not come back in {PATIENCE_SECONDS:.0f} s",
            remedy="start it again; the same command goes on where this one stopped",
        )

    def _abort(self, order: JobOrder, handle: DriverHandle | None) -> RenderResult:
        """The user wants out, at once."""
        self.stop.set()
        until = time.monotonic() + ABORT_SECONDS
        while handle is not None and time.monotonic() < until:
            self._ask(order, ABORT_FILE)
            came = handle.poll()
            if isinstance(came, RenderResult):
                return came
            if came is not None or handle.lost():
                break
            time.sleep(0.05)
        return outcome(order, FrameStore.open(order.store), interrupted=True)

    def _remember_speed(self, result: RenderResult) -> None:
        """Seconds a worker needed for a megasample, for the next plan."""
        placement, request = self.plan.placement, self.plan.request
        if placement is None or not request.scene or not result.rendered or result.worker_seconds <= 0:
            return
        frame = request.pixels * request.samples / 1e6
        record_speed(speed_key(request, placement, self.machine), request.scene, result.worker_seconds / (result.rendered * frame), frame)


class _NoStation:
    """Where there is nothing to render, nobody is needed."""

    def __init__(self, sinks: Sequence[EventSink]) -> None:
        self._sinks = sinks

    def emit(self, event: Event) -> None:
        _tell(self._sinks, event)

    def begin(self, wanted: Sequence[int], todo: Sequence[int]) -> None: ...

    def open_run(self, folder: StorePath, snapshot: Any) -> int:
        return 0

    def pool(self, graph: Any, folder: StorePath, claim: Any) -> Any:
        raise ValueError("a job with nothing to render needs no pool")

    def close(self) -> None:
        pass
