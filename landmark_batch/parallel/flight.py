"""Frames in flight. A rank begins a frame before it finishes the one before, if it knows of it by then; the leader does so in a thread,
while its caller takes frames.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from landmark_batch.model.begun import Begun

Result = TypeVar("Result")
Task = tuple[Callable[[], Begun[Any]], "Future[Any]"]

POLL = 1e-4  # seconds between looks for the next order, while a device works on a frame


def next_comes(there: Callable[[], bool], begun: Begun[Any]) -> bool:
    """Wait until the next order is there, and say so, or until nothing is left to wait for but `begun`, which is to be finished: no
    frame waits for an order that may never come.
    """
    while not there():
        if begun.ready():
            return False
        time.sleep(POLL)
    return True


class RenderThread:
    """Begins and finishes frames one after another in a thread of its own, which does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, begin: Callable[[], Begun[Result]]) -> Future[Result]:
        """What the frame that `begin` begins gives when it is finished, or what either raises. It is begun before the one submitted before
        it is finished, if it comes in time.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Result] = Future()
        self._tasks.put((begin, future))
        return future

    def close(self, *, wait: bool) -> None:
        """End the thread after what was submitted. wait: until then."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._tasks.put(None)
            if wait:
                thread.join()

    def _run(self) -> None:
        last: tuple[Begun[Any], Future[Any]] | None = None
        while True:
            if last is not None and not next_comes(lambda: not self._tasks.empty(), last[0]):
                _finish(*last)
                last = None
            task = self._tasks.get()
            begun = _begun(*task) if task is not None else None
            if last is not None:
                _finish(*last)
            if task is None:
                return
            last = begun
            del task, begun  # a frame is its caller's alone


def _begun(begin: Callable[[], Begun[Any]], future: Future[Any]) -> tuple[Begun[Any], Future[Any]] | None:
    try:
        return begin(), future
    except BaseException as error:  # noqa: BLE001  it is the caller's
        future.set_exception(error)
        return None


def _finish(begun: Begun[Any], future: Future[Any]) -> None:
    try:
        future.set_result(begun.finish())
    except BaseException as error:  # noqa: BLE001  it is the caller's
        future.set_exception(error)


class PendingFrame(Generic[Result]):
    """A frame that was begun. It is rendered whether `finish` is called or not."""

    def __init__(self, rendered: Future[Callable[[], Result]]) -> None:
        self._rendered = rendered

    def finish(self) -> Result:
        """Wait for the frame. Raises what rendering it raised; a GroupError means that the group is lost."""
        return self._rendered.result()()

    def settle(self) -> None:
        """Wait until this rank has rendered its part, well or not."""
        self._rendered.exception()
