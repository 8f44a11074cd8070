"""Events go to every sink as they are: a log line each, a JSON object each."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from landmark_batch.errors import (
    CheckpointError,
    ConfigError,
    DiskFullError,
    GroupError,
    LandmarkError,
    RenderIncompleteError,
    RenderInterrupted,
    StoreBusyError,
    StoreError,
)
from landmark_batch.events import ChunkDone, ChunkFailed, ChunkStarted, Event, JobDone, JobStarted, JsonLinesSink, LogSink, event_record

EVENTS: list[Event] = [
    JobStarted(name="city", store="city.zarr", frames=48, todo=40, chunks=5, workers=2, runtime="torch", dashboard=None),
    ChunkStarted(chunk="000000-000007+8", worker="w0"),
    ChunkDone(
        chunk="000000-000007+8",
        frames=tuple(range(8)),
        worker="w0",
        attempt=0,
        seconds=2.5,
        stages={"render": 2.0, "write": 0.5},
        counters={"rays": 800},
    ),
    ChunkFailed(chunk="000008-000015+8", frames=tuple(range(8, 16)), worker="w1", error="its process died", final=False),
    JobDone(name="city", state="complete", rendered=40, missing=(), seconds=9.0, startup_seconds=3.0),
]


def test_a_record_says_what_it_is_and_is_json() -> None:
    for event in EVENTS:
        record = json.loads(json.dumps(event_record(event)))
        assert record["event"] == type(event).__name__
        assert record["at"] > 0


def test_json_lines_are_appended_one_an_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for _ in range(2):
        sink = JsonLinesSink(path)
        for event in EVENTS:
            sink(event)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in EVENTS] * 2
    assert lines[2]["stages"] == {"render": 2.0, "write": 0.5}


def test_the_log_gets_one_line_an_event_and_failures_as_warnings(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.events")
    sink = LogSink(logger)
    with caplog.at_level(logging.INFO, logger="tests.events"):
        for event in EVENTS:
            sink(event)
    assert len(caplog.records) == len(EVENTS)
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
    done = next(record.getMessage() for record in caplog.records if record.getMessage().startswith("ChunkDone"))
    assert "000000-000007+8" in done
    assert "\n" not in done


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, 2),
        (CheckpointError, 2),
        (StoreError, 2),
        (StoreBusyError, 2),
        (DiskFullError, 2),
        (GroupError, 3),
        (RenderIncompleteError, 3),
        (RenderInterrupted, 130),
    ],
)
def test_errors_know_their_exit_code_and_survive_pickling(kind: type[LandmarkError], code: int) -> None:
    import pickle

    error = pickle.loads(pickle.dumps(kind("a.th: bad", remedy="use b.th")))
    assert type(error) is kind
    assert error.exit_code == code
    assert str(error) == "a.th: bad\n  use b.th"
