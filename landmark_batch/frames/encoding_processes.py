"""Frames encoded and written by processes: of pixels that lie in shared memory. The process that renders keeps Python's lock to itself."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from landmark_batch.object_path import ObjectPath, StorePath

from . import durable
from .arrays import open_array
from .encode import FrameEncoder, encoding_threads, frame_encoder
from .outfile import remove_leftovers
from .pictures import Aside, Picture, write_picture
from .process_pool import ProcessLost, ProcessPool
from .records import pixel_digest
from .shared_pixels import Place, opened
from .staging import staged_store

logger = logging.getLogger(__name__)

# Digest; begin of encoding, of writing, and end, by time.perf_counter(), which is the host's; the frame's PNG.
Written = tuple[str, float, float, float, Aside | None]

_pools: dict[int, ProcessPool] = {}  # by process
_lock = threading.Lock()
_alone: set[int] = set()  # processes that go on without


def encoding_processes() -> ProcessPool:
    """Those of this process, as many as `encoding_threads`; they begin with the first call."""
    with _lock:
        pool = _pools.get(os.getpid())
        if pool is None:
            pool = _pools[os.getpid()] = ProcessPool(encoding_threads(), [__name__])
            atexit.register(pool.close)
        return pool


class RemoteEncoder:
    """What another process needs to encode frames of an array. root: of a store, name: of the array, text: its metadata."""

    def __init__(self, root: Path, name: str, text: str) -> None:
        self._array = str(root), name, text

    def write(self, place: Place, temporary: Path, picture: tuple[Picture, Place] | None = None) -> Written | None:
        """Write that frame's file and fsync it, and its PNG aside. Raises OSError. None: none can, or can yet, or one was lost: the file
        may be there.
        """
        if os.getpid() in _alone:
            return None
        pool = encoding_processes()
        if not pool.ready:
            return None
        try:
            return pool.run(write_frame, *self._array, place, str(temporary), picture)
        except ProcessLost as error:
            logger.warning("a frame is encoded by the process that renders: %s", error)
            if picture is not None:
                with suppress(OSError):
                    remove_leftovers(picture[0].order.path(picture[0].frame).parent)
            if isinstance(error, UnseenError) or not pool.left:
                _alone.add(os.getpid())
            return None


class UnseenError(ProcessLost):
    """A process does not see the pixels: no other will."""


def remote_encoders(root: StorePath, metadata: Mapping[str, str], encoders: Mapping[str, FrameEncoder | None]) -> dict[str, RemoteEncoder]:
    """Of the arrays whose frames are files of their own on a file system. metadata: {key such as 'rgb/zarr.json': text}."""
    if isinstance(root, ObjectPath):
        return {}
    return {name: RemoteEncoder(root, name, metadata[f"{name}/zarr.json"]) for name, encoder in encoders.items() if encoder is not None}


def write_frame(root: str, name: str, text: str, place: Place, temporary: str, picture: tuple[Picture, Place] | None = None) -> Written:
    """In a process of the pool."""
    began = time.perf_counter()
    try:
        frame = opened(place)
        stream = None if picture is None else opened(picture[1])
    except OSError as error:
        raise UnseenError(f"others do not see its memory: {error}") from None
    digest, encoded = pixel_digest(frame), _encoder(root, name, text)(frame)
    between = time.perf_counter()
    durable.write_new(Path(temporary), encoded)
    made = None if picture is None or stream is None else write_picture(picture[0], digest, stream, frame)
    return digest, began, between, time.perf_counter(), made


@lru_cache(maxsize=8)
def _encoder(root: str, name: str, text: str) -> FrameEncoder:
    import numcodecs.blosc

    numcodecs.blosc.use_threads = False
    encoder = frame_encoder(open_array(staged_store(Path(root), read_only=True, metadata={f"{name}/zarr.json": text}), name))
    assert encoder is not None
    return encoder
