"""OpenEXR: scene-linear floats, Rec.709 primaries, with what the file is about in its header."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
from numpy.typing import NDArray

from .outfile import FULL_DISK

MAGIC = b"v/1\x01"
REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)  # red, green, blue, white (x, y)
COMPRESSIONS = ("none", "rle", "zips", "zip", "piz")  # in the order of their codes
_CHUNK_ROWS = {0: 1, 1: 1, 2: 1, 3: 16, 4: 32}


def write_exr(
    path: Path,
    channels: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Any] | None = None,
    *,
    compression: str = "piz",
) -> None:
    """Write a single-part scanline file. channels: name ('RGB', 'RGBA', 'Z', 'A', ...) -> [H, W(, C)] float16 or float32.

    attributes: str, int, float, [4, 4] float32 or tuples as OpenEXR takes them. compression: 'zip', 'zips', 'piz', 'rle' or 'none'.
    Raises OSError if it cannot be written, ValueError for another dtype.
    """
    for name, pixels in channels.items():
        if pixels.dtype not in (np.float16, np.float32):
            raise ValueError(f"EXR channel {name} holds float16 or float32, not {pixels.dtype}")
    header = {
        **(attributes or {}),
        "compression": getattr(OpenEXR, f"{compression.upper() if compression != 'none' else 'NO'}_COMPRESSION"),
    }
    header["type"] = OpenEXR.scanlineimage
    path.open("wb").close()  # a plain OSError for what OpenEXR would only call a RuntimeError
    try:
        with OpenEXR.File(header, {name: np.ascontiguousarray(pixels) for name, pixels in channels.items()}) as file:
            file.write(str(path))
    except RuntimeError as error:
        raise _system_error(error) from error


def _system_error(error: RuntimeError) -> OSError:
    """OpenEXR tells the system's error in words alone."""
    for code in FULL_DISK:
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code))
    return OSError(errno.EIO, str(error))


def read_exr_text(path: Path) -> dict[str, str]:
    """The header's string attributes; empty for a file that is no EXR or whose last block is cut off. Raises OSError.

    Reads the header and the last entry of the offset table, no pixels.
    """
    with path.open("rb") as file:
        try:
            return _read_text(file.read(1 << 16), path.stat().st_size, path)
        except (struct.error, ValueError, IndexError, KeyError):
            return {}


def _read_text(data: bytes, size: int, path: Path) -> dict[str, str]:
    if data[:4] != MAGIC:
        return {}
    at, found, raw = 8, {}, {}
    while data[at] != 0:
        name_end = data.index(b"\0", at)
        kind_end = data.index(b"\0", name_end + 1)
        (length,) = struct.unpack_from("<I", data, kind_end + 1)
        name, kind, start = data[at:name_end].decode(), data[name_end + 1 : kind_end].decode(), kind_end + 5
        value = data[start : start + length]
        if len(value) < length:
            return {}
        raw[name] = value
        if kind == "string":
            found[name] = value.decode("utf-8", "replace")
        at = start + length
    first, last = struct.unpack_from("<4xi4xi", raw["dataWindow"])
    rows = _CHUNK_ROWS[raw["compression"][0]]
    chunks = (last - first) // rows + 1
    table = at + 1
    with path.open("rb") as file:
        file.seek(table + 8 * (chunks - 1))
        (offset,) = struct.unpack("<Q", file.read(8))
        file.seek(offset)
        _, length = struct.unpack("<iI", file.read(8))
    return found if offset > table and offset + 8 + length == size else {}
