"""preview: a small film of a whole flight after about a minute: every Nth frame at a reduced size, chosen from a measured frame."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from landmark_batch.cameras.flight import Flight
from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import StoreError
from landmark_batch.events import EventSink
from landmark_batch.frames.definition import is_store
from landmark_batch.frames.durable import remove_tree
from landmark_batch.frames.export_video import VideoReport
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.job import RenderJob
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.machine import Machine, choose_device, describe_machine, place_workers
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.request import RenderRequest, scene_request
from landmark_batch.workflows.result import RenderResult

DEFAULT_FPS = 24.0
SMOOTH_FPS = 8.0  # of film time; fewer frames only when even the smallest size is too slow
LARGEST, SMALLEST = 960, 64  # pixels of width
OVERHEAD_SECONDS = 12.0  # workers that start, the film's encoder
CROWDED = 0.8  # speed of a worker beside others, as a share of its speed alone (memory bandwidth is shared)
_MEASURED_WIDTH = 160
_DIVISORS = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96)


@dataclass(frozen=True)
class PreviewChoice:
    """every: N of every Nth frame. frames: how many. fps: of the film, so that it lasts as long as the flight.

    seconds_per_frame: of one worker at this size, from the measured frame. seconds: expected for all.
    """

    width: int
    height: int
    every: int
    frames: int
    fps: float
    workers: int
    seconds_per_frame: float
    seconds: float

    def describe(self) -> str:
        nth = "every frame" if self.every == 1 else f"every {_ordinal(self.every)} frame"
        return f"{nth}, {self.frames} of {self.width}×{self.height}, {self.fps:g} frames/s, in about {self.seconds:.0f} seconds"


@dataclass(frozen=True)
class PreviewResult:
    """film: None if frames are missing (then `render.error()` says which)."""

    choice: PreviewChoice
    render: RenderResult
    film: VideoReport | None
    store: StorePath
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "choice": asdict(self.choice),
            "render": self.render.as_dict(),
            "film": str(self.film.path) if self.film else None,
            "store": str(self.store),
            "seconds": self.seconds,
        }


def make_preview(
    job: RenderJob,
    *,
    seconds: float = 60.0,
    sinks: Sequence[EventSink] = (),
    stop: threading.Event | None = None,
    dashboard: bool = True,
    machine: Machine | None = None,
    chosen: Callable[[PreviewChoice], None] | None = None,
) -> PreviewResult:
    """Measure a frame, choose size and step, render `<name>.preview.zarr` and encode `<name>.preview.mp4` beside the job's store.

    seconds: wall time it should take, about. chosen: told the choice before anything is rendered. A preview of earlier is replaced.
    Raises as `run_render`; StoreError where something else lies at the preview's path.
    """
    from landmark_batch.workflows.export import export_video

    started = time.monotonic()
    machine = machine or describe_machine()
    request = scene_request(job, choose_device(job.parallel, machine))
    placement, _ = place_workers(job.parallel, machine, device=request.device, worker_memory=request.worker_memory)
    per_pixel = measure_frame(request)
    left = max(5.0, seconds - OVERHEAD_SECONDS - (time.monotonic() - started))
    choice = choose_preview(request, per_pixel, left, placement.workers)
    if chosen is not None:
        chosen(choice)
    small = preview_job(request, choice)
    _remove_earlier(small.store_path)
    result = run_render(small, sinks=sinks, stop=stop, dashboard=dashboard, machine=machine)
    film = None
    if result.state == "complete":
        frames = request.wanted[:: choice.every]
        film = export_video(small.store_path, small.video_path, fps=Fraction(choice.fps).limit_denominator(10_000), frames=frames)
    return PreviewResult(choice, result, film, small.store_path, time.monotonic() - started)


def measure_frame(request: RenderRequest) -> float:
    """Seconds a pixel of the flight's first frame takes one worker on this machine; the frame is rendered small, in this process."""
    from landmark_batch.workflows.renderers import open_renderer

    renderer, _ = open_renderer(request.renderer, request.job, request.device, threads=1)
    flight = request.flight
    scale = min(1.0, _MEASURED_WIDTH / flight.width)
    width, height = max(1, round(flight.width * scale)), max(1, round(flight.height * scale))
    frame = request.wanted[0]
    lens = tuple(float(value) * scale for value in flight.intrinsics[frame])
    renderer.render(flight.c2w[frame], lens, max(1, width // 4), max(1, height // 4))  # first calls load libraries
    started = time.perf_counter()
    renderer.render(flight.c2w[frame], lens, width, height).numpy()
    return (time.perf_counter() - started) / (width * height)


def choose_preview(request: RenderRequest, per_pixel: float, seconds: float, workers: int) -> PreviewChoice:
    """The largest size at which a smooth film of the flight fits into `seconds`, then as many frames as fit.

    per_pixel: seconds of one worker. workers: rendering side by side.
    """
    flight, wanted = request.flight, len(request.wanted)
    fps = request.job.video.fps or flight.fps or DEFAULT_FPS
    duration = wanted / fps
    alone = 1.0 if workers == 1 else CROWDED
    budget = seconds * workers * alone / per_pixel  # pixels
    smooth = min(wanted, max(2, math.ceil(duration * SMOOTH_FPS)))
    sizes = _sizes(flight)
    width, height = next((size for size in sizes if smooth * size[0] * size[1] <= budget), sizes[-1])
    most = max(1, int(budget // (width * height)))
    every = max(1, math.ceil(wanted / most))
    frames = math.ceil(wanted / every)
    each = per_pixel * width * height
    return PreviewChoice(
        width=width,
        height=height,
        every=every,
        frames=frames,
        fps=frames / duration,
        workers=workers,
        seconds_per_frame=each,
        seconds=math.ceil(frames / workers) * each / alone + OVERHEAD_SECONDS,
    )


def _sizes(flight: Flight) -> list[tuple[int, int]]:
    """Even sizes of the flight's shape, largest first; small flights keep theirs."""
    found = []
    for divisor in _DIVISORS:
        width, height = (max(2, 2 * round(side / divisor / 2)) for side in (flight.width, flight.height))
        if SMALLEST <= width <= LARGEST or (divisor == 1 and width < SMALLEST):
            found.append((width, height))
    return found


def preview_job(request: RenderRequest, choice: PreviewChoice) -> RenderJob:
    """The job of the preview: the same scene and flight, smaller, in a store and a film of its own."""
    job = request.job
    scale = choice.width / request.flight.width
    cameras = job.cameras.model_copy(
        update={
            "width": choice.width,
            "height": choice.height,
            "frames": format_frame_ranges(request.wanted[:: choice.every]),
            "focal": job.cameras.focal * scale if job.cameras.focal is not None else None,
            "frame": tuple(
                frame if frame.focal is None else frame.model_copy(update={"focal": frame.focal * scale}) for frame in job.cameras.frame
            ),
        }
    )
    store = job.store_neighbour
    stem = store.name.removesuffix(".zarr")
    output = job.output.model_copy(
        update={
            "store": store.with_name(f"{stem}.preview.zarr"),
            "rgb": "uint8",
            "depth": False,
            "alpha": False,
            "background": "black" if job.output.background == "black" else "white",
            "frames_per_shard": 1,
        }
    )
    video = job.video.model_copy(update={"file": store.with_name(f"{stem}.preview.mp4"), "fps": choice.fps})
    return job.model_copy(update={"name": f"{job.name} preview", "cameras": cameras, "output": output, "video": video})


def _remove_earlier(path: StorePath) -> None:
    """An earlier preview goes, unless a job is writing it; anything else at that path stays, and the render refuses it."""
    if is_store(path):
        with StoreOwner.acquire(path):
            remove_tree(path)
    if is_store(path):
        raise StoreError(f"{path}: cannot remove the earlier preview", remedy="remove it by hand")


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
