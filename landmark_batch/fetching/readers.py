"""Threads that read ahead: jobs by urgency, which can be called back as long as none has begun them."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

JOIN_SECONDS = 0.5


class Readers:
    """`threads` daemon threads, started with the first job. A job handles its own errors."""

    def __init__(self, threads: int) -> None:
        self._count = max(1, threads)
        self._jobs: list[tuple[int, int, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, urgency: int, block: int, job: Callable[[], None]) -> None:
        """Run the job after those of a smaller urgency, and after those of the same that came before it."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the threads that read blocks are closed")
            heapq.heappush(self._jobs, (urgency, next(self._serial), block, job))
            if len(self._threads) < self._count:
                thread = threading.Thread(target=self._work, name=f"landmark-fetch-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()

    def recall(self) -> list[int]:
        """Forget the jobs that have not begun; returns their blocks."""
        with self._changed:
            blocks = [job[2] for job in self._jobs]
            self._jobs.clear()
            return blocks

    def close(self) -> None:
        """Begin no more jobs. Waits a moment for those that run; a thread in a long read ends by itself after it."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        until = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            logger.info("a read of a block is still under way; its thread ends with it")

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = heapq.heappop(self._jobs)[3]
            job()
            del job  # holds buffers
