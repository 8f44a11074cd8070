"""Launch shapes of the fused kernels: the fastest of a few, found on the real scene once for a GPU, and kept in the kernels' cache.

Results do not depend on the choice, so it is free to differ between machines, processes and runs.
"""

from __future__ import annotations

import json
import logging
import os
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from .cache import kernels_dir, sources_digest

# Launch 0 is the default. trace: warps of a block x blocks a multiprocessor 4 x 6, 4 x 5, 4 x 8, 2 x 12, 8 x 3.
# shade: texels by row with 12 warps a block; only those that differ from the sample before with 12 warps, with 16.
LAUNCHES: dict[str, tuple[int, ...]] = {"trace": (0, 1, 2, 3, 4), "shade": (0, 1, 2)}
ROUNDS = 5
GAIN = 0.98  # share of the default's time below which another launch replaces it: less is noise

_log = logging.getLogger(__name__)

Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class Shape:
    """What the best launch of an op depends on: op, the GPU's name, channels and number of the tables it reads, their dtype."""

    op: str
    gpu: str
    channels: int
    tables: int
    dtype: str

    @staticmethod
    def of(op: str, planes: list[Tensor]) -> Shape:
        """The shape of `op` over planes [S, h, w, C] that lie on one device."""
        device = planes[0].device
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return Shape(op, gpu, int(planes[0].shape[-1]), len(planes), str(planes[0].dtype).removeprefix("torch."))

    @property
    def file_name(self) -> str:
        """Name of the file that keeps its choice."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.op} {self.gpu} {self.channels} {self.tables} {self.dtype}") + ".json"


class Launches:
    """Choices of this process, and those that earlier processes left in the cache of these kernels' sources."""

    def __init__(self, cache_dir: Path | None = None, timer: Timer | None = None) -> None:
        """cache_dir: the program's cache folder (~/.cache/landmark-batch). timer: seconds of a call, default by CUDA events."""
        self._folder = kernels_dir(cache_dir) / f"launches-{sources_digest('cuda')[:16]}"
        self._timer = timer or cuda_seconds
        self._known: dict[Shape, int] = {}

    def known(self, shape: Shape) -> int | None:
        """The launch chosen before for this shape, here or by another process; None if none was."""
        if shape not in self._known:
            stored = self._read(shape)
            if stored is None:
                return None
            self._known[shape] = stored
        return self._known[shape]

    def choose(self, shape: Shape, run: Callable[[int], object]) -> int:
        """The launch to use. run(launch): the op on real data; called a few times for each launch if no choice is known.

        A launch that fails is left out; what the default raises is raised.
        """
        launch = self.known(shape)
        if launch is None:
            seconds = self._measure(shape, run)
            launch = min(seconds, key=lambda one: seconds[one])
            if seconds[launch] > GAIN * seconds[0]:
                launch = 0
            self._known[shape] = launch
            self._write(shape, launch, seconds)
        return launch

    def _measure(self, shape: Shape, run: Callable[[int], object]) -> dict[int, float]:
        """Median seconds of each launch, measured in turns, so that a change of the clock meets all."""
        working = [0]
        run(0)
        for launch in LAUNCHES[shape.op][1:]:
            try:
                run(launch)
            except RuntimeError as error:
                _log.debug("launch %d of %s does not work here: %s", launch, shape.op, error)
            else:
                working.append(launch)
        times: dict[int, list[float]] = {launch: [] for launch in working}
        for _ in range(ROUNDS):
            for launch in working:
                times[launch].append(self._timer(lambda launch=launch: run(launch)))  # type: ignore[misc]
        return {launch: statistics.median(values) for launch, values in times.items()}

    def _read(self, shape: Shape) -> int | None:
        path = self._folder / shape.file_name
        try:
            record = json.loads(path.read_text())
            launch = record["launch"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.debug("%s is not used: %s", path, error)
            return None
        return launch if isinstance(launch, int) and launch in LAUNCHES[shape.op] else None

    def _write(self, shape: Shape, launch: int, seconds: dict[int, float]) -> None:
        path = self._folder / shape.file_name
        record = {**asdict(shape), "launch": launch, "seconds": {str(key): value for key, value in seconds.items()}}
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(record, indent=1))
            partial.replace(path)
        except OSError as error:  # a cache that cannot be written: measured again by the next process
            _log.debug("%s is not kept: %s", path, error)


def cuda_seconds(run: Callable[[], object]) -> float:
    """Seconds that the current stream of the current CUDA device works on `run`."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000.0
