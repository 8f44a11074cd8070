"""The worker's side of a job: a plugin that opens a session once a process, and the task that renders a chunk in it.

Loading the scene happens in a thread of its own, so that the worker's event loop, its heartbeats and its dashboard live
meanwhile; the first task waits for it. The environment is read and set here, at process start, and nowhere else in the
workflows.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Worker
from distributed.diagnostics.plugin import WorkerPlugin

from landmark_batch.workflows.session import RenderSession, SetupError

if TYPE_CHECKING:
    from landmark_batch.model.runtime import KernelSource

logger = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
_FATAL_EXIT = 70  # a worker whose device is in a bad state ends itself; its nanny starts a fresh one


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

    log: path of that file, None leaves everything as it is.
    """

    def __init__(self, *args: Any, log: str | None = None, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches every process; the client's alone decides
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
    """Opens a render session for one run of a job on every worker, and closes it when the run is over.

    run: id of the run. folder: its snapshot.
    """

    def __init__(self, run: str, folder: str) -> None:
        self.run = run
        self.folder = folder
        self.name = f"landmark-batch-{run}"

    def setup(self, worker: Worker) -> None:
        service = _Service(worker, self.run, Path(self.folder))
        _SERVICES[self.run] = service
        worker.metrics[f"landmark_{self.run}"] = service.metric

    def teardown(self, worker: Worker) -> None:
        service = _SERVICES.pop(self.run, None)
        worker.metrics.pop(f"landmark_{self.run}", None)
        if service is not None:
            service.close()


class _Service:
    """A session being opened in a thread, and what the dashboard sees of it."""

    def __init__(self, worker: Worker, run: str, folder: Path) -> None:
        self.worker = worker
        self.topic = topic(run)
        self.session: Future[RenderSession] = Future()
        name = f"{socket.gethostname()}/{worker.name}"
        threading.Thread(target=self._open, args=(folder, name), name="open render session", daemon=True).start()

    def _open(self, folder: Path, name: str) -> None:
        try:
            self.session.set_result(RenderSession.open(folder, name, kernel_source()))
        except BaseException as error:
            logger.exception("cannot open the job")
            self.session.set_exception(error)

    def tell(self, chunk: str) -> None:
        """Word to the client that a chunk's rendering begins."""
        self.worker.log_event(self.topic, {"chunk": chunk, "name": str(self.worker.name), "at": time.time()})

    async def metric(self, worker: Worker) -> dict[str, Any]:
        if not self.session.done():
            return {"state": "loading", "frames": 0, "chunk": "", "runtime": "", "device": ""}
        if self.session.exception() is not None:
            return {"state": "failed", "frames": 0, "chunk": "", "runtime": "", "device": ""}
        session = self.session.result()
        return {
            "state": "rendering" if session.chunk else "idle",
            "frames": session.frames_done,
            "chunk": session.chunk,
            "runtime": session.runtime,
            "device": session.device,
        }

    def close(self) -> None:
        if self.session.done() and self.session.exception() is None:
            self.session.result().close()


_SERVICES: dict[str, _Service] = {}


def topic(run: str) -> str:
    """Dask topic on which the workers of a run tell what they begin."""
    return f"landmark-batch-{run}"


def render_chunk(run: str, chunk: str, frames: Sequence[int], attempt: int) -> dict[str, Any]:
    """The task: render the frames of a chunk that do not stand yet, and commit them.

    run: id of the run whose session this worker has open. chunk: its id. Returns the receipt of RenderSession.render.
    Raises SetupError where the session could not be opened, else what rendering or writing raised.
    """
    service = _SERVICES.get(run)
    if service is None:
        raise SetupError(RuntimeError(f"worker {socket.gethostname()} has no open session for run {run}"))
    failed = service.session.exception()
    if failed is not None:
        raise SetupError(failed)
    session = service.session.result()
    try:
        return session.render(chunk, tuple(frames), attempt, lambda: service.tell(chunk))
    finally:
        if session.broken:
            _end_soon()


def _end_soon() -> None:
    """Let the error travel, then end this process: its nanny starts a fresh one."""
    timer = threading.Timer(1.0, os._exit, (_FATAL_EXIT,))
    timer.daemon = True
    timer.start()
