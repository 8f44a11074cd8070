"""Running ninja: with a limit, and so that nothing of it goes on when it is given up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

BUILD_SECONDS = 1800.0  # a compiler that takes longer hangs
_LOOK_SECONDS = 0.05  # between two looks at it
_END_SECONDS = 5.0  # for it to end when it is told to


class StoppedError(Exception):
    """A build that is not wanted any more."""


def run_ninja(program: Path, folder: Path, share: Callable[[float], None], stop: threading.Event) -> tuple[int, str]:
    """Run ninja in a folder; returns its exit code and everything it and the compilers printed. share: gets the share that is done.

    Raises StoppedError once `stop` is set, TimeoutError after BUILD_SECONDS, and what `share` raises; it and its compilers have ended then.
    """
    deadline = time.monotonic() + BUILD_SECONDS
    printed = folder / "ninja.txt"
    with printed.open("w") as output, printed.open(errors="replace") as reader:
        process = subprocess.Popen(
            [str(program), "-C", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # a terminal's Ctrl-C is for this process, which ends all of it
        )
        try:
            code = None
            while code is None:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(_LOOK_SECONDS)
                for done, all_ in re.findall(r"^\[(\d+)/(\d+)\]", reader.read(), re.MULTILINE):
                    share(int(done) / int(all_))
                if code is None and stop.is_set():
                    raise StoppedError
                if code is None and time.monotonic() > deadline:
                    raise TimeoutError(f"the build took longer than {BUILD_SECONDS:g} s")
        except BaseException:
            _end(process)
            raise
    return code, printed.read_text(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """With its compilers: SIGTERM, then SIGKILL for what is left of them."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
