"""A job over all tasks of an `srun` step: task 0 schedules, drives and renders, the others render."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path

from distributed import Client
from distributed.utils import get_ip

from landmark_batch.errors import ConfigError, GroupError, LandmarkError
from landmark_batch.job import RenderJob
from landmark_batch.workflows.cluster import DASHBOARD_PORT
from landmark_batch.workflows.host_scheduler import SchedulerOptions, scheduler_process
from landmark_batch.workflows.host_worker import Supervisor
from landmark_batch.workflows.hosts import DRIVER, Rank, host_ranks
from landmark_batch.workflows.machine import choose_device, describe_machine
from landmark_batch.workflows.nanny import die_with_parent
from landmark_batch.workflows.security import TlsCredentials, has_cryptography, temporary_credentials
from landmark_batch.workflows.slurm import MEET_SECONDS, Meeting, SlurmTask

logger = logging.getLogger(__name__)

_ARRIVE_SECONDS = 120.0  # that tasks which are late are waited for
_START_SECONDS = 300.0  # that ranks of tasks which have arrived are waited for
_POLL_SECONDS = 0.5
_JOIN_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Allocation:
    """What task 0's job runs on. address: of the scheduler. device: 'cuda' or 'cpu', as task 0 has it. dashboard: its address."""

    address: str
    tls: TlsCredentials | None
    device: str
    dashboard: str | None


def run_in_allocation(
    task: SlurmTask,
    job: RenderJob,
    render: Callable[[Allocation], None],
    *,
    tell: Callable[[str], None],
    dashboard: bool = True,
) -> int:
    """Run a job on all tasks of a step; every task calls this. render: called in task 0 alone, when the workers are there.

    Returns the exit code of this task: 0 when the job is over (task 0 raises what `render` raises), 3 or 130 when a signal ended
    this task's ranks. Raises ConfigError where nodes are to talk without TLS, GroupError where tasks do not meet.
    """
    meeting = Meeting(task, job.store_neighbour)
    return _first(task, job, meeting, render, tell, dashboard) if task.number == 0 else _other(task, job, meeting)


def _first(
    task: SlurmTask, job: RenderJob, meeting: Meeting, render: Callable[[Allocation], None], tell: Callable[[str], None], dashboard: bool
) -> int:
    meeting.write("starting")
    try:
        tls = _credentials(task)
        host = "127.0.0.1" if task.nodes == 1 else _own_address(task)
        ranks = task_ranks(task, job)
        options = SchedulerOptions(host=host, port=0, dashboard_port=DASHBOARD_PORT if dashboard else None, tls=tls, log=_log(task, job))
        with contextlib.ExitStack() as stack:
            begun = _begin_workers(ranks, meeting)  # while the scheduler starts
            stack.callback(_end_workers, begun)
            up = stack.enter_context(scheduler_process(options))
            stack.callback(meeting.close)  # the workers of all tasks leave before the scheduler ends
            stack.callback(_end_workers, begun)
            stack.callback(meeting.end)
            meeting.arrive(len(ranks))
            meeting.write("open", up.address, tls)
            _wait_for_ranks(meeting, up.address, tls, tell)
            render(Allocation(up.address, tls, choose_device(job.parallel, describe_machine()), up.dashboard))
        return 0
    finally:
        meeting.close()  # also where nothing came of it


def _other(task: SlurmTask, job: RenderJob, meeting: Meeting) -> int:
    try:
        ranks = task_ranks(task, job)
        meeting.arrive(len(ranks))
        return _attend(ranks, meeting, True)
    finally:
        with contextlib.suppress(LandmarkError):
            meeting.leave()


def task_ranks(task: SlurmTask, job: RenderJob) -> list[Rank]:
    """The ranks of this task, their scheduler still unknown: one a GPU that is the task's, or one a core of the task's.

    The job's `gpus` and `workers` count for each task. Raises ConfigError for a task that is left without a GPU.
    """
    machine = describe_machine()
    parallel = job.parallel
    gpus, workers = parallel.gpus, parallel.workers or None
    device = choose_device(parallel, machine)
    if device == "cuda" and gpus is None:
        own = task.own_gpus(len(machine.gpus))
        gpus = tuple(machine.gpus[place].ordinal for place in own) if own is not None else None
        if gpus == ():
            raise ConfigError(
                f"task {task.number} on {socket.gethostname()} has no GPU: {task.local_tasks} tasks share {len(machine.gpus)}",
                remedy="start one task a GPU (--ntasks-per-node, --gpus-per-task) or one a node",
            )
    elif device == "cpu":
        workers = workers or task.own_cores(machine.cores)
    prefix = f"{socket.gethostname()}-t{task.number}"
    return host_ranks("", host=prefix, device=device, gpus=gpus, workers=workers, log=_log(task, job), machine=machine)


def _log(task: SlurmTask, job: RenderJob) -> Path:
    """The job's log on one node; a file beside it for each host of several, for two hosts cannot append to one file."""
    path = job.log_path
    return path if task.nodes == 1 else path.with_name(f"{path.stem}.{socket.gethostname()}{path.suffix}")


def _credentials(task: SlurmTask) -> TlsCredentials | None:
    if task.nodes > 1 or has_cryptography():
        return temporary_credentials()
    return None


def _own_address(task: SlurmTask) -> str:
    """This node's address as other nodes reach it: on the way to the host that launched the step."""
    for target in filter(None, (task.launcher, "8.8.8.8")):
        with contextlib.suppress(OSError):
            found = str(get_ip(target))
            if not found.startswith("127."):
                return found
    raise GroupError(f"{socket.gethostname()} has no address that other nodes reach", remedy="check the node's network")


def _begin_workers(ranks: list[Rank], meeting: Meeting) -> SpawnProcess:
    """This task's ranks, under a supervisor in a process of its own, from the scheduler's start until the job is over."""
    process = multiprocessing.get_context("spawn").Process(target=_attend, args=(ranks, meeting, False), name="landmark-batch workers")
    process.start()
    return process


def _end_workers(process: SpawnProcess) -> None:
    process.join(_JOIN_SECONDS)
    if process.is_alive():
        process.kill()  # its ranks end with it
        process.join()


def _attend(ranks: list[Rank], meeting: Meeting, signals: bool) -> int:
    """Wait for the scheduler, hold ranks until the job is over. signals: end them on SIGTERM and SIGINT, else let the parent answer."""
    asked: list[int] = []
    if not signals:
        die_with_parent()
    handler = (lambda found, _: asked.append(found)) if signals else signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        invitation = meeting.wait_until_open(stopped=lambda: bool(asked))
        if invitation is None:
            return 3 if asked else 0
        found = [dataclasses.replace(rank, scheduler=invitation.address, tls=invitation.credentials()) for rank in ranks]
        supervisor = Supervisor(found, tell=lambda line: logger.info("%s", line), over=meeting.over, patience=MEET_SECONDS)
        return supervisor.run(signals=signals)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _wait_for_ranks(meeting: Meeting, address: str, tls: TlsCredentials | None, tell: Callable[[str], None]) -> None:
    """Until the ranks of every task have joined; tasks that are late join later. Raises GroupError where none comes."""
    started = time.monotonic()
    with Client(address, security=tls.security() if tls else None, set_as_default=False) as client:
        while True:
            here = meeting.ranks()
            missing = [number for number in range(meeting.task.tasks) if number not in here]
            workers = client.sync(client.scheduler.identity)["workers"].values()
            count = sum(1 for worker in workers if worker["name"] != DRIVER)
            expected, waited = sum(max(0, ranks) for ranks in here.values()), time.monotonic() - started
            if not missing and count >= expected > 0:
                break
            if count and waited > _ARRIVE_SECONDS:
                tell(f"going on with {count} workers; no word yet from tasks {missing}" if missing else f"going on with {count} workers")
                break
            if waited > _START_SECONDS or (not missing and expected == 0):
                raise GroupError(f"no worker of {meeting.task.tasks} tasks has joined", remedy="their output and logs say why")
            time.sleep(_POLL_SECONDS)
    tell(f"{count} workers of {meeting.task.tasks} tasks have joined in {time.monotonic() - started:.0f} s")
