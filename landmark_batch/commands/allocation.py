"""render on SLURM: `srun landmark-batch render job.toml` makes one cluster of all its tasks, `--cluster slurm.toml` asks for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landmark_batch.errors import ConfigError

if TYPE_CHECKING:
    from landmark_batch.commands.job_source import JobRequest
    from landmark_batch.workflows.allocation import Allocation
    from landmark_batch.workflows.cluster import RenderCluster


def run_in_slurm(
    ctx: click.Context, request: JobRequest, options: Mapping[str, Any], run: Callable[[JobRequest, dict[str, Any]], None]
) -> bool:
    """Whether this process is one task of several of `srun`; if so its part of the job is done when this returns.

    run: renders a request with options, called in task 0 alone: the scheduler and the device of the allocation are in them. Raises
    what it raises, GroupError and ConfigError; ends other tasks with their exit code.
    """
    from landmark_batch.workflows.slurm import slurm_task

    task = slurm_task(os.environ)
    if task is None:
        return False
    from landmark_batch.workflows.allocation import run_in_allocation

    def render(where: Allocation) -> None:
        if where.dashboard is not None:
            click.echo(f"dashboard {where.dashboard}")
        security = where.tls.security() if where.tls is not None else None
        run(_on_device(request, where.device), {**options, "scheduler": where.address, "security": security})

    code = run_in_allocation(task, request.job, render, tell=click.echo, dashboard=bool(options["dashboard"]))
    if code:
        ctx.exit(code)
    return True


def ask_slurm(path: Path, request: JobRequest, *, dashboard: bool = True) -> tuple[JobRequest, dict[str, Any]]:
    """--cluster FILE: the request for the device of its nodes, and the option of `run_render` that asks SLURM for them.

    Raises ConfigError for the file, and where the job says another device than its nodes have.
    """
    from landmark_batch.workflows.slurm_file import read_slurm_file

    device, job = read_slurm_file(path).device, request.job
    if job.parallel.device not in ("auto", device):
        raise ConfigError(
            f'{path} asks for {"GPU" if device == "cuda" else "CPU"} nodes, the job says device = "{job.parallel.device}"',
            remedy="change gpus_per_node in that file, or leave the job's device out",
        )

    def start(stopped: Callable[[], bool]) -> RenderCluster:
        from landmark_batch.workflows.slurm_cluster import slurm_cluster

        folder = job.store_neighbour.parent
        folder.mkdir(parents=True, exist_ok=True)
        return slurm_cluster(
            path,
            folder=folder,
            log=job.log_path,
            dashboard=dashboard,
            stopped=stopped,
            tell=lambda line: click.echo(line, err=True),
        )

    return _on_device(request, device), {"cluster": start}


def _on_device(request: JobRequest, device: str) -> JobRequest:
    parallel = request.job.parallel.model_copy(update={"device": device})
    return replace(request, job=request.job.model_copy(update={"parallel": parallel}))
