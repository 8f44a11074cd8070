"""What passes between a command and its job's first frame, by stage: one line of the job's log."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

_STARTED = 19  # of /proc/self/stat after the name: when the process began, in ticks since the machine did


class StartClock:
    """Begin one when the job begins. stages: seconds by name; `command`: what this process did before (interpreter, imports)."""

    def __init__(self) -> None:
        self._at = time.time()
        self.stages: dict[str, float] = {"command": max(0.0, _age())}

    def done(self, stage: str) -> None:
        """A stage ends now; the next one begins."""
        now = time.time()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._at
        self._at = now

    def __str__(self) -> str:
        return "start-up: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.stages.items())


def _age() -> float:
    """Seconds since this process began."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[_STARTED])
        return float(time.clock_gettime(time.CLOCK_BOOTTIME)) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return float(time.time() - psutil.Process().create_time())  # whose clock has whole seconds on some systems
