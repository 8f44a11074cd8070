"""Reading ahead of whoever uses what is read: one thread, a bounded queue, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any


def read_ahead(frames: Iterable[int], read: Callable[[int], Any], *, depth: int = 8) -> Iterator[tuple[int, Any]]:
    """(frame, read(frame)) in order, read by a thread at most `depth` frames ahead. What `read` raises is raised here."""
    ready: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[int, Any, BaseException | None]) -> bool:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for frame in frames:
                if not put((frame, read(frame), None)):
                    return
        except BaseException as error:  # noqa: BLE001 - handed to the reader
            put((-1, None, error))
            return
        put((-1, None, None))

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            frame, value, error = ready.get()
            if error is not None:
                raise error
            if frame < 0:
                return
            yield frame, value
    finally:
        stop.set()
        thread.join()
