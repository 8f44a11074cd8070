"""What every command prints alike: sizes, times, tables, JSON, and at its end the paths it wrote."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import platformdirs

from landmark_batch.errors import ConfigError, cannot_write
from landmark_batch.object_path import ObjectPath, StorePath, whole_file
from landmark_batch.scene.location import SceneLocation, as_location

_SHOWN = 20  # damaged things, of many

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


def cache_folder() -> Path | None:
    """The program's cache folder; None for a user without a home, unless XDG_CACHE_HOME names one."""
    try:
        return platformdirs.user_cache_path("landmark-batch")
    except RuntimeError:
        return None


def path_type(*, urls: bool = False, file_okay: bool = True) -> Any:
    """The type of arguments and options that name a file or folder: a Path, of file:// too.

    urls: any other URL is given as it is (a scene's); else it is refused, for a Path of it would name something odd on this machine.
    """
    plain = click.Path(path_type=Path, file_okay=file_okay)

    def convert(text: str) -> SceneLocation:
        place = as_location(text)
        if isinstance(place, Path):
            return Path(plain.convert(place, None, None))
        if not urls:
            raise ConfigError(f"{text}: a URL, where a path is needed", remedy="name a file or folder on this machine")
        return place

    kind = click.types.FuncParamType(convert)
    kind.name = "path"
    return kind


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    if unit == "GiB" and count >= 1024:
        count, unit = count / 1024, "TiB"
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def human_time(seconds: float) -> str:
    """75 -> '1:15', 3725 -> '1:02:05', 0.4 -> '0.4 s'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def count_of(number: int, thing: str) -> str:
    """(1, 'frame') -> '1 frame', (240, 'frame') -> '240 frames'."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; what vanishes meanwhile counts nothing."""
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    total = 0
    folders = [os.fspath(path)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def shown_path(path: Path) -> str:
    """Relative to the working directory where it lies below it, else as it is."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def command_line(*words: object) -> str:
    """A command of this program as a shell takes it: ('info', 'my city.th') -> "landmark-batch info 'my city.th'"."""
    return shlex.join(["landmark-batch", *map(str, words)])


def say_damaged(found: Sequence[str]) -> None:
    """A line for each thing that is damaged, the first of many."""
    for line in found[:_SHOWN]:
        click.echo(f"damaged: {line}")
    if len(found) > _SHOWN:
        click.echo(f"... and {len(found) - _SHOWN} more (--json lists all)")


def say_written(items: Iterable[StorePath | tuple[StorePath, str]]) -> None:
    """The last lines of a command: each path with its size (objects are not counted), and a remark where one is given."""
    rows = []
    for item in items:
        path, remark = item if isinstance(item, tuple) else (item, "")
        if isinstance(path, ObjectPath):
            rows.append([str(path), "", remark])
        elif path.exists():
            rows.append([shown_path(path) + ("/" if path.is_dir() else ""), human_bytes(size_on_disk(path)), remark])
    if rows:
        click.echo("wrote")
        say_table(rows, indent="  ")


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all; what is no plain file (a pipe, /dev/stdout) is written as it is.

    Raises ConfigError where it cannot be written, DiskFullError where there is no space.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        with whole_file(path.resolve()) as file:  # a link stays one
            file.write(text.encode())
    except OSError as error:
        raise cannot_write(path, error) from None


def refuse_existing(path: Path, force: bool) -> None:
    """Raises ConfigError where a file would be replaced unasked."""
    if path.is_dir():
        raise ConfigError(f"{path} is a directory", remedy="name a file")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists", remedy="--force replaces it, -o FILE writes another one")


def say_table(rows: Sequence[Sequence[str]], *, head: Sequence[str] = (), indent: str = "") -> None:
    """Columns aligned: below a head numbers to the right, everything else to the left."""
    every = [[str(cell) for cell in row] for row in ([head, *rows] if head else rows)]
    if not every:
        return
    widths = [max(len(row[i]) for row in every) for i in range(len(every[0]))]
    for number, row in enumerate(every):
        cells = [cell.rjust(width) if head and _numeric(cell) else cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo((indent + "  ".join(cells)).rstrip())
        if head and number == 0:
            click.echo(indent + "  ".join("-" * width for width in widths))


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] == "-" and cell[1:2].isdigit())


def say_json(value: Any) -> None:
    """One JSON document on standard output; paths as text."""
    click.echo(json.dumps(value, indent=2, default=str, allow_nan=False))
