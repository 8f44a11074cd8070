"""bench job: what rendering costs bare and as a job, what storing, exporting, starting and scheduling add; one run, one table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from landmark_batch.chunks import format_frame_ranges, split_frames
from landmark_batch.errors import ConfigError
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob, load_job
from landmark_batch.workflows.bench_commands import Launch
from landmark_batch.workflows.bench_job import JobBench, place
from landmark_batch.workflows.bench_report import BenchReport, Findings, Tell
from landmark_batch.workflows.bench_scale import LEFT_OUT, bench_scheduling
from landmark_batch.workflows.bench_start import StartBench, fresh_path
from landmark_batch.workflows.in_hand import chunk_frames
from landmark_batch.workflows.machine import Machine, choose_device, describe_machine
from landmark_batch.workflows.request import scene_request
from landmark_batch.workflows.warm import WarmStart

PARTS = ("render", "start", "write", "export", "scheduling")
DEMO_FRAMES = 24  # of the demo's flight, where nobody says how many


def run_bench(
    folder: Path,
    job: RenderJob | None = None,
    *,
    frames: int | None = None,
    simulated_frames: int = 2560,
    simulated_seconds: float = 0.01,
    simulated_chunk: int = 128,
    parts: Sequence[str] = PARTS,
    settings: Sequence[str] = (),
    machine: Machine | None = None,
    launch: Launch | None = None,
    tell: Tell | None = None,
    warm: WarmStart | None = None,
) -> BenchReport:
    """Measure `parts` in one run and return the figures. folder: where scenes, stores and exports of the bench go; stays.

    job: what is rendered, default the small demo city. frames: of the flight, default all of it (24 of the demo's). simulated_*: frames
    of the scheduling bench, what each takes, and how many make a chunk (100,000 of 10 ms take some nine minutes; a shorter run says
    what they would take). settings: SECTION.KEY=VALUE that changed the job file, for commands. launch: starts commands of this
    program; without it nothing is said of what takes a command: part start, and resume and status in part scheduling. tell: gets
    one line a step. warm: jobs fork their workers from it, as `render` does.
    Raises ConfigError for an unknown part, and as `run_render`.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ConfigError(f"bench {', '.join(unknown)}: no such part", remedy=f"parts are {', '.join(PARTS)}")
    machine = machine or describe_machine()
    found = Findings(tell)
    bench = _Bench(folder, machine, found, launch, warm)
    folder.mkdir(parents=True, exist_ok=True)
    if set(parts) - {"scheduling"}:
        bench.choose(job, frames)
    if {"render", "write", "export"} & set(parts):
        bench.render()
    if "start" in parts and launch is not None:
        bench.start(launch, settings)
    if "write" in parts:
        bench.write()
    if "export" in parts:
        bench.export()
    if "scheduling" in parts:
        demo = bench.demo() if launch is not None and simulated_frames > LEFT_OUT else None  # else there is no store to go on with
        place_ = fresh_path(folder / "simulated")
        place_.mkdir()
        bench_scheduling(place_, simulated_frames, simulated_seconds, simulated_chunk, found, machine=machine, demo=demo, launch=launch)
    return BenchReport(tuple(found.rows), tuple(found.bars), bench.described, machine.as_dict())


class _Bench:
    def __init__(self, folder: Path, machine: Machine, found: Findings, launch: Launch | None, warm: WarmStart | None) -> None:
        self.folder = folder
        self.machine = machine
        self.found = found
        self.launch = launch
        self.warm = warm
        self.described: dict[str, Any] = {}
        self._demo: Path | None = None

    def demo(self) -> Path:
        """The job file of the small demo city, made once."""
        if self._demo is None:
            from landmark_batch.scene.demo import write_demo

            with self._timed("making the demo city") as took:
                self._demo = write_demo(self.folder / "demo").job
            self.found.add("demo", "scene, flight and job", took[0], "s")
        return self._demo

    def choose(self, job: RenderJob | None, frames: int | None) -> None:
        """The job that is measured, its store in the bench's folder."""
        if job is None:
            job, frames = load_job(self.demo()), frames or DEMO_FRAMES
        request = scene_request(job, choose_device(job.parallel, self.machine))
        wanted = request.wanted[:frames] if frames else request.wanted
        output = job.output.model_copy(update={"store": self.folder / "bench.zarr"})
        cameras = job.cameras.model_copy(update={"frames": format_frame_ranges(wanted)})
        job = job.model_copy(update={"output": output, "cameras": cameras})
        self.job, self.request = job, replace(request, job=job, wanted=wanted)
        self.placement = place(job, request, self.machine)
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
        JobBench(self.folder, self.job, self.request, self.placement, self.machine, self.found, self.warm).measure()

    def start(self, launch: Launch, settings: Sequence[str]) -> None:
        StartBench(self.folder, self.job, self.request, self.placement, self.found, launch, settings).measure()

    def write(self) -> None:
        """The frames of the job, committed again by one writer, in chunks of the job."""
        store = FrameStore.open(self.job.store_path)
        spec, wanted = store.spec, self.request.wanted
        target = FrameStore.create(
            fresh_path(self.folder / "write.zarr"), spec, self.request.flight, self.request.settings, info=self.request.info
        )
        self.found.tell(f"store writing, {len(wanted)} frames")
        reading = writing = 0.0
        size = 0
        with target.writer("bench") as writer:
            for chunk in split_frames(wanted, max(chunk_frames(self.request), spec.commit_unit)):
                before = time.perf_counter()
                pixels = {name: np.stack([store.read(name, frame) for frame in chunk.frames]) for name in spec.names}
                reading += time.perf_counter() - before
                receipt = writer.commit(chunk.frames, pixels, ["0" * 64] * len(chunk.frames), seconds=0.0)
                writing += receipt.write_seconds
                size += receipt.bytes
        raw = spec.bytes_per_frame * len(wanted)
        self.found.add("write", "store writing", len(wanted) / writing, "frames/s", "one process; encoded, fsynced, recorded")
        self.found.add("write", "  uncompressed", raw / writing / 1e6, "MB/s", f"compressed {raw / max(1, size):.2f} : 1")
        self.found.add("write", "store reading", raw / reading / 1e6, "MB/s", "one process; decoded")

    def export(self) -> None:
        from landmark_batch.workflows.export import export_images, export_video

        store, count = self.job.store_path, len(self.request.wanted)
        if "rgb" not in self.request.spec.names:
            return
        self.found.tell(f"export of {count} images and a film")
        images = export_images(store, fresh_path(self.folder / "images"), frames=self.request.wanted, force=True)
        self.found.add("export", "images, png", count / images.seconds, "frames/s", f"{images.bytes / 1e6:.1f} MB")
        film = export_video(store, self.folder / "bench.mp4", frames=self.request.wanted, job_fps=self.job.video.fps)
        self.found.add("export", f"film, {film.codec}", count / film.seconds, "frames/s", f"{film.bytes / 1e6:.2f} MB")

    @contextmanager
    def _timed(self, what: str) -> Iterator[list[float]]:
        self.found.tell(what)
        took = [0.0]
        started = time.perf_counter()
        yield took
        took[0] = time.perf_counter() - started
