"""cameras interpolate | orbit | survey: a flight for someone who has a checkpoint, or a few photographs' poses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from landmark_batch.commands.common import count_of, human_time, path_type, refuse_existing, say_written
from landmark_batch.errors import ConfigError
from landmark_batch.scene.location import SceneLocation

if TYPE_CHECKING:
    from landmark_batch.cameras.flight import Flight

F = TypeVar("F", bound=Callable[..., Any])
_FILE = path_type()


def _file_options(function: F) -> F:
    function = click.option("--force", is_flag=True, help="Replace the file if it exists.")(function)
    return click.option("-o", "--output", type=_FILE, required=True, help="The transforms.json to write.")(function)


def _lens_options(function: F) -> F:
    for option in reversed(
        (
            click.argument("checkpoint", type=path_type(urls=True), required=False),
            click.option("--aabb", help="The scene's box in place of a checkpoint: x0,y0,z0,x1,y1,z1."),
            click.option("--width", type=int, default=1920, show_default=True, help="Pixels."),
            click.option("--height", type=int, default=1080, show_default=True, help="Pixels."),
            click.option("--focal", type=float, help="Pixels."),
            click.option("--fov", type=float, help="Degrees across the width; default 65."),
        )
    ):
        function = option(function)
    return function


@click.group("cameras")
def command() -> None:
    """Make a flight and write it as a transforms.json. Lengths in scene units, angles in degrees."""


@command.command()
@click.argument("file", type=_FILE)
@_file_options
@click.option("--transform", type=_FILE, help="dataparser_transforms.json of a camera_path.json.")
@click.option("--seconds", type=float, help="Length; default 2 seconds a leg.")
@click.option("--frames", type=int, help="Number of frames in place of seconds.")
@click.option("--fps", type=float, help="Frames a second; default 24.")
@click.option("--order", type=click.Choice(["file", "proximity"]), default="file", show_default=True, help="Order of the poses.")
@click.option("--timing", type=click.Choice(["distance", "even", "times"]), default="distance", show_default=True, help="Time of a leg.")
@click.option("--loop", is_flag=True, help="Come back to the first pose.")
@click.option("--constant-speed", is_flag=True, help="The same way from frame to frame.")
@click.option("--width", type=int, help="Pixels; default the file's.")
@click.option("--height", type=int, help="Pixels; default the file's.")
def interpolate(file: Path, output: Path, force: bool, transform: Path | None, width: int | None, height: int | None, **path: Any) -> None:
    """A smooth flight through the poses of FILE (photographs, keyframes)."""
    from landmark_batch.cameras.formats import load_flight
    from landmark_batch.cameras.paths import interpolate_flight

    refuse_existing(output, force)
    keys = load_flight(file, transform=transform, width=width, height=height)
    _write(interpolate_flight(keys, **path), output)


@command.command()
@_lens_options
@_file_options
@click.option("--centre", help="x,y; default the box's middle.")
@click.option("--radius", type=float, help="Default 0.4 of the box's shorter side.")
@click.option("--altitude", type=float, help="Above the box's floor; default so that the view goes down by 35 degrees.")
@click.option("--look-at-height", type=float, help="Above the box's floor; default a quarter of the box.")
@click.option("--pitch", type=float, help="Holds the camera's tilt instead; -90 = down.")
@click.option("--turns", type=float, default=1.0, show_default=True)
@click.option("--start", type=float, default=0.0, show_default=True, help="Direction of the first frame from the centre; 0 = +x.")
@click.option("--clockwise", is_flag=True)
@click.option("--seconds", type=float, help="Length; default 20 seconds a turn.")
@click.option("--frames", type=int, help="Number of frames in place of seconds.")
@click.option("--fps", type=float, help="Frames a second; default 24.")
def orbit(checkpoint: SceneLocation | None, aabb: str | None, output: Path, force: bool, centre: str | None, **path: Any) -> None:
    """Circles around the middle of a scene, looking inwards."""
    from landmark_batch.cameras.check import check_flight
    from landmark_batch.cameras.paths import orbit_flight

    refuse_existing(output, force)
    box, near_far = _box(checkpoint, aabb)
    if centre is not None:
        x, y = _numbers(centre, 2, "--centre")
        path["centre"] = (x, y)
    flight = orbit_flight(box, **path)
    for warning in check_flight(flight, box, near_far):
        click.echo(f"landmark-batch: warning: {warning}", err=True)
    _write(flight, output)


@command.command()
@_lens_options
@_file_options
@click.option("--altitude", type=float, help="Above ground; default clear of the box's top and of near.")
@click.option("--ground", type=float, help="Height (z) of what overlaps hold on; default the box's floor.")
@click.option("--pitch", type=float, default=-90.0, show_default=True, help="-90 = straight down.")
@click.option("--overlap", type=float, help="Share of a frame that the next one shows again, along the line.")
@click.option("--sidelap", type=float, default=0.6, show_default=True, help="Share of a line that the next line shows again.")
@click.option("--speed", type=float, help="Scene units a second.")
@click.option("--fps", type=float, help="Frames a second; default 24.")
@click.option("--heading", type=float, default=0.0, show_default=True, help="Direction of the first line; 0 = +x, towards +y.")
@click.option("--turns", type=click.Choice(["arc", "jump"]), default="arc", show_default=True, help="Between the lines.")
@click.option("--margin", type=float, default=0.0, show_default=True, help="Widens the covered floor on every side.")
def survey(checkpoint: SceneLocation | None, aabb: str | None, output: Path, force: bool, **path: Any) -> None:
    """Lawn-mower lines over the box of a scene, as a survey drone flies them."""
    from landmark_batch.cameras.check import check_flight
    from landmark_batch.cameras.survey import survey_flight

    refuse_existing(output, force)
    box, near_far = _box(checkpoint, aabb)
    flight = survey_flight(box, near_far=near_far, **path)
    for warning in check_flight(flight, box, near_far):
        click.echo(f"landmark-batch: warning: {warning}", err=True)
    _write(flight, output)


def _box(checkpoint: SceneLocation | None, aabb: str | None) -> tuple[Any, tuple[float, float] | None]:
    """Box and near/far of the checkpoint, or the box of --aabb."""
    if checkpoint is not None and aabb is not None:
        raise ConfigError(f"{checkpoint} has a box, and --aabb {aabb} gives another one", remedy="leave one of the two out")
    if checkpoint is None and aabb is None:
        raise ConfigError("a scene's box is needed", remedy="name a checkpoint, or give --aabb x0,y0,z0,x1,y1,z1")
    if aabb is not None:
        values = _numbers(aabb, 6, "--aabb")
        low, high = values[:3], values[3:]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            raise ConfigError(f"--aabb {aabb}: its first corner must be below its second on every axis")
        return (low, high), None
    from landmark_batch.scene.config import load_config

    assert checkpoint is not None
    config = load_config(checkpoint)
    return config.aabb, config.near_far


def _numbers(text: str, count: int, name: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in re.split(r"[,\s]+", text.strip(" [](),")) if part.strip("[]()"))
    except ValueError:
        values = ()
    if len(values) != count or not all(abs(value) < float("inf") for value in values):
        raise ConfigError(f"{name} {text!r}: not {count} numbers", remedy=f"write {count} numbers with commas between them")
    return values


def _write(flight: Flight, output: Path) -> None:
    from landmark_batch.cameras.write import write_transforms

    write_transforms(flight, output)
    fps = flight.fps or 24.0
    length = f"{human_time(len(flight) / fps)} at {fps:g} fps"
    click.echo(f"{count_of(len(flight), 'frame')} of {flight.width}x{flight.height}, {length}")
    say_written([output])
