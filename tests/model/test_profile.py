"""Named ranges: recorded where someone records, summed by name, written as a Chrome trace."""

from __future__ import annotations

import json
import logging
import threading
import time
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from landmark_batch.errors import ConfigError
from landmark_batch.model import profile, timeline
from landmark_batch.model.device_trace import device_ranges
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.profile import NOTHING, StageTimes, mark, medians, on_track, recording, span, stepwise, unseen
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.timeline import Timeline, trace_path
from tests.factories import make_scene
from tests.model.conftest import POSES, settings_for

LENS, WIDTH, HEIGHT = (60.0, 60.0, 40.0, 30.0), 83, 61
CUDA = torch.device("cuda")


def events(path: Path, kind: str = "X") -> list[dict[str, Any]]:
    found = json.loads(path.read_text())
    return [event for event in found if event["ph"] == kind]


def test_nothing_happens_where_nobody_records() -> None:
    assert not recording()
    assert span("a") is NOTHING is span("b", CUDA)
    mark("c", 1.0, 2.0)


def test_a_trace_of_threads(tmp_path: Path) -> None:
    path = tmp_path / "a.trace.json"
    before = time.time()
    with Timeline(path, "worker 0"):
        with span("outer"), span("inner"):
            time.sleep(0.01)
        thread = threading.Thread(target=lambda: span("elsewhere").__enter__() or mark("told", 1.0, 1.5), name="writer")
        with span("writing"):
            thread.start()
            thread.join()
        with pytest.raises(ValueError, match="bad"), span("failed"):
            raise ValueError("bad")
    assert not recording()
    found = {event["name"]: event for event in events(path)}
    assert set(found) == {"outer", "inner", "told", "writing", "failed"}  # in the thread one range never ended
    outer, inner = found["outer"], found["inner"]
    assert before <= outer["ts"] / 1e6 <= inner["ts"] / 1e6 + 1e-6 <= time.time()
    assert 10_000 <= inner["dur"] <= outer["dur"]
    assert outer["ts"] + outer["dur"] >= inner["ts"] + inner["dur"] - 1
    assert found["told"]["dur"] == pytest.approx(500_000)
    names = {event["tid"]: event["args"]["name"] for event in events(path, "M") if event["name"] == "thread_name"}
    assert names[found["told"]["tid"]] == "writer"
    assert names[outer["tid"]] == threading.current_thread().name
    assert [event["args"]["name"] for event in events(path, "M") if event["name"] == "process_name"] == ["worker 0"]
    assert len({event["pid"] for event in events(path)}) == 1


def test_work_that_changes_its_thread_stays_on_its_track(tmp_path: Path) -> None:
    """As do threads that come and go under one name."""

    def work(name: str) -> None:
        with span("rest"), on_track("render"), span(name):
            pass

    assert on_track("render") is NOTHING
    with Timeline(tmp_path / "t.json", "w"):
        for i in range(3):
            thread = threading.Thread(target=work, args=(f"frame {i}",), name="task")
            thread.start()
            thread.join()
    found = {event["tid"]: event["args"]["name"] for event in events(tmp_path / "t.json", "M") if event["name"] == "thread_name"}
    assert sorted(found.values()) == ["render", "task"]
    on = [(event["name"], found[event["tid"]]) for event in events(tmp_path / "t.json")]
    assert on == [(name, track) for i in range(3) for name, track in ((f"frame {i}", "render"), ("rest", "task"))]


def test_recorders_one_inside_another(tmp_path: Path) -> None:
    with Timeline(tmp_path / "t.json", "w") as outer:
        with StageTimes() as times, span("a"):
            pass
        with span("b"):
            pass
        outer.close()
        outer.close()
        with span("c"):
            pass
    assert list(times.totals()) == ["a"]
    assert [event["name"] for event in events(tmp_path / "t.json")] == ["b"]


def test_a_killed_process_leaves_a_trace_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "FLUSH_SECONDS", -1.0)
    with Timeline(tmp_path / "t.json", "w"):
        with span("a"):
            pass
        until = time.monotonic() + 60
        while (cut := (tmp_path / "t.json").read_text()).count(
            "\n{"
        ) < 4 and time.monotonic() < until:  # process, thread and its place, range
            time.sleep(0.01)
        assert [event["name"] for event in json.loads(cut + "]")][-1] == "a"


def test_a_trace_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(timeline, "LIMIT", 3)
    with caplog.at_level(logging.WARNING), Timeline(tmp_path / "t.json", "w"):
        for _ in range(5):
            mark("a", 0.0, 1.0)
    assert len(events(tmp_path / "t.json")) == 3
    assert "2 more were not written" in caplog.text


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write the trace"):
        Timeline(tmp_path / "none" / "t.json", "w")
    assert not recording()


def test_a_full_disk_ends_the_trace_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "FLUSH_SECONDS", -1.0)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with caplog.at_level(logging.WARNING), Timeline(full, "w"):
        for _ in range(3):
            mark("a", 0.0, 1.0)
    assert "the trace ends here: [Errno 28]" in caplog.text
    assert len(caplog.records) == 1


def test_where_a_trace_lies() -> None:
    assert trace_path(Path("out/city.log"), "node 3/0") == Path("out/city.node-3-0.trace.json")


def test_medians_of_frames() -> None:
    assert medians([{"a": 1.0, "b": 4.0}, {"a": 3.0}, {"a": 2.0, "b": 6.0}]) == {"a": 2.0, "b": 4.0}


class Clock:
    """Stands for torch.cuda.Event: stamped when it is recorded, over when the device has come so far."""

    now = 0.0
    reached = 0.0

    def __init__(self) -> None:
        Clock.now += 1.0
        self.at = Clock.now

    def query(self) -> bool:
        return self.at <= Clock.reached

    def synchronize(self) -> None:
        Clock.reached = max(Clock.reached, self.at)

    def elapsed_time(self, later: Clock) -> float:
        return 1000 * (later.at - self.at)


def test_ranges_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are looked up when they are over, none is lost, and their times follow one another. Each stream is a track."""
    streams = cycle((0, 77, 0, 99))
    monkeypatch.setattr(profile, "_event", lambda device: Clock())
    monkeypatch.setattr(profile, "_stream", lambda device: next(streams))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: setattr(Clock, "reached", Clock.now))
    monkeypatch.setattr(profile.Recorder, "settle_after", 4)
    before = time.time()
    with Timeline(tmp_path / "t.json", "w", kernel_seconds=0):
        for i in range(10):
            with span(f"k{i}", CUDA):
                pass
            if i == 6:
                Clock.reached = Clock.now - 2
    on_device = [event for event in events(tmp_path / "t.json") if event["cat"] == "device"]
    assert [event["name"] for event in on_device] == [f"k{i}" for i in range(10)]
    assert [event["dur"] for event in on_device] == [1e6] * 10
    begins = [event["ts"] / 1e6 for event in on_device]
    assert before + 1 <= begins[0] <= time.time() + 1
    assert [b - a for a, b in pairwise(begins)] == pytest.approx([2.0] * 9, abs=1e-3)
    assert len([event for event in events(tmp_path / "t.json") if event["cat"] == "host"]) == 10
    names = [event["args"]["name"] for event in events(tmp_path / "t.json", "M") if "name" in event["args"]]
    assert names[:1] + names[-3:] == ["w", "cuda", "cuda side stream 1", "cuda side stream 2"]
    with StageTimes() as times:
        for _ in range(3):
            with span("k", CUDA):
                pass
    assert times.totals() == {"k": 3.0}


def test_kernels_of_a_kineto_trace() -> None:
    trace = {
        "baseTimeNanoseconds": 1_700_000_000_000_000_000,
        "traceEvents": [
            {"ph": "X", "cat": "kernel", "name": "shade", "ts": 20.0, "dur": 5.0, "args": {"device": 1, "stream": 7}},
            {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1.0, "dur": 1.0},
            {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH", "ts": 10.0, "dur": 2.0, "args": {"device": 1, "stream": 7}},
        ],
    }
    found = device_ranges(trace)
    assert [(item.name, item.device) for item in found] == [("Memcpy DtoH", "cuda:1 stream 7"), ("shade", "cuda:1 stream 7")]
    assert found[0].begin == pytest.approx(1_700_000_000.00001, abs=1e-6)
    assert found[0].seconds == pytest.approx(2e-6)


@pytest.mark.parametrize("runtime", ["plain", "whole frames"])
def test_a_frames_ranges(tmp_path: Path, runtime: str) -> None:
    weights = make_scene(mask=0.5)
    settings = settings_for(weights.config, samples=32)
    renderer = Renderer(weights, settings) if runtime == "plain" else FusedRenderer(weights, settings, "cpu")
    expected = renderer.render(POSES["oblique"], LENS, WIDTH, HEIGHT)
    with Timeline(tmp_path / "t.json", "w"):
        frame = renderer.render(POSES["oblique"], LENS, WIDTH, HEIGHT)
    assert torch.equal(frame.rgb, expected.rgb)
    names = {event["name"] for event in events(tmp_path / "t.json")}
    wanted = {"march", "density", "appearance", "decode"} if runtime == "plain" else {"march and density", "appearance", "decode"}
    assert wanted <= names


def test_a_trace_wants_every_step_of_some_frames(tmp_path: Path) -> None:
    assert not stepwise()
    with Timeline(tmp_path / "t.json", "w"):
        assert [number for number in range(1, 130) if stepwise()] == [*range(1, 17), 64, 128]
    with StageTimes():
        assert all(stepwise() for _ in range(40))


def test_what_is_captured_is_not_seen(tmp_path: Path) -> None:
    with Timeline(tmp_path / "t.json", "w"):
        with unseen(), span("captured"):
            pass
        with span("done"):
            pass
    assert [event["name"] for event in events(tmp_path / "t.json")] == ["done"]


@pytest.mark.gpu
def test_a_gpus_ranges_and_kernels(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    before = time.time()
    with Timeline(tmp_path / "t.json", "w", kernel_seconds=60):
        for _ in range(3):
            with span("product", CUDA):
                x = x @ x * 1e-3
        torch.cuda.synchronize()
    after = time.time()
    found = events(tmp_path / "t.json")
    ranges = [event for event in found if event["name"] == "product" and event["cat"] == "device"]
    kernels = [event for event in found if event["cat"] == "kernel"]
    assert len(ranges) == 3 and kernels
    for event in (*ranges, *kernels):
        assert before - 0.1 <= event["ts"] / 1e6 <= after + 0.1
    inside = sum(event["dur"] for event in kernels)
    assert 0 < inside <= 1.2 * sum(event["dur"] for event in ranges)
