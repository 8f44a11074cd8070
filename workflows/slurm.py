"""Inside a SLURM allocation: which task of `srun` this process is, and the file by which the tasks of a step meet.

Task 0 holds the scheduler and the job; every task holds render processes. They meet through a file beside the store: a shared
file system is what they have in common anyway.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from landmark_batch.errors import ConfigError, GroupError
from landmark_batch.workflows.security import TlsCredentials, write_private

MEET_SECONDS = 600.0  # that a task waits for task 0, and task 0 for the others to arrive
LEAVE_SECONDS = 30.0  # that task 0 waits at the end for others to have seen it
_POLL_SECONDS = 0.2
_STEPS = 0xFFFFFFF0  # from here on SLURM numbers its own steps: batch, interactive, extern


@dataclass(frozen=True)
class SlurmTask:
    """One task of a step of several. number: among `tasks`. local: among `local_tasks` of this node. nodes: of the step.

    cpus: of a task, None where SLURM does not say. gpus_on_node: likewise. restart: how often the job was requeued.
    launcher: address of the host that `srun` was called on.
    """

    number: int
    tasks: int
    job: str
    step: str
    local: int = 0
    local_tasks: int = 1
    nodes: int = 1
    cpus: int | None = None
    gpus_on_node: int | None = None
    restart: int = 0
    launcher: str | None = None

    def meeting_file(self, store: Path) -> Path:
        """Beside the store: `<store>.landmark-<job>.<step>.json`."""
        again = f".r{self.restart}" if self.restart else ""
        return store.with_name(f"{store.name}.landmark-{self.job}.{self.step}{again}.json")

    def own_gpus(self, visible: int) -> list[int] | None:
        """Ordinals of the GPUs that are this task's among the visible ones; None for all of them.

        Tasks of a node that see the node's GPUs all alike share them in turns; tasks that SLURM gave GPUs of their own keep these.
        """
        if self.local_tasks == 1 or visible == 0:
            return None
        if self.gpus_on_node is None:
            return None if visible == 1 else list(range(visible))[self.local :: self.local_tasks]
        return None if visible < self.gpus_on_node else list(range(visible))[self.local :: self.local_tasks]

    def own_cores(self, usable: int) -> int:
        """Cores that are this task's, where the node's tasks see `usable` ones."""
        return max(1, min(usable, self.cpus) if self.cpus is not None else usable // self.local_tasks)


def slurm_task(environment: Mapping[str, str]) -> SlurmTask | None:
    """The task that this process is, from SLURM's variables; None outside of `srun` and for a step of one task.

    A batch script itself is no task, whatever it was granted: only what `srun` starts in it is.
    """
    try:
        number, tasks = int(environment["SLURM_PROCID"]), int(environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"])
        job, step = environment["SLURM_JOB_ID"], environment.get("SLURM_STEP_ID") or environment["SLURM_STEPID"]
    except (KeyError, ValueError):
        return None
    if tasks < 2 or not step.isdigit() or int(step) >= _STEPS:
        return None
    node = _number(environment, "SLURM_NODEID") or 0
    per_node = _per_node(environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or "")
    return SlurmTask(
        number=number,
        tasks=tasks,
        job=job,
        step=step,
        local=_number(environment, "SLURM_LOCALID") or 0,
        local_tasks=per_node[node] if node < len(per_node) else 1,
        nodes=_number(environment, "SLURM_STEP_NUM_NODES") or _number(environment, "SLURM_NNODES") or 1,
        cpus=_number(environment, "SLURM_CPUS_PER_TASK"),
        gpus_on_node=_number(environment, "SLURM_GPUS_ON_NODE"),
        restart=_number(environment, "SLURM_RESTART_COUNT") or 0,
        launcher=environment.get("SLURM_LAUNCH_NODE_IPADDR"),
    )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else None


def _per_node(text: str) -> list[int]:
    """'2(x3),1' -> [2, 2, 2, 1]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is not None:
            found += [int(match[1])] * int(match[2] or 1)
    return found


# -- the meeting


@dataclass(frozen=True)
class Invitation:
    """What task 0 writes. state: 'starting', 'open' once workers may come, 'over' when the job is. tls: PEM text."""

    state: Literal["starting", "open", "over"]
    host: str
    address: str = ""
    tls: dict[str, str] | None = None

    def credentials(self) -> TlsCredentials | None:
        return TlsCredentials(**self.tls) if self.tls is not None else None


class Meeting:
    """The meeting file of a step, and one small file a task beside it that says how many ranks it brings, or that it has left."""

    def __init__(self, task: SlurmTask, store: Path) -> None:
        self.task = task
        self.path = task.meeting_file(store)
        self._closed = False

    # -- task 0

    def write(self, state: Literal["starting", "open", "over"], address: str = "", tls: TlsCredentials | None = None) -> None:
        """Raises ConfigError where the store's folder cannot be written."""
        invitation = Invitation(state, socket.gethostname(), address, asdict(tls) if tls is not None else None)
        self._write(self.path, asdict(invitation))

    def ranks(self) -> dict[int, int]:
        """Task -> how many ranks it brings, of the tasks that are there or have left; -1 for those that have left."""
        found = {}
        for number in range(self.task.tasks):
            told = _read(self._of(number))
            if told is not None:
                found[number] = int(told["ranks"])
        return found

    def end(self) -> None:
        """Tell the tasks that it is over."""
        with contextlib.suppress(ConfigError):
            self.write("over")

    def close(self, seconds: float = LEAVE_SECONDS) -> None:
        """Wait a while for the other tasks to have seen that it is over, and leave nothing behind."""
        if self._closed:
            return
        self._closed = True
        self.end()
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(self.ranks().get(number) != -1 for number in range(1, self.task.tasks)):
            time.sleep(_POLL_SECONDS)
        for path in (self.path, *(self._of(number) for number in range(self.task.tasks))):
            path.unlink(missing_ok=True)

    # -- every task

    def arrive(self, ranks: int) -> None:
        self._write(self._of(self.task.number), {"ranks": ranks})

    def leave(self) -> None:
        if self.task.number and not self.path.exists():  # task 0 has left without us
            self._of(self.task.number).unlink(missing_ok=True)
        else:
            self._write(self._of(self.task.number), {"ranks": -1})

    def read(self) -> Invitation | None:
        """What task 0 says now; None while it says nothing."""
        told = _read(self.path)
        return Invitation(**told) if told is not None else None

    def over(self) -> bool:
        """Whether the job has ended: task 0 says so, or has removed the file."""
        told = self.read()
        return told.state == "over" if told is not None else not self.path.exists()

    def wait_until_open(self, seconds: float = MEET_SECONDS, stopped: Callable[[], bool] = lambda: False) -> Invitation | None:
        """Task 0's invitation; None when the job ended before it began, or `stopped`. Raises GroupError after `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told = self.read()
            if stopped() or (told is not None and told.state == "over"):
                return None
            if told is not None and told.state == "open":
                return told
            time.sleep(_POLL_SECONDS)
        raise GroupError(
            f"task {self.task.number} of job {self.task.job} on {socket.gethostname()} sees no {self.path} after {seconds:.0f} s",
            remedy="the store must lie on a file system that every node sees; the output of task 0 says whether it started",
        )

    def _of(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _write(self, path: Path, values: Mapping[str, Any]) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            write_private(partial, json.dumps(values))
            partial.replace(path)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot write: {error.strerror or error}", remedy="check the permissions of the store's folder"
            ) from None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
