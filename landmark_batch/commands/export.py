"""export images | video: pictures and films out of a store."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landmark_batch.commands.common import cache_folder, count_of, human_time, json_option, path_type, say_json, say_written
from landmark_batch.commands.progress import counted
from landmark_batch.object_path import StorePath, as_store_path

if TYPE_CHECKING:
    from landmark_batch.frames.export_images import ImageReport
    from landmark_batch.frames.export_video import VideoReport

_PATH = path_type()


@click.group("export")
def command() -> None:
    """Pictures and films out of a store."""


@command.command()
@click.argument("store", type=as_store_path)
@click.argument("folder", type=_PATH, required=False)
@click.option("--output", type=click.Choice(["rgb", "depth", "alpha"]), default="rgb", show_default=True, help="What to export.")
@click.option("--format", "format_", type=click.Choice(["png", "jpeg", "exr"]), default="png", show_default=True)
@click.option("--bit-depth", type=click.Choice(["8", "16"]), default="8", show_default=True, help="Of PNG.")
@click.option(
    "--png-compression",
    type=click.Choice(["deflate", "none"]),
    default="deflate",
    show_default=True,
    help="none: nothing is compressed: large files, a little less work.",
)
@click.option("--pattern", default="{name}.{frame:05d}.{ext}", show_default=True, help="File names; {output} may be in it too.")
@click.option("--start-number", type=int, default=0, show_default=True, help="Added to the frame number in file names.")
@click.option("--frames", help="0-239, 0-239x10, 3,5-10; default all.")
@click.option("--quality", type=int, default=95, show_default=True, help="Of JPEG.")
@click.option("--exr-type", type=click.Choice(["float16", "float32"]), help="Default float16, for depth float32.")
@click.option(
    "--matte", type=click.Choice(["white", "black"]), default="white", show_default=True, help="Under transparent frames in JPEG."
)
@click.option("--colormap", default="turbo", show_default=True, help="Of depth: turbo, viridis, gray.")
@click.option("--near", type=float, help="Scene units at one end of the colour map; default from the frames.")
@click.option("--far", type=float, help="Scene units at its other end; default from the frames.")
@click.option("--allow-8bit", is_flag=True, help="16-bit files from a uint8 store.")
@click.option("--allow-missing", is_flag=True, help="Export what is finished.")
@click.option("--force", is_flag=True, help="Write files again that are up to date, and over other outputs.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Images made at the same time; default one a core, at most 16.")
@json_option
def images(
    store: StorePath,
    folder: Path | None,
    format_: str,
    bit_depth: str,
    frames: str | None,
    allow_missing: bool,
    force: bool,
    workers: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Frames of STORE as images in FOLDER (default: city.zarr -> city/rgb). Images that are up to date are left alone."""
    from landmark_batch.frames.image_settings import ImageSettings
    from landmark_batch.model.runtime import KernelSource
    from landmark_batch.workflows.export import export_images

    chosen = ImageSettings(format=format_, bit_depth=int(bit_depth), **settings)
    kernels = KernelSource.from_environment(os.environ, cache_folder()) if format_ == "png" else None
    with counted("images", quiet=as_json) as progress:
        report = export_images(
            store,
            folder,
            chosen,
            frames=frames,
            allow_missing=allow_missing,
            force=force,
            workers=workers,
            progress=progress,
            kernels=kernels,
        )
    if as_json:
        say_json(report.as_dict())
    else:
        say_images(report)
        say_written([(report.folder, _counts(report))])


@command.command()
@click.argument("store", type=as_store_path)
@click.argument("file", type=_PATH, required=False)
@click.option("--output", type=click.Choice(["rgb", "depth", "alpha"]), default="rgb", show_default=True, help="What to export.")
@click.option("--fps", help="24, 23.976, 30000/1001; default the job's, else the camera file's, else 24.")
@click.option("--codec", default="libx264", show_default=True, help="FFmpeg's name of the encoder; doctor lists them.")
@click.option("--crf", type=int, help="Quality; lower is better and larger.")
@click.option("--preset", help="Speed of the encoder, for prores_ks its profile.")
@click.option("--pix-fmt", help="For example yuv420p10le for 10 bits.")
@click.option("--frames", help="0-239, 0-239x10, 3,5-10; default all.")
@click.option("--matte", type=click.Choice(["white", "black"]), default="white", show_default=True, help="Under transparent frames.")
@click.option("--colormap", default="turbo", show_default=True, help="Of depth: turbo, viridis, gray.")
@click.option("--near", type=float, help="Scene units at one end of the colour map; default from the frames.")
@click.option("--far", type=float, help="Scene units at its other end; default from the frames.")
@click.option("--allow-8bit", is_flag=True, help="More than 8 bits from a uint8 store.")
@click.option("--segment-frames", type=click.IntRange(1), default=120, show_default=True, help="Of each part that is encoded by itself.")
@click.option("--keep-segments", is_flag=True, help="Keep the parts in FILE.segments: a later film encodes only those that changed.")
@json_option
def video(store: StorePath, file: Path | None, fps: str | None, frames: str | None, as_json: bool, **settings: Any) -> None:
    """Frames of STORE as a film, FILE (default: city.zarr -> city.mp4). Unfinished frames are named and refused.

    The film is encoded in segments. After an interruption the same command encodes those that are missing.
    """
    from landmark_batch.frames.export_video import VideoSettings
    from landmark_batch.workflows.export import export_video

    with counted("film", quiet=as_json) as progress:
        report = export_video(store, file, VideoSettings(**settings), fps=fps, frames=frames, progress=progress)
    if as_json:
        say_json(report.as_dict())
    else:
        say_film(report)
        say_written([report.path])


def say_images(report: ImageReport, told: Collection[str] = ()) -> None:
    """Notes but those that were told before, and the range a depth's colour map spans."""
    say_notes(report.notes, told)
    if report.near is not None and report.far is not None:
        click.echo(f"depth: colours span {report.near:g} to {report.far:g} scene units")
    if report.missing:
        click.echo(f"{count_of(len(report.missing), 'frame')} not finished, left out")


def say_film(report: VideoReport, told: Collection[str] = (), *, pace: str | None = None) -> None:
    """One line about a film, and notes but those that were told before. pace: why it has so many frames a second; default the report's."""
    fps = f"{float(report.fps):g}"
    length = human_time(report.duration) if report.duration >= 0.1 else f"{report.duration:.2f} s"
    click.echo(
        f"film: {count_of(len(report.frames), 'frame')} of {report.width}x{report.height}, {length} at {fps} fps "
        f"({pace or report.fps_source}), {report.codec} {report.pix_fmt}"
    )
    if report.reused:
        click.echo(f"{count_of(report.reused, 'frame')} stood in {report.path.name}.segments already")
    say_notes(report.notes, told)


def say_notes(notes: Iterable[str], told: Collection[str] = ()) -> None:
    """Lines for people, but those that were told before."""
    for note in notes:
        if note not in told:
            click.echo(f"note: {note}")


def _counts(report: ImageReport) -> str:
    unchanged = f", {len(report.unchanged):,} up to date" if report.unchanged else ""
    return f"{len(report.written):,} {report.output} images written{unchanged}"
