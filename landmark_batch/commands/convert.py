"""convert: a checkpoint of any kind as a block store, from which single blocks can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from landmark_batch.commands.common import command_line, count_of, human_bytes, path_type, say_written, shown_path
from landmark_batch.commands.info import parse_division
from landmark_batch.commands.progress import shared
from landmark_batch.errors import ConfigError


@click.command("convert")
@click.argument("checkpoint", type=path_type())
@click.argument("store", type=path_type())
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="Of planes and lines.")
@click.option("--blocks", help="Cut a sequential scene into so many blocks along x and y; default by 512 texels of a side.")
@click.option("--plane-division", help="Blocks along x and y of a merged scene; default the checkpoint's own.")
@click.option("--edit", type=click.Choice(["reset", "new", "remove"]), help="LandMark's edit mode: one block and the mask exchanged.")
@click.option("--edit-block", type=int, help="The block it exchanges; default the only one that has such a file.")
@click.option("--threads", type=int, help="Default one a core, 8 at most.")
@click.option("--force", is_flag=True, help="Replace a block store that stands there.")
def command(
    checkpoint: Path,
    store: Path,
    precision: Literal["fp32", "fp16"],
    blocks: str | None,
    plane_division: str | None,
    edit: str | None,
    edit_block: int | None,
    threads: int | None,
    force: bool,
) -> None:
    """Write CHECKPOINT (a LandMark .th file, or a directory of -sub{b}.th files) as the block store STORE, a Zarr group.

    It renders wherever the checkpoint does. Memory does not grow with the scene; stopped, it leaves nothing behind.
    """
    from landmark_batch.scene.convert import convert_scene

    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads}: nothing to work with", remedy="at least 1")
    with shared() as progress:
        done = convert_scene(
            checkpoint,
            store,
            precision=precision,
            blocks=parse_division(blocks, "--blocks"),
            plane_division=parse_division(plane_division),
            edit=edit,
            edit_block=edit_block,
            force=force,
            threads=threads,
            progress=progress,
        )
    for note in done.notes:
        click.echo(f"note: {note}")
    size = human_bytes(done.block_bytes)
    blocks_text = count_of(done.head.blocks, "block")
    click.echo(f"{blocks_text} ({' x '.join(map(str, done.head.division))}) of {size} in {precision}")
    say_written([done.target])
    click.echo(f'next: {command_line("info", shown_path(done.target))}, or scene.checkpoint = "{store.name}" in a job file')
