"""A cluster of SLURM jobs, asked for from outside through dask-jobqueue: one job a node, each the supervisor of its ranks."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
from distributed import Client
from distributed.utils import get_ip

from landmark_batch.errors import ConfigError, GroupError
from landmark_batch.workflows.cluster import DASHBOARD_PORT, SCHEDULER_SETTINGS, SETTINGS, RenderCluster, settle
from landmark_batch.workflows.host_scheduler import ALLOWED_FAILURES, DRIVER_THREADS, DRIVERS
from landmark_batch.workflows.hosts import DRIVER, LOOPBACK_PAGE, own_host
from landmark_batch.workflows.nanny import RenderNanny
from landmark_batch.workflows.security import TlsCredentials, temporary_security
from landmark_batch.workflows.slurm_file import SlurmFile, read_slurm_file
from landmark_batch.workflows.worker import DRIVER_RESOURCE

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0  # that a job's workers wait for a client that is gone, before they give the nodes back
_POLL_SECONDS = 2.0
_LOST_SECONDS = 60.0  # that a job which SLURM does not list any more, and whose workers never came, is given the benefit of the doubt


def start_slurm_cluster(
    path: Path,
    *,
    folder: Path,
    log: Path | None = None,
    dashboard: bool = True,
    tls: TlsCredentials | None = None,
    stopped: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Client, Callable[[], None]]:
    """Ask SLURM for the jobs of a cluster file and wait for the first one's workers; those of the others join when they start.

    The scheduler and the worker for jobs' drivers run here. folder: one that this host and the nodes see: credentials and the jobs'
    output go into a new folder below it. log: of the driver. tls: credentials, default temporary ones. stopped: asked while waiting.
    tell: lines for people.

    Returns a client, and what cancels the jobs and removes the folder. Raises ConfigError for the file, without dask-jobqueue or
    without sbatch, GroupError where no job starts its workers.
    """
    wanted = read_slurm_file(path)
    with ExitStack() as stack:
        private = folder.resolve() / f".landmark-slurm-{secrets.token_hex(4)}"
        _make_private(private)
        stack.callback(shutil.rmtree, private, ignore_errors=True)
        stack.enter_context(dask.config.set({**SETTINGS, "distributed.diagnostics.nvml": False}))
        cluster = _submit(wanted, private, tls or temporary_security(private), log, dashboard, path)
        stack.callback(_close_cluster, cluster)
        client = Client(cluster, set_as_default=False)
        stack.callback(_close_client, client)
        tell(f"SLURM jobs {', '.join(cluster.job_ids())}: waiting for the first to start (Ctrl-C cancels them)")
        _wait_for_workers(client, cluster, wanted, private, stopped)
        return client, stack.pop_all().close
    raise AssertionError("unreachable")


def slurm_cluster(path: Path, **options: Any) -> RenderCluster:
    """`start_slurm_cluster` as what `run_render` takes for its `cluster`; closing it cancels the jobs. options: of that function."""
    client, close = start_slurm_cluster(path, **options)
    exits = ExitStack()
    exits.callback(close)
    port = client.sync(client.scheduler.identity)["services"].get("dashboard")
    shown = f"http://127.0.0.1:{port}/status" if options.get("dashboard", True) and port else None
    return RenderCluster(client, None, exits, dashboard=shown)


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror or error}", remedy="the store's folder must be writable, here and on the nodes"
        ) from None


def _submit(wanted: SlurmFile, private: Path, tls: TlsCredentials, log: Path | None, dashboard: bool, path: Path) -> Any:
    if shutil.which("sbatch") is None:
        raise ConfigError(f"{path}: this host has no sbatch", remedy="call it on a login node of the SLURM cluster")
    cluster_class = render_slurm_cluster()
    host = wanted.host or str(get_ip())
    page = f"127.0.0.1:{DASHBOARD_PORT}" if dashboard else LOOPBACK_PAGE
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\s*Port \d+ is already in use")  # it takes another, and says which
            return cluster_class(
                wanted=wanted,
                tls=tls,
                log=log,
                log_directory=str(private),
                shared_temp_directory=str(private),
                security=tls.security(),
                protocol="tls://",
                silence_logs=False,
                scheduler_options={
                    "host": host,
                    "dashboard": dashboard,
                    "dashboard_address": page,
                    "allowed_failures": ALLOWED_FAILURES,
                },
            )
    except RuntimeError as error:
        said = re.search(r"stderr:\n(.*)", str(error), re.DOTALL)
        reason = " ".join((said[1] if said else str(error)).split())
        raise ConfigError(
            f"{path}: sbatch refused the job: {reason}", remedy="mend partition, account, time or extra in that file"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: the scheduler cannot listen on {host}: {error}", remedy="set host in that file") from None


def render_slurm_cluster() -> type[Any]:
    """RenderSLURMCluster. A function, because dask-jobqueue is an optional package. Raises ConfigError without it."""
    try:
        from dask_jobqueue import SLURMCluster
        from dask_jobqueue.slurm import SLURMJob
    except ImportError:
        raise ConfigError("--cluster needs the package dask-jobqueue", remedy="pip install 'landmark-batch[slurm]'") from None

    class RenderSLURMJob(SLURMJob):  # type: ignore[misc]
        """A job whose script runs `landmark-batch worker` on its node."""

        def __init__(self, scheduler: str | None = None, name: str | None = None, *, wanted: SlurmFile, tls: TlsCredentials, **kwargs: Any):
            super().__init__(
                scheduler,
                name,
                queue=wanted.partition,
                account=wanted.account,
                walltime=wanted.time or "",
                job_cpu=wanted.cores_per_task or 1,
                job_mem=wanted.memory or "",
                job_extra_directives=wanted.directives(),
                job_script_prologue=list(wanted.prologue),
                job_directives_skip=_left_to_defaults(wanted),
                python=wanted.python or sys.executable,
                job_name="landmark-batch",
                cores=1,
                processes=1,
                memory="1GB",  # dask-jobqueue wants numbers; the worker's command below has no use for them
                **kwargs,
            )
            words = [wanted.python or sys.executable, "-m", "landmark_batch.cli", "worker", str(scheduler)]
            words += ["--name", f"{name}", "--tls-ca-file", tls.ca, "--tls-cert", tls.cert, "--tls-key", tls.key]
            words += ["--patience", f"{PATIENCE_SECONDS:.0f}"]
            words += ["--gpus", f"{wanted.gpus_per_node}"] if wanted.gpus_per_node else ["--device", "cpu"]
            self._command_template = f"exec {shlex.join(words)}"

    class RenderSLURMCluster(SLURMCluster):  # type: ignore[misc]
        """One job a node, and a worker here for the jobs' drivers."""

        job_cls = RenderSLURMJob

        def __init__(self, *, wanted: SlurmFile, tls: TlsCredentials, log: Path | None, **kwargs: Any) -> None:
            super().__init__(n_workers=0, wanted=wanted, tls=tls, **kwargs)
            options = {
                "name": DRIVER,
                "host": own_host(self.scheduler.address),
                "nthreads": DRIVER_THREADS,
                "resources": {DRIVER_RESOURCE: DRIVERS},
                "env": {"CUDA_VISIBLE_DEVICES": ""},
                "security": tls.security(),
                "memory_limit": 0,
                "dashboard_address": LOOPBACK_PAGE,
                "log": str(log) if log is not None else None,
            }
            self.worker_spec[DRIVER] = {"cls": RenderNanny, "options": options}
            for number in range(wanted.nodes):
                self.worker_spec[f"n{number}"] = self.new_spec
            try:
                self.sync(self._correct_state)
            except Exception:
                with contextlib.suppress(Exception):  # it insists that every job has started
                    self.close()
                raise

        async def _start(self) -> None:
            with dask.config.set(SCHEDULER_SETTINGS):
                await super()._start()
            settle(self.scheduler)

        def job_ids(self) -> list[str]:
            """Of SLURM, in the order of nodes."""
            return [str(job.job_id) for job in self.workers.values() if isinstance(job, RenderSLURMJob)]

        def listed_jobs(self) -> set[str]:
            """Those that SLURM still has, waiting or running; all of them while it does not answer."""
            ids = self.job_ids()
            try:
                text = self.sync(RenderSLURMJob._call, ["squeue", "-h", "-o", "%i", "-j", ",".join(ids)])
            except (RuntimeError, OSError):  # 'Invalid job id specified': all of them have ended; or no squeue here
                return set() if shutil.which("squeue") else set(ids)
            return set(text.split())

    return RenderSLURMCluster


def _left_to_defaults(wanted: SlurmFile) -> list[str]:
    """Directives of dask-jobqueue's that the file says nothing of."""
    given = {"-t ": wanted.time, "--mem=": wanted.memory, "--cpus-per-task=": wanted.cores_per_task}
    return [directive for directive, value in given.items() if value is None]


def _wait_for_workers(client: Client, cluster: Any, wanted: SlurmFile, private: Path, stopped: Callable[[], bool]) -> None:
    """Until one job's ranks are there. Raises GroupError when the jobs have all ended before that."""
    least = max(1, wanted.gpus_per_node)
    gone_at: float | None = None
    while not stopped():
        names = [str(info["name"]) for info in client.sync(client.scheduler.identity)["workers"].values()]
        ranks = [name for name in names if name != DRIVER]
        if len(ranks) >= least:
            return
        if cluster.listed_jobs():
            gone_at = None
        elif ranks:
            return
        else:
            gone_at = gone_at or time.monotonic()
            if time.monotonic() - gone_at > (_LOST_SECONDS if not _said(private) else _POLL_SECONDS):
                raise GroupError(f"every SLURM job ended before its workers came: {_said(private) or 'it said nothing'}", remedy=_REMEDY)
        time.sleep(_POLL_SECONDS)


_REMEDY = "prologue must make landmark-batch importable on the nodes; they must reach this host and see this folder"


def _said(private: Path) -> str:
    """The last line that any job printed to its standard error."""
    for path in sorted(private.glob("*.err")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return ""


def _close_client(client: Client) -> None:
    with contextlib.suppress(Exception):
        client.close(timeout=5)


def _close_cluster(cluster: Any) -> None:
    with contextlib.suppress(Exception):
        cluster.close(timeout=20)
