"""Images made by processes, each from the frame in its store to the file: threads of one process wait for each other at Python's lock."""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.kernels.png import PngLibrary, packer

from .image_files import ImageLabel, write_image
from .image_settings import ImageSettings
from .outfile import remove_leftovers
from .process_pool import ProcessLost, ProcessPool
from .source import FrameSource
from .store_source import StoreSource, open_source

_log = logging.getLogger(__name__)
# Of pixels, into whose images threads have put about as much work as processes take to begin: half a second of a core. An export that ends
# sooner, or finds most files up to date, begins none. Two threads make as many images as two processes; 16, half as many as 16.
BEGIN_BYTES = 1 << 27
LEAST = 4
BUILD_BYTES = 1 << 29  # of pixels, into whose PNGs about as much work was put as a build of the compiled code takes: two seconds of a core
BUILD_PATIENCE = 5.0
_kept = threading.local()  # each thread's memory for a frame
_PATIENCE = 60.0  # seconds that an image in work may take at the end


class ImageProcesses:
    """Makes images for threads: on the thread that asks, and in processes once there were many, or after `begin`. Thread-safe.

    size: processes; with less than LEAST there are none. nice: is added to their niceness. library: compiled code for PNGs; where it is
    not built it is beside others' work, once many were made without it.
    A frame whose process is lost is made by its thread. So are all frames of sources that are no store.
    """

    def __init__(self, size: int, *, nice: int = 0, library: PngLibrary | None = None) -> None:
        self._size, self._nice, self._library = size, nice, library
        self._lock = threading.RLock()
        self._pool: ProcessPool | None = None
        self._made = 0  # bytes of pixels, by threads
        self._slow = 0  # bytes of pixels made into PNGs without compiled code
        self._left: set[Path] = set()  # folders in which a lost process may have left something

    def begin(self) -> None:
        """Begin the processes; images are made by threads until they are there."""
        with self._lock:
            if self._pool is None and self._size >= LEAST:
                self._pool = ProcessPool(self._size, (__name__, "landmark_batch.frames.store"), nice=self._nice)

    def write(self, source: FrameSource, path: Path, settings: ImageSettings, label: ImageLabel) -> int:
        """Make the file of the frame that `label` tells of; returns its bytes. Raises what `source.read` and `write_image` raise."""
        compiled = self._compiled(source, settings) if settings.format == "png" else None
        pool = self._take() if isinstance(source, StoreSource) else None
        if pool is not None:
            try:
                return pool.run(_write, source.path, path, settings, label, compiled)
            except ProcessLost as error:
                self._lose(path, error)
        if isinstance(source, StoreSource):
            pixels = source.read(settings.output, label.frame, _memory(source, settings.output))
        else:
            pixels = source.read(settings.output, label.frame)
        size = write_image(path, pixels, settings, label, packer(compiled))
        with self._lock:
            self._made += pixels.nbytes
        return size

    def _compiled(self, source: FrameSource, settings: ImageSettings) -> Path | None:
        """The library for a PNG that is made now; a build is begun after many without."""
        library = self._library
        if library is None or (found := library.path) is not None:
            return None if library is None else found
        output = source.outputs[settings.output]
        with self._lock:
            self._slow += source.height * source.width * (output.channels or 1) * np.dtype(output.dtype).itemsize
            many = self._slow >= BUILD_BYTES
        if many:
            library.begin()
        return None

    def close(self, build_seconds: float = BUILD_PATIENCE) -> None:
        """End the processes, after the images in work; further images would begin others. A second call does nothing. build_seconds: that
        a build of compiled code may still take; then it is given up.
        """
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(_PATIENCE)
        with self._lock:
            left, self._left = self._left, set()
        for folder in left:
            remove_leftovers(folder)
        if self._library is not None:
            self._library.end(build_seconds)

    def _take(self) -> ProcessPool | None:
        with self._lock:
            if self._made >= BEGIN_BYTES:
                self.begin()
            if self._pool is None or not self._pool.ready:
                return None
            return self._pool

    def _lose(self, path: Path, error: ProcessLost) -> None:
        with self._lock:
            first = not self._left
            self._left.add(path.parent)
        if first:
            _log.warning("a process that makes images is lost (%s): what it had in work is made by this one", error)


def _write(store: str, path: Path, settings: ImageSettings, label: ImageLabel, compiled: Path | None) -> int:
    """In a process of the pool."""
    source = _source(store)
    pixels = source.read_recorded(settings.output, label.frame, label.digest, _memory(source, settings.output))
    return write_image(path, pixels, settings, label, packer(compiled))


def _memory(source: StoreSource, output: str) -> NDArray[Any]:
    """For a frame: this thread's, the same each time. C's library gives larger blocks than 32 MiB back at once."""
    shape, dtype = source.store.spec.frame_shape(output), np.dtype(source.outputs[output].dtype)
    kept: NDArray[Any] | None = getattr(_kept, "frame", None)
    if kept is None or kept.shape != shape or kept.dtype != dtype:
        kept = _kept.frame = np.empty(shape, dtype)
    return kept


@lru_cache(maxsize=2)
def _source(store: str) -> StoreSource:
    import numcodecs.blosc

    numcodecs.blosc.use_threads = False  # there is a process a core
    return open_source(store)
