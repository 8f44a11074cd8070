"""SIGKILL of a job's whole process tree at random instants: nothing recorded is lost or rendered again, no pixel differs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from landmark_batch.cameras.paths import orbit_flight
from landmark_batch.cameras.write import write_transforms
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store
from landmark_batch.job import RenderJob
from landmark_batch.workflows.render import run_render
from tests.workflows.conftest import BOX, InlineCluster, RenderProcess, executions, pixels
from tests.workflows.processes import gone, tree, until

MakeJob = Callable[..., RenderJob]
SIZE = ("cameras.width=64", "cameras.height=36", "sampling.samples=48", "output.chunk_frames=3", "output.depth=true")


def recorded(path: Path) -> int:
    return len(FrameStore.open(path).finished()) if (path / "zarr.json").exists() else 0


def kill_at_random(run: RenderProcess, path: Path, most: int, dice: random.Random) -> None:
    """Kill while the job starts (one time in four), or at a random moment before it has recorded `most` frames."""
    here = recorded(path)
    if here >= most or dice.random() < 0.25:
        time.sleep(dice.uniform(0.2, 5.0))
    else:
        goal = dice.randint(here + 1, most)
        while recorded(path) < goal and run.process.poll() is None:
            time.sleep(0.005)
        time.sleep(dice.uniform(0.0, 0.1))  # anywhere between two commits
    run.kill()


def kill_client_alone(run: RenderProcess, path: Path) -> None:
    """Its workers have to notice and to end by themselves."""
    while True:
        workers = tree(run.process.pid)[1:]  # looked at first: the job may be over soon
        if recorded(path) or run.process.poll() is not None:
            break
        time.sleep(0.005)
    assert len(workers) >= 2
    run.process.kill()
    run.process.communicate()
    until(lambda: gone(workers), 60, "workers outlive their client")


@pytest.mark.parametrize(
    ("kills", "frames"),
    [pytest.param(2, 18), pytest.param(20, 60, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])],
)
@pytest.mark.usefixtures("inline")
def test_killed_at_random_instants(
    kills: int, frames: int, make_job: MakeJob, spawn: Callable[..., RenderProcess], tmp_path: Path, inline: list[InlineCluster]
) -> None:
    cameras = write_transforms(orbit_flight(BOX, width=32, height=18, frames=frames, fps=24), tmp_path / "flight.json")
    calm = make_job(*SIZE, f"cameras.file={cameras}", f"output.store={tmp_path / 'calm.zarr'}")
    run_render(calm)  # in this process, without workers: the pixels do not depend on the way
    job = make_job(*SIZE, f"cameras.file={cameras}")
    seed = time.time_ns()
    dice = random.Random(seed)
    before: dict[int, str] = {}
    for kill in range(kills):
        if kill == 0:
            kill_client_alone(spawn(job), job.store_path)
        else:
            kill_at_random(spawn(job), job.store_path, frames * (kill + 1) // (kills + 1), dice)
        if not (job.store_path / "zarr.json").exists():
            continue
        finished = FrameStore.open(job.store_path).finished()
        after = {frame: record.digests["rgb"] for frame, record in finished.items()}
        assert before.items() <= after.items(), f"seed {seed}: kill {kill} lost recorded frames"
        assert all(count == 1 for count in executions(job.store_path).values()), f"seed {seed}: a recorded frame was rendered again"
        before = after
    result = spawn(job).result()
    assert (result["state"], result["missing"]) == ("complete", ""), f"seed {seed}"
    assert executions(job.store_path) == dict.fromkeys(range(frames), 1), f"seed {seed}"
    assert pixels(job.store_path) == pixels(calm.store_path), f"seed {seed}"
    report = verify_store(job.store_path)
    assert report.ok, report
    leftovers = [str(path) for path in job.store_path.rglob("*") if path.name.endswith((".partial", ".moving")) or "/runs/" in str(path)]
    assert leftovers == []
    assert not list(tmp_path.glob(".*creating"))
