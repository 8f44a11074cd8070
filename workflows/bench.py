"""bench: what rendering costs bare and as a job, what storing, exporting and scheduling add; one run, one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from landmark_batch.chunks import format_frame_ranges, split_frames
from landmark_batch.errors import ConfigError
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob, load_job
from landmark_batch.workflows.machine import Machine, Placement, choose_device, describe_machine, place_workers
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.request import RenderRequest, scene_request
from landmark_batch.workflows.result import RenderResult
from landmark_batch.workflows.saved_report import SavedReport
from landmark_batch.workflows.simulated import FULL_FRAMES, SchedulingCost, scheduling_cost, simulated_job, simulated_request

PARTS = ("render", "write", "export", "scheduling")
JOB_BAR = 1.15  # job wall over bare rendering, start-up left out
SCHEDULING_BAR = 0.01  # of rendering, with frames of 100 ms in chunks of 8 on two workers
SIMULATED_CHUNK = 8
SIMULATED_WORKERS = 2
Tell = Callable[[str], None]


@dataclass(frozen=True)
class BenchRow:
    """One measured figure."""

    part: str
    what: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True)
class BenchBar:
    """A bound that a figure should keep."""

    what: str
    value: float
    limit: float

    @property
    def held(self) -> bool:
        return self.value <= self.limit


@dataclass(frozen=True)
class BenchReport(SavedReport):
    """rows in the order measured; bars that are promised; machine and job they were measured on."""

    rows: tuple[BenchRow, ...]
    bars: tuple[BenchBar, ...]
    job: dict[str, Any]
    machine: dict[str, Any]
    at: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        bars = [{**asdict(bar), "held": bar.held} for bar in self.bars]
        return {"rows": [asdict(row) for row in self.rows], "bars": bars, "job": self.job, "machine": self.machine, "at": self.at}

    def describe(self) -> str:
        """The table for people."""
        rows = [(row.part, row.what, f"{row.value:,.{_digits(row.value)}f}", row.unit, row.note) for row in self.rows]
        rows += [("bar", bar.what, f"{bar.value:.4f}", f"≤ {bar.limit:g}", "held" if bar.held else "NOT held") for bar in self.bars]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}} {d:{widths[3]}}  {e}".rstrip() for a, b, c, d, e in rows)


def run_bench(
    folder: Path,
    job: RenderJob | None = None,
    *,
    frames: int | None = None,
    simulated_frames: int = 480,
    simulated_seconds: float = 0.1,
    parts: Sequence[str] = PARTS,
    machine: Machine | None = None,
    tell: Tell | None = None,
) -> BenchReport:
    """Measure `parts` in one run and return the figures. folder: where scenes, stores and exports of the bench go; stays.

    job: what is rendered, default the small demo city. frames: of the flight, default all of it. simulated_frames: of the
    scheduling bench (10,000 take some nine minutes; the report says what a shorter run says of 10,000). tell: gets one line a step.
    Raises ConfigError for an unknown part, and as `run_render`.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ConfigError(f"bench {', '.join(unknown)}: no such part", remedy=f"parts are {', '.join(PARTS)}")
    machine = machine or describe_machine()
    bench = _Bench(folder, machine, tell or (lambda line: None))
    folder.mkdir(parents=True, exist_ok=True)
    if {"render", "write", "export"} & set(parts):
        bench.choose(job, frames)
        bench.render()
        if "write" in parts:
            bench.write()
        if "export" in parts:
            bench.export()
    if "scheduling" in parts:
        bench.scheduling(simulated_frames, simulated_seconds)
    return BenchReport(tuple(bench.rows), tuple(bench.bars), bench.described, machine.as_dict())


class _Bench:
    def __init__(self, folder: Path, machine: Machine, tell: Tell) -> None:
        self.folder = folder
        self.machine = machine
        self.tell = tell
        self.rows: list[BenchRow] = []
        self.bars: list[BenchBar] = []
        self.described: dict[str, Any] = {}

    def add(self, part: str, what: str, value: float, unit: str, note: str = "") -> None:
        self.rows.append(BenchRow(part, what, value, unit, note))

    def choose(self, job: RenderJob | None, frames: int | None) -> None:
        """The job that is measured, its store in the bench's folder."""
        if job is None:
            from landmark_batch.scene.demo import write_demo

            with self._timed("making the demo city") as took:
                job = load_job(write_demo(self.folder / "demo").job)
            self.add("demo", "scene, flight and job", took[0], "s")
        request = scene_request(job, choose_device(job.parallel, self.machine))
        wanted = request.wanted[:frames] if frames else request.wanted
        output = job.output.model_copy(update={"store": self.folder / "bench.zarr"})
        cameras = job.cameras.model_copy(update={"frames": format_frame_ranges(wanted)})
        job = job.model_copy(update={"output": output, "cameras": cameras})
        self.job, self.request = job, replace(request, job=job, wanted=wanted)
        self.placement, _ = place_workers(job.parallel, self.machine, device=request.device, worker_memory=request.worker_memory)
        self.described = {
            "name": job.name,
            "frames": len(wanted),
            "width": request.spec.width,
            "height": request.spec.height,
            "samples": request.samples,
            "mode": request.mode,
            "runtime": request.runtime,
            "precision": request.precision,
            "device": self.placement.device_name,
            "workers": self.placement.workers,
        }

    def render(self) -> None:
        """Bare rendering, half of it before the job and half after, so that a machine that drifts drifts for both."""
        wanted = self.request.wanted
        half = (len(wanted) + 1) // 2
        self.tell(f"bare rendering, {half} frames")
        bare = time_bare(self.request, self.placement, wanted[:half])
        self.tell(f"the job, {len(wanted)} frames on {self.placement.workers} workers")
        result = self._job()
        self.tell(f"bare rendering, {len(wanted) - half} frames")
        bare += time_bare(self.request, self.placement, wanted[half:]) if len(wanted) > half else 0.0
        count, wall = len(wanted), result.seconds - result.startup_seconds
        self.add("render", "bare renderer", count / bare, "frames/s", f"{bare:.2f} s; {_on(self.placement)}, no store")
        self.add("render", "job", count / wall, "frames/s", f"{wall:.2f} s, first chunk to end; {self.placement.workers} workers")
        self.add("render", "start-up of the job", result.startup_seconds, "s", "plan, store, workers, scene; not in the line above")
        for stage in ("render", "quantise", "copy", "wait", "encode", "write", "idle"):
            self.add("render", f"  {stage}, over all workers", result.stages.get(stage, 0.0), "s")
        self.bars.append(BenchBar("job / bare rendering", wall / bare, JOB_BAR))

    def _job(self) -> RenderResult:
        result = run_render(self.job, overwrite=True, dashboard=False, machine=self.machine)
        error = result.error()
        if error is not None:
            raise error
        return result

    def write(self) -> None:
        """The frames of the job, committed again by one writer, in chunks of the job."""
        store = FrameStore.open(self.job.store_path)
        spec, wanted = store.spec, self.request.wanted
        target = FrameStore.create(
            _fresh(self.folder / "write.zarr"), spec, self.request.flight, self.request.settings, info=self.request.info
        )
        self.tell(f"store writing, {len(wanted)} frames")
        reading = writing = 0.0
        size = 0
        with target.writer("bench") as writer:
            for chunk in split_frames(wanted, max(self.job.output.chunk_frames, spec.commit_unit)):
                before = time.perf_counter()
                pixels = {name: np.stack([store.read(name, frame) for frame in chunk.frames]) for name in spec.names}
                reading += time.perf_counter() - before
                receipt = writer.commit(chunk.frames, pixels, ["0" * 64] * len(chunk.frames), seconds=0.0)
                writing += receipt.write_seconds
                size += receipt.bytes
        raw = spec.bytes_per_frame * len(wanted)
        self.add("write", "store writing", len(wanted) / writing, "frames/s", "one process; encoded, fsynced, recorded")
        self.add("write", "  uncompressed", raw / writing / 1e6, "MB/s", f"compressed {raw / max(1, size):.2f} : 1")
        self.add("write", "store reading", raw / reading / 1e6, "MB/s", "one process; decoded")

    def export(self) -> None:
        from landmark_batch.workflows.export import export_images, export_video

        store, count = self.job.store_path, len(self.request.wanted)
        if "rgb" not in self.request.spec.names:
            return
        self.tell(f"export of {count} images and a film")
        images = export_images(store, _fresh(self.folder / "images"), frames=self.request.wanted, force=True)
        self.add("export", "images, png", count / images.seconds, "frames/s", f"{images.bytes / 1e6:.1f} MB")
        film = export_video(store, self.folder / "bench.mp4", frames=self.request.wanted, job_fps=self.job.video.fps)
        self.add("export", f"film, {film.codec}", count / film.seconds, "frames/s", f"{film.bytes / 1e6:.2f} MB")

    def scheduling(self, frames: int, seconds: float) -> None:
        cost = measure_scheduling(_fresh(self.folder / "simulated.zarr"), frames, seconds, machine=self.machine, tell=self.tell)
        note = f"{frames} frames of {1000 * seconds:.0f} ms, chunks of {SIMULATED_CHUNK}, {cost.workers} workers"
        self.add("scheduling", "between two chunks of a worker", 1000 * cost.per_chunk(), "ms", note)
        self.add("scheduling", "waiting between chunks", 100 * cost.scheduling_share, "%", "of rendering")
        self.add("scheduling", "everything but rendering", 100 * cost.share, "%", f"of this run; its tail alone {cost.tail:.2f} s")
        if frames != FULL_FRAMES:
            self.add(
                "scheduling",
                f"  the same for {FULL_FRAMES:,} frames",
                100 * cost.share_of(FULL_FRAMES),
                "%",
                "extrapolated: cost of a chunk × chunks, one tail",
            )
        self.bars.append(BenchBar(f"scheduling of {FULL_FRAMES:,} frames / rendering", cost.share_of(FULL_FRAMES), SCHEDULING_BAR))

    @contextmanager
    def _timed(self, what: str) -> Iterator[list[float]]:
        self.tell(what)
        took = [0.0]
        started = time.perf_counter()
        yield took
        took[0] = time.perf_counter() - started


def time_bare(request: RenderRequest, placement: Placement, frames: Sequence[int]) -> float:
    """Seconds to render frames with nothing around the renderer: one process, all cores of the job's workers (or its first GPU).

    On several GPUs the time of one is divided by their number: the job can be no faster.
    """
    from landmark_batch.workflows.renderers import open_renderer

    threads = placement.workers * placement.threads
    renderer, _ = open_renderer(request.renderer, request.job, request.device, threads)
    flight = request.flight
    lenses = [tuple(float(value) for value in lens) for lens in flight.intrinsics]
    renderer.render(flight.c2w[frames[0]], lenses[frames[0]], min(32, flight.width), min(32, flight.height)).numpy()  # libraries load
    started = time.perf_counter()
    for frame in frames:
        renderer.render(flight.c2w[frame], lenses[frame], flight.width, flight.height).numpy()
    return (time.perf_counter() - started) / max(1, len(placement.gpus))


def measure_scheduling(
    store: Path, frames: int, seconds: float, *, machine: Machine | None = None, tell: Tell | None = None, workers: int = SIMULATED_WORKERS
) -> SchedulingCost:
    """Run a simulated job and take its time apart. store: is made there. Raises as `run_render`."""
    machine = machine or describe_machine()
    job = simulated_job(store, chunk_frames=SIMULATED_CHUNK, workers=workers)
    if tell is not None:
        tell(f"scheduling: {frames} simulated frames of {1000 * seconds:.0f} ms on {workers} workers, {frames * seconds / workers:.0f} s")
    chunks = 0

    def count(event: object) -> None:
        nonlocal chunks
        chunks += type(event).__name__ == "ChunkDone"

    result = run_render(job, request=simulated_request(job, frames, seconds), machine=machine, dashboard=False, sinks=[count])
    error = result.error()
    if error is not None:
        raise error
    return scheduling_cost(result, chunks, seconds)


def _fresh(path: Path) -> Path:
    """A path beside earlier ones where nothing is."""
    for number in range(1_000_000):
        candidate = path if number == 0 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not candidate.exists():
            return candidate
    raise ConfigError(f"{path.parent}: too many earlier benches", remedy="empty that folder")


def _on(placement: Placement) -> str:
    if placement.gpus:
        return f"one GPU, divided by {len(placement.gpus)}" if len(placement.gpus) > 1 else "one GPU"
    threads = placement.workers * placement.threads
    return f"{threads} thread{'s' * (threads > 1)}"


def _digits(value: float) -> int:
    return 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0
