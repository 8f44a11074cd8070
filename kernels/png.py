"""The image data of PNGs by compiled code, without torch: rows filtered and deflated, or stored, a band at a time.

RFC 1950, RFC 1951; `csrc/png`. A call holds Python's lock for none of its work.
"""

from __future__ import annotations

import ctypes
import logging
import struct
import threading
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import build

BAND = 1 << 20  # bytes that are filtered and packed together, near the processor
LOOK_SECONDS = 2.0
_STOP_SECONDS = 10.0  # for a build to end when it is given up
_HEADER = b"\x78\x01"  # RFC 1950
_REMEDY = "`landmark-batch kernels build --device png --force` makes it anew, XDG_CACHE_HOME names another folder for it"

_log = logging.getLogger(__name__)
Part = bytes | memoryview
_loading = threading.Lock()
_packers: dict[Path, PngPacker | None] = {}
_told: set[Path] = set()  # that cannot be loaded, and somebody was told


class Effort(IntEnum):
    """STORE: nothing is compressed. WHERE_IT_PAYS: bands of which a few rows shrink to 0.6. DEFLATE: all but noise."""

    STORE = 0
    WHERE_IT_PAYS = 1
    DEFLATE = 2


class _Band(ctypes.Structure):
    """LmPngBand of png.h."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("above", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("pixel", ctypes.c_int32),
        ("swap", ctypes.c_int32),
        ("effort", ctypes.c_int32),
        ("last", ctypes.c_int32),
        ("scratch", ctypes.c_void_p),
    )


class _State(ctypes.Structure):
    """LmPngState of png.h."""

    _fields_ = (("hold", ctypes.c_uint64), ("held", ctypes.c_uint32), ("adler", ctypes.c_uint32))


class PngPacker:
    """A loaded library. Thread-safe. Raises OSError or AttributeError for a file that is none."""

    def __init__(self, library: Path) -> None:
        found = ctypes.CDLL(str(library))
        found.lm_png_variant.restype, found.lm_png_variant.argtypes = ctypes.c_char_p, (ctypes.c_char_p,)
        for function in (found.lm_png_scratch, found.lm_png_room):
            function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_int64, ctypes.c_int64)
        found.lm_png_band.restype = ctypes.c_int64
        found.lm_png_band.argtypes = (ctypes.POINTER(_Band), ctypes.POINTER(_State), ctypes.c_void_p)
        self._library = found
        self._kept = threading.local()

    def variant(self, name: str | None = None) -> str:
        """The instruction set in use: 'avx512', 'avx2' or 'portable'. name: use this one from now on, if this processor has it."""
        said: bytes = self._library.lm_png_variant(name.encode() if name else None)
        return said.decode()

    def zlib_stream(
        self, rows: NDArray[np.uint8] | NDArray[np.uint16], pixel: int, effort: Effort, band: int = BAND
    ) -> Iterator[list[Part]]:
        """The zlib stream of a picture's filtered rows, in parts. rows: [H, values], no gaps between them. pixel: values of one.

        Parts are to be used before the next are asked for, of any stream on this thread: their memory is written again. band: bytes of rows
        packed together.
        """
        height, width = rows.shape
        length = width * rows.itemsize
        swapped = rows.itemsize == 2 and rows.dtype.newbyteorder("=") == rows.dtype
        count = min(height, max(1, band // (length + 1)))
        scratch = self._buffer("scratch", self._library.lm_png_scratch(count, length))
        out = self._buffer("out", self._library.lm_png_room(count, length))
        state = _State(0, 0, 1)
        address = rows.ctypes.data
        parts: list[Part] = [_HEADER]
        for start in range(0, height, count):
            here, last = address + start * length, start + count >= height
            asked = _Band(
                here,
                here - length if start else None,
                min(count, height - start),
                length,
                pixel * rows.itemsize,
                swapped,
                effort,
                last,
                scratch.ctypes.data,
            )
            size = self._library.lm_png_band(asked, state, out.ctypes.data)
            parts.append(out[:size].data)
            if last:
                parts.append(struct.pack(">I", state.adler))
            yield parts
            parts = []

    def _buffer(self, name: str, size: int) -> NDArray[np.uint8]:
        """This thread's, the same each time."""
        kept: NDArray[np.uint8] | None = getattr(self._kept, name, None)
        if kept is None or len(kept) < size:
            kept = np.empty(size, np.uint8)
            setattr(self._kept, name, kept)
        return kept


def packer(library: Path | None) -> PngPacker | None:
    """The packer of a library; None for none, and for one that cannot be loaded."""
    if library is None:
        return None
    with _loading:
        if library not in _packers:
            try:
                _packers[library] = PngPacker(library)
            except (OSError, AttributeError) as error:
                _packers[library] = None
                _log.info("%s cannot be loaded: %s", library, error)
        return _packers[library]


class PngLibrary:
    """Where the compiled code for PNGs is, for exports that begin without it. Thread-safe.

    cache_dir, prebuilt: as in `build.load`. Nothing is looked for before `path` or `begin` is asked for.
    """

    def __init__(self, cache_dir: Path | None = None, prebuilt: Path | None = None) -> None:
        self._cache_dir, self._prebuilt = cache_dir, prebuilt
        self._lock = threading.Lock()
        self._looking: threading.Thread | None = None
        self._until = 0.0  # who asks waits for the first look, by time.monotonic()
        self._path: Path | None = None
        self._building: threading.Thread | None = None
        self._stop = threading.Event()
        self._ended = False

    @property
    def path(self) -> Path | None:
        """The library, which this process has loaded; None where it is not built, or not yet. Never waits for a build, and LOOK_SECONDS
        at most for a compiler that does not say its version.
        """
        with self._lock:
            if self._looking is None:
                self._until = time.monotonic() + LOOK_SECONDS
                self._looking = threading.Thread(target=self._look, name="png library", daemon=True)
                self._looking.start()
        self._looking.join(max(0.0, self._until - time.monotonic()))
        return self._path

    def begin(self) -> None:
        """Build it beside other work, unless it is there, or prebuilt libraries are to be used. Not twice, nor after `end`."""
        if self.path is not None or self._prebuilt is not None:
            return
        with self._lock:
            if self._building is None and not self._ended:
                self._building = threading.Thread(target=self._build, name="png library", daemon=True)
                self._building.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Until a build that has begun is over, so long at most; whether it is. Returns at once where there is none."""
        if self._building is None:
            return True
        self._building.join(seconds)
        return not self._building.is_alive()

    def end(self, patience: float) -> None:
        """`wait`; a build that then is not over is given up, with its compilers. None begins any more."""
        with self._lock:
            self._ended = True
        if not self.wait(patience):
            self._stop.set()
            self.wait(_STOP_SECONDS)

    def _look(self) -> None:
        self._take(build.status("png", cache_dir=self._cache_dir, prebuilt=self._prebuilt))

    def _build(self) -> None:
        self._take(build.build("png", cache_dir=self._cache_dir, stop=self._stop))

    def _take(self, found: build.KernelStatus) -> None:
        path = found.path if found.usable else None
        if path is None:
            _log.info("PNGs are made without compiled code: %s", found.reason)
        elif packer(path) is not None:
            self._path = path
        else:
            with _loading:
                first = path not in _told
                _told.add(path)
            if first:
                _log.warning("PNGs are made without compiled code, more slowly: %s cannot be loaded; %s", path, _REMEDY)
