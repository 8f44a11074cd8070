"""new: a commented job file for a checkpoint, its values taken from the checkpoint's own training settings."""

from __future__ import annotations

import os
from pathlib import Path

import click

from landmark_batch.commands.common import command_line, count_of, path_type, refuse_existing, say_written, shown_path, write_text
from landmark_batch.commands.info import parse_division
from landmark_batch.commands.job_source import checkpoint_values
from landmark_batch.errors import ConfigError
from landmark_batch.job_template import job_text, scene_name
from landmark_batch.object_path import place_name
from landmark_batch.scene.location import SceneLocation


@click.command("new")
@click.argument("checkpoint", type=path_type(urls=True))
@click.option("--cameras", type=path_type(), help="transforms.json or camera_path.json.")
@click.option("--transform", type=path_type(), help="dataparser_transforms.json, for a camera_path.json.")
@click.option("--plane-division", help="Blocks along x and y, as 2x3; default the checkpoint's own.")
@click.option("-o", "--output", type=path_type(), help="The job file; default NAME.toml in the working directory.")
@click.option("--force", is_flag=True, help="Replace the job file if it exists.")
def command(
    checkpoint: SceneLocation, cameras: Path | None, transform: Path | None, plane_division: str | None, output: Path | None, force: bool
) -> None:
    """Write a commented job file for CHECKPOINT (a block store's URL too), with all keys, their units and their defaults."""
    from landmark_batch.cameras.check import check_flight
    from landmark_batch.cameras.formats import load_flight
    from landmark_batch.job import load_job
    from landmark_batch.scene.config import load_config

    if cameras is None:
        raise ConfigError(
            "no cameras to render", remedy="add --cameras FILE; `landmark-batch cameras survey CHECKPOINT -o FILE` makes a flight"
        )
    division = parse_division(plane_division)
    path = output or Path(f"{scene_name(checkpoint)}.toml")
    refuse_existing(path, force)
    config = load_config(checkpoint, plane_division=division)
    values, remarks = checkpoint_values(checkpoint, division)
    flight = load_flight(cameras, transform=transform)
    warnings = check_flight(flight, config.aabb, config.near_far)

    folder = path.absolute().parent
    values["scene"]["checkpoint"] = _relative(checkpoint, folder)
    values["cameras"] = {"file": _relative(cameras, folder)}
    if transform is not None:
        values["cameras"]["transform"] = _relative(transform, folder)
    name = path.name.removesuffix(".toml")
    remarks["cameras.file"] = f"{count_of(len(flight), 'frame')} of {flight.width}x{flight.height}"
    text = job_text(values, name=name, title=f"A flight over {place_name(checkpoint)}", file=path.name, remarks=remarks)
    write_text(path, text)
    load_job(path)
    for warning in warnings:
        click.echo(f"landmark-batch: warning: {warning}", err=True)
    say_written([path])
    click.echo(f"next: {command_line('preview', shown_path(path))}, or {command_line('render', shown_path(path))}")


def _relative(path: SceneLocation, folder: Path) -> str:
    """A path as seen from the job file's folder; a URL as it is."""
    if isinstance(path, str):
        return path
    return Path(os.path.relpath(path.expanduser().absolute(), folder)).as_posix()
