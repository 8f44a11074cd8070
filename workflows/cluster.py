"""Start a cluster on this machine, or join a running one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future as ThreadFuture
from multiprocessing import resource_tracker, spawn
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dask
import distributed.utils
from distributed import Client, LocalCluster, Scheduler
from distributed.nanny import Nanny
from distributed.security import Security

from landmark_batch.errors import ConfigError, GroupError
from landmark_batch.events import Event
from landmark_batch.workflows.handle import DriverHandle, TaskHandle, ThreadHandle
from landmark_batch.workflows.heartbeat import DriverWorker, calm
from landmark_batch.workflows.in_hand import CHUNKS
from landmark_batch.workflows.machine import Placement
from landmark_batch.workflows.nanny import RenderNanny
from landmark_batch.workflows.order import JobOrder
from landmark_batch.workflows.security import scheduler_address
from landmark_batch.workflows.worker import DRIVER_RESOURCE, RenderProcess, gpu_environment

if TYPE_CHECKING:
    from landmark_batch.workflows.warm import WarmStart

logger = logging.getLogger(__name__)

T = TypeVar("T")
DASHBOARD_PORT = 8787
SENT_LAST = 100  # messages of a stream that are kept by a server, for who debugs Dask
_NANNY_PROCESS = "Dask Worker process"

_LOGS = "distributed.admin.low-level-log-length"

SETTINGS: dict[str, Any] = {
    "distributed.scheduler.work-stealing": False,  # it would tear ranges of neighbouring poses apart
    "distributed.scheduler.worker-ttl": "60s",  # a hung worker is replaced; the default waits five minutes
    "distributed.deploy.lost-worker-timeout": "1h",  # with the default a worker that restarts slowly loses its nanny for good
    "distributed.worker.profile.enabled": False,  # it samples the rendering thread every 10 ms
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    _LOGS: SENT_LAST,
    "distributed.admin.tick.interval": "2s",  # of each server's look at its own loop; the default, 20 ms, took 6 % of a core beside a job
    "distributed.admin.tick.cycle": "10s",
    "distributed.admin.system-monitor.interval": "5s",  # of each server's look at its machine, for the dashboard
    "distributed.client.scheduler-info-interval": "30s",  # nothing here reads what a client keeps of it
    "distributed.scheduler.active-memory-manager.start": False,  # it moves results about; receipts are fetched and dropped
    "distributed.comm.timeouts.connect": "30s",
    "distributed.comm.timeouts.tcp": "60s",
}
SCHEDULER_SETTINGS: dict[str, Any] = {_LOGS: 2000}  # while one starts: events of a topic that it keeps, to be told to those who attach


class _RenderCluster(LocalCluster):  # type: ignore[misc]
    """LocalCluster whose workers have names, a GPU of their own each, and one log file."""

    def __init__(self, placement: Placement, log: Path | None, **kwargs: Any) -> None:
        self._placement = placement
        self._log_file = log
        super().__init__(n_workers=0, threads_per_worker=CHUNKS, processes=True, **kwargs)
        for _ in range(placement.workers):
            self.worker_spec.update(self.new_worker_spec())
        self.worker_spec["driver"] = {"cls": DriverWorker, "options": _driver_options(self.new_spec["options"])}
        try:
            self.sync(self._correct_state)
            self.sync(self._calm)
        except Exception:
            self.close()
            raise

    async def _start(self) -> None:
        """Start the scheduler; workers come later."""
        with dask.config.set(SCHEDULER_SETTINGS):
            await super()._start()
        settle(self.scheduler)

    async def _calm(self) -> None:
        calm(self.workers["driver"], shown=False)  # nannies do so themselves

    def _new_worker_name(self, worker_number: int) -> str:
        return f"gpu{self._placement.gpus[worker_number]}" if self._placement.gpus else f"w{worker_number}"

    def new_worker_spec(self) -> dict[str, Any]:
        number = len(self.worker_spec)
        options = {**self.new_spec["options"], "worker_class": RenderProcess}
        if self._log_file is not None:
            options["log"] = str(self._log_file)
        if self._placement.gpus:
            options["env"] = gpu_environment(self._placement.gpus[number])
        return {self._new_worker_name(number): {"cls": RenderNanny, "options": options}}


def _driver_options(options: dict[str, Any]) -> dict[str, Any]:
    """Of the worker in this process that drives jobs and renders none: a thread of it is all that a job's driver is."""
    known = {name: value for name, value in options.items() if name in ("host", "protocol", "interface", "security", "silence_logs")}
    return {**known, "nthreads": 1, "memory_limit": 0, "resources": {DRIVER_RESOURCE: 1000}, "dashboard": False}


def settle(scheduler: Scheduler) -> None:
    """Let a scheduler that has just started keep few of its transitions and look at itself less often; to be called in its event loop."""
    scheduler.transition_log = deque(scheduler.transition_log, maxlen=SENT_LAST)
    calm(scheduler, shown=True)


class RenderCluster:
    """A client on a cluster of render workers.

    dashboard: address of Dask's dashboard, None without one. address: of the scheduler.
    """

    def __init__(self, client: Client, cluster: LocalCluster | None, exits: contextlib.ExitStack, *, dashboard: str | None) -> None:
        self.client = client
        self.dashboard = dashboard
        self.address = str(client.scheduler.address)
        self._cluster = cluster
        self._exits = exits

    def start(self, order: JobOrder, watch: Callable[[Event], None]) -> DriverHandle:
        """Have a job driven: by a task on the cluster's driver worker, else by a thread here. watch: gets its events, in other threads."""
        if self.has_driver():
            return TaskHandle(self.client, order, watch)
        return ThreadHandle(self.client, order, watch)

    def has_driver(self) -> bool:
        """Whether the cluster has a worker for drivers of jobs, so that a job can go on without its client."""
        identity = self.client.sync(self.client.scheduler.identity)
        return any(DRIVER_RESOURCE in (info.get("resources") or {}) for info in identity["workers"].values())

    def close(self) -> None:
        """End the client, and at once the workers that were started here: nothing of a run is in them that is not in the store."""
        try:
            if self._cluster is None:
                with contextlib.suppress(Exception):
                    self.client.close(timeout=5)
            else:
                self._end(self._cluster)
        finally:
            self._exits.close()

    def _end(self, cluster: LocalCluster) -> None:
        nannies = [nanny for nanny in cluster.workers.values() if isinstance(nanny, Nanny)]
        with contextlib.suppress(Exception):
            cluster.sync(_no_restart, nannies, callback_timeout=5)
        for nanny in nannies:
            if nanny.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(nanny.pid, signal.SIGKILL)
        with contextlib.suppress(Exception):
            self.client.close(timeout=10)


async def _no_restart(nannies: list[Nanny]) -> None:
    for nanny in nannies:
        nanny.close_gracefully(reason="landmark-batch-kill")


def start_cluster(placement: Placement, *, log: Path | None = None, dashboard: bool = True, warm: WarmStart | None = None) -> RenderCluster:
    """A scheduler in this process and `placement.workers` worker processes, listening on the loopback interface only.

    warm: workers are forked from its process, which is to live as long as the cluster; None: each starts from nothing.

    Worker processes end when this process does, however it ends. They never see the terminal's Ctrl-C, and they do not
    import the caller's main module (so a script needs no main guard). Raises GroupError where they do not come up.
    """
    exits = contextlib.ExitStack()
    exits.enter_context(dask.config.set({**SETTINGS, "distributed.diagnostics.nvml": bool(placement.gpus)}))
    if warm is not None:
        setattr(distributed.utils, "_forkserver_preload_set", True)  # noqa: B010  else Dask imports pandas here, to have it preloaded
        exits.enter_context(dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}))
    exits.enter_context(_main_stays_out())
    port = DASHBOARD_PORT if dashboard and _port_is_free(DASHBOARD_PORT) else 0
    try:
        cluster = _shielded(lambda: _new_cluster(placement, log, port, dashboard), abandon=lambda late: late.close())
        exits.callback(_close_quietly, cluster)
        client = Client(cluster, set_as_default=False)
    except KeyboardInterrupt:
        exits.close()
        raise
    except Exception as error:
        exits.close()
        remedy = f"the whole error is in {log}" if log else None
        raise GroupError(f"worker processes did not start: {type(error).__name__}: {error}", remedy=remedy) from error
    return RenderCluster(client, cluster, exits, dashboard=str(cluster.dashboard_link) if dashboard else None)


def _new_cluster(placement: Placement, log: Path | None, port: int, dashboard: bool) -> _RenderCluster:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*Port \d+ is already in use")  # another took it just now: Dask takes the next
        return _RenderCluster(
            placement,
            log,
            host="127.0.0.1",
            dashboard_address=f"127.0.0.1:{port}",
            silence_logs=False,
            scheduler_sync_interval=30,  # seconds between two words on the cluster's own state, which is not read here
            memory_limit=0,
            # allowed_failures: every death of a worker is told at once; the driver counts
            scheduler_kwargs={"allowed_failures": 0, "dashboard": dashboard},
        )


def _close_quietly(cluster: LocalCluster) -> None:
    with contextlib.suppress(Exception):
        cluster.close(timeout=10)


def join_cluster(scheduler: str, *, security: Security | None = None, timeout: float = 20.0) -> RenderCluster:
    """A client of a running scheduler ('tls://head:8786', 'head'). security: None takes what Dask's own configuration names.

    Raises ConfigError where none answers, and for an address that is none or asks for TLS where there are no credentials.
    """
    exits = contextlib.ExitStack()
    security = security or Security()
    address = scheduler_address(scheduler, tls=security.get_connection_args("client").get("ssl_context") is not None)
    try:
        client = Client(address, security=security, set_as_default=False, timeout=timeout)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {address}: {error}",
            remedy="start one with `landmark-batch scheduler` (a TLS one needs the --tls options here too), or leave --scheduler out",
        ) from None
    return RenderCluster(client, None, exits, dashboard=_dashboard(client))


def _dashboard(client: Client) -> str | None:
    """The page of a running scheduler, by its port; `landmark-batch scheduler` has it on its own loopback and says how to reach it."""
    port = client.sync(client.scheduler.identity)["services"].get("dashboard")
    return str(client.dashboard_link) if port else None


def _port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _shielded(make: Callable[[], T], abandon: Callable[[T], Any]) -> T:
    """Call `make` in a thread that takes no Ctrl-C; threads and processes it starts inherit that, this thread stays interruptible."""
    outcome: ThreadFuture[T] = ThreadFuture()
    resource_tracker.ensure_running()  # starting it unblocks SIGINT in the thread that does, so not in the one below

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            outcome.set_result(make())
        except BaseException as error:  # noqa: BLE001  handed to the caller's thread
            outcome.set_exception(error)

    threading.Thread(target=run, name="start cluster", daemon=True).start()
    try:
        return outcome.result()
    except KeyboardInterrupt:
        outcome.add_done_callback(lambda made: abandon(made.result()) if made.exception() is None else None)
        raise


@contextlib.contextmanager
def _main_stays_out() -> Iterator[None]:
    """Worker processes do not import the caller's main module: a script without a main guard would start itself again in each."""
    original = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data = original(name)
        if name.startswith(_NANNY_PROCESS):
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = original
