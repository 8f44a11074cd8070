"""Frames of chunk after chunk from one renderer: the next ones are begun before one is taken, those of the next chunk too."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from landmark_batch.workflows.renderers import FrameRenderer, RenderedFrame

logger = logging.getLogger(__name__)

AHEAD = 4  # frames at most that a device has before it: a thread that is late leaves it none the less busy
GROUP_AHEAD = 1  # of a render group, whose ranks hand frames on beside rendering: more were no faster
AHEAD_BYTES = 2**28  # of their floats on the device; a frame too large for it takes so long that one ahead is enough
_PIXEL = 20  # bytes: rgb, depth, alpha

Camera: TypeAlias = tuple[NDArray[np.float64], tuple[float, ...], int, int]  # c2w [3, 4], (fl_x, fl_y, cx, cy), width, height
Cameras: TypeAlias = Iterable[tuple[int, Camera]]
Who = TypeVar("Who")


class FramesAhead:
    """Renders frames in the order in which they are asked for. Used by one thread at a time.

    ahead: frames that are begun beyond the one that is taken. A renderer that cannot begin frames renders them as they are asked for.
    """

    def __init__(self, renderer: FrameRenderer, *, ahead: int) -> None:
        self._renderer = renderer
        self._begin = getattr(renderer, "begin", None)
        self._most = ahead
        self._ahead = 0  # until one frame is done: it may show that buffers have to grow, and those begun before that are rendered twice
        self._begun: deque[tuple[int, Callable[[], RenderedFrame]]] = deque()

    def frames(self, cameras: Cameras, following: Callable[[], Cameras | None] = lambda: None) -> Iterator[tuple[int, RenderedFrame]]:
        """The frames of these cameras, by number. following: asked near the end for those that come after them, None: not known yet; their
        first ones are begun, and are there when `frames` is called for them. Raises what rendering raises; nothing is begun then.
        """
        if self._begin is None:
            for frame, camera in cameras:
                yield frame, self._renderer.render(*camera, frame=frame)
            return
        todo = deque(cameras)
        left = len(todo)
        begun = [frame for frame, _ in self._begun]
        if begun == [frame for frame, _ in todo][: len(begun)]:
            for _ in begun:
                todo.popleft()
        else:
            self.drop()
        after: Iterator[tuple[int, Camera]] | None = None
        try:
            while left:
                while todo and len(self._begun) <= self._ahead:
                    self._begin_one(*todo.popleft())
                if after is None and not todo and len(self._begun) <= self._ahead:
                    found = following()
                    after = None if found is None else iter(found)
                if after is not None:
                    self._begin_following(after)
                frame, finish = self._begun.popleft()
                left -= 1
                done = finish()
                self._ahead = self._most
                yield frame, done
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Give up what is begun and nobody has asked for."""
        self._begun.clear()

    def _begin_one(self, frame: int, camera: Camera) -> None:
        assert self._begin is not None
        self._begun.append((frame, self._begin(*camera, frame=frame).finish))

    def _begin_following(self, cameras: Iterator[tuple[int, Camera]]) -> None:
        """One that cannot be begun fails where it is asked for."""
        while len(self._begun) <= self._ahead and (coming := next(cameras, None)) is not None:
            try:
                self._begin_one(*coming)
            except Exception as error:  # noqa: BLE001
                logger.debug("frame %d cannot be begun ahead: %s", coming[0], error)
                for _ in cameras:
                    pass


def frames_ahead(pixels: int) -> int:
    """Frames of so many pixels that are begun ahead."""
    return max(1, min(AHEAD, AHEAD_BYTES // (_PIXEL * max(1, pixels))))


def bytes_ahead(pixels: int) -> int:
    """What these take on the device."""
    return _PIXEL * pixels * frames_ahead(pixels)


class Turns(Generic[Who]):
    """One at a time, in the order in which they came; told apart by which object they are."""

    def __init__(self) -> None:
        self._line: deque[Who] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, who: Who) -> Iterator[None]:
        """Wait for those that came before."""
        with self._changed:
            self._line.append(who)
            try:
                self._changed.wait_for(lambda: self._line[0] is who)
            except BaseException:
                self._line = deque(one for one in self._line if one is not who)
                raise
        try:
            yield
        finally:
            with self._changed:
                self._line.popleft()
                self._changed.notify_all()

    def next(self) -> Who | None:
        """Who comes after the one whose turn it is."""
        with self._changed:
            return self._line[1] if len(self._line) > 1 else None
