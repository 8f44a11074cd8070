"""bench: a whole job on this machine, part by part; `bench kernels`: the renderer's ops beside what the device does at most."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from landmark_batch.commands.common import cache_folder, json_option, path_type, say_json, say_table, say_written
from landmark_batch.commands.interrupts import Interrupts
from landmark_batch.commands.start_up import warm_workers
from landmark_batch.errors import RenderInterrupted
from landmark_batch.scene.location import as_location

_PARTS = ("render", "start", "write", "export", "scheduling")


class _Bench(click.Group):
    """`bench` without a command of its own measures a job."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["job", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Whatever ends it from outside, its processes end first, and its folder goes."""
        with Interrupts("") as interrupts:
            interrupts.graceful = False
            try:
                return super().invoke(ctx)
            except RenderInterrupted:  # says how to go on with a job; there is none after a bench
                raise KeyboardInterrupt from None


@click.group("bench", cls=_Bench)
def command() -> None:
    """Measure this machine.

    \b
    landmark-batch bench JOB.toml    rendering, the job around it, its start, writing, exports, scheduling
    landmark-batch bench kernels     the renderer's ops, beside what the device does at most and beside plain torch
    landmark-batch bench export      PNGs and films at 3840×2160, alone and out of a store
    landmark-batch bench fetching JOB.toml   a flight with some of its scene's blocks in memory, beside all of them
    """


@command.command("job")
@click.argument("job_file", required=False, type=path_type(), metavar="[JOB.toml]")
@click.option("--frames", type=click.IntRange(1), help="Frames of the flight that are measured; default all, of the demo's 24.")
@click.option("--part", "parts", type=click.Choice(_PARTS), multiple=True, help="What to measure; repeatable; default all.")
@click.option("--simulated-frames", type=click.IntRange(16), default=2560, show_default=True, help="Of the scheduling part.")
@click.option("--simulated-seconds", type=click.FloatRange(1e-4), default=0.01, show_default=True, help="That each of these takes.")
@click.option("--simulated-chunk", type=click.IntRange(1), default=128, show_default=True, help="Of these in a chunk.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any value of the job file; repeatable.")
@click.option("--folder", type=path_type(), help="Keep scene, stores and exports here; default: removed at the end.")
@click.option("-o", "--output", type=path_type(), help="Write the figures to this JSON file too.")
@json_option
def job_command(
    job_file: Path | None,
    frames: int | None,
    parts: tuple[str, ...],
    simulated_frames: int,
    simulated_seconds: float,
    simulated_chunk: int,
    settings: tuple[str, ...],
    folder: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure this machine on JOB.toml, or on the small demo city: one table, with the bars that are promised.

    \b
    render      bare and as a job, with PNG export beside it, without overlap, on each number of devices; memory, disk
    start       from command to first frame, by stage, with workers of its own and on workers that stand; the link that the scene comes over
    write       the store's writer and reader alone
    export      images and a film out of the store
    scheduling  what a job adds to frames that take a fixed time, and to going on with its store: 100,000 frames of 10 ms take nine minutes
    """
    from landmark_batch.job import load_job
    from landmark_batch.workflows.bench import run_bench

    job = load_job(job_file, settings) if job_file is not None else None
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="landmark-batch-bench-")))
        report = run_bench(
            place,
            job,
            frames=frames,
            parts=parts or _PARTS,
            simulated_frames=simulated_frames,
            simulated_seconds=simulated_seconds,
            simulated_chunk=simulated_chunk,
            settings=settings,
            launch=_launch,
            tell=_tell,
            warm=stack.enter_context(warm_workers({"scheduler": None, "slurm": None})),
        )
    written = [report.save(output)] if output is not None else []
    if as_json:
        say_json(report.as_dict())
        return
    click.echo(report.describe())
    say_written([*written, *([folder] if folder is not None else [])])


@command.command("kernels")
@click.option(
    "--scene",
    default="demo",
    help="A job file, a checkpoint (or a block store's URL), or demo (default): the small demo city, made for the bench.",
)
@click.option("--cameras", type=path_type(), help="Camera file; default the job's, or an orbit over a checkpoint's scene.")
@click.option("--device", help="auto, cuda or cpu.")
@click.option("--runtime", help="auto, torch or fused; auto takes compiled kernels where there are any.")
@click.option("--precision", help="fp32 or fp16, of planes and lines.")
@click.option("--width", type=click.IntRange(1), help="Pixels. Default 1920×1080 and 3840×2160 on a GPU, 384×216 on a CPU.")
@click.option("--height", type=click.IntRange(1), help="Pixels.")
@click.option("--4k", "uhd", is_flag=True, help="3840×2160 alone.")
@click.option("--frames", type=click.IntRange(1), help="Poses, evenly over the flight; default 12 on a GPU, 3 on a CPU.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any value of a job file; repeatable.")
@click.option("-o", "--output", type=path_type(), help="Write the figures to this JSON file too.")
@json_option
def kernels_command(
    scene: str,
    cameras: Path | None,
    device: str | None,
    runtime: str | None,
    precision: str | None,
    width: int | None,
    height: int | None,
    uhd: bool,
    frames: int | None,
    settings: tuple[str, ...],
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure the renderer's ops on this machine.

    Time a frame by op, bytes and FLOP a second beside a copy and a matrix product measured in the same run, samples a ray, and the
    ratio to plain torch. On a CPU both runtimes take turns, so that a busy machine slows both.
    """
    from landmark_batch.workflows.bench_kernels import bench_job, bench_kernels, parse_size
    from landmark_batch.workflows.kernel_report import HEAD

    sizes = parse_size(width, height, uhd)
    given = {"parallel.device": device, "model.runtime": runtime, "model.precision": precision}
    texts = [*settings, *(f"{key}={value}" for key, value in given.items() if value is not None)]
    with tempfile.TemporaryDirectory(prefix="landmark-batch-bench-") as folder:
        job = bench_job(None if scene == "demo" else as_location(scene), Path(folder), cameras=cameras, settings=texts)
        report = bench_kernels(job, sizes=sizes, frames=frames, tell=_tell)
    written = [report.save(output)] if output is not None else []
    if as_json:
        say_json(report.as_dict())
        return
    click.echo(report.title())
    say_table(report.table(), head=HEAD)
    for line in report.remarks():
        click.echo(line)
    say_written(written)


@command.command("export")
@click.option("--width", type=click.IntRange(16, 65536), default=3840, show_default=True, help="Pixels.")
@click.option("--height", type=click.IntRange(16, 65536), default=2160, show_default=True, help="Pixels.")
@click.option("--frames", type=click.IntRange(2), default=8, show_default=True, help="Pictures of each kind.")
@click.option("--threads", type=click.IntRange(1), help="Of image export and of encoders; default one a core, at most 16.")
@click.option("--codec", "codecs", multiple=True, help="Of a film; repeatable; default what this machine can run of the usual ones.")
@click.option("--folder", type=path_type(), help="Keep stores and exports here; default: removed at the end.")
@click.option("-o", "--output", type=path_type(), help="Write the figures to this JSON file too.")
@json_option
def export_command(
    width: int,
    height: int,
    frames: int,
    threads: int | None,
    codecs: tuple[str, ...],
    folder: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure image and film export on made-up pictures, in one run.

    Frames a second by the clock with all threads, and by CPU time of one core, which a busy machine changes least; and how many copies
    of the frame in memory a frame costs. A small machine measures --width 1920 --height 1080 in a minute.
    """
    from landmark_batch.model.runtime import KernelSource
    from landmark_batch.workflows.bench_export import HEAD, bench_export

    kernels = KernelSource.from_environment(os.environ, cache_folder())
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its settings otherwise
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="landmark-batch-bench-")))
        report = bench_export(place, width=width, height=height, frames=frames, threads=threads, codecs=codecs, tell=_tell, kernels=kernels)
    written = [report.save(output)] if output is not None else []
    if as_json:
        say_json(report.as_dict())
        return
    click.echo(report.title())
    say_table([row.cells() for row in report.rows], head=HEAD)
    for note in report.notes:
        click.echo(f"note: {note}")
    say_written([*written, *([folder] if folder is not None else [])])


@command.command("fetching")
@click.argument("job_file", type=path_type(), metavar="JOB.toml")
@click.option("--frames", type=click.IntRange(1), help="Frames of the flight that are rendered, from its first; default all.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any value of the job file; repeatable.")
@click.option("-o", "--output", type=path_type(), help="Write the figures to this JSON file too.")
@json_option
def fetching_command(job_file: Path, frames: int | None, settings: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Render JOB.toml's flight with its fetching, and again with the whole scene: frames a second, bytes, waits, memory.

    The scene must be a block store. Slots are the job's (fetching.gpu_blocks, fetching.gpu_memory). Nothing is written.
    """
    from landmark_batch.job import load_job
    from landmark_batch.workflows.bench_fetching import bench_fetching

    report = bench_fetching(load_job(job_file, settings), frames=frames, tell=_tell)
    written = [report.save(output)] if output is not None else []
    if as_json:
        say_json(report.as_dict())
        return
    click.echo(report.describe())
    say_written(written)


def _launch(words: Sequence[str], output: Path) -> int:
    """Start `landmark-batch WORDS` in a process of its own."""
    opened = (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    argv = [sys.executable, "-m", "landmark_batch.cli", *words]
    return os.posix_spawn(sys.executable, argv, os.environ, file_actions=[opened, (os.POSIX_SPAWN_DUP2, 1, 2)])


def _tell(line: str) -> None:
    click.echo(f"bench: {line}", err=True)
