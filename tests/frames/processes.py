"""Real processes to kill: forked from a server that has imported everything, so that one more costs milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from landmark_batch.frames import durable

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.frames.store_kit", "landmark_batch.frames.verify"])


def start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    process = _context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def run(target: Callable[..., None], *arguments: Any) -> int:
    """Exit code of a process that runs to its end (-9: killed)."""
    process = start(target, *arguments)
    process.join(60)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def die_at(step: int) -> None:
    """SIGKILL this process when it has done that many durable steps."""
    done = iter(range(step))

    def count(name: str) -> None:
        if next(done, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    durable.step = count


def count_steps(call: Callable[[], object]) -> list[str]:
    """Names of the durable steps of a call, in this process."""
    names: list[str] = []
    plain = durable.step
    durable.step = names.append  # type: ignore[assignment]
    try:
        call()
    finally:
        durable.step = plain
    return names


def wait_for(path: Path, seconds: float = 90.0) -> None:
    """Until a file is there."""
    import time

    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.005)
