"""PNG, written by hand: by compiled code where there is some (`kernels.png`), else by ISA-L's deflate and one row filter an image; several
times faster than libpng either way, bit for bit the same pixels.

PNG specification, third edition (W3C, 2025): chunks, filter types 1 (Sub) and 2 (Up), sRGB and tEXt chunks before the image data.
A picture is written a band of rows at a time, each an IDAT chunk, so that its bytes stay in the processor's cache from filter to file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from landmark_batch.kernels.png import Effort, PngPacker

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPE = {1: 0, 3: 2, 4: 6}  # grey, RGB, RGBA
_NONE, _SUB, _UP = 0, 1, 2
_LEVEL = 1  # 0..3; 2 takes longer for 1 % less
_STORED = 0xFFFF  # bytes of a stored block, at most
_BAND = 1 << 20  # bytes filtered and compressed at once
_SAMPLE = 1 << 14  # bytes of a band that are tried
_PAYS = 0.6  # of its size: what a band of 16 bits must shrink to, or it is stored
_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", 0xAE426082)
_ZLIB_HEADER = b"\x78\x01"  # RFC 1950
_LAST_BLOCK = b"\x03\x00"  # RFC 1951: final, fixed codes, nothing but the end of the block

Bytes = NDArray[np.uint8]
Part = bytes | memoryview


def encode_png(
    pixels: NDArray[Any],
    text: Mapping[str, str] | None = None,
    *,
    srgb: bool = True,
    compress: bool = True,
    packer: PngPacker | None = None,
) -> bytes:
    """A whole PNG file in memory. Arguments and errors as in `write_png`."""
    file = io.BytesIO()
    write_png(file, pixels, text, srgb=srgb, compress=compress, packer=packer)
    return file.getvalue()


def write_png(
    file: BinaryIO,
    pixels: NDArray[Any],
    text: Mapping[str, str] | None = None,
    *,
    srgb: bool = True,
    compress: bool = True,
    packer: PngPacker | None = None,
) -> None:
    """Write a PNG to an open file. pixels: [H, W] or [H, W, 1|3|4], uint8 or uint16, alpha straight.

    text: keyword -> value, stored before the pixels. srgb: say that the values are sRGB (leave out for data such as alpha).
    compress: 16-bit bands whose lower bytes are noise are stored all the same. False stores everything. packer: filters and deflates;
    None: ISA-L and numpy do, with other bytes.
    Raises ValueError for another dtype or shape, before anything is written; OSError of the file.
    """
    if pixels.dtype.newbyteorder("=") not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(f"PNG holds uint8 or uint16 of [H, W] or [H, W, C], not {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels not in _COLOUR_TYPE:
        raise ValueError(f"PNG holds 1, 3 or 4 channels, not {channels}")
    file.writelines(_head(height, width, pixels.dtype.itemsize * 8, channels, text or {}, srgb=srgb))
    rows = pixels.reshape(height, width * channels)
    if packer is None:
        bands = _zlib_stream(rows, channels, compress)
    else:
        effort = Effort.STORE if not compress else Effort.DEFLATE if rows.itemsize == 1 else Effort.WHERE_IT_PAYS
        bands = packer.zlib_stream(np.ascontiguousarray(rows), channels, effort)
    for band in bands:
        file.writelines(_chunk(b"IDAT", *band))
    file.write(_END)


def write_png_stream(file: BinaryIO, height: int, width: int, stream: Part, checksum: int, text: Mapping[str, str]) -> None:
    """Write a PNG of 8-bit sRGB colours whose rows were filtered and deflated elsewhere. checksum: adler32 of the filtered rows.

    stream, text, errors: RFC 1951; as in `write_png`.
    """
    file.writelines(_head(height, width, 8, 3, text, srgb=True))
    file.writelines(_chunk(b"IDAT", _ZLIB_HEADER, stream, struct.pack(">I", checksum)))
    file.write(_END)


def _head(height: int, width: int, bits: int, channels: int, text: Mapping[str, str], *, srgb: bool) -> list[Part]:
    """What stands before the image data."""
    parts: list[Part] = [SIGNATURE, *_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPE[channels], 0, 0, 0))]
    if srgb:
        parts += _chunk(b"sRGB", b"\x00")  # perceptual intent
    for key, value in text.items():
        parts += _text_chunk(key, value)
    return parts


def _zlib_stream(rows: NDArray[Any], channels: int, compress: bool) -> Iterator[list[Part]]:
    """Filtered and compressed, a band that fits the cache at a time. rows: [H, W · channels], integers.

    Compressed bands next to each other share their history; before a stored one the history ends. Parts are to be used before the next
    are asked for: their memory is written again.
    """
    height, deep = len(rows), rows.dtype.itemsize == 2
    length, pixel_bytes = rows.shape[1] * rows.dtype.itemsize, channels * rows.dtype.itemsize
    count = min(height, max(1, _BAND // (length + 1)))
    kind = _filter_type(rows, pixel_bytes) if compress else _NONE
    turned, band = np.empty((count, rows.shape[1]), rows.dtype.newbyteorder(">")), np.empty((count, length + 1), np.uint8)
    parts: list[Part] = [_ZLIB_HEADER]
    adler, packer, above = 1, None, None
    for start in range(0, height, count):
        lines = _big_endian(rows[start : start + count], turned)
        out = band[: len(lines)]
        if compress and not (deep and _is_noise(lines, above, kind, pixel_bytes)):
            _filter(lines, above, kind, pixel_bytes, out)
            packer = packer or isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, -15)
            parts.append(packer.compress(out))
        else:
            out[:, 0], out[:, 1:] = _NONE, lines
            if packer:
                parts.append(packer.flush(isal_zlib.Z_SYNC_FLUSH))
            parts += _stored(out)
            packer = None
        adler = isal_zlib.adler32(out, adler)
        above = lines[-1].copy()
        if parts[-1]:  # the first bands of a plain sky may come out with the next
            yield parts
            parts = []
    if packer:
        parts.append(packer.flush(isal_zlib.Z_SYNC_FLUSH))
    yield [*parts, _LAST_BLOCK, struct.pack(">I", adler)]


def _big_endian(rows: NDArray[Any], turned: NDArray[Any]) -> Bytes:
    """[n, values] -> [n, bytes], as PNG orders them: in `turned` [n or more, values] unless they lie so."""
    if rows.dtype != turned.dtype or not rows.flags.c_contiguous:
        turned[: len(rows)] = rows
        rows = turned[: len(rows)]
    return rows.view(np.uint8)


def _filter(lines: Bytes, above: Bytes | None, kind: int, pixel_bytes: int, out: Bytes) -> None:
    """lines: [n, bytes]. above: the row before them, None at the top. out: [n, 1 + bytes]."""
    out[:, 0] = kind
    if kind == _UP:
        np.subtract(lines[1:], lines[:-1], out=out[1:, 1:])
        out[0, 1:] = lines[0] if above is None else lines[0] - above
    else:
        out[:, 1 : 1 + pixel_bytes] = lines[:, :pixel_bytes]
        np.subtract(lines[:, pixel_bytes:], lines[:, :-pixel_bytes], out=out[:, 1 + pixel_bytes :])


def _is_noise(lines: Bytes, above: Bytes | None, kind: int, pixel_bytes: int) -> bool:
    """Whether a few rows from the middle hardly shrink."""
    length = lines.shape[1] + 1
    count = min(len(lines), -(-_SAMPLE // length))
    first = (len(lines) - count) // 2
    some = np.empty((count, length), np.uint8)
    _filter(lines[first : first + count], lines[first - 1] if first else above, kind, pixel_bytes, some)
    return len(isal_zlib.compress(some, _LEVEL)) > _PAYS * some.size


def _stored(band: Bytes) -> list[Part]:
    """Stored blocks (RFC 1951), none of them the last. The bytes stay where they are."""
    data = band.reshape(-1).data
    parts: list[Part] = []
    for start in range(0, len(data), _STORED):
        block = data[start : start + _STORED]
        parts += [struct.pack("<BHH", 0, len(block), 0xFFFF - len(block)), block]
    return parts


def _filter_type(rows: NDArray[Any], pixel_bytes: int) -> int:
    """Whichever of Sub and Up leaves less on every 16th row, or on some 32 of a large picture."""
    if len(rows) < 2:
        return _SUB
    step = max(16, len(rows) // 32)
    some, above = (np.ascontiguousarray(each, rows.dtype.newbyteorder(">")).view(np.uint8) for each in (rows[1::step], rows[:-1:step]))
    across = np.abs((some[:, pixel_bytes:] - some[:, :-pixel_bytes]).view(np.int8).astype(np.int16)).sum(dtype=np.int64)
    down = np.abs((some[:, pixel_bytes:] - above[:, pixel_bytes:]).view(np.int8).astype(np.int16)).sum(dtype=np.int64)
    return _UP if down < across else _SUB


def _chunk(kind: bytes, *data: Part) -> list[Part]:
    """In parts: pixels are megabytes."""
    checksum = isal_zlib.crc32(kind)
    for part in data:
        checksum = isal_zlib.crc32(part, checksum)
    return [struct.pack(">I", sum(map(len, data))), kind, *data, struct.pack(">I", checksum)]


def _text_chunk(key: str, value: str) -> list[Part]:
    try:
        return _chunk(b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", key.encode("latin-1", "replace") + b"\0\0\0\0\0" + value.encode("utf-8"))


def read_png_text(path: Path) -> dict[str, str]:
    """The text before the pixels, reading nothing else. Empty for a file that is no PNG or is cut off. Raises OSError."""
    found: dict[str, str] = {}
    with path.open("rb") as file:
        if file.read(8) != SIGNATURE:
            return {}
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind == b"IDAT":
                break
            if kind in (b"tEXt", b"iTXt"):
                key, _, value = file.read(size).partition(b"\0")
                found[key.decode("latin-1")] = value.decode("latin-1") if kind == b"tEXt" else value[4:].decode("utf-8", "replace")
                file.seek(4, 1)
            else:
                file.seek(size + 4, 1)
        else:
            return {}
        file.seek(0, 2)
        if file.tell() < len(_END):
            return {}
        file.seek(-len(_END), 2)
        return found if file.read() == _END else {}
