"""evaluate: rendered frames against the photographs of a dataset."""

from __future__ import annotations

from pathlib import Path

import click

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.commands.common import count_of, json_option, path_type, say_json, say_table, say_written, write_text
from landmark_batch.commands.progress import counted
from landmark_batch.object_path import StorePath, as_store_path

_PATH = path_type()


@click.command("evaluate")
@click.argument("store", type=as_store_path)
@click.option("--dataset", type=_PATH, required=True, help="Folder with the photographs that file_path in the camera file names.")
@click.option("--frames", help="0-239, 0-239x10, 3,5-10; default all.")
@click.option("--lpips/--no-lpips", default=None, help="Measure LPIPS too; default where its package is installed.")
@click.option("--matte", type=click.Choice(["white", "black"]), default="white", show_default=True, help="Under transparent frames.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Threads; default one a core, at most 8.")
@click.option("-o", "--output", type=_PATH, help="Write the figures to this JSON file too.")
@json_option
def command(
    store: StorePath,
    dataset: Path,
    frames: str | None,
    lpips: bool | None,
    matte: str,
    workers: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """PSNR and SSIM of the frames of STORE against photographs, per frame and mean."""
    import json

    from landmark_batch.workflows.evaluate import evaluate

    with counted("evaluate", quiet=as_json) as progress:
        found = evaluate(store, dataset, frames=frames, lpips=lpips, matte=matte, workers=workers, progress=progress)
    if output is not None:
        write_text(output, json.dumps(found.as_dict(), indent=2) + "\n")
    if as_json:
        say_json(found.as_dict())
        return
    head, rows = found.table()
    say_table(rows, head=head)
    for note in (*found.notes, *(score.note for score in found.scores[:1] if score.note)):
        click.echo(f"note: {note}")
    if found.unmatched:
        click.echo(f"{count_of(len(found.unmatched), 'frame')} without a photograph: {format_frame_ranges(found.unmatched)}")
    if found.unfinished:
        click.echo(f"{count_of(len(found.unfinished), 'frame')} with a photograph, not rendered: {format_frame_ranges(found.unfinished)}")
    if output is not None:
        say_written([output])
