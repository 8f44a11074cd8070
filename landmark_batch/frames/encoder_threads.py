"""Encoders that change how the system schedules their process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def usual_scheduling() -> Iterator[None]:
    """Threads that become real-time ones meanwhile are put back at the end.

    SVT-AV1, opened by root, gives the thread that opens it and its own threads the highest real-time priority (SCHED_FIFO, 99): they, and
    processes that this one starts later, would take a core from everybody else for as long as they like.
    """
    before = _policies()
    try:
        yield
    finally:
        for thread, policy in _policies().items():
            if policy in _REAL_TIME and before.get(thread, os.SCHED_OTHER) not in _REAL_TIME:
                with suppress(OSError):  # it has ended
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


_REAL_TIME = (os.SCHED_FIFO, os.SCHED_RR) if hasattr(os, "SCHED_FIFO") else ()


def _policies() -> dict[int, int]:
    """{thread: policy} of this process; empty where the system does not tell."""
    found: dict[int, int] = {}
    with suppress(OSError):
        for task in Path("/proc/self/task").iterdir() if _REAL_TIME else ():
            with suppress(OSError):
                found[int(task.name)] = os.sched_getscheduler(int(task.name))
    return found
