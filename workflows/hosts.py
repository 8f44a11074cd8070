"""What the processes of a host are told: where the scheduler is, which ranks the host has, and the settings all of them share."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distributed.utils import get_ip
from pydantic import ValidationError

from landmark_batch.errors import ConfigError
from landmark_batch.job import ParallelSection
from landmark_batch.workflows.machine import Machine, describe_machine, place_workers
from landmark_batch.workflows.security import TlsCredentials, split_address
from landmark_batch.workflows.worker import gpu_environment

DRIVER = "driver"  # name of the worker that runs the jobs' drivers
LOOPBACK_PAGE = "127.0.0.1:0"  # a worker's own web page: on the loopback interface, wherever the worker listens


_EXIT_SECONDS = 5.0


@dataclass(frozen=True)
class Rank:
    """One worker process of a host. scheduler: its address. name: unique in the cluster. env: of its process.

    log: file its output goes to, None leaves it on the terminal.
    """

    scheduler: str
    name: str
    env: dict[str, str] = field(default_factory=dict)
    log: Path | None = None
    tls: TlsCredentials | None = None


def host_ranks(
    scheduler: str,
    *,
    host: str | None = None,
    device: str = "auto",
    gpus: Sequence[int] | None = None,
    workers: int | None = None,
    tls: TlsCredentials | None = None,
    log: Path | None = None,
    machine: Machine | None = None,
) -> list[Rank]:
    """The ranks of this host: one a visible GPU, or one a core on a CPU machine; `workers` of them where it is given.

    host: what their names begin with, default the host's name. gpus: ordinals. Raises ConfigError for GPUs that are not there.
    """
    machine = machine or describe_machine()
    try:
        parallel = ParallelSection.model_validate({"device": device, "gpus": gpus, "workers": workers or 0})
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, "), remedy="give each rank a GPU of its own") from None
    placement, notes = place_workers(parallel, machine)
    for note in notes:
        logging.getLogger(__name__).warning("%s", note)
    prefix = host or socket.gethostname()
    if placement.device == "cuda":
        places = [(f"{prefix}-gpu{gpu}", gpu_environment(gpu)) for gpu in placement.gpus]
    else:
        places = [(f"{prefix}-w{number}", {"CUDA_VISIBLE_DEVICES": ""}) for number in range(placement.workers)]
    return [Rank(scheduler, name, env, log, tls) for name, env in places]


def quiet_dask() -> None:
    """Dask's loggers tell this process's terminal warnings and errors only."""
    for name, level in (("distributed", logging.WARNING), ("tornado", logging.WARNING), ("bokeh", logging.ERROR)):
        logging.getLogger(name).setLevel(level)


def own_host(scheduler: str) -> str:
    """The address of this host by which it reaches a scheduler: workers listen there and nowhere else."""
    return str(get_ip(split_address(scheduler)[1]))


def end_process() -> None:
    """What a process with nannies does last: Python's own exit would wait for workers that hang. Their semaphores are given back."""
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    timer = threading.Timer(_EXIT_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()
