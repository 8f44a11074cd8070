"""bench job, part scheduling: a long flight of simulated frames; what a job adds to them, and what goes on with its store."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.formats import flight_of_job
from landmark_batch.cameras.write import write_transforms
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob, load_job
from landmark_batch.workflows.bench_commands import Launch, TimedCommand, time_command
from landmark_batch.workflows.bench_report import Findings
from landmark_batch.workflows.bench_usage import UsageWatch
from landmark_batch.workflows.machine import Machine
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.request import RenderRequest, scene_request
from landmark_batch.workflows.simulated import (
    FULL_FRAMES,
    HEIGHT,
    WIDTH,
    SchedulingCost,
    scheduling_cost,
    simulated,
    simulated_job,
    simulated_request,
)

PART = "scheduling"
WORKERS = 2
SCHEDULING_BAR = 0.01  # of rendering
FLAT_BAR = 1.1  # memory at the end over that at a quarter
RESUME_BAR = 10.0  # seconds
STATUS_BAR = 3.0
LEFT_OUT = 1000  # frames that a stopped run lacks
SHIFT = 1e-6  # scene units between two rounds of a flight, so that no two of its frames are the same


def bench_scheduling(
    folder: Path,
    frames: int,
    seconds: float,
    chunk: int,
    found: Findings,
    *,
    machine: Machine,
    demo: Path | None = None,
    launch: Launch | None = None,
) -> None:
    """Run `frames` simulated frames of `seconds` each in chunks of `chunk` on two workers, into a store in `folder`.

    With demo (its job file) and launch the store is the one that `render` of that scene's flight would make, so that the time in which
    `render` and `status` answer on it is measured too, by these commands. Raises as `run_render`.
    """
    store = folder / "simulated.zarr"
    job = simulated_job(store, chunk_frames=chunk, workers=WORKERS)
    words: list[str] = []
    if demo is not None and launch is not None:
        job, words = _job_of_demo(demo, folder, frames, chunk, store)
        request = simulated(scene_request(job, "cpu"), seconds)
    else:
        request = simulated_request(job, frames, seconds)
    found.tell(f"scheduling: {frames} simulated frames of {1000 * seconds:.0f} ms on {WORKERS} workers, {frames * seconds / WORKERS:.0f} s")
    _run(request, seconds, chunk, found, machine)
    if launch is not None and words:
        _go_on(words, store, frames, found, launch, folder)


def _run(request: RenderRequest, seconds: float, chunk: int, found: Findings, machine: Machine) -> None:
    frames = len(request.wanted)
    with UsageWatch(frames, every=10.0) as watch:  # its looks count as the client's own time
        result = run_render(request.job, request=request, machine=machine, dashboard=False, sinks=[watch])
    error = result.error()
    if error is not None:
        raise error
    cost = scheduling_cost(result, watch.chunks, seconds)
    _tell_cost(cost, found, f"{frames:,} frames of {1000 * seconds:.0f} ms, chunks of {chunk}, {cost.workers} workers", frames)
    cpu = watch.client_cpu / cost.rendering
    found.add(
        PART, "CPU of client, scheduler and driver", 100 * cpu, "%", f"of rendering; {watch.client_cpu:.2f} s from the first chunk on"
    )
    theirs = watch.at[-1].cpu[1] - watch.at[0].cpu[1]
    found.add(PART, "CPU of workers, pixels and files included", 100 * theirs / cost.rendering, "%", f"of rendering; {theirs:.2f} s")
    for name, which in (("client, scheduler and driver", 0), ("workers", 1)):
        told = ", ".join(f"{usage.done:,}: {usage.memory[which] / 2**20:.0f}" for usage in watch.at)
        found.add(PART, f"memory of {name}", watch.at[-1].memory[which] / 2**20, "MiB", f"when so many frames stood: {told}")
    found.bar("scheduling, ledger, progress: workers wait / rendering", cost.scheduling_share, SCHEDULING_BAR)
    found.bar("CPU of client, scheduler and driver / rendering", cpu, SCHEDULING_BAR)
    found.bar("memory of client and scheduler, end / a quarter of the run", watch.at[-1].memory[0] / watch.at[1].memory[0], FLAT_BAR)


def _tell_cost(cost: SchedulingCost, found: Findings, note: str, frames: int) -> None:
    found.add(PART, "between two chunks of a worker", 1000 * cost.per_chunk(), "ms", note)
    found.add(PART, "workers wait", 100 * cost.scheduling_share, "%", "of rendering: for chunks, copies and the writer")
    found.add(
        PART, "sleeps that overran", 100 * cost.late / cost.rendering, "%", "of rendering: the machine, and what runs beside in a worker"
    )
    found.add(PART, "everything but rendering", 100 * cost.share, "%", f"of this run; its tail alone {cost.tail:.2f} s")
    if frames != FULL_FRAMES:
        full = 100 * cost.share_of(FULL_FRAMES)
        found.add(PART, f"  the same for {FULL_FRAMES:,} frames", full, "%", "extrapolated: cost of a chunk × chunks, one tail")


def _job_of_demo(demo: Path, folder: Path, frames: int, chunk: int, store: Path) -> tuple[RenderJob, list[str]]:
    """The demo's job with a flight of so many small frames; the words that name it on a command line."""
    settings = [
        f"output.chunk_frames={chunk}",
        "output.rgb=uint8",
        f"parallel.workers={WORKERS}",
        "parallel.device=cpu",
        "model.runtime=torch",
        "sampling.samples=16",
    ]
    cameras = write_transforms(_long_flight(flight_of_job(load_job(demo)), frames), folder / "simulated.json")
    job = load_job(demo, settings)
    output = job.output.model_copy(update={"store": store})
    section = job.cameras.model_copy(update={"file": cameras, "frames": None, "width": None, "height": None, "focal": None})
    named = [word for setting in settings for word in ("--set", setting)]
    return job.model_copy(update={"output": output, "cameras": section}), [str(demo), "--cameras", str(cameras), "-o", str(store), *named]


def _long_flight(flight: Flight, frames: int) -> Flight:
    """A flight again and again, small, each round a little higher."""
    count = len(flight)
    c2w = np.tile(flight.c2w, (-(-frames // count), 1, 1))[:frames]
    c2w[:, 2, 3] += SHIFT * (np.arange(frames) // count)
    lens = np.array([WIDTH, WIDTH, WIDTH / 2, HEIGHT / 2], np.float64)
    return replace(
        flight,
        c2w=c2w,
        intrinsics=np.tile(lens, (frames, 1)),
        width=WIDTH,
        height=HEIGHT,
        time=np.arange(frames) / 24.0,
        names=tuple(f"frame_{i:06d}" for i in range(frames)),
    )


def _go_on(words: list[str], store: Path, frames: int, found: Findings, launch: Launch, folder: Path) -> None:
    """What `render` and `status` take on the finished store, and `render` when its last frames are missing."""
    log, output = store.with_suffix(".log"), folder / "command.txt"
    render = ["render", *words, "--no-dashboard", "--no-latest"]
    found.tell("the same render again, in a new process: nothing to do")
    again = time_command(launch, render, output, log=log)
    _told(found, f"render of {frames:,} frames that stand, from command to its end", again)
    found.bar(f"resume of {frames:,} frames that stand", again.seconds, RESUME_BAR, "s")
    found.tell("status")
    status = time_command(launch, ["status", str(store)], output)
    _told(found, f"status of {frames:,} frames", status)
    found.bar(f"status of {frames:,} frames", status.seconds, STATUS_BAR, "s")
    left = range(max(0, frames - LEFT_OUT), frames)
    found.tell(f"render with the last {len(left)} frames missing")
    with StoreOwner.acquire(store):
        FrameStore.open(store).discard(left, "left out by the bench")
    time.sleep(0.1)
    rest = time_command(launch, render, output, log=log)
    first = rest.first("ChunkStarted")
    if first is not None:
        note = f"{len(left)} frames missing, rendered by the scene's renderer; the whole command {rest.seconds:.2f} s"
        found.add(PART, "render that goes on, from command to first chunk", first, "s", note)
        found.bar(f"resume of {frames:,} frames, {len(left)} missing, to the first chunk", first, RESUME_BAR, "s")


def _told(found: Findings, what: str, run: TimedCommand) -> None:
    found.add(PART, what, run.seconds, "s", f"CPU {run.cpu:.2f} s")
