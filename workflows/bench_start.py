"""What passes between a `render` command and its first frame: with workers of its own, and with workers that stand."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import ConfigError, GroupError
from landmark_batch.job import RenderJob
from landmark_batch.workflows.bench_commands import Launch, StartUp, TimedCommand, start_up, time_command
from landmark_batch.workflows.bench_link import scene_link
from landmark_batch.workflows.bench_report import Findings
from landmark_batch.workflows.bytecode import advice, without_bytecode
from landmark_batch.workflows.machine import Placement
from landmark_batch.workflows.request import RenderRequest

START_FRAMES = 4  # of the command whose start is measured
START_BAR = 5.0  # seconds from command to first frame, warm, on a GPU whose workers stand, beside what the scene's bytes take to come
UP_SECONDS = 300.0  # for a scheduler and its workers to come up
END_SECONDS = 60.0  # for them to end


class StandingCluster:
    """`scheduler` and `worker` as commands, on the devices of a placement. A context manager: at its end nothing of them is left.

    folder: for what they print. address: of the scheduler.
    """

    def __init__(self, launch: Launch, folder: Path, placement: Placement) -> None:
        self.address = ""
        self._launch = launch
        self._folder = folder
        self._placement = placement
        self._running: list[int] = []

    def __enter__(self) -> Self:
        """Raises GroupError where they do not come up."""
        place = self._placement
        file, said = self._folder / "scheduler.json", self._folder / "worker.txt"
        file.unlink(missing_ok=True)
        devices = ["--gpus", "".join(f"{number}," for number in place.gpus)] if place.gpus else ["--workers", str(place.workers)]
        try:
            self._start(["scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)], self._folder / "scheduler.txt")
            self._wait(file.is_file, self._folder / "scheduler.txt")
            self.address = str(json.loads(file.read_text(encoding="utf-8"))["address"])
            self._start(["worker", self.address, "--device", place.device, *devices], said)
            self._wait(lambda: _text(said).count(f" is at {self.address}") >= place.workers, said)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _start(self, words: Sequence[str], output: Path) -> None:
        output.unlink(missing_ok=True)
        self._running.append(self._launch(words, output))

    def _wait(self, is_up: Callable[[], bool], output: Path) -> None:
        until = time.monotonic() + UP_SECONDS
        while not is_up():
            over = [process for process in self._running if _is_over(process)]
            self._running = [process for process in self._running if process not in over]
            if over or time.monotonic() > until:
                last = next((line.strip() for line in reversed(_text(output).splitlines()) if line.strip()), "it said nothing")
                raise GroupError(f"{output.stem} did not come up: {last}", remedy=f"`landmark-batch {output.stem}` alone says more")
            time.sleep(0.05)

    def _end(self) -> None:
        """Workers first; SIGTERM, and at last SIGKILL."""
        for process in reversed(self._running):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
            until = time.monotonic() + END_SECONDS
            while not _is_over(process):
                if time.monotonic() > until:
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    break
                time.sleep(0.02)
        self._running = []


class StartBench:
    """The start of `render` of a few frames of a job, each way twice; the second is warm.

    folder: for stores and logs. settings: SECTION.KEY=VALUE that changed the job file.
    """

    def __init__(
        self,
        folder: Path,
        job: RenderJob,
        request: RenderRequest,
        placement: Placement,
        found: Findings,
        launch: Launch,
        settings: Sequence[str],
    ) -> None:
        self.folder = folder
        self.job, self.request = job, request
        self.placement = placement
        self.found = found
        self.launch = launch
        self.settings = settings

    def measure(self) -> None:
        """Rows of both, by stage, and the bar of the second where it renders on a GPU. Nothing for a job that is in no file."""
        if self.job.path is None:
            return
        self.found.tell(f"render of {START_FRAMES} frames, in a new process, twice")
        cold, warm = self._twice("start.zarr", [])
        note = f"warm; {self.placement.device_name}; CPU of all processes {warm.cpu:.1f} s, first time {start_up(cold).total:.2f} s"
        self._add("from command to the first finished chunk", start_up(warm), note)
        self.found.tell("the same on a scheduler and workers that stand")
        with StandingCluster(self.launch, self.folder, self.placement) as cluster:
            here = ["--scheduler", cluster.address, "--runtime", self.request.runtime]
            cold, warm = self._twice("standing.zarr", [*here, "--set", f"parallel.device={self.placement.device}"])
        note = f"warm; CPU of the command {warm.cpu:.1f} s, first time {start_up(cold).total:.2f} s"
        standing = start_up(warm)
        self._add("the same, on workers that stand", standing, note)
        missing, modules = without_bytecode()
        if (told := advice(missing, modules)) is not None:
            self.found.add("start", "modules without bytecode", missing, f"of {modules}", told)
        self.found.tell("reading the scene, without what it takes to look at it")
        link = scene_link(self.request, self.placement)
        self.found.add("start", "link that the scene comes over", link.rate / 1e9, "GB/s", link.describe())
        if self.placement.gpus:
            limit = round(START_BAR + link.seconds, 2)
            self.found.bar("from command to first frame, warm, on workers that stand", standing.total, limit, "s")

    def _twice(self, name: str, more: Sequence[str]) -> tuple[TimedCommand, TimedCommand]:
        store = fresh_path(self.folder / name)
        frames = format_frame_ranges(self.request.wanted[:START_FRAMES])
        words = ["render", str(self.job.path), "-o", str(store), "--frames", frames, "--overwrite", "--no-dashboard", "--no-latest"]
        words += [word for setting in self.settings for word in ("--set", setting)] + list(more)
        output, log = self.folder / "command.txt", store.with_suffix(".log")
        return time_command(self.launch, words, output, log=log), time_command(self.launch, words, output, log=log)

    def _add(self, what: str, start: StartUp, note: str) -> None:
        self.found.add("start", what, start.total, "s", note)
        for stage, seconds in start.seconds.items():
            self.found.add("start", f"  {stage}", seconds, "s")


def fresh_path(path: Path) -> Path:
    """A path beside earlier ones where nothing is."""
    for number in range(1_000_000):
        candidate = path if number == 0 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not candidate.exists():
            return candidate
    raise ConfigError(f"{path.parent}: too many earlier benches", remedy="empty that folder")


def _is_over(process: int) -> bool:
    try:
        return os.waitpid(process, os.WNOHANG)[0] == process
    except ChildProcessError:
        return True


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
