"""File names of exported images: '{name}.{frame:05d}.{ext}' and its kin, checked before anything is written."""

from __future__ import annotations

import string
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from landmark_batch.errors import ConfigError

DEFAULT_PATTERN = "{name}.{frame:05d}.{ext}"
FIELDS = ("name", "frame", "output", "ext")
_REMEDY = f"use {', '.join('{' + field + '}' for field in FIELDS)}, for example {DEFAULT_PATTERN}"
_LONGEST = 255  # bytes of one name on ext4, xfs, btrfs, zfs, apfs, ntfs
_IMAGES = frozenset(("png", "jpg", "jpeg", "jxl", "exr", "tif", "tiff", "dpx", "tga", "bmp", "webp"))
_OTHERS = {"jpg": _IMAGES - {"jpeg"}}


def check_pattern(pattern: str) -> None:
    """Raises ConfigError for a pattern that is malformed, has no {frame} or unknown fields."""
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise ConfigError(f"pattern {pattern!r}: {error}", remedy=_REMEDY) from None
    fields = [field for _, field, _, _ in parts if field is not None]
    for _, field, spec, _ in parts:
        if field is not None and (field not in FIELDS or (spec and "{" in spec)):
            raise ConfigError(f"pattern {pattern!r}: {{{field}{':' + spec if spec else ''}}} is not known here", remedy=_REMEDY)
    if "frame" not in fields:
        raise ConfigError(f"pattern {pattern!r}: without {{frame}} every frame would have the same name", remedy=_REMEDY)


def image_paths(
    folder: Path, pattern: str, frames: Iterable[int], *, name: str, output: str, ext: str, start_number: int = 0
) -> dict[int, Path]:
    """{frame: path of its image}. start_number is added to the frame's index, which counts from 0.

    Raises ConfigError as `check_pattern`, and for a name that leads out of the folder, is no file name, ends like another format,
    or belongs to two frames.
    """
    check_pattern(pattern)
    paths: dict[int, Path] = {}
    owners: dict[str, int] = {}
    for frame in frames:
        try:
            text = pattern.format(name=name, frame=frame + start_number, output=output, ext=ext)
        except (ValueError, OverflowError, MemoryError) as error:
            raise ConfigError(f"pattern {pattern!r}: {error}", remedy=_REMEDY) from None
        relative = PurePosixPath(text)
        if relative.is_absolute() or ".." in relative.parts:
            raise ConfigError(f"pattern {pattern!r}: {text!r} leads out of {folder}", remedy="name the folder apart from the pattern")
        if text.endswith("/") or not relative.parts or "\0" in text or any(len(part.encode()) > _LONGEST for part in relative.parts):
            raise ConfigError(f"pattern {pattern!r}: {text[:80]!r} is no file name", remedy=_REMEDY)
        end = relative.suffix.removeprefix(".").lower()
        if end != ext and end in _OTHERS.get(ext, _IMAGES):
            raise ConfigError(f"pattern {pattern!r}: {text!r} ends like another format: the files are {ext}", remedy="end it in .{ext}")
        key = str(relative)
        if key in owners:
            raise ConfigError(f"pattern {pattern!r}: frames {owners[key]} and {frame} both become {key}", remedy=_REMEDY)
        owners[key] = frame
        paths[frame] = folder / relative
    return paths
