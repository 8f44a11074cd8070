"""ChunkArrays: memory for the pixels of chunks, and for the streams of their PNGs, that a device writes and other processes see."""

from __future__ import annotations

import logging
import threading
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from landmark_batch.frames.pictures import stream_bytes
from landmark_batch.frames.shared_pixels import shared_array
from landmark_batch.frames.spec import StoreSpec

logger = logging.getLogger(__name__)

PICTURES = "pictures"  # beside the outputs' names: the array of their streams

Pixels: TypeAlias = dict[str, NDArray[Any]]


class ChunkArrays:
    """Sets of arrays for the pixels of chunks, used again and again: new memory costs a fault a page. At most `most` are out at once.

    pinned: a CUDA device is to write them by itself. shared: other processes are then to see them, where the system allows it.
    pictures: with room for the streams of PNGs of each frame.
    """

    def __init__(self, spec: StoreSpec, *, most: int, pinned: bool, shared: bool = False, pictures: bool = False) -> None:
        self._spec, self._pinned, self._shared, self._pictures = spec, pinned, shared, pictures
        self._free: list[Pixels | None] = [None] * most  # None: not made yet
        self._most, self._closed = most, False
        self._changed = threading.Condition()

    def take(self, frames: int) -> tuple[Pixels, int]:
        """A set that holds so many frames or more, and how many sets are out now. Waits for `give`."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._free))
            self._free.sort(key=_length)
            found = self._free.pop()
            out = self.out
        if found is None or _length(found) < frames:
            found = None  # its memory goes before the new one comes
            try:
                found = self._made(frames)
            except BaseException:
                self.give(None)
                raise
        return found, out

    def give(self, pixels: Pixels | None) -> None:
        """Take a set back."""
        with self._changed:
            self._free.append(None if self._closed else pixels)
            self._changed.notify()

    def make(self, frames: int) -> None:
        """Make the sets that are not made yet, for so many frames. What cannot be made now, `take` tries again."""
        while True:
            with self._changed:
                if self._closed or None not in self._free:
                    return
                self._free.remove(None)
            found = None
            try:
                found = self._made(frames)
            except (MemoryError, RuntimeError) as error:
                logger.debug("no memory for pixels yet: %s", error)
                return
            finally:
                self.give(found)

    @property
    def out(self) -> int:
        """Sets that somebody has."""
        return self._most - len(self._free)

    def close(self) -> None:
        """Let go of the memory."""
        with self._changed:
            self._closed = True
            self._free = [None] * len(self._free)

    def _made(self, frames: int) -> Pixels:
        made = {output.name: self._array((frames, *self._spec.frame_shape(output.name)), output.dtype) for output in self._spec.outputs}
        streams = self._streams(frames) if self._pictures and self._pinned else None
        return made if streams is None else {**made, PICTURES: streams}

    def _streams(self, frames: int) -> NDArray[Any] | None:
        """None where there is no memory for them: pixels come first."""
        try:
            return self._pinned_array((frames, stream_bytes(self._spec.height, self._spec.width)), "uint8")
        except (MemoryError, RuntimeError) as error:
            logger.debug("no memory for PNGs: %s", error)
            return None

    def _array(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        if self._pinned:
            try:
                return self._pinned_array(shape, dtype)
            except RuntimeError as error:
                logger.warning("no memory can be pinned for pixels, they are copied once more: %s", str(error).splitlines()[0])
                self._pinned = False
        return np.empty(shape, dtype)

    def _pinned_array(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        from landmark_batch.model.transfer import pin_memory, pinned_array, unpin_memory

        if self._shared:
            try:
                return shared_array(shape, dtype, use=pin_memory, leave=unpin_memory)
            except (OSError, RuntimeError) as error:
                logger.debug("pixels that this process alone sees: %s", error)
        return pinned_array(shape, dtype)


def _length(pixels: Pixels | None) -> int:
    """Frames that a set holds, -1 for none."""
    return -1 if pixels is None else len(next(iter(pixels.values())))
