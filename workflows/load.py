"""How full and how busy a worker is, as numbers for Dask's pages: their names, and rates of what its pipeline has counted."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable

LOAD = ("frames_in_flight", "chunks_out", "copies_waiting", "files_waiting", "busy", "frames_per_second")  # what RenderSession.load tells
NO_LOAD = dict.fromkeys(LOAD, 0)
WINDOW = 30.0  # seconds that a reading looks back
_APART = 0.2  # seconds between two readings that are kept


def gpu_memory() -> int:
    """Bytes that this process holds on its GPU; 0 without one, or before torch is in."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved())


class LoadMeter:
    """Two growing numbers, read now and then, as rates over the last WINDOW seconds, or since the first reading. One thread reads."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._readings: deque[tuple[float, float, int]] = deque()  # when, seconds of rendering, frames

    def read(self, seconds: float, frames: int) -> tuple[float, float]:
        """seconds: of rendering so far. frames: rendered so far. Returns the share of time in which the renderer worked, frames/s."""
        now = self._clock()
        while len(self._readings) > 1 and self._readings[1][0] <= now - WINDOW:
            self._readings.popleft()
        if not self._readings or now - self._readings[-1][0] >= _APART:
            self._readings.append((now, seconds, frames))
        at, before, rendered = self._readings[0]
        if now <= at:
            return 0.0, 0.0
        return min(1.0, max(0.0, (seconds - before) / (now - at))), (frames - rendered) / (now - at)
