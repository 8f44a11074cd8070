"""One runtime in a process of its own, for `bench kernels`: compiled kernels, once loaded, serve their whole process."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.formats import flight_of_job
from landmark_batch.cameras.paths import orbit_flight
from landmark_batch.errors import ConfigError, LandmarkError
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.job import RenderJob

if TYPE_CHECKING:
    import torch

    from landmark_batch.model.work import SampleCounts
    from landmark_batch.scene.weights import Box

RGB = (OutputSpec("rgb", "uint8", 3),)
CPU_COPY, CUDA_COPY = 2**28, 2**30  # bytes: far more than a cache
CPU_SIDE, CUDA_SIDE = 1024, 8192  # rows of the square matrices of the measured product
REPEATS = 7


@dataclass(frozen=True)
class SideSpec:
    """What a side renders: a job with its scene, on 'cpu' or 'cuda', with 'torch' or 'fused'. threads: on a CPU.

    sizes: (width, height) of the frames. frames: poses of the flight at most, evenly spaced.
    """

    job: RenderJob
    device: str
    runtime: str
    threads: int
    sizes: tuple[tuple[int, int], ...]
    frames: int


@dataclass(frozen=True)
class FrameCost:
    """seconds: from the pose to uint8 on the host. stages: seconds by range where they were asked for, summed over threads."""

    seconds: float
    stages: dict[str, float]
    counters: dict[str, int]


@dataclass(frozen=True)
class Ceilings:
    """What the device does at most, measured: bytes read and written a second by a copy, FLOP/s of square matrix products."""

    copy: float
    fp32: float
    fp16: float | None = None


class Side:
    """A process that renders with one runtime. Raises what opening the scene raises; ConfigError where the process dies."""

    def __init__(self, spec: SideSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self.spec = spec
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec), name=f"bench-{spec.runtime}", daemon=True)
        self._process.start()
        theirs.close()
        self.about: dict[str, Any] = self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()

    def frame(self, pose: int, *, size: int = 0, stages: bool = False) -> FrameCost:
        """Render pose number `pose` of the chosen ones at sizes[size]."""
        result: FrameCost = self._ask("frame", pose, size, stages)
        return result

    def ceilings(self) -> Ceilings:
        result: Ceilings = self._ask("ceilings")
        return result

    def counts(self, pose: int, stop: float) -> SampleCounts:
        """Samples of a frame, on the torch side. stop: transmittance below which a ray ends."""
        result: SampleCounts = self._ask("counts", pose, stop)
        return result

    def _ask(self, *words: Any) -> Any:
        try:
            self._pipe.send(words)
        except OSError as error:
            raise self._died() from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            good, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if not good:
            raise value
        return value

    def _died(self) -> ConfigError:
        self._process.join(10)
        return ConfigError(
            f"the process that renders with {self.spec.runtime} ended with exit code {self._process.exitcode}",
            remedy="a scene that does not fit into memory ends it; try a smaller one, or --precision fp16",
        )


def _serve(pipe: Connection, spec: SideSpec) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    try:
        side = _Open(spec)
        pipe.send((True, side.about()))
        while True:
            name, *words = pipe.recv()
            pipe.send((True, getattr(side, name)(*words)))
    except EOFError:
        pass
    except LandmarkError as error:
        pipe.send((False, error))
    except Exception as error:  # noqa: BLE001
        pipe.send((False, RuntimeError(f"{type(error).__name__}: {error}")))


class _Open:
    """The child's side: a scene, its renderer and flights."""

    def __init__(self, spec: SideSpec) -> None:
        import torch

        from landmark_batch.workflows.renderers import open_renderer
        from landmark_batch.workflows.worker import kernel_source

        self.spec = spec
        kind = {"kind": "scene", "runtime": spec.runtime}
        self.renderer = cast(Any, open_renderer(kind, spec.job, spec.device, spec.threads, kernels=kernel_source())[0]).renderer
        self.device = torch.device(spec.device)
        box = self.renderer.config.aabb
        self.flights = [flight_at(spec.job, box, width, height, spec.frames) for width, height in spec.sizes]
        self.poses = spread(len(self.flights[0]), spec.frames)

    def about(self) -> dict[str, Any]:
        settings = self.renderer.settings
        return {
            "config": self.renderer.config,
            "poses": len(self.poses),
            "samples": settings.samples,
            "mode": settings.mode,
            "precision": settings.precision,
        }

    def frame(self, pose: int, size: int, stages: bool) -> FrameCost:
        from landmark_batch.model.profile import StageTimes

        if not stages:
            return self._render(pose, size)
        with StageTimes() as times:
            cost = self._render(pose, size)
        return FrameCost(cost.seconds, times.totals(), cost.counters)

    def _render(self, pose: int, size: int) -> FrameCost:
        flight, index = self.flights[size], self.poses[pose]
        started = time.perf_counter()
        output = self.renderer.render(flight.c2w[index], tuple(flight.intrinsics[index].tolist()), flight.width, flight.height)
        output.quantised(RGB, frame=index)
        return FrameCost(time.perf_counter() - started, {}, output.counters)

    def counts(self, pose: int, stop: float) -> SampleCounts:
        from landmark_batch.model.work import count_samples

        flight, index = self.flights[0], self.poses[pose]
        lens = tuple(flight.intrinsics[index].tolist())
        return count_samples(self.renderer, flight.c2w[index], lens, flight.width, flight.height, stop=stop)

    def ceilings(self) -> Ceilings:
        import torch

        from landmark_batch.model.renderer import full_precision

        cuda = self.device.type == "cuda"
        with full_precision():
            fp32 = self._product(torch.float32, CUDA_SIDE // 2 if cuda else CPU_SIDE)
        return Ceilings(self._copy(), fp32, self._product(torch.float16, CUDA_SIDE) if cuda else None)

    def _copy(self) -> float:
        import torch

        size = CPU_COPY
        if self.device.type == "cuda":
            size = min(CUDA_COPY, torch.cuda.mem_get_info(self.device)[0] // 4)
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self._seconds(lambda: target.copy_(source))

    def _product(self, dtype: torch.dtype, side: int) -> float:
        import torch

        a, b = (torch.rand(side, side, device=self.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * side**3 / self._seconds(lambda: torch.mm(a, b, out=out))

    def _seconds(self, function: Callable[[], object]) -> float:
        """The least time of a call, by events on a GPU."""
        import torch

        function()
        taken: list[float] = []
        for _ in range(REPEATS):
            if self.device.type == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                begin.record()
                function()
                end.record()
                end.synchronize()
                taken.append(begin.elapsed_time(end) * 1e-3)
            else:
                started = time.perf_counter()
                function()
                taken.append(time.perf_counter() - started)
        return min(taken)


def flight_at(job: RenderJob, box: Box, width: int, height: int, frames: int) -> Flight:
    """The job's flight at a size, its focal scaled along; an orbit over the scene's box for a job without cameras."""
    cameras = job.cameras
    if cameras.file is None and not cameras.frame:
        return orbit_flight(box, width=width, height=height, frames=frames)
    focal = cameras.focal * width / cameras.width if cameras.focal and cameras.width else cameras.focal
    return flight_of_job(job.model_copy(update={"cameras": cameras.model_copy(update={"width": width, "height": height, "focal": focal})}))


def spread(count: int, wanted: int) -> Sequence[int]:
    """At most `wanted` indices below `count`, evenly spaced, the first among them."""
    return range(count) if count <= wanted else [i * count // wanted for i in range(wanted)]
