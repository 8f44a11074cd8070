"""WarmStart: a process that imports what workers need while their job is still being planned; they are forked from it.

It is Python's own fork server, alone in its process: it runs one thread, renders nothing and never touches a GPU, which no fork survives.
"""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing import forkserver, resource_tracker
from types import TracebackType
from typing import Any, Self

_SERVER: Any = getattr(forkserver, "_forkserver")  # noqa: B009  Python names no way to end it
PRELOADED = "landmark_batch.workflows.preloaded"


class WarmStart:
    """A context manager: at its end the process is gone, whatever it was doing. Workers live on without it.

    running: False where this process has a fork server of another's making; then nothing is begun.
    """

    def __init__(self) -> None:
        self.running = False

    def __enter__(self) -> Self:
        """Returns at once; importing goes on. What it inherits of the environment, workers do."""
        if _SERVER._forkserver_pid is not None:
            return self
        resource_tracker.ensure_running()  # starting it unblocks SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a terminal's Ctrl-C reaches every process
        try:
            forkserver.set_forkserver_preload([PRELOADED])
            forkserver.ensure_running()
            self.running = True
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.running:
            return
        self.running = False
        with contextlib.suppress(OSError):
            os.kill(_SERVER._forkserver_pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            _SERVER._stop()
