"""RenderNanny: starts a rank's process, starts it again when it dies, and tells the scheduler how it died."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
from typing import Any

from distributed.core import Status
from distributed.nanny import Nanny

from landmark_batch.workflows.heartbeat import calm
from landmark_batch.workflows.worker import RenderProcess

EXITS_TOPIC = "landmark-batch-exits"
_PR_SET_PDEATHSIG = 1
_TELL_SECONDS = 5.0
_DISMISSED = "scheduler-close-worker"  # the scheduler retired the worker: it is not wanted back
_ENDING = (Status.init, Status.closing, Status.closed, Status.closing_gracefully, Status.failed)


def die_with_parent() -> None:
    """The system ends this process, however it hangs, when the thread that started it ends. Linux; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # it ended before the call above
        os._exit(1)


class HostedProcess(RenderProcess):
    """A rank that a supervisor or a scheduler process looks after. Ends with its nanny, however that ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        die_with_parent()
        logging.getLogger("distributed").setLevel(logging.WARNING)
        super().__init__(*args, **kwargs)


class RenderNanny(Nanny):  # type: ignore[misc]
    """A nanny that logs the death of its worker process as an event of topic EXITS_TOPIC.

    The event: name and address of the worker ('name', 'worker'), its host, and exitcode: negative is the signal that killed it
    (-9 from outside or for memory, -15 from outside, -11 and -6 a crash), else what it exited with. Deaths that the scheduler or
    this host asked for are not told. dismissed: the scheduler retired the worker, it is not wanted back.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("worker_class", HostedProcess)
        super().__init__(*args, **kwargs)
        self.dismissed = False

    async def start_unsafe(self) -> Any:
        await super().start_unsafe()
        calm(self, shown=False)
        return self

    def close_gracefully(self, reason: str = "nanny-close-gracefully") -> None:
        self.dismissed = self.dismissed or reason == _DISMISSED
        super().close_gracefully(reason=reason)

    async def _on_worker_exit(self, exitcode: int) -> None:
        if self.status not in _ENDING:
            await self._tell_exit(exitcode)
        await super()._on_worker_exit(exitcode)

    async def _tell_exit(self, exitcode: int) -> None:
        event = {"name": str(self.name), "worker": self.worker_address, "exitcode": exitcode, "host": socket.gethostname()}
        with contextlib.suppress(OSError, TimeoutError, asyncio.TimeoutError):  # the scheduler may be gone too
            await asyncio.wait_for(self.scheduler.log_event(topic=EXITS_TOPIC, msg=event), _TELL_SECONDS)
