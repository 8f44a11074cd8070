"""Progress: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from landmark_batch.commands import progress
from landmark_batch.commands.common import count_of, human_bytes, human_time
from landmark_batch.commands.progress import ProgressSink, Rate, counted, shared
from landmark_batch.events import ChunkDone, ChunkFailed, JobDone, JobStarted

STARTED = JobStarted(name="city", store="city.zarr", frames=48, todo=40, chunks=5, workers=2, runtime="torch", dashboard="http://x/status")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said_until(capsys: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    """said_until(line): waits for a line on standard error; returns all that were said since the last call."""

    def wait(line: str) -> list[str]:
        text, end = "", time.monotonic() + 60
        while line not in text.splitlines():
            assert time.monotonic() < end, text
            time.sleep(0.02)
            text += capsys.readouterr().err
        return text.splitlines()

    return wait


def done(first: int, count: int = 8) -> ChunkDone:
    frames = tuple(range(first, first + count))
    return ChunkDone(f"{first}", frames, worker="w0", attempt=0, seconds=4.0, stages={"render": 3.5, "write": 0.5}, counters={})


def test_the_rate_is_that_of_the_last_minute() -> None:
    clock = Clock()
    rate = Rate(clock)
    assert rate.per_second is None
    clock.now += 10
    rate.add(5)
    assert rate.per_second == 0.5
    for _ in range(20):
        clock.now += 10
        rate.add(5 + 100 * (_ + 1))
    assert rate.per_second == pytest.approx(10.0)


def test_without_a_terminal_a_line_now_and_then(capsys: pytest.CaptureFixture[str], said_until: Callable[[str], list[str]]) -> None:
    clock = Clock()
    with ProgressSink(terminal=False, clock=clock, line_seconds=0.02) as sink:
        sink(STARTED)
        clock.now += 4
        sink(done(8))
        lines = said_until("16/48 frames  2.00 frames/s  ETA 0:16  last frame 15  torch")
        sink(ChunkFailed(chunk="c", frames=(16,), worker="w1", error="its process died", final=False))
        sink(JobDone(name="city", state="incomplete", rendered=8, missing=(16,), seconds=4.0, startup_seconds=1.0))
    assert lines[0] == "rendering 40 frames in 5 chunks into city.zarr, 8 of 48 stand already; 2 workers, runtime torch"
    assert lines[1] == "dashboard: http://x/status"
    assert "trying again: chunk c on w1: its process died" in capsys.readouterr().err.splitlines()
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "nothing is said after the end"
    assert sink.stages == {"render": 3.5, "write": 0.5}


def test_the_time_to_come_follows_the_cost_of_frames(said_until: Callable[[str], list[str]]) -> None:
    clock = Clock()
    with ProgressSink(terminal=False, clock=clock, line_seconds=0.02) as sink:
        sink(replace(STARTED, cost=1000.0))  # 40 frames, the first of which are cheap
        clock.now += 4
        sink(replace(done(8), cost=100.0))
        said_until("16/48 frames  2.00 frames/s  ETA 0:36  last frame 15  torch")  # 900 at 25 a second; by frames it were 0:16
        clock.now += 36
        sink(replace(done(16), cost=300.0))
        said_until("24/48 frames  0.40 frames/s  ETA 1:00  last frame 23  torch")  # 600 at 400 in 40 seconds


def test_a_line_a_minute_is_what_users_get() -> None:
    assert progress.LINE_SECONDS == 60.0


def test_on_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=140))
    clock = Clock()
    with ProgressSink(clock=clock) as sink:
        sink(STARTED)
        clock.now += 4
        sink(done(8))
        sink(JobDone(name="city", state="complete", rendered=8, missing=(), seconds=4.0, startup_seconds=1.0))
    text = screen.getvalue()
    assert "━" in text
    for part in ("16/48 frames", "2.00 frames/s", "ETA 0:16", "last frame 15", "torch"):
        assert part in text


def test_nothing_to_do_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressSink(terminal=False) as sink:
        sink(JobStarted(name="city", store="city.zarr", frames=48, todo=0, chunks=0, workers=0, runtime="torch", dashboard=None))
    assert capsys.readouterr().err == "nothing to render: 48 frames stand in city.zarr\n"


def test_who_waits_for_workers_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for workers in (0, 2):
        with ProgressSink(terminal=False) as sink:
            sink(replace(STARTED, workers=workers))
        assert ("no worker has joined yet: waiting" in capsys.readouterr().err) == (workers == 0)


def test_counts_and_shares(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with counted("images", terminal=False) as tell:
        tell(3, 1200)
    with counted("images", quiet=True) as tell, shared(quiet=True) as say:
        tell(3, 1200)
        say("survey", 0.5)
    assert capsys.readouterr().err == "images: 3 of 1,200\n"
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=80))
    with counted("images") as tell:
        tell(1200, 1200)
    with shared() as say:
        say("survey", 1.0)
    assert "1,200/1,200" in screen.getvalue()
    assert "survey" in screen.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (150 * 1024, "150 KiB"), (3 * 2**40, "3.0 TiB"), (2**50, "1024 TiB")],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.44, "0.4 s"), (75, "1:15"), (3725, "1:02:05"), (59.7, "1:00"), (360000, "100:00:00")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


def test_counts_for_people() -> None:
    assert count_of(1, "frame") == "1 frame"
    assert count_of(1200, "frame") == "1,200 frames"
