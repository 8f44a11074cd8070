"""Encoders leave the process's threads as they were."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import pytest

from landmark_batch.frames.encoder_threads import usual_scheduling


def policies() -> set[int]:
    return {os.sched_getscheduler(int(task.name)) for task in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system does not tell how threads are scheduled")
def test_an_encoder_that_wants_real_time_does_not_get_it() -> None:
    """As root, SVT-AV1 would keep a core from everybody else, and so would every process that this one starts afterwards."""
    assert policies() == {os.SCHED_OTHER}
    encoder = av.Codec("libsvtav1", "w").create("video")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 64, "yuv420p"  # type: ignore[attr-defined]
    encoder.time_base = Fraction(1, 24)
    encoder.framerate = Fraction(24)  # type: ignore[attr-defined]
    with usual_scheduling():
        encoder.open()
        if os.geteuid() == 0:
            assert policies() != {os.SCHED_OTHER}
    assert policies() == {os.SCHED_OTHER}
