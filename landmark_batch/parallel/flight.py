"""Frames in flight: the leader's own part of one is rendered in a thread, while its caller takes the frame before it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")
Task = tuple[Callable[[], object], "Future[object]"]


class RenderThread:
    """Runs functions one after another in a thread of its own, which does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[[], Result]) -> Future[Result]:
        """Its result or what it raises, when all before it are done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Result] = Future()
        self._tasks.put((function, future))  # type: ignore[arg-type]
        return future

    def close(self, *, wait: bool) -> None:
        """End the thread after what was submitted. wait: until then."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._tasks.put(None)
            if wait:
                thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            function, future = task
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  it is the caller's
                future.set_exception(error)
            del task, function, future  # a frame is its caller's alone


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
