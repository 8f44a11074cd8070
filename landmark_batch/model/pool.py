"""Renders tiles on a few threads, each of which is torch's only thread.

Torch cuts an operation's elements among its threads, and the last elements of each share take another code path with other
rounding: bits would depend on the number of threads. So no operation is split; whole tiles are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_starting = threading.Lock()


class TilePool:
    """threads: tiles at once; 0 runs them one after another in the caller's thread (for a GPU, whose arithmetic has no threads)."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._executor: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in the order of items; at most `threads` of them are being made, one more may wait."""
        if self._in_place():
            yield from map(function, items)
            return
        executor = self._start()
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                if len(ahead) > self.threads:
                    yield ahead.popleft().result()
                ahead.append(executor.submit(function, item))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def run(self, function: Callable[[Item], object], items: Sequence[Item]) -> None:
        """Do all items. A thread that is done with one takes the next itself, without waiting for the caller. What `function` raises
        is raised here; items that are not begun by then are left.
        """
        if self._in_place():
            for item in items:
                function(item)
            return
        left = deque(items)

        def work() -> None:
            while True:
                try:
                    item = left.popleft()
                except IndexError:
                    return
                try:
                    function(item)
                except BaseException:
                    left.clear()
                    raise

        executor = self._start()
        futures = [executor.submit(work) for _ in range(min(self.threads, len(items)))]
        try:
            for future in futures:
                future.result()
        finally:
            left.clear()

    def close(self) -> None:
        """End the threads. The pool starts new ones when it is used again."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def _in_place(self) -> bool:
        """Whether the caller's own thread will do."""
        return self.threads == 0 or (self.threads == 1 and torch.get_num_threads() == 1)

    def _start(self) -> ThreadPoolExecutor:
        """The executor with all of its threads running and single-threaded.

        An executor starts its threads as work comes, and one that comes late would set torch's default while somebody else sets it.
        """
        if self._executor is None:
            executor = ThreadPoolExecutor(self.threads, thread_name_prefix="landmark-tile", initializer=_use_one_thread)
            ready = threading.Barrier(self.threads)  # no thread takes a second of these before every one has its own
            try:
                for future in [executor.submit(ready.wait) for _ in range(self.threads)]:
                    future.result()
            except BaseException:
                ready.abort()
                executor.shutdown(wait=False)
                raise
            self._executor = executor
        return self._executor


def _use_one_thread() -> None:
    """Make torch single-threaded in this thread alone.

    torch.set_num_threads also sets the default of threads that have not used torch yet, and a thread takes over that default when
    it first uses torch. So this thread uses torch before it changes the number, and the default is put back from a thread that
    then ends. One thread after another, so that none takes over what another is about to put back.
    """
    with _starting:
        default = torch.get_num_threads()
        torch.set_num_threads(1)
        restore = threading.Thread(target=torch.set_num_threads, args=(default,))
        restore.start()
        restore.join()
