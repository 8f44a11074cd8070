"""render: a flight into a store, images and film beside it; goes on where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landmark_batch.commands import logs
from landmark_batch.commands.allocation import ask_slurm, run_in_slurm
from landmark_batch.commands.common import command_line, count_of, human_bytes, human_time, path_type, say_table, say_written
from landmark_batch.commands.interrupts import Interrupts
from landmark_batch.commands.job_source import JobCommand, JobRequest, going_on, job_options, read_job
from landmark_batch.commands.progress import ProgressSink
from landmark_batch.commands.start_up import FewCollections, warm_workers
from landmark_batch.commands.tls_options import read_tls, tls_options, tls_words
from landmark_batch.errors import ConfigError, RenderInterrupted
from landmark_batch.events import EventSink
from landmark_batch.object_path import StorePath

if TYPE_CHECKING:
    from landmark_batch.job import RenderJob
    from landmark_batch.workflows.export_session import ExportResult, ExportSession
    from landmark_batch.workflows.result import RenderResult

order_option = click.option(
    "--order",
    type=click.Choice(("time", "space", "coarse-to-fine")),
    help="In which frames come; default by the scene: space where blocks are fetched.",
)
_SCHEDULER_FIRST = "start `landmark-batch scheduler` and `landmark-batch worker`, and name the scheduler's address"


@click.command("render", cls=JobCommand)
@job_options
@click.option("--update", is_flag=True, help="Replace finished frames that were rendered with other settings.")
@click.option("--overwrite", is_flag=True, help="Render every frame again.")
@click.option("--join", is_flag=True, help="Share the store with other processes that render the same job.")
@click.option("--scheduler", help="Address of a running Dask scheduler, in place of worker processes here.")
@click.option("--cluster", "slurm", type=path_type(), help="Ask SLURM for workers, as this file (slurm.toml) says.")
@click.option("--detach", is_flag=True, help="With --scheduler: return when the job has begun; `attach` watches it.")
@tls_options
@click.option("--png", is_flag=True, help="Export images as chunks finish, as the job's [images] says.")
@click.option("--video", is_flag=True, help="Make the film too, as the job's [video] says.")
@click.option("--allow-8bit", is_flag=True, help="Exports of more than 8 bits from a uint8 store.")
@order_option
@click.option("--no-latest", is_flag=True, help="Keep no NAME.latest.jpg, the picture of the newest frame.")
@click.option("--profile", is_flag=True, help="Write a Chrome trace of each worker beside the log, and print stage times.")
@click.option("--no-dashboard", is_flag=True, help="Start no Dask dashboard.")
@click.pass_context
def command(ctx: click.Context, /, **flags: Any) -> None:
    """Render what is missing of a job into its store.

    \b
    landmark-batch render city.toml
    landmark-batch render city.toml -o test.zarr --frames 0-239x10 --set sampling.samples=128
    landmark-batch render city-merged-stack.th --cameras transforms.json
    landmark-batch render --config city.txt --ckpt city.th --model_type MultiBlockTorch --save_png     (LandMark's own options)

    Frames that stand in the store are kept; the same command goes on after an interruption. Exit codes: 0 done, 2 bad input,
    3 frames are missing, 130 interrupted.
    """
    with FewCollections() as collections, warm_workers(flags) as warm:
        _command(ctx, flags, sinks=[collections], warm=warm)


def _command(ctx: click.Context, flags: Mapping[str, Any], **more: Any) -> None:
    request = ordered(read_job(ctx, flags), flags["order"])
    credentials = read_tls(flags)
    if flags["detach"] and flags["scheduler"] is None:
        raise ConfigError("--detach without --scheduler: workers started here end with this command", remedy=_SCHEDULER_FIRST)
    if flags["slurm"] is not None and flags["scheduler"] is not None:
        raise ConfigError("--cluster and --scheduler are both given: a job runs on one of them")
    options = {name: flags[name] for name in ("update", "overwrite", "join", "scheduler", "allow_8bit")}
    options |= {"images": flags["png"], "video": flags["video"], "dashboard": not flags["no_dashboard"]}
    options["latest"] = not flags["no_latest"]
    options["profile"] = flags["profile"] or request.timeline
    options |= {
        "security": credentials.security() if credentials is not None else None,
        "detached": tls_words(flags) if flags["detach"] else None,
        **more,
    }
    if flags["slurm"] is not None:
        request, asked = ask_slurm(flags["slurm"], request, dashboard=not flags["no_dashboard"])
        options |= asked
    elif flags["scheduler"] is None and run_in_slurm(ctx, request, options, lambda found, there: run_job(found, going_on(ctx), **there)):
        return
    run_job(request, going_on(ctx), **options)


def run_job(
    request: JobRequest,
    again: str,
    *,
    images: bool = False,
    video: bool = False,
    allow_8bit: bool = False,
    latest: bool = True,
    detached: str | None = None,
    profile: bool = False,
    wrote: Sequence[Path] = (),
    sinks: Sequence[EventSink] = (),
    **options: Any,
) -> None:
    """Render a job with progress, Ctrl-C, exports and a last word. again: the command line that goes on. latest: keep NAME.latest.jpg.

    detached: None, or TLS options that `attach` needs for a job that is left to itself ('' without TLS).
    wrote: paths written before, listed too. sinks: get its events too. options: those of `run_render`. Raises LandmarkError kinds;
    RenderInterrupted and RenderIncompleteError when frames are missing at the end.
    """
    from landmark_batch.cameras.formats import flight_of_job
    from landmark_batch.workflows.export import check_exports
    from landmark_batch.workflows.export_session import ExportSession
    from landmark_batch.workflows.order import ExportOrder
    from landmark_batch.workflows.render import run_render
    from landmark_batch.workflows.trace_share import describe_busy, traces_of
    from landmark_batch.workflows.worker import kernel_source

    job, began = request.job, time.time()
    if profile:
        options["profile"] = True
    images = images or request.export_images
    notes = check_exports(job, flight_of_job(job), images=images, video=video, allow_8bit=allow_8bit) if images or video else []
    for note in notes:
        click.echo(f"note: {note}", err=True)
    logs.belongs_to(job.log_path)
    sessions: list[ExportSession] = []

    def open_exports(wanted: tuple[int, ...], todo: tuple[int, ...]) -> ExportSession:
        asked: dict[str, bool] = {"images": images, "video": video, "allow_8bit": allow_8bit, "latest": latest}
        sessions.append(ExportSession.of_job(job, frames=wanted, pending=todo, kernels=kernel_source(), **asked))
        return sessions[0]

    with Interrupts(again) as interrupts:
        try:
            with ProgressSink() as progress:
                exports = open_exports if (images or video or latest) and detached is None else None
                if detached is not None:
                    options["detach"] = ExportOrder(images=images, video=video, allow_8bit=allow_8bit, latest=latest)
                result = run_render(job, sinks=[progress, *sinks], stop=interrupts.stop, exports=exports, **options)
            interrupts.graceful = False
            exported = None if result.state == "interrupted" else _finish(sessions)
        finally:
            for session in sessions:
                session.abort()
            if job.log_path.is_file() and not job.log_path.stat().st_size:
                job.log_path.unlink()
    if result.state == "detached":
        attach = f"{command_line('attach', result.store)}{detached or ''}"
        click.echo(f"the job goes on without this command; pause, continue and cancel act on it. To watch it:\n  {attach}")
        say_written([result.store, *([result.log] if result.log is not None else [])])
        return
    _say_result(job, result, request.stage_times or profile)
    traces = traces_of(job.log_path, since=began - 1.0) if profile else []
    for line in describe_busy(traces):
        click.echo(line)
    _say_exports(exported, notes)
    written: list[StorePath | tuple[StorePath, str]] = [
        *wrote,
        (result.store, f"{result.wanted - len(result.missing):,} of {result.wanted:,} frames"),
    ]
    if exported is not None:
        written += [(report.folder, f"{len(report.written):,} written, {len(report.unchanged):,} up to date") for report in exported.images]
        written += [exported.video.path] if exported.video is not None else []
    if result.log is not None:
        written.append(result.log)
    written += traces
    say_written(written)
    error = result.error()
    if isinstance(error, RenderInterrupted):
        raise RenderInterrupted(error.message, remedy=f"to go on: {again}")
    if error is not None:
        raise error


def ordered(request: JobRequest, order: str | None) -> JobRequest:
    """--order before the job's output.order."""
    if order is None:
        return request
    output = request.job.output.model_copy(update={"order": order})
    return replace(request, job=request.job.model_copy(update={"output": output}))


def _finish(sessions: Sequence[ExportSession]) -> ExportResult | None:
    if not sessions:
        return None
    try:
        return sessions[0].finish()
    except KeyboardInterrupt:
        raise RenderInterrupted(
            "exports were stopped; the rendered frames stand",
            remedy="`landmark-batch export images` and `export video` make them from the store",
        ) from None


def _traffic(job: RenderJob, result: RenderResult) -> str:
    """What the tensor ranks exchanged."""
    from landmark_batch.parallel.shape import GroupShape
    from landmark_batch.parallel.traffic import describe_traffic
    from landmark_batch.scene.config import load_config

    scene, shape = job.scene, GroupShape(job.parallel.tensor_parallel, job.parallel.data_parallel)
    assert scene.checkpoint is not None
    config = load_config(scene.checkpoint, plane_division=scene.plane_division, edit=scene.edit, edit_block=scene.edit_block)
    return f"exchanged: {describe_traffic(config, shape, result.counters, result.rendered)}"


def _fetched(result: RenderResult) -> str:
    """What fetching of blocks moved, and how long rendering waited for it."""
    counted = Counter({name.removeprefix("fetch_"): count for name, count in result.counters.items() if name.startswith("fetch_")})
    read, shared = counted["bytes_read"], counted["bytes_shared"]
    came = f"{human_bytes(read)} read" + (f", {human_bytes(shared)} from a neighbour" if shared else "")
    waited = f"{count_of(counted['stalls'], 'wait')} of {counted['stall_microseconds'] / 1e6:.2f} s in all"
    copied = f"{human_bytes(counted['bytes_copied'])} copied to GPUs, " if counted["bytes_copied"] else ""
    copied += f"{human_bytes(counted['bytes_pulled'])} from one GPU to another, " if counted["bytes_pulled"] else ""
    return f"fetched: {count_of(counted['loads'], 'block')}, {copied}{came}; {waited}"


def _say_result(job: RenderJob, result: RenderResult, stage_times: bool) -> None:
    if not result.rendered and not result.missing:
        return  # the progress lines said so
    if result.rendered:
        rate = f", {result.rendered / result.render_seconds:.2f} frames/s" if result.render_seconds > 0 else ""
        times = f"{human_time(result.seconds)} (start-up {human_time(result.startup_seconds)}{rate})"
        text = f"{count_of(result.rendered, 'frame')} rendered in {times}"
    else:
        text = "no frame rendered"
    click.echo(text + (f"; {result.skipped:,} stood already" if result.skipped else ""))
    if result.rendered and result.counters.get("tensor_bytes"):
        click.echo(_traffic(job, result))
    if result.rendered and result.counters.get("fetch_loads"):
        click.echo(_fetched(result))
    if stage_times and result.stages:
        say_table([[name, f"{seconds:.2f}"] for name, seconds in result.stages.items()], head=["stage", "seconds over all workers"])


def _say_exports(exported: ExportResult | None, told: Sequence[str]) -> None:
    """What was exported; told: notes that were said before anything was rendered."""
    if exported is None:
        return
    from landmark_batch.commands.export import say_film, say_images, say_notes

    for report in exported.images:
        say_images(report, told)
    if exported.video is not None:
        say_film(exported.video, told)
    say_notes(exported.notes, told)
