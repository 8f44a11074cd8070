"""info: what a checkpoint or a block store holds, what it costs, what it lacks to be rendered."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from landmark_batch.commands.common import command_line, count_of, human_bytes, json_option, say_damaged, say_json, say_table
from landmark_batch.commands.progress import counted
from landmark_batch.errors import ConfigError

if TYPE_CHECKING:
    from landmark_batch.scene.info import SceneInfo
    from landmark_batch.scene.verify import SceneCheck


def parse_division(text: str | None, flag: str = "--plane-division") -> tuple[int, int] | None:
    """'2x3' or '2,3' -> (2, 3). Raises ConfigError naming the flag."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"{flag} {text!r}: not blocks along x and y", remedy="write it as 2x3")
    return int(parts[0]), int(parts[1])


@click.command("info")
@click.argument("checkpoint")
@click.option("--plane-division", help="Blocks along x and y, as 2x3; default the checkpoint's own.")
@click.option(
    "--verify", is_flag=True, help="Read all of it and compare it with the sums that it was written with; exit code 3 if any differs."
)
@json_option
@click.pass_context
def command(ctx: click.Context, checkpoint: str, plane_division: str | None, verify: bool, as_json: bool) -> None:
    """What CHECKPOINT holds: a .th file, a directory of -sub{b}.th files, a block store's folder or URL. Nothing is executed."""
    if Path(checkpoint).is_dir():
        from landmark_batch.frames.definition import is_store

        if is_store(Path(checkpoint)):
            raise ConfigError(
                f"{checkpoint}: a store of frames, not of a scene", remedy=f"{command_line('status', checkpoint)} tells of it"
            )
    from landmark_batch.scene.info import describe_scene

    checked = _verify(checkpoint, as_json) if verify else None
    if checked is not None and not checked.ok:
        ctx.exit(3)
    info = describe_scene(checkpoint, parse_division(plane_division))
    if as_json:
        say_json({**info.as_dict(), **({"verified": checked.as_dict()} if checked is not None else {})})
        return
    click.echo(f"{checkpoint}: {info.layout}, {human_bytes(info.file_bytes)}")
    say_table(_rows(info), indent="  ")
    for note in info.notes:
        click.echo(f"  note: {note}")
    if info.missing:
        click.echo("missing to render it:")
        for lack in info.missing:
            click.echo(f"  {lack}")
    else:
        click.echo("nothing is missing to render it")


def _verify(checkpoint: str, as_json: bool) -> SceneCheck:
    """Compare all of it with its sums, and say what was found; of JSON only what is damaged, the rest goes with what `info` tells."""
    from landmark_batch.scene.verify import verify_scene

    with counted("verify", quiet=as_json) as progress:
        checked = verify_scene(checkpoint, progress=progress)
    if as_json:
        if not checked.ok:
            say_json({"path": checkpoint, "verified": checked.as_dict()})
        return checked
    say_damaged(checked.damaged)
    for file in checked.unchecked:
        click.echo(f"note: {file}: holds no checksums: nothing can be compared")
    speed = f"{checked.bytes / 1e6 / max(checked.seconds, 1e-9):,.0f} MB/s"
    state = "all as they were written" if checked.ok else f"{len(checked.damaged)} damaged: copy it again"
    click.echo(f"{checkpoint}: {count_of(checked.records, 'record')} of {human_bytes(checked.bytes)} checked ({speed}), {state}")
    return checked


def _rows(info: SceneInfo) -> list[list[str]]:
    division = f"{info.division[0]} x {info.division[1]}" if info.division else "unknown"
    low, high = (", ".join(f"{value:g}" for value in corner) for corner in info.aabb)
    mask = "none"
    if info.mask is not None:
        mask = f"{' x '.join(map(str, info.mask.size))} voxels, {info.mask.occupied:.1%} occupied"
    rows = [
        ["blocks", f"{info.blocks} ({division})"],
        ["resMode", f"{', '.join(map(str, info.resolutions))}; ndims {info.ndims}"],
        ["grid", f"{' x '.join(map(str, info.grid_size))} voxels{' a block' if info.blocks > 1 else ''}"],
        ["planes", f"{', '.join(f'{level.plane[0]} x {level.plane[1]}' for level in info.levels)}"],
        ["lines", f"{', '.join(str(level.line) for level in info.levels)}"],
        ["channels", f"density {info.density_channels}, appearance {info.appearance_channels}"],
        ["parameters", f"{info.parameters:,}"],
        ["memory", f"{human_bytes(info.bytes_fp32)} in fp32, {human_bytes(info.bytes_fp16)} in fp16"],
        ["box", f"({low}) to ({high})"],
        ["near, far", f"{info.near_far[0]:g}, {info.near_far[1]:g}"],
        ["mask", f"{mask}"],
        ["density", f"{info.activation}, shift {info.density_shift:g}, distance_scale {info.distance_scale:g}"],
        ["decoder", f"width {info.feature_width}, view_pe {info.view_pe}, fea_pe {info.fea_pe}, bias {'yes' if info.bias else 'no'}"],
        ["appearances", f"{info.embedding_rows or 'none'}"],
    ]
    if info.store is not None:
        stored = " x ".join(map(str, info.store.division)) + (" cut out of one grid" if info.store.cut else "")
        sizes = ", ".join(f"{h} x {w}" for h, w in info.store.planes)
        rows.append(["stored", f"{stored} blocks of {human_bytes(info.store.block_bytes)} in {info.store.precision}; planes {sizes}"])
    if info.edits:
        shown = "; ".join(f"{edit} of block {', '.join(map(str, blocks))}" for edit, blocks in info.edits.items())
        rows.append(["edits", f"{shown}"])
    if info.training_args:
        lines = textwrap.wrap(", ".join(f"{key} = {value}" for key, value in info.training_args.items()), 100)
        rows += [["" if number else "training", line] for number, line in enumerate(lines)]
    return rows
