"""What passes between a command and its job's first frame, by stage: one line of the job's log."""

from __future__ import annotations

import time

import psutil


class StartClock:
    """Begin one when the job begins. stages: seconds by name; `command`: what this process did before (interpreter, imports)."""

    def __init__(self) -> None:
        self._at = time.time()
        self.stages: dict[str, float] = {"command": max(0.0, self._at - psutil.Process().create_time())}

    def done(self, stage: str) -> None:
        """A stage ends now; the next one begins."""
        now = time.time()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._at
        self._at = now

    def __str__(self) -> str:
        return "start-up: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.stages.items())
