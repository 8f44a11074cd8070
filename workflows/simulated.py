"""A job whose frames take a fixed time and cost nothing: what is left is the price of scheduling, ledger and store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from landmark_batch.cameras.flight import Flight
from landmark_batch.frames.fingerprint import FrameSettings
from landmark_batch.job import RenderJob, job_from_dict
from landmark_batch.workflows.request import RenderRequest, store_info, store_spec
from landmark_batch.workflows.result import RenderResult

WIDTH, HEIGHT = 32, 18
FULL_FRAMES = 100_000  # of the run that figures are given for


def simulated_job(store: Path, *, chunk_frames: int, workers: int) -> RenderJob:
    return job_from_dict(
        {
            "name": "simulated",
            "parallel": {"device": "cpu", "workers": workers},
            "output": {"store": str(store), "chunk_frames": chunk_frames},
        }
    )


def simulated_request(job: RenderJob, frames: int, seconds: float) -> RenderRequest:
    """A request for `frames` small frames of `seconds` each, rendered by SimulatedRenderer in the workers."""
    c2w = np.tile(np.eye(3, 4), (frames, 1, 1))
    c2w[:, 0, 3] = np.arange(frames)
    flight = Flight(
        c2w=c2w,
        intrinsics=np.tile(np.array([WIDTH, WIDTH, WIDTH / 2, HEIGHT / 2], np.float64), (frames, 1)),
        width=WIDTH,
        height=HEIGHT,
        time=np.arange(frames) / 24.0,
        names=tuple(f"frame_{i:05d}" for i in range(frames)),
        fps=24.0,
        source="simulated",
    )
    return RenderRequest(
        job=job,
        flight=flight,
        wanted=tuple(range(frames)),
        settings=FrameSettings({"renderer": "simulated"}),
        spec=store_spec(job, flight),
        info=store_info(job, flight),
        device="cpu",
        renderer={"kind": "simulated", "seconds": seconds},
        runtime="simulated",
    )


def simulated(request: RenderRequest, seconds: float) -> RenderRequest:
    """A job's own request, its frames taking `seconds` each and showing nothing: for a store that the job's own commands know."""
    return replace(request, renderer={"kind": "simulated", "seconds": seconds}, scene="", worker_memory=0)


@dataclass(frozen=True)
class SchedulingCost:
    """Where the time of a simulated run went, in seconds over all workers (workers × wall = frames + everything below).

    frames: frames × seconds, the renderer's own. late: sleeps that overran. between: workers waiting for their next chunk, or in one for
    its copies and the writer.
    tail: workers without work while others rendered their last chunk, writing its frames included; grows with a chunk, not with the run.
    """

    frames: int
    chunks: int
    workers: int
    wall: float
    rendering: float
    late: float
    between: float
    tail: float

    @property
    def share(self) -> float:
        """Everything but rendering, of rendering, in this run."""
        return (self.wall * self.workers - self.rendering) / self.rendering

    @property
    def scheduling_share(self) -> float:
        """Waiting between chunks, of rendering: what holds for a run of any length."""
        return self.between / self.rendering

    def share_of(self, frames: int) -> float:
        """`share` of a run of that many frames: what a chunk costs, as often as there are chunks, and one tail."""
        rendering = self.rendering / self.frames * frames
        return ((self.late + self.between) * frames / self.frames + self.tail) / rendering

    def per_chunk(self) -> float:
        """Seconds a worker waits between two chunks."""
        return self.between / max(1, self.chunks - self.workers)


def scheduling_cost(result: RenderResult, chunks: int, seconds: float) -> SchedulingCost:
    """Take a simulated run apart. seconds: of a frame, as asked."""
    rendering = result.rendered * seconds
    total = result.render_seconds * result.workers
    late = max(0.0, result.stages.get("render", 0.0) - rendering)
    between = result.stages.get("idle", 0.0) + result.stages.get("wait", 0.0)
    return SchedulingCost(
        frames=result.rendered,
        chunks=chunks,
        workers=result.workers,
        wall=result.render_seconds,
        rendering=rendering,
        late=late,
        between=between,
        tail=max(0.0, total - rendering - late - between),
    )
