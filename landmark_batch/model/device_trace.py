"""What the GPU itself ran: kernels and copies, by torch's profiler (Kineto, CUPTI), for a short while."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from landmark_batch.model.profile import Range

CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")

_log = logging.getLogger(__name__)


class DeviceTrace:
    """Runs torch's profiler from the first `poll` until `seconds` later: its records fill memory, so a whole job is too long.

    `poll` from the thread that launches the work: the profiler belongs to the thread that started it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._profile: torch.profiler.profile | None = None
        self._thread = 0
        self._end = 0.0
        self._done = seconds <= 0

    def poll(self) -> list[Range]:
        """Start, go on, or stop; returns what was recorded, once, when the time is over."""
        if self._done:
            return []
        if self._profile is None:
            self._start()
            return []
        return self.stop() if time.monotonic() > self._end and threading.get_native_id() == self._thread else []

    def stop(self) -> list[Range]:
        """Stop before the time is over; returns what was recorded."""
        self._done = True
        profile, self._profile = self._profile, None
        if profile is None:
            return []
        if threading.get_native_id() != self._thread:
            _log.info("kernels of the GPU are not in the trace: the thread that renders ended before its profiler")
            return []
        try:
            profile.stop()
            with tempfile.TemporaryDirectory(prefix="landmark-batch-trace-") as folder:
                file = Path(folder) / "kernels.json"
                profile.export_chrome_trace(str(file))
                return device_ranges(json.loads(file.read_text(encoding="utf-8")))
        except (RuntimeError, OSError, ValueError) as error:
            _log.warning("kernels of the GPU are not in the trace: %s", error)
            return []

    def _start(self) -> None:
        self._thread = threading.get_native_id()
        self._end = time.monotonic() + self._seconds
        try:
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True)
            self._profile.start()
        except (RuntimeError, AssertionError) as error:
            _log.warning("kernels of the GPU are not in the trace: %s", error)
            self._profile, self._done = None, True


def device_ranges(trace: dict[str, Any]) -> list[Range]:
    """Kernels and copies of a trace of Kineto, by begin. Its times are microseconds after baseTimeNanoseconds."""
    base = float(trace.get("baseTimeNanoseconds", 0)) * 1e-9
    found = []
    for event in trace.get("traceEvents", ()):
        if event.get("cat") in CATEGORIES and event.get("ph") == "X":
            args = event.get("args", {})
            place = f"cuda:{args.get('device', 0)} stream {args.get('stream', 0)}"
            found.append(Range(str(event["name"])[:120], base + event["ts"] * 1e-6, event["dur"] * 1e-6, "", place, kernel=True))
    return sorted(found, key=lambda found: found.begin)
