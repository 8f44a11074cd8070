"""bench job, part render: the whole job beside its bare renderer, with overlap and without, with images, on all devices; memory; disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from landmark_batch.events import ChunkStarted, Event
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import ImagesSection, RenderJob
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.bench_report import Findings
from landmark_batch.workflows.bench_usage import UsageWatch
from landmark_batch.workflows.export_session import ExportResult, ExportSession
from landmark_batch.workflows.machine import Machine, Placement, place_workers
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.request import RenderRequest
from landmark_batch.workflows.result import RenderResult
from landmark_batch.workflows.warm import WarmStart
from landmark_batch.workflows.worker import kernel_source

PART = "render"
JOB_BAR, EXPORT_BAR = 1.10, 1.15  # wall time from first to last frame over bare kernels, on GPUs
LINEAR_BAR = 0.95  # frames/s of n devices over n times those of one
FLAT_BAR = 1.1  # workers' memory at the end over that at a quarter
DISK_SHARE = 0.5  # of the disk's rate that a job may need before the disk counts as its limit
MEMORY_FILES = Path("/dev/shm")
DISK_BYTES = 64 * 2**20
STAGES = ("render", "quantise", "copy", "wait", "encode", "write", "idle")


@dataclass(frozen=True)
class JobRun:
    """wall: seconds from the first frame's beginning to the last one's receipt, and to the last image where there are any: not to the
    command's end, in either case. watch: its memory.
    """

    result: RenderResult
    wall: float
    watch: UsageWatch
    bytes: int

    @property
    def rate(self) -> float:
        return self.result.rendered / self.wall


class JobBench:
    """Measures one job on one placement. folder: for stores and images. warm: workers are forked from it."""

    def __init__(
        self,
        folder: Path,
        job: RenderJob,
        request: RenderRequest,
        placement: Placement,
        machine: Machine,
        found: Findings,
        warm: WarmStart | None = None,
    ) -> None:
        self.folder, self.job, self.request = folder, job, request
        self.placement, self.machine, self.found, self.warm = placement, machine, found, warm

    def measure(self) -> None:
        """Bare rendering, half of it before the jobs and half after, so that a machine that drifts drifts for both."""
        wanted, found = self.request.wanted, self.found
        half = (len(wanted) + 1) // 2
        found.tell(f"bare rendering, {half} frames")
        bare = time_bare(self.request, self.placement, wanted[:half])
        plain = self._run("the job", self.job)
        images = self._run("the job with PNG export beside it", self._beside("images"), images=True) if self._has_rgb else None
        found.tell(f"bare rendering, {len(wanted) - half} frames")
        bare += time_bare(self.request, self.placement, wanted[half:]) if len(wanted) > half else 0.0
        alone = self._run("the job, overlap off", self._beside("alone", overlap=False))
        self._tell_rates(bare, plain, images, alone)
        self._tell_memory(plain)
        self._tell_disk(bare, plain)
        self._devices()

    @property
    def _has_rgb(self) -> bool:
        return "rgb" in self.request.spec.names

    def _beside(self, name: str, *, overlap: bool = True, workers: int | None = None, folder: Path | None = None) -> RenderJob:
        store = (folder or self.folder) / f"bench-{name}.zarr"
        output = self.job.output.model_copy(update={"store": store})
        changed = {"overlap": overlap, **({} if workers is None else {"workers": workers, "gpus": None})}
        parallel = self.job.parallel.model_copy(update=changed)
        return self.job.model_copy(update={"output": output, "parallel": parallel, "images": ImagesSection()})  # PNGs, beside the store

    def _run(self, what: str, job: RenderJob, *, images: bool = False) -> JobRun:
        wanted = self.request.wanted
        self.found.tell(f"{what}, {len(wanted)} frames")
        sessions: list[ExportSession] = []
        first: list[float] = []

        def begun(event: Event) -> None:
            if isinstance(event, ChunkStarted) and not first:
                first.append(event.at)

        def exports(frames: tuple[int, ...], todo: tuple[int, ...]) -> ExportSession:
            session = ExportSession.of_job(job, frames=frames, pending=todo, images=True, latest=False, kernels=kernel_source())
            sessions.append(session)
            return session

        with UsageWatch(len(wanted)) as watch, ExitStack() as stack:
            options = {"exports": exports} if images else {}
            stack.callback(_abort, sessions)
            result = run_render(
                job,
                overwrite=True,
                dashboard=False,
                machine=self.machine,
                sinks=[watch, begun],
                warm=self.warm,
                **options,  # type: ignore[arg-type]
            )
            error = result.error()
            if error is not None:
                raise error
            wall = result.render_seconds
            if sessions:
                wall = max(wall, _last_image(sessions[0].finish()) - first[0])
        store = FrameStore.open(job.store_path)
        return JobRun(result, wall, watch, int((store.measured_bytes_per_frame() or 0.0) * len(wanted)))

    def _tell_rates(self, bare: float, plain: JobRun, images: JobRun | None, alone: JobRun) -> None:
        found, count, placement = self.found, len(self.request.wanted), self.placement
        workers = f"{placement.workers} worker{'s' * (placement.workers > 1)}"
        found.add(PART, "bare renderer", count / bare, "frames/s", f"{bare:.2f} s; {_on(placement)}, no store")
        found.add(PART, "job", plain.rate, "frames/s", f"{plain.wall:.2f} s, first frame to last; {workers}")
        found.add(PART, "job / bare rendering", plain.wall / bare, "× the time", "" if placement.gpus else "processes against threads")
        for stage in STAGES:
            found.add(PART, f"  {stage}, over all workers", plain.result.stages.get(stage, 0.0), "s")
        if images is not None:
            found.add(PART, "job with PNG export beside it", images.rate, "frames/s", f"{images.wall:.2f} s, first frame to last image")
            found.add(PART, "  over bare rendering", images.wall / bare, "× the time")
        found.add(PART, "job, overlap off", alone.rate, "frames/s", f"{alone.wall:.2f} s; one step after the other")
        found.add(PART, "  overlap on / off", plain.wall / alone.wall, "× the time")
        same = _digests(self.job.store_path) == _digests(alone.result.store)
        found.add(PART, "  frames that overlap changes", 0.0 if same else float(count), "frames", "by digest of their pixels")
        if placement.gpus:
            found.bar("job / bare rendering", plain.wall / bare, JOB_BAR)
            if images is not None:
                found.bar("job with PNG export / bare rendering", images.wall / bare, EXPORT_BAR)

    def _tell_memory(self, plain: JobRun) -> None:
        watch = plain.watch
        told = ", ".join(f"{usage.done}: {usage.memory[1] / 2**20:.0f}" for usage in watch.at)
        self.found.add(PART, "memory of all workers, largest", watch.peak / 2**20, "MiB", f"when so many frames stood: {told}")
        mine = [usage.memory[0] / 2**20 for usage in watch.at]
        if mine:
            self.found.add(PART, "memory of this process (client, scheduler, driver)", mine[-1], "MiB", f"{mine[0]:.0f} at the first frame")
        if len(watch.at) > 1 and watch.at[1].memory[1]:
            self.found.bar("memory of workers, end / a quarter of the run", watch.at[-1].memory[1] / watch.at[1].memory[1], FLAT_BAR)

    def _tell_disk(self, bare: float, plain: JobRun) -> None:
        found = self.found
        found.tell("the disk")
        rate, wrote, needed = disk_rate(self.folder), plain.bytes / plain.wall, plain.bytes / bare
        found.add(PART, "disk, files of the frames' size, fsynced", rate / 1e6, "MB/s", f"in {self.folder}")
        found.add(PART, "  the job wrote", wrote / 1e6, "MB/s", f"{100 * wrote / rate:.0f} % of that")
        found.add(PART, "  bare rendering makes", needed / 1e6, "MB/s", f"{100 * needed / rate:.0f} % of it")
        if needed < DISK_SHARE * rate or self.folder.resolve().is_relative_to(MEMORY_FILES):
            return
        if not os.access(MEMORY_FILES, os.W_OK) or shutil.disk_usage(MEMORY_FILES).free < 4 * plain.bytes:
            found.add(PART, "  on a memory file system", 0.0, "frames/s", f"not measured: no room in {MEMORY_FILES}")
            return
        with tempfile.TemporaryDirectory(prefix="landmark-batch-bench-", dir=MEMORY_FILES) as folder:
            memory = self._run(f"the job, its store in {MEMORY_FILES}", self._beside("memory", folder=Path(folder)))
            images = None
            if self._has_rgb:
                what = f"the job with PNG export, both in {MEMORY_FILES}"
                images = self._run(what, self._beside("memory-images", folder=Path(folder)), images=True)
        found.add(
            PART, "  on a memory file system", memory.rate, "frames/s", f"{memory.wall:.2f} s; {plain.wall / memory.wall:.2f} × as fast"
        )
        found.add(PART, "    over bare rendering", memory.wall / bare, "× the time")
        if images is not None:
            found.add(PART, "    with PNG export beside it", images.rate, "frames/s", f"{images.wall:.2f} s, first frame to last image")
            found.add(PART, "    over bare rendering", images.wall / bare, "× the time")
        if self.placement.gpus:
            found.bar("on a memory file system, job / bare rendering", memory.wall / bare, JOB_BAR)
            if images is not None:
                found.bar("on a memory file system, job with PNG export / bare rendering", images.wall / bare, EXPORT_BAR)

    def _devices(self) -> None:
        """The whole job on 1, 2, 4, ... of several devices."""
        count = len(self.placement.gpus)
        if count < 2 or self.placement.group_size > 1:
            return
        rates: dict[int, float] = {}
        for number in [*(n for n in (1, 2, 4, 8, 16) if n < count), count]:
            job = self._beside(f"{number}-devices", workers=number)
            rates[number] = self._run(f"the job on {number} of {count} devices", job).rate
            share = rates[number] / (number * rates[1])
            self.found.add(PART, f"job on {number} device{'s' * (number > 1)}", rates[number], "frames/s", f"{share:.3f} of linear")
            if number > 1:
                self.found.bar(f"linear / measured frames/s of {number} devices", 1 / share, round(1 / LINEAR_BAR, 3))


def _last_image(made: ExportResult) -> float:
    """When the last one got its name, by time.time(): a rename changes a file's status."""
    return max(path.stat().st_ctime for report in made.images for path in report.folder.rglob("*.png"))


def _abort(sessions: Sequence[ExportSession]) -> None:
    for session in sessions:
        session.abort()


def time_bare(request: RenderRequest, placement: Placement, frames: Sequence[int]) -> float:
    """Seconds to render frames with nothing around the renderer: one process, all cores of the job's workers (or its first GPU, which
    keeps the pixels to itself).

    On several GPUs the time of one is divided by their number: the job can be no faster.
    """
    from landmark_batch.workflows.ahead import FramesAhead, frames_ahead
    from landmark_batch.workflows.renderers import open_renderer

    threads = placement.workers * placement.threads
    renderer, _ = open_renderer(request.renderer, request.job, request.device, threads)
    flight = request.flight
    lenses = [tuple(float(value) for value in lens) for lens in flight.intrinsics]
    renderer.render(flight.c2w[frames[0]], lenses[frames[0]], min(32, flight.width), min(32, flight.height)).numpy()  # libraries load
    cameras = ((frame, (flight.c2w[frame], lenses[frame], flight.width, flight.height)) for frame in frames)
    started = time.perf_counter()
    for _ in FramesAhead(renderer, ahead=frames_ahead(flight.width * flight.height)).frames(cameras):
        pass  # its pixels stay where they were rendered
    return (time.perf_counter() - started) / max(1, len(placement.gpus))


def disk_rate(folder: Path, size: int = DISK_BYTES, files: int = 16) -> float:
    """Bytes a second that `folder` takes: `files` files of random bytes, each fsynced, `size` bytes in all."""
    data = os.urandom(size // files)
    with tempfile.TemporaryDirectory(prefix="disk-", dir=folder) as place:
        started = time.perf_counter()
        for number in range(files):
            with (Path(place) / str(number)).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        return len(data) * files / (time.perf_counter() - started)


def _digests(store: StorePath) -> dict[int, dict[str, str]]:
    return {frame: dict(record.digests) for frame, record in FrameStore.open(store).finished().items()}


def _on(placement: Placement) -> str:
    if placement.gpus:
        return f"one GPU, divided by {len(placement.gpus)}" if len(placement.gpus) > 1 else "one GPU"
    threads = placement.workers * placement.threads
    return f"{threads} thread{'s' * (threads > 1)}"


def place(job: RenderJob, request: RenderRequest, machine: Machine) -> Placement:
    """Where a job's workers go on this machine."""
    placement, _ = place_workers(job.parallel, machine, device=request.device, worker_memory=request.worker_memory)
    return placement
