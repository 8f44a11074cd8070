"""Frames to chunk files' bytes and back, as Zarr's own pipeline would do it, but in whatever thread asks.

Zarr does it through one event loop, which copies each frame several times and holds Python's lock meanwhile. Its checksum holds it, too:
crc32c's does not.

lz4 over shuffled bits takes half as long again as without the shuffle, to write, and more than twice as long to read. On rendered frames it
often saves next to nothing: their lower bits are noise. So a few blocks of each frame are tried both ways. Blosc's header says how a file
was shuffled, and every reader goes by that, not by the array's metadata.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import crc32c
import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from .arrays import Array
from .jpegxl import JpegXl

Part: TypeAlias = memoryview
FrameEncoder: TypeAlias = Callable[[NDArray[Any]], tuple[Part, bytes]]
FrameDecoder: TypeAlias = Callable[[Path, NDArray[Any] | None], NDArray[Any]]
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_MOST_THREADS = 12  # of a process
_SUM = 4  # bytes of the crc32c at a file's end
_BLOSC_HEADER = 16  # bytes; the four from the fifth on are the decoded size
_BLOCK = 1 << 16  # bytes that lz4 in Blosc compresses by themselves: what comes before is not looked at
_TRIED = 3  # blocks of a frame that are compressed both ways
_SMALL = 16  # blocks: smaller frames keep their shuffled bits
_SAVES = 1.03  # times the bytes without the shuffle, over those with it: the least that shuffled bits have to save
_kept = threading.local()  # each thread's buffer for compressed files: new memory of this size costs as much as reading


def frame_encoder(array: Array) -> FrameEncoder | None:
    """What makes a frame's file of its pixels: [H, W(, C)] in the array's dtype -> payload and the checksum that follows it.

    The bytes are those that Zarr writes, or, of lz4 over shuffled bits, those that it would write with bytes shuffled (of one byte a
    value: nothing). The same pixels give the same bytes. None for an array whose codecs or chunks are others than a store's with one
    frame a file.
    """
    codecs = _frame_codecs(array)
    if not codecs:
        return None
    if len(codecs) == 1:
        return _plain
    first = codecs[0]
    if isinstance(first, JpegXl):
        return lambda frame: _with_sum(np.frombuffer(first.to_image(frame), np.uint8))
    blosc, quick = _blosc(first), _quick_blosc(first)

    def encode(frame: NDArray[Any]) -> tuple[Part, bytes]:
        values = np.ascontiguousarray(frame).reshape(-1)
        chosen = blosc if quick is None or _saves(values, blosc, quick) else quick
        return _with_sum(np.frombuffer(chosen.encode(values), np.uint8))

    return encode


def frame_decoder(array: Array) -> FrameDecoder | None:
    """What reads a frame's file: path -> its pixels, [H, W(, C)] in the array's dtype, checked against the file's checksum.

    Its second argument: an array of their shape and dtype, without gaps, that may take them and be returned, or None. The pixels are those
    that Zarr reads. It raises OSError, and ValueError or RuntimeError for a damaged file. None where `frame_encoder` is None.
    """
    codecs = _frame_codecs(array)
    if not codecs:
        return None
    first = codecs[0]
    shape, dtype = array.shape[1:], array.dtype
    if isinstance(first, JpegXl):
        return lambda path, into: first.to_pixels(_checked(path, _buffer), shape, dtype)
    blosc = _blosc(first) if len(codecs) == 2 else None

    def decode(path: Path, into: NDArray[Any] | None) -> NDArray[Any]:
        if blosc is None:
            return _checked(path, np.empty).view(dtype).reshape(shape)
        payload = _checked(path, _buffer)
        suits = into is not None and into.shape == shape and into.dtype == dtype and into.flags.c_contiguous
        frame: NDArray[Any] = into if into is not None and suits else np.empty(shape, dtype)
        said = int.from_bytes(payload[4:8].tobytes(), "little")
        if len(payload) < _BLOSC_HEADER or said != frame.nbytes:
            raise ValueError(f"it holds {said} bytes of pixels, not {frame.nbytes}")
        blosc.decode(payload, frame)
        return frame

    return decode


def encoding_threads() -> int:
    """Threads that encode and write what this process commits, by the cores it may use: three quarters of them, 2 to 12."""
    return max(2, min(_MOST_THREADS, len(os.sched_getaffinity(0)) * 3 // 4))


def _frame_codecs(array: Array) -> list[Any]:
    """A checksum, Blosc and a checksum, or JPEG XL and a checksum. Empty where a frame is no file of its own or they are others."""
    plain, *rest = getattr(array.metadata, "codecs", (None,))
    if array.chunks != (1, *array.shape[1:]):
        return []
    if isinstance(plain, JpegXl):
        return [plain, *rest] if [type(codec) for codec in rest] == [Crc32cCodec] else []
    if not isinstance(plain, BytesCodec) or sys.byteorder != "little":
        return []
    if [type(codec) for codec in rest] == [Crc32cCodec]:
        return rest
    if [type(codec) for codec in rest] != [BloscCodec, Crc32cCodec] or rest[0].typesize != array.dtype.itemsize:
        return []
    return rest


def _blosc(codec: BloscCodec, *, shuffle: str | None = None) -> Any:
    settings: Any = codec.to_dict()["configuration"]  # in words; the attributes are enumerations or words, by zarr's version
    return numcodecs.Blosc(settings["cname"], settings["clevel"], _SHUFFLES[shuffle or settings["shuffle"]], settings["blocksize"])


def _quick_blosc(codec: BloscCodec) -> Any:
    """The same with bytes shuffled (of one byte a value: nothing), for lz4 over shuffled bits; None for others."""
    settings: Any = codec.to_dict()["configuration"]
    if (settings["cname"], settings["shuffle"]) != ("lz4", "bitshuffle"):
        return None
    return _blosc(codec, shuffle="shuffle")


def _saves(values: NDArray[Any], blosc: Any, quick: Any) -> bool:
    """Whether shuffled bits save enough on some blocks between the first and the last. values: a whole frame's, in one row."""
    size = _BLOCK // values.itemsize
    blocks = len(values) // size
    if blocks < _SMALL:
        return True
    starts = (size * (blocks * (2 * i + 1) // (2 * _TRIED)) for i in range(_TRIED))
    tried = np.concatenate([values[start : start + size] for start in starts])
    return len(quick.encode(tried)) > _SAVES * len(blosc.encode(tried))


def _plain(frame: NDArray[Any]) -> tuple[Part, bytes]:
    return _with_sum(np.ascontiguousarray(frame).reshape(-1).view(np.uint8))


def _with_sum(payload: NDArray[np.uint8]) -> tuple[Part, bytes]:
    checksum: int = crc32c.crc32c(payload.data)
    return payload.data, checksum.to_bytes(_SUM, "little")


def _checked(path: Path, memory: Callable[[int, type[np.uint8]], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """A file's bytes without their checksum, in `memory`. Raises ValueError if that is another."""
    with path.open("rb", buffering=0) as file:
        data = memory(os.fstat(file.fileno()).st_size, np.uint8)
        read = 0
        while read < len(data) and (more := file.readinto(data[read:].data)):
            read += more
    payload = data[:-_SUM]
    if read < len(data) or len(data) < _SUM or crc32c.crc32c(payload.data) != int.from_bytes(data[-_SUM:].tobytes(), "little"):
        raise ValueError("its checksum is another")
    return payload


def _buffer(size: int, dtype: type[np.uint8]) -> NDArray[np.uint8]:
    """This thread's, the same each time."""
    kept: NDArray[np.uint8] | None = getattr(_kept, "data", None)
    if kept is None or len(kept) < size:
        kept = _kept.data = np.empty(size + size // 8, dtype)
    return kept[:size]
