"""Frames to chunk files' bytes, as Zarr's own pipeline would encode them, but in whatever thread asks.

Zarr encodes through one event loop, which copies each frame several times and holds Python's lock meanwhile. The codecs alone release it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import google_crc32c
import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from .arrays import Array

Part: TypeAlias = memoryview
FrameEncoder: TypeAlias = Callable[[NDArray[Any]], tuple[Part, bytes]]
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_MOST_THREADS = 8  # of one writer: eight lz4 threads fill the fastest disk there is


def frame_encoder(array: Array) -> FrameEncoder | None:
    """What makes a frame's file of its pixels: [H, W(, C)] in the array's dtype -> payload and the checksum that follows it.

    The bytes are those that Zarr writes. None for an array whose codecs or chunks are others than a store's with one frame a file.
    """
    plain, *rest = getattr(array.metadata, "codecs", (None,))
    if not isinstance(plain, BytesCodec) or sys.byteorder != "little" or array.chunks[0] != 1:
        return None
    if [type(codec) for codec in rest] == [Crc32cCodec]:
        return _plain
    if [type(codec) for codec in rest] != [BloscCodec, Crc32cCodec] or rest[0].typesize != array.dtype.itemsize:
        return None
    codec = rest[0]
    blosc = numcodecs.Blosc(codec.cname.value, codec.clevel, _SHUFFLES[codec.shuffle.value], codec.blocksize)

    def encode(frame: NDArray[Any]) -> tuple[Part, bytes]:
        return _with_sum(np.frombuffer(blosc.encode(np.ascontiguousarray(frame).reshape(-1)), np.uint8))

    return encode


def encoding_threads() -> int:
    """Threads that encode and write one commit, by the cores this process may use: half of them, 2 to 8."""
    return max(2, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // 2))


def _plain(frame: NDArray[Any]) -> tuple[Part, bytes]:
    return _with_sum(np.ascontiguousarray(frame).reshape(-1).view(np.uint8))


def _with_sum(payload: NDArray[np.uint8]) -> tuple[Part, bytes]:
    checksum: int = google_crc32c.value(payload)
    return payload.data, checksum.to_bytes(4, "little")
