"""Timeline: the ranges of a process as a Chrome trace, for chrome://tracing and ui.perfetto.dev.

Format: "Trace Event Format", JSON array of complete events (ph X: ts and dur in microseconds) and metadata (ph M). The closing
bracket may be missing in that format, so the trace of a process that was killed can be read too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import torch

from landmark_batch.errors import ConfigError
from landmark_batch.model.device_trace import DeviceTrace
from landmark_batch.model.profile import AT_ONCE, Range, Recorder

LIMIT = 500_000  # events of a file: what a viewer still opens
FLUSH_SECONDS = 2.0
PAUSE = 0.05  # seconds between two times that what was noted is written
PROFILER = "profiler"  # range of a thread that stands still while kernels begin to be recorded, or their records are written
STEPWISE = 16  # frames at the beginning whose every step is recorded
STEPWISE_OF = 64  # frames after these, of which one is
KERNEL_SECONDS = 5.0  # of a job, for which every kernel of the GPU is recorded
_NOTICEABLE = 1e-3  # seconds of it that are told

_log = logging.getLogger(__name__)


class Timeline(Recorder):
    """Writes every range of this process until it is closed; at most LIMIT of them. A thread of its own does it: those that work only
    note what they did.

    path: of the trace, replaced if it is there. name: of the process in the viewer, for example the worker's. kernel_seconds: for so
    long, from the first range on a GPU, its kernels and copies are recorded too.
    Raises ConfigError where the file cannot be written. A disk that fills up later ends the trace with a warning, not the render.
    """

    def __init__(self, path: Path, name: str, *, kernel_seconds: float = KERNEL_SECONDS) -> None:
        super().__init__()
        self._kernels = DeviceTrace(kernel_seconds)
        self.path = Path(path)
        self.dropped = 0
        self._events = self._frames = 0
        self._pid = os.getpid()
        self._tracks: dict[tuple[str, bool], int] = {}  # threads and streams by name: a thread of the same name goes on with its track
        self._flushed = time.monotonic()
        try:
            self._file: TextIO | None = self.path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot write the trace: {error.strerror}", remedy="check the folder of the job's log") from None
        self._write({"name": "process_name", "ph": "M", "args": {"name": name}}, first=True)
        self._found: deque[Range] = deque()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="timeline", daemon=True)
        self._thread.start()

    settle_after = LIMIT  # the thread looks them up

    def stepwise(self) -> bool:
        """Of the first frames, and of one of many: the others are rendered as without a trace, and are one range on the device."""
        self._frames += 1
        return self._frames <= STEPWISE or self._frames % STEPWISE_OF == 0

    def receive(self, found: Range) -> None:
        self._found.append(found)

    def _keep_writing(self) -> None:
        while not self._over.wait(PAUSE):
            self.settle(wait=False)
            self._write_found()

    def _write_found(self) -> None:
        written = 0
        while self._found:
            self._write_range(self._found.popleft())
            written += 1
            if written % AT_ONCE == 0:
                time.sleep(0)  # Python's lock is those threads' that wait for it

    def _write_range(self, found: Range) -> None:
        if self._events >= LIMIT:
            self.dropped += 1
            return
        self._events += 1
        where = (found.thread, False) if found.device is None else (found.device, True)
        track = self._tracks.get(where)
        if track is None:
            track = self._tracks[where] = len(self._tracks) + 1
            self._write({"name": "thread_name", "ph": "M", "tid": track, "args": {"name": where[0]}})
            self._write({"name": "thread_sort_index", "ph": "M", "tid": track, "args": {"sort_index": _place(*where)}})
        category = "host" if found.device is None else "kernel" if found.kernel else "device"
        event = {"name": found.name, "cat": category, "ph": "X", "tid": track}
        self._write(event | {"ts": round(found.begin * 1e6, 1), "dur": round(found.seconds * 1e6, 3)})

    def anchor(self, device: torch.device) -> None:
        super().anchor(device)
        began = time.perf_counter()
        with self._lock:
            for found in self._kernels.poll():
                self.receive(found)
        if time.perf_counter() - began > _NOTICEABLE:
            self.mark(PROFILER, began, time.perf_counter())

    def close(self) -> None:
        super().close()
        self._over.set()
        self._thread.join()
        with self._lock:
            for found in self._kernels.stop():
                self.receive(found)
        self._write_found()
        if self._file is None:
            return
        if self.dropped:
            _log.warning("%s: the trace ends after %d ranges, %d more were not written", self.path, LIMIT, self.dropped)
        try:
            self._file.write("\n]\n")
            self._file.close()
        except OSError as error:
            _log.warning("%s: the trace is cut short: %s", self.path, error)
        self._file = None

    def _write(self, event: dict[str, Any], *, first: bool = False) -> None:
        if self._file is None:
            return
        try:
            self._file.write(("[\n" if first else ",\n") + json.dumps({"pid": self._pid, **event}))
            now = time.monotonic()
            if now - self._flushed > FLUSH_SECONDS:
                self._file.flush()
                self._flushed = now
        except OSError as error:
            _log.warning("%s: the trace ends here: %s", self.path, error)
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _place(name: str, device: bool) -> int:
    """Where a track stands in a viewer: devices first, then threads in the order of a frame's way."""
    order = ("render", "landmark-frames", "landmark-tile", "copies", "commit", "frame-writer")
    return 0 if device else 1 + next((i for i, known in enumerate(order) if name.startswith(known)), len(order))


def trace_path(log: Path, worker: str) -> Path:
    """Where a rank's trace lies: beside the job's log, <log stem>.<worker>.trace.json."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in worker)
    return log.with_name(f"{log.stem}.{safe}.trace.json")
