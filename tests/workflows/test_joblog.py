"""The log file of a job where its disk refuses it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from landmark_batch.workflows.joblog import events_logger, job_log

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full: a device on which every write finds no space")
def test_a_full_disk_costs_lines_of_the_log_and_says_so_once(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with job_log(FULL, "run"):
        for number in range(3):
            events_logger("run").info("ChunkDone %d", number)
        logging.getLogger("landmark_batch.frames").warning("the disk is full")
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["/dev/full: lines of the log are lost: No space left on device", "the disk is full"]


def test_the_log_holds_events_and_warnings(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "job.log"
    with job_log(file, "run"):
        events_logger("run").info("ChunkDone 1")
        logging.getLogger("landmark_batch.frames").warning("a warning")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == ["ChunkDone 1", "a warning"]
