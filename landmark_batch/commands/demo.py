"""demo: a procedural city as a checkpoint or a block store, a flight over it, a job file; with --render its frames, images and film too."""

from __future__ import annotations

from pathlib import Path

import click

from landmark_batch.commands.common import command_line, human_bytes, path_type, say_written, shown_path, size_on_disk
from landmark_batch.commands.info import parse_division
from landmark_batch.commands.job_source import JobRequest, going_on
from landmark_batch.commands.progress import shared
from landmark_batch.errors import ConfigError

_SCENES = ("city-merged-stack.th", "city-scene.zarr/zarr.json")
_FILES = ("transforms.json", "city.toml")


@click.command("demo")
@click.argument("directory", type=path_type())
@click.option("--blocks", help="Blocks along x and y; default 2x2.")
@click.option("--size", type=click.Choice(["small", "city"]), help="small (default): for a CPU; city: a real scene's sizes.")
@click.option("--seed", type=int, help="Another seed, another city; default 0.")
@click.option("--frames", type=int, help="Frames of the flight; default 48.")
@click.option("--width", type=int, help="Pixels; default 384.")
@click.option("--height", type=int, help="Pixels; default 216.")
@click.option("--fine", type=int, help="Nodes along a block in the finest plane; default 256 (small), 2048 (city).")
@click.option("--format", "form", type=click.Choice(["checkpoint", "store"]), help="A .th of LandMark's (default), or a block store.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), help="Of a store's planes and lines; default fp32.")
@click.option("--jobs", type=int, help="Processes that make blocks of a store; default one a core.")
@click.option("--force", is_flag=True, help="Make the city anew over the one in DIRECTORY.")
@click.option("--render", "render_it", is_flag=True, help="Render the flight, its images and its film; goes on where it stopped.")
@click.pass_context
def command(
    ctx: click.Context,
    directory: Path,
    blocks: str | None,
    size: str | None,
    seed: int | None,
    frames: int | None,
    width: int | None,
    height: int | None,
    fine: int | None,
    form: str | None,
    precision: str | None,
    jobs: int | None,
    force: bool,
    render_it: bool,
) -> None:
    """Make a procedural city, a flight over it and a job file in DIRECTORY. A city that is there already is kept."""
    chosen: dict[str, object] = {"seed": seed, "frames": frames, "width": width, "height": height, "fine": fine, "size": size}
    chosen |= {"form": form, "precision": precision, "jobs": jobs}
    options: dict[str, object] = {name: value for name, value in chosen.items() if value is not None}
    if blocks is not None:
        options["blocks"] = parse_division(blocks, "--blocks")
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file", remedy="name a directory")
    there = all((directory / name).is_file() for name in _FILES) and any((directory / name).is_file() for name in _SCENES)
    made: list[Path] = []
    if there and not force:
        if options:
            raise ConfigError(
                f"{directory} holds a city already, made with its own settings",
                remedy="--force makes it anew, another directory makes another one, no options keep it",
            )
        click.echo(f"{shown_path(directory)}: the city there is kept (--force makes it anew)")
    else:
        made = _make(directory, options)
    if render_it:
        _render(ctx, directory / "city.toml", made)
        return
    say_written(made)
    job = shown_path(directory / "city.toml")
    click.echo(f"next: {command_line('preview', job)}, or {command_line('render', job)}")


def _make(directory: Path, options: dict[str, object]) -> list[Path]:
    from landmark_batch.scene.demo import write_demo

    with shared() as progress:
        files = write_demo(directory, progress=progress, **options)  # type: ignore[arg-type]
    size = human_bytes(size_on_disk(files.checkpoint))
    click.echo(f"a city of {size}: its decoder fits by {files.psnr:.1f} dB, {files.occupancy:.0%} of its mask is occupied")
    return [files.checkpoint, files.cameras, files.job]


def _render(ctx: click.Context, job_file: Path, made: list[Path]) -> None:
    from landmark_batch.commands.render import run_job
    from landmark_batch.job import load_job

    run_job(JobRequest(load_job(job_file)), going_on(ctx), images=True, video=True, wrote=made)
