"""The worker's side of a job: a plugin that opens a session once a process or joins a group, and the task that renders a chunk.

Loading the scene, forming groups and serving them happen in threads of their own, so that the worker's event loop, its heartbeats and
its dashboard live meanwhile; the first task waits. The environment is read and set here, at process start, and nowhere else in
the workflows.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future as ThreadFuture
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker import thread_state

from landmark_batch.errors import GroupError
from landmark_batch.fetching.transit import remove_leftovers
from landmark_batch.object_path import StorePath, as_store_path
from landmark_batch.workflows.load import LOAD, NO_LOAD, gpu_memory
from landmark_batch.workflows.member import (
    AFTER_GROUP_EXIT,
    CRASH_EXIT,
    GroupMember,
    JoinOrder,
    end_process,
    forget_memory,
    import_all,
    meeting_place,
)
from landmark_batch.workflows.messages import topic
from landmark_batch.workflows.security import is_loopback
from landmark_batch.workflows.session import GroupLostError, RenderSession, SetupError
from landmark_batch.workflows.word import ChunkWord

if TYPE_CHECKING:
    from landmark_batch.model.runtime import KernelSource

logger = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
CLOSE_SECONDS = 10.0
DRIVER_RESOURCE = "driver"  # of the worker that runs drivers of jobs and renders nothing


def gpus_hidden() -> bool:
    """CUDA_VISIBLE_DEVICES hides every GPU."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return value is not None and value.strip() in ("", "-1", "NoDevFiles")


def kernel_source() -> KernelSource:
    """Where this process takes compiled kernels from: LANDMARK_BATCH_KERNELS and CUDA_HOME, else the program's cache."""
    from landmark_batch.model.runtime import KernelSource

    return KernelSource.from_environment(os.environ)


def gpu_environment(ordinal: int) -> dict[str, str]:
    """Environment of a worker that is to see one GPU only. ordinal: as this process counts its visible GPUs."""
    visible = [item.strip() for item in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if item.strip()]
    return {"CUDA_VISIBLE_DEVICES": visible[ordinal] if visible else str(ordinal)}


class RenderProcess(Worker):  # type: ignore[misc]
    """A Dask worker process that writes its log, and whatever its libraries print, to the job's log file.

    A terminal's Ctrl-C, and SIGTERM of a batch job or a service, reach every process: only the client or supervisor answers to them, so
    that the chunk in hand is finished.
    log: path of that file, None leaves everything as it is.
    """

    def __init__(self, *args: Any, log: str | None = None, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for word in (signal.SIGINT, signal.SIGTERM):
                signal.signal(word, signal.SIG_IGN)
        # Semaphores that libraries make from here on (numcodecs does) are unlinked at once, so that killing this process leaks none.
        multiprocessing.set_start_method("fork", force=True)
        if log is not None:
            _log_to(Path(log), str(kwargs.get("name", "worker")))
        super().__init__(*args, **kwargs)


def _log_to(path: Path, name: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable()
    handler = logging.StreamHandler()  # standard error, which is the file now
    handler.setFormatter(logging.Formatter(LOG_FORMAT.replace("%(message)s", f"[{name}] %(name)s: %(message)s")))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for known in [*logging.root.manager.loggerDict]:
        known_logger = logging.getLogger(known)
        for old in [*known_logger.handlers]:
            known_logger.removeHandler(old)
        known_logger.propagate = True
    logging.getLogger("distributed").setLevel(logging.WARNING)
    logging.getLogger("landmark_batch").setLevel(logging.INFO)


class RenderWorker(WorkerPlugin):  # type: ignore[misc]
    """Opens one run of a job on every worker, and closes it when the run is over: a session of its own, or, where frames are rendered
    by groups, what waits for the driver's word to join one.

    run: id of the run. folder: its snapshot. ranks: of a group; 1 for workers that render alone.
    """

    def __init__(self, run: str, folder: str, ranks: int = 1) -> None:
        self.run = run
        self.folder = folder
        self.ranks = ranks
        self.name = plugin_name(run)

    def setup(self, worker: Worker) -> None:
        if DRIVER_RESOURCE in worker.state.total_resources:
            return  # it drives jobs and renders none
        service = Service(worker, self.run, as_store_path(self.folder), self.ranks)
        SERVICES[self.run] = service
        worker.metrics[f"landmark_{self.run}"] = service.metric
        for name in METRICS:
            worker.metrics[name] = functools.partial(_shown, name)
        service.start()

    def transition(self, key: str, start: str, finish: str, **_: Any) -> None:
        """A task is on its way through Dask."""
        service = SERVICES.get(self.run)
        if service is not None and finish == "memory":
            service.word.task_ended(key)

    async def teardown(self, worker: Worker) -> None:
        service = SERVICES.pop(self.run, None)
        worker.metrics.pop(f"landmark_{self.run}", None)
        if not SERVICES:
            for name in METRICS:
                worker.metrics.pop(name, None)
        if service is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(service.close), CLOSE_SECONDS)  # a frame may still be rendered


class Service:
    """A run on this worker: its session or its place in a group, and what the dashboard sees of it."""

    def __init__(self, worker: Worker, run: str, folder: StorePath, ranks: int) -> None:
        self.worker = worker
        self.run = run
        self.folder = folder
        self.ranks = ranks
        self.word = ChunkWord(worker, topic(run))
        self.label = f"{socket.gethostname()}/{worker.name}"
        self.session: ThreadFuture[RenderSession] = ThreadFuture()
        self.member: GroupMember | None = None

    def start(self) -> None:
        """Load the scene; for a group, what takes long to import, before it is asked for."""
        work = self._open if self.ranks == 1 else import_all
        threading.Thread(target=work, name="open render session", daemon=True).start()

    def _open(self) -> None:
        try:
            self.session.set_result(RenderSession.open(self.folder, self.label, kernel_source()))
        except BaseException as error:
            logger.exception("cannot open the job")
            self.session.set_exception(error)

    def join(self, order: JoinOrder, rendezvous: Any) -> None:
        """Take a place in a group. A place in an older one is given up by starting afresh: its collectives may hang."""
        if self.member is not None and not self.member.left:
            end_process(AFTER_GROUP_EXIT, f"it is still in epoch {self.member.order.epoch} of group {self.member.order.group}")
            return
        self.session = ThreadFuture()
        self.member = GroupMember(
            order, self.folder, self.label, kernel_source(), tell=self.word.tell, session=self.session, rendezvous=rendezvous
        )
        self.member.start()

    @property
    def idle(self) -> bool:
        """Whether this worker can go without anybody missing it."""
        if self.ranks > 1:
            return self.member is None or self.member.left
        return not (self.session.done() and self.session.exception() is None and self.session.result().busy)

    def shown(self) -> dict[str, Any]:
        """State of this rank: group, epoch, rank, role, state, chunk, frames, runtime, device, and those of LOAD."""
        values: dict[str, Any] = {
            "group": "",
            "epoch": 0,
            "rank": 0,
            "role": "worker",
            "frames": 0,
            "chunk": "",
            "runtime": "",
            "device": "",
            **NO_LOAD,
        }
        if self.ranks > 1:
            if self.member is None or self.member.left:
                return {**values, "role": "spare", "state": "waiting for a group"}
            values |= self.member.shown()
        if not self.session.done():
            return {"state": "loading", **values}
        if self.session.exception() is not None:
            return {**values, "state": "failed"}
        session = self.session.result()
        state = "rendering" if session.chunk else "idle"
        return {
            **values,
            "state": state,
            "frames": session.frames_done,
            "chunk": session.chunk,
            "runtime": session.runtime,
            "device": session.device,
            **session.load(),
        }

    async def metric(self, worker: Worker) -> dict[str, Any]:
        return self.shown()

    def close(self) -> None:
        """Waits for the frame in hand."""
        if self.session.done() and self.session.exception() is None:
            self.session.result().close()
        if self.member is not None:
            self.member.close()
        if self.ranks > 1:
            remove_leftovers()  # of ranks that ended without a goodbye
        forget_memory()


SERVICES: dict[str, Service] = {}
METRICS = ("group", "epoch", "role", "state", "gpu_memory", *LOAD)  # of every rank, as columns of Dask's own pages
_draining = threading.Event()


async def _shown(name: str, worker: Worker) -> Any:
    """One column of the dashboard: of the newest run on this worker."""
    if name == "gpu_memory":
        return gpu_memory()
    services = list(SERVICES.values())
    if not services:
        return 0 if name == "epoch" or name in LOAD else "draining" if name == "state" and _draining.is_set() else ""
    return services[-1].shown()[name]


def plugin_name(run: str) -> str:
    return f"landmark-batch-{run}"


def render_chunk(run: str, chunk: str, frames: Sequence[int], attempt: int) -> dict[str, Any]:
    """The task: render the frames of a chunk that do not stand yet, and commit them.

    run: id of the run whose session this worker has open. chunk: its id. Returns the receipt of RenderSession.render.
    Raises SetupError where the session could not be opened, else what rendering or writing raised.
    """
    service = SERVICES.get(run)
    if service is None:
        raise SetupError(RuntimeError(f"worker {socket.gethostname()} has no open session for run {run}"))
    failed = service.session.exception()
    if failed is not None:
        raise SetupError(failed)
    session = service.session.result()
    if _draining.is_set():
        return {"stopped": True}
    try:
        receipt = session.render(chunk, tuple(frames), attempt, lambda: service.word.begin(chunk))
        with contextlib.suppress(TypeError):  # of something that does not travel so: it is fetched
            service.word.receipt(thread_state.key, chunk, attempt, receipt)
        return receipt
    except GroupLostError as error:
        assert service.member is not None
        service.member.fence(error.__cause__ or error, chunk)
        raise
    finally:
        service.word.end(chunk)
        if session.broken:
            end_process(CRASH_EXIT, "its device is in a bad state", after=1.0)


# -- what a driver or `landmark-batch worker` calls through client.run


async def open_rendezvous(run: str, order: JoinOrder, dask_worker: Worker) -> tuple[str, int]:
    """The leader's meeting place: host and port."""
    await _has_opened(run)
    host = str(dask_worker.address).split("://")[-1].rsplit(":", 1)[0]
    rendezvous = await asyncio.to_thread(meeting_place, host)
    _RENDEZVOUS[run, order.group, order.epoch] = rendezvous
    return rendezvous.host, rendezvous.port


async def join_group(run: str, order: JoinOrder, dask_worker: Worker) -> None:
    """Take a rank in a group; returns at once, what comes of it is told on the run's topic."""
    await _has_opened(run)
    if is_loopback(str(dask_worker.address)):
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # NCCL, too, listens on this machine alone
    SERVICES[run].join(order, _RENDEZVOUS.pop((run, order.group, order.epoch), None))


async def _has_opened(run: str) -> None:
    """A worker that has just come is listed before its plugins are set up."""
    for _ in range(200):
        if run in SERVICES:
            return
        await asyncio.sleep(0.05)
    raise GroupError(f"worker {socket.gethostname()} has not opened run {run}")


async def leave_group(run: str, dask_worker: Worker) -> None:
    """The leader ends its group; the others follow it out."""
    service = SERVICES.get(run)
    if service is not None and service.member is not None:
        await asyncio.to_thread(service.member.close)


async def end_worker(reason: str, dask_worker: Worker) -> None:
    """End this process; its nanny starts a fresh one."""
    end_process(AFTER_GROUP_EXIT, reason, after=0.1)


async def begin_drain(dask_worker: Worker) -> None:
    """Take no more chunks, in any run; `drained` tells when the last one in hand is done."""
    _draining.set()
    for service in list(SERVICES.values()):
        service.word.tell({"draining": True})


async def drained(dask_worker: Worker) -> bool:
    """Whether this worker renders nothing and is in no group, so that it can go."""
    return _draining.is_set() and all(service.idle for service in SERVICES.values())


_RENDEZVOUS: dict[tuple[str, str, int], Any] = {}
