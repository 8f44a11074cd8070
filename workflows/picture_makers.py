"""PictureMakers: who makes the PNG of a frame. Processes that encode, while they have time left, by compiled code; else the device."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.frames.pictures import HEAD, PictureOrder, Streams, by_host, none_yet
from landmark_batch.frames.staged_frames import writing_threads
from landmark_batch.kernels.png import PngLibrary

if TYPE_CHECKING:
    from landmark_batch.model.runtime import KernelSource

LEISURE = 1.0  # of the threads that encode: with fewer frames among them the host makes the next PNG


class PictureMakers:
    """For the frames of one pipeline. order: PNGs that an export asks for. size: height and width. library: for those of the host.

    A PNG that nobody could make is left to the export. Without overlap frames are encoded after all are rendered, and the host makes all.
    """

    def __init__(self, order: PictureOrder, size: tuple[int, int], library: PngLibrary) -> None:
        self._order, self._size, self._library = order, size, library
        self._compiled: Path | None = None
        self._refused = False

    def prepare(self) -> None:
        """Begin to look for the compiled code, and to build it if need be. Until it is there the device makes all."""
        threading.Thread(target=self._find, name="png library", daemon=True).start()

    def _find(self) -> None:
        self._library.begin()
        self._library.wait()
        self._compiled = self._library.path

    def streams(self, arrays: NDArray[Any]) -> Streams:
        """For a chunk. arrays: [n, bytes]."""
        return Streams(self._order, arrays, self._compiled)

    def ask(self, streams: Streams, position: int) -> NDArray[np.uint8] | None:
        """Where the device is to put the image data of a frame that it has rendered; None: it is not to make any."""
        stream: NDArray[np.uint8] = streams.arrays[position]
        if streams.compiled is not None and writing_threads().given < LEISURE * writing_threads().size:
            by_host(stream)
            return None
        none_yet(stream)
        return stream if self._device_makes_pictures() else None

    def made(self, stream: NDArray[np.uint8]) -> None:
        """The device is done with that."""
        self._refused |= not HEAD.unpack(stream[: HEAD.size].tobytes())[0]  # no memory for it, as a rule: not asked again

    def close(self) -> None:
        """Give up a build that is not over."""
        self._library.end(0.0)

    def _device_makes_pictures(self) -> bool:
        """Asked when it has rendered a frame: its kernels are loaded by then."""
        from landmark_batch.kernels.picture import makes_pictures

        return not self._refused and makes_pictures(*self._size)


def picture_makers(asked: Mapping[str, Any] | None, size: tuple[int, int], kernels: KernelSource | None) -> PictureMakers | None:
    """For the PNGs that a run's snapshot asks for. None where it asks for none, or this process does not see their folder.

    kernels: where compiled code is; None: the usual place.
    """
    order = None if asked is None else PictureOrder(**asked)
    if order is None or not order.is_seen:
        return None
    return PictureMakers(order, size, PngLibrary() if kernels is None else kernels.png_library())
