"""bench: bare rendering, the job around it, store writing, exports, scheduling, in one run and one table."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from landmark_batch.commands.common import json_option, say_json, say_written

_PARTS = ("render", "write", "export", "scheduling")


@click.command("bench")
@click.argument("job_file", required=False, type=click.Path(path_type=Path), metavar="[JOB.toml]")
@click.option("--frames", type=click.IntRange(1), help="Frames of the flight that are measured; default all.")
@click.option("--part", "parts", type=click.Choice(_PARTS), multiple=True, help="What to measure; repeatable; default all.")
@click.option("--simulated-frames", type=click.IntRange(16), default=480, show_default=True, help="Of the scheduling part.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any value of the job file; repeatable.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep scene, stores and exports here; default: removed at the end.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the figures to this JSON file too.")
@json_option
def command(
    job_file: Path | None,
    frames: int | None,
    parts: tuple[str, ...],
    simulated_frames: int,
    settings: tuple[str, ...],
    folder: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure this machine on JOB.toml, or on the small demo city: one table, with the bars that are promised."""
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
            tell=lambda line: click.echo(f"bench: {line}", err=True),
        )
    written = [report.save(output)] if output is not None else []
    if as_json:
        say_json(report.as_dict())
        return
    click.echo(report.describe())
    say_written([*written, *([folder] if folder is not None else [])])
