"""The share of time in which a GPU or a renderer worked, by traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.workflows.trace_share import BusyShare, busy_shares, describe_busy, read_trace, traces_of


def event(name: str, cat: str, begin: float, seconds: float) -> dict[str, Any]:
    return {"name": name, "cat": cat, "ph": "X", "ts": (1_700_000_000 + begin) * 1e6, "dur": seconds * 1e6, "pid": 1, "tid": 1}


def close(found: list[BusyShare], *expected: tuple[str, float, float]) -> bool:
    return [(one.what, pytest.approx(one.share, abs=1e-5), pytest.approx(one.seconds, abs=1e-5)) for one in found] == [*expected]


def test_a_gpus_ranges_count_once_however_many_streams_they_are_on() -> None:
    """Two frames are launched by 1.0 and done by 5.0; the side stream works beside the main one, and once alone."""
    events = [
        event("load", "host", -9.0, 3.0),
        event("frame", "host", 0.0, 0.5),
        event("frame", "host", 0.5, 0.5),
        event("march and density", "host", 0.1, 0.2),
        event("march and density", "device", 1.0, 1.0),
        event("appearance", "device", 1.5, 1.0),
        event("copy", "device", 2.25, 0.75),
        event("march and density", "device", 4.0, 1.0),
        {"name": "thread_name", "ph": "M", "tid": 1, "args": {"name": "render"}},
    ]
    assert close(busy_shares(events), ("GPU", 3.0 / 5.0, 5.0))
    waited = event("profiler", "host", 1.75, 1.5)  # the GPU still worked for 1.25 s of it
    assert close(busy_shares([*events, waited]), ("GPU", 1.75 / 3.5, 3.5))
    kernels = [event("march", "kernel", 1.0, 0.5), event("march", "kernel", 2.0, 0.25), event("Memcpy", "kernel", 2.125, 0.875)]
    assert close(busy_shares([*events, *kernels]), ("GPU", 0.6, 5.0), ("GPU kernels", 0.75, 2.0))


def test_a_renderers_steps_count_where_there_is_no_gpu() -> None:
    frames = [event("frame", "host", 0.0, 1.0), event("frame", "host", 2.0, 2.0)]
    steps = [event("march", "host", 0.25, 0.5), event("decode", "host", 0.5, 0.5), event("density", "host", 2.0, 2.0)]
    waits = [event("exchange", "host", 1.0, 1.0), event("commit", "host", 1.0, 3.0)]
    assert close(busy_shares([*frames, *steps, *waits]), ("renderer", 2.75 / 4, 4.0))
    assert close(busy_shares([*frames, *waits]), ("renderer", 0.75, 4.0))  # a renderer that names no steps
    assert close(busy_shares([*steps, *waits]), ("renderer", 2.75 / 3.75, 3.75))  # a rank that serves a group
    assert busy_shares(waits) == []


def test_traces_of_all_workers_in_one_line_each(tmp_path: Path) -> None:
    log = tmp_path / "city.log"
    whole, cut = tmp_path / "city.w0.trace.json", tmp_path / "city.w1.trace.json"
    lines = [json.dumps(one) for one in (event("frame", "host", 0.0, 1.0), event("frame", "host", 1.0, 1.0))]
    whole.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    cut.write_text("[\n" + lines[0] + ",\n" + json.dumps(event("frame", "host", 3.0, 1.0)) + ",\n" + lines[1][:40])
    assert len(list(read_trace(cut))) == 2
    assert traces_of(log) == [whole, cut]
    assert traces_of(log, since=cut.stat().st_mtime + 1) == []
    assert describe_busy([whole, cut, tmp_path / "none.json"]) == ["renderer busy: 67% of 3.0 s from first to last frame (w0 100%, w1 50%)"]
    assert describe_busy([whole]) == ["renderer busy: 100% of 2.0 s from first to last frame"]
    assert describe_busy([]) == []
