"""Commands of this program as users give them: in a process of their own, timed from its start to its end."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from landmark_batch.errors import GroupError

Launch = Callable[[Sequence[str], Path], int]  # starts `landmark-batch WORDS` with its output in a file; gives its process id
LIMIT_SECONDS = 900.0
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (.*)$")
_STAGES = re.compile(r"start-up: (.*)$")
_STAGE = re.compile(r"(\w[\w ]*) (\d+\.\d+) s")


@dataclass(frozen=True)
class TimedCommand:
    """seconds: from the process's start to its end. cpu: of it and of all processes it waited for.

    said: what it printed. lines: (seconds since its start, text) of the log it wrote.
    """

    seconds: float
    cpu: float
    said: str
    lines: tuple[tuple[float, str], ...] = ()

    def first(self, text: str) -> float | None:
        """Seconds until the first line of its log that has `text`."""
        return next((at for at, line in self.lines if text in line), None)

    def last_words(self) -> str:
        return next((line.strip() for line in reversed(self.said.splitlines()) if line.strip()), "")


@dataclass(frozen=True)
class StartUp:
    """seconds: of each stage between a `render` command and its first finished chunk, in their order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def time_command(launch: Launch, words: Sequence[str], output: Path, *, log: Path | None = None) -> TimedCommand:
    """Run `landmark-batch WORDS` to its end. output: file for what it prints. log: a job's log that it writes.

    Raises GroupError where it fails or takes longer than LIMIT_SECONDS.
    """
    skip = log.stat().st_size if log is not None and log.is_file() else 0
    began, started = time.time(), time.perf_counter()
    process = launch(words, output)
    while True:
        found, status, usage = os.wait4(process, os.WNOHANG)
        if found:
            break
        if time.perf_counter() - started > LIMIT_SECONDS:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise GroupError(f"landmark-batch {' '.join(words)}: not over after {LIMIT_SECONDS:.0f} s", remedy="give the bench less to do")
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    said = output.read_text(encoding="utf-8", errors="replace")
    code = os.waitstatus_to_exitcode(status)
    run = TimedCommand(seconds, usage.ru_utime + usage.ru_stime, said, _lines(log, skip, began))
    if code:
        raise GroupError(f"landmark-batch {' '.join(words)}: exit code {code}: {run.last_words()}", remedy="the command alone says more")
    return run


def _lines(log: Path | None, skip: int, began: float) -> tuple[tuple[float, str], ...]:
    if log is None or not log.is_file():
        return ()
    found = []
    for line in log.read_bytes()[skip:].decode("utf-8", errors="replace").splitlines():
        match = _STAMP.match(line)
        if match:
            found.append((datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp() - began, match[2]))
    return tuple(found)


def start_up(run: TimedCommand) -> StartUp:
    """Take a `render` command apart, by its log: what the client says of its own stages, then the driver's and the workers' lines."""
    said = next((match[1] for _, line in run.lines if (match := _STAGES.search(line))), "")
    stages = {name: float(seconds) for name, seconds in _STAGE.findall(said)}
    at = sum(stages.values())
    for name, text in (("driver", "JobStarted"), ("scene and kernels", "ChunkStarted"), ("first chunk", "ChunkDone")):
        reached = run.first(text)
        if reached is not None:
            stages[name] = max(0.0, reached - at)
            at = max(at, reached)
    return StartUp(stages)
