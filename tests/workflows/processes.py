"""Processes that tests start: waiting for them, looking into their trees, ending them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil


def until(condition: Callable[[], Any], seconds: float = 200, what: str = "") -> Any:
    """The first true value of a condition. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain: {what or condition}"
        time.sleep(0.05)
    return found


def tree(pid: int) -> list[int]:
    """A process and all its descendants that live now."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def gone(pids: Iterable[int]) -> bool:
    """Whether all have ended. One that nobody has waited for yet counts as ended: not every system's first process waits for orphans."""
    return not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all below it."""
    for each in tree(pid):
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            pass


def spawned() -> list[int]:
    """Processes below this one that `multiprocessing` spawned, as Dask's workers are."""
    found = []
    for pid in tree(os.getpid())[1:]:
        try:
            if "spawn_main" in " ".join(psutil.Process(pid).cmdline()):
                found.append(pid)
        except psutil.Error:  # it has just ended
            continue
    return found
