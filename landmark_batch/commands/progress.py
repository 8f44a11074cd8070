"""Progress of a job: a bar on a terminal, one line a minute elsewhere. Both are sinks of a job's events."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from landmark_batch.commands.common import count_of, human_time
from landmark_batch.events import ChunkDone, ChunkFailed, Event, JobDone, JobStarted, Preparing

LINE_SECONDS = 60.0
_WINDOW_SECONDS = 60.0


class Rate:
    """Frames (or their cost) a second over the last minute, or since the start while that is shorter."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done: deque[tuple[float, float]] = deque([(clock(), 0.0)])

    def add(self, total: float) -> None:
        now = self._clock()
        self._done.append((now, total))
        while len(self._done) > 2 and now - self._done[1][0] > _WINDOW_SECONDS:
            self._done.popleft()

    @property
    def per_second(self) -> float | None:
        """None before the first frames."""
        (first, before), (last, after) = self._done[0], self._done[-1]
        return (after - before) / (last - first) if after > before and last > first else None


class ProgressSink:
    """Counts frames and says how it goes. Use as a context manager: leaving it takes the bar down."""

    def __init__(
        self, *, terminal: bool | None = None, clock: Callable[[], float] = time.monotonic, line_seconds: float = LINE_SECONDS
    ) -> None:
        self._console = Console(stderr=True)
        self._terminal = self._console.is_terminal if terminal is None else terminal
        self._clock = clock
        self._line_seconds = line_seconds
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._bar: Progress | None = None
        self._ticker: threading.Thread | None = None
        self._rate: Rate | None = None
        self._cost_rate: Rate | None = None  # where costs are known
        self._cost_left = self._cost_done = 0.0
        self._total = self._done = self._now = 0
        self._last: int | None = None
        self._runtime = ""
        self._preparing = ""
        self.stages: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._over.set()
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Preparing):
                self._prepare(event)
            elif isinstance(event, JobStarted):
                self._start(event)
            elif isinstance(event, ChunkDone):
                self._advance(event)
            elif isinstance(event, ChunkFailed):
                what = "gave up on" if event.final else "trying again:"
                self._say(f"{what} chunk {event.chunk} on {event.worker}: {event.error}")
        if isinstance(event, JobDone):
            self.close()

    def _prepare(self, event: Preparing) -> None:
        if event.what != self._preparing:
            self._preparing = event.what
            self._say(f"{event.what} (once, up to a minute or two)" if event.share == 0 else event.what)

    def _start(self, event: JobStarted) -> None:
        self._total, self._done = event.frames, event.frames - event.todo
        self._runtime = event.runtime
        self._rate = Rate(self._clock)
        self._cost_rate = Rate(self._clock) if event.cost else None
        self._cost_left, self._cost_done = event.cost or 0.0, 0.0
        if not event.todo:
            self._say(f"nothing to render: {count_of(event.frames, 'frame')} stand in {event.store}")
            return
        there = f", {self._done:,} of {event.frames:,} stand already" if self._done else ""
        where = f"{count_of(event.workers, 'worker')}, runtime {event.runtime}"
        self._say(f"rendering {count_of(event.todo, 'frame')} in {count_of(event.chunks, 'chunk')} into {event.store}{there}; {where}")
        if not event.workers:
            self._say("no worker has joined yet: waiting (on a GPU host: landmark-batch worker ADDRESS)")
        if event.dashboard:
            self._say(f"dashboard: {event.dashboard}")
        if self._terminal:
            columns = (BarColumn(bar_width=None), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self._console, expand=True)
            self._bar.add_task(event.name, total=self._total, completed=self._done, text=self._text())
            self._bar.start()
        else:
            self._ticker = threading.Thread(target=self._tick, name="progress lines", daemon=True)
            self._ticker.start()

    def _advance(self, event: ChunkDone) -> None:
        self._now += len(event.frames)
        self._done += len(event.frames)
        self._last = max(event.frames, default=self._last)
        for stage, seconds in event.stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        if self._rate is not None:
            self._rate.add(self._now)
        if self._cost_rate is not None and event.cost is not None:
            self._cost_done += event.cost
            self._cost_left = max(0.0, self._cost_left - event.cost)
            self._cost_rate.add(self._cost_done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, text=self._text())

    def _text(self) -> str:
        rate = self._rate.per_second if self._rate else None
        parts = [f"{self._done:,}/{self._total:,} frames"]
        if rate is not None:
            parts += [
                f"{rate:.2f} frames/s" if rate < 10 else f"{rate:.0f} frames/s",
                f"ETA {human_time(self._left(rate))}",
            ]
        if self._last is not None:
            parts.append(f"last frame {self._last}")
        return "  ".join([*parts, self._runtime])

    def _left(self, rate: float) -> float:
        """Seconds to come: by cost where it is known, since frames take longer in one place than in another. rate: frames a second."""
        by_cost = self._cost_rate.per_second if self._cost_rate is not None else None
        return self._cost_left / by_cost if by_cost else (self._total - self._done) / rate

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line, err=True)

    def _tick(self) -> None:
        while not self._over.wait(self._line_seconds):
            with self._lock:
                if not self._over.is_set():
                    click.echo(self._text(), err=True)


@contextlib.contextmanager
def counted(label: str, *, quiet: bool = False, terminal: bool | None = None) -> Iterator[Callable[[int, int], None]]:
    """A callback of (done, all) that shows a bar on a terminal, else a line a minute; quiet: nothing."""
    console = Console(stderr=True)
    shown = console.is_terminal if terminal is None else terminal
    said = time.monotonic()
    if quiet:
        yield lambda done, total: None
    elif not shown:

        def tell(done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                click.echo(f"{label}: {done:,} of {total:,}", err=True)

        yield tell
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=1)
            yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def shared(*, quiet: bool = False, terminal: bool | None = None) -> Iterator[Callable[[str, float], None]]:
    """A callback of (what is being done, share of all that is done, 0 to 1)."""
    console = Console(stderr=True)
    shown = console.is_terminal if terminal is None else terminal
    if quiet or not shown:
        yield lambda label, share: None
        return
    columns = (TextColumn("{task.description:>16}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda label, share: bar.update(task, description=label, completed=share)
