"""JSON objects of camera files: read with errors that name the file, the place and the value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from landmark_batch.cameras.flight import Float64
from landmark_batch.errors import CameraError

MAX_SIZE = 65536  # pixels a side, as in the job file
LAST_ROW = np.array([0.0, 0.0, 0.0, 1.0])

Record = Mapping[str, Any]


_FILES = (
    "files read: transforms.json of LandMark, nerfstudio and instant-ngp, camera_path.json of nerfstudio; COLMAP's have to be converted"
)


def _beginning(text: str) -> str:
    line = text.strip().splitlines()[0]
    return line if len(line) <= 30 else f"{line[:30]}..."


def read_json(file: Path, kind: str = "camera file") -> Any:
    """The parsed JSON of `file`. Raises CameraError: missing, a directory, not text, empty, broken (with line and column)."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CameraError(f"{file}: no such {kind}", remedy="check the path; paths in a job file are relative to it") from None
    except IsADirectoryError:
        inside = ", ".join(sorted(item.name for item in file.glob("*.json"))[:8]) or "none in it"
        raise CameraError(f"{file} is a directory, not a {kind}", remedy=f"name one of its JSON files ({inside})") from None
    except UnicodeDecodeError:
        raise CameraError(f"{file}: not a text file, so no {kind}", remedy="a camera file is JSON in UTF-8") from None
    except OSError as error:
        raise CameraError(f"{file}: cannot read it: {error.strerror or error}", remedy="check the path and its permissions") from None
    if not text.strip():
        raise CameraError(f"{file}: the file is empty", remedy="write or copy it again")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip()[0] not in "{[":
            raise CameraError(f"{file}: not JSON, so no {kind}: it begins with {_beginning(text)!r}", remedy=_FILES) from None
        raise CameraError(
            f"{file}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}",
            remedy="mend that line; a file that breaks off at its end was not written whole",
        ) from None
    except (RecursionError, ValueError) as error:
        raise CameraError(f"{file}: JSON that cannot be read: {error}", remedy="write or copy it again") from None


def number(record: Record, key: str, place: str) -> float | None:
    """record[key] as a float, None where the key is absent or null. Raises CameraError where it is anything else."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CameraError(f"{place}: {key} = {shown(value)} is not a number", remedy=f"write {key} as a number")
    try:
        return float(value)
    except OverflowError:
        raise CameraError(f"{place}: {key} = {shown(value)} is too large", remedy=f"write {key} as a number") from None


def pixels(record: Record, key: str, place: str) -> int | None:
    """record[key] as a size in pixels (960 or 960.0), None where absent. Raises CameraError below 1, above 65536 or in between pixels."""
    value = number(record, key, place)
    if value is None:
        return None
    if not math.isfinite(value) or value != int(value) or not 1 <= value <= MAX_SIZE:
        raise CameraError(f"{place}: {key} = {value:g} is no image size", remedy=f"{key} is a whole number of pixels, 1 to {MAX_SIZE}")
    return int(value)


def rate(record: Record, key: str, place: str) -> float | None:
    """record[key] as a positive number (frames a second, seconds), None where absent. Raises CameraError for 0, less, NaN or Inf."""
    value = number(record, key, place)
    if value is not None and not (math.isfinite(value) and value > 0):
        raise CameraError(f"{place}: {key} = {value:g} must be above 0", remedy=f"write a positive {key} or leave it out")
    return value


def pose(value: Any, key: str, place: str, *, flat: bool = False) -> Float64:
    """A camera-to-world matrix of 4x4 or 3x4 rows (flat: also 16 numbers, row by row) as [3, 4] float64, bits as written.

    Raises CameraError for another shape, for what is no number and for a last row other than 0 0 0 1. NaN passes: `check_flight` names it.
    """
    try:
        matrix: Float64 = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise CameraError(
            f"{place}: {key} is no matrix of numbers: {shown(value)}", remedy="a pose is 4 (or 3) rows of 4 numbers"
        ) from None
    if flat and matrix.shape == (16,):
        matrix = matrix.reshape(4, 4)
    if matrix.shape not in ((4, 4), (3, 4)):
        size = "x".join(str(n) for n in matrix.shape) or "a single number"
        raise CameraError(f"{place}: {key} is {size}, not 4x4 or 3x4", remedy="a pose is 4 (or 3) rows of 4 numbers, camera to world")
    if matrix.shape == (4, 4) and not (np.abs(matrix[3] - LAST_ROW) <= 1e-6).all():
        last = ", ".join(f"{x:g}" for x in matrix[3])
        transposed = np.allclose(matrix[:3, 3], 0.0) and np.isclose(matrix[3, 3], 1.0)
        raise CameraError(
            f"{place}: the last row of {key} is ({last}), not (0, 0, 0, 1)",
            remedy="the matrix is transposed: write it row by row, the position in its last column"
            if transposed
            else "a pose is a rotation and a position, no projection",
        )
    return matrix[:3]


def shown(value: Any) -> str:
    """A value as JSON, short enough for a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
