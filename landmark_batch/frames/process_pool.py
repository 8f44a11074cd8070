"""ProcessPool: processes that do one call after another for threads which would wait for each other at Python's lock.

A server, a process of its own without threads, imports what the calls need and is forked: neither the caller's threads nor its GPU are in
the way, and a pool can be made in a process that multiprocessing lets have no children. When the caller ends, however it does, its sockets
close and the pool is gone; only a fork of the caller, which has them too, would hold it up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

logger = logging.getLogger(__name__)

START = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # a fork takes one thread with it
from landmark_batch.frames.pool_server import main
main(sys.argv[2:])
"""
END_SECONDS = 5.0

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ProcessLost(RuntimeError):
    """The process that did a call is gone, or there is none: the call may have been done in part."""


class ProcessPool:
    """`size` processes that have imported the modules `preload`. They begin at once; calls wait until they are there.

    nice: is added to the niceness of each. Where processes cannot be had, every call raises ProcessLost.
    """

    def __init__(self, size: int, preload: Sequence[str] = (), *, nice: int = 0) -> None:
        self._idle: queue.LifoQueue[Connection | None] = queue.LifoQueue()
        self._changed = threading.Condition()
        self._working = 0
        self._closed = self._ready = False
        self._server: subprocess.Popen[bytes] | None = None
        ours, theirs = list[socket.socket](), list[socket.socket]()
        try:
            for _ in range(size):
                pair = socket.socketpair()
                ours.append(pair[0])
                theirs.append(pair[1])
            descriptors = [end.fileno() for end in theirs]
            arguments = [json.dumps(sys.path), str(nice), ",".join(map(str, descriptors)), *preload]
            self._server = subprocess.Popen(
                [sys.executable, "-c", START, *arguments], stdin=subprocess.DEVNULL, pass_fds=descriptors, process_group=0
            )
        except OSError as error:
            logger.warning("no processes beside this one: %s", error)
            for end in ours:
                end.close()
            ours.clear()
        finally:
            for end in theirs:
                end.close()
        found = [Connection(end.detach()) for end in ours]
        self._left = len(found)
        self._coming = set(found)  # who have not yet been heard to be there
        self._last = found[0] if found else None
        for process in found or (None,):
            self._idle.put(process)

    def run(self, function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        """function(*arguments, **named) in one of the processes; waits for a free one. From any thread.

        The function is found by its module and name. Raises what it raised; ProcessLost.
        """
        process = self._idle.get()
        if process is None:
            self._idle.put(None)
            raise ProcessLost("no process is left")
        with self._changed:
            self._working += 1
        try:
            return self._asked(process, function, arguments, named)
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _asked(self, process: Connection, function: Callable[..., Result], arguments: tuple[Any, ...], named: dict[str, Any]) -> Result:
        try:
            if process in self._coming:
                process.recv()
                self._coming.discard(process)
                self._ready = True
            process.send((function, arguments, named))
            done, answer = process.recv()
        except (OSError, EOFError) as error:
            self._lose(process)
            raise ProcessLost("the process has ended") from error
        except BaseException:
            self._lose(process)  # its answer may still come
            raise
        with self._changed:
            if self._closed:
                process.close()
            else:
                self._idle.put(process)
        if done:
            result: Result = answer
            return result
        try:
            raise answer
        finally:
            del answer  # it knows this frame

    @property
    def ready(self) -> bool:
        """Whether a call would wait for no process to begin."""
        if not self._ready and not self._closed:
            with contextlib.suppress(OSError):  # it is being closed
                self._ready = self._last is None or self._last.poll()
        return self._ready

    @property
    def left(self) -> int:
        """Processes that have not been lost."""
        return 0 if self._closed else self._left

    def close(self, patience: float = END_SECONDS) -> None:
        """End the processes, those at work when they are done, or after so many seconds: their calls raise ProcessLost then. A second call
        does nothing.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(queue.Empty):
            while (process := self._idle.get_nowait()) is not None:
                process.close()
        self._idle.put(None)
        with self._changed:
            over = self._changed.wait_for(lambda: self._working == 0, patience)
        if self._server is not None:
            if not over:
                self._kill()
            try:
                self._server.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._kill()
                self._server.wait()

    def _kill(self) -> None:
        assert self._server is not None
        with contextlib.suppress(OSError):  # they have ended
            os.killpg(self._server.pid, signal.SIGKILL)

    def _lose(self, process: Connection) -> None:
        process.close()
        with self._changed:
            self._left -= 1
            if self._left == 0:
                self._idle.put(None)
