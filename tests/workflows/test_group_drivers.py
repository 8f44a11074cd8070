"""The driver, the scheduler and the client of a job killed: nothing recorded is lost, and who is left finishes the job."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from landmark_batch.events import JobStarted
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from tests.workflows.conftest import RenderProcess, executions
from tests.workflows.fleet import Fleet, command
from tests.workflows.group_runs import FRAMES, Run, calm_pixels, check, group_jobs, shared_fleet, write_job
from tests.workflows.processes import until

MakeJob = Callable[..., RenderJob]
Spawn = Callable[..., RenderProcess]
Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Words for whoever looks on."""

    def write(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return write


@pytest.fixture
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    yield from shared_fleet(request.config, tmp_path_factory)


@pytest.fixture
def group_job(make_job: MakeJob, tmp_path: Path) -> MakeJob:
    return group_jobs(make_job, tmp_path)


@pytest.fixture
def calm(request: pytest.FixtureRequest, fleet: Fleet, group_job: MakeJob) -> dict[str, bytes]:
    return calm_pixels(request.config, fleet, group_job)


def recorded(path: Path) -> int:
    return len(FrameStore.open(path).finished()) if (path / "zarr.json").exists() else 0


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_killed_driver(fleet: Fleet, group_job: MakeJob, calm: dict[str, bytes], say: Say) -> None:
    """The process beside the scheduler in which drivers run: the job's goes on in the next one, by the ledger."""
    job = group_job("driverless")
    run = Run(fleet, job)
    run.until(lambda run: run.frames() >= 6)
    before = executions(job.store_path)
    killed_at = time.time()
    fleet.kill_driver()
    again = run.until(lambda run: [e for e in run.events if isinstance(e, JobStarted) and e.at > killed_at], 150)[0]
    assert run.result().state == "complete"
    after = executions(job.store_path)
    assert all(after[frame] == count for frame, count in before.items())
    check(job, None, calm)
    fleet.wait()
    say(f"SIGKILL driver: the next one took over after {again.at - killed_at:.1f} s, {again.todo} frames to do")


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_killed_scheduler(fleet: Fleet, group_job: MakeJob, calm: dict[str, bytes], spawn: Spawn, say: Say) -> None:
    """The waiting client gives its order to the next scheduler, which the workers have joined again."""
    job = group_job("headless")
    client = spawn(job, scheduler=fleet.address)
    until(lambda: recorded(job.store_path) >= 6)
    before = {frame: record.digests for frame, record in FrameStore.open(job.store_path).finished().items()}
    killed_at = time.monotonic()
    fleet.kill_scheduler()
    until(lambda: recorded(job.store_path) > len(before) + 10, 150, "more frames than were in hand")
    seconds = time.monotonic() - killed_at
    result = client.result(200)
    assert (result["state"], result["missing"]) == ("complete", "")
    after = FrameStore.open(job.store_path).finished()
    assert all(after[frame].digests == digests for frame, digests in before.items())
    check(job, None, calm)
    fleet.wait()
    say(f"SIGKILL scheduler: the waiting client went on after {seconds:.1f} s")


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_killed_scheduler_and_client(fleet: Fleet, group_job: MakeJob, calm: dict[str, bytes], spawn: Spawn) -> None:
    """The same command resumes: what was recorded is not rendered again."""
    job = group_job("forsaken")
    client = spawn(job, scheduler=fleet.address)
    until(lambda: recorded(job.store_path) >= 6)
    fleet.kill_scheduler()
    client.kill()
    fleet.wait()
    before = executions(job.store_path)
    result = spawn(job, scheduler=fleet.address).result(200)
    assert (result["state"], result["missing"]) == ("complete", "")
    after = executions(job.store_path)
    assert all(after[frame] == count for frame, count in before.items())
    check(job, None, calm)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_killed_client(fleet: Fleet, group_job: MakeJob, calm: dict[str, bytes], spawn: Spawn) -> None:
    """Attached: the driver finishes alone, since it is a task of the cluster; the same command finds nothing to do."""
    job = group_job("orphan")
    client = spawn(job, scheduler=fleet.address)
    until(lambda: recorded(job.store_path) >= 6)
    client.kill()
    assert recorded(job.store_path) < FRAMES
    until(lambda: recorded(job.store_path) == FRAMES, 150)
    result = spawn(job, scheduler=fleet.address).result(100)
    assert (result["state"], result["rendered"]) == ("complete", 0)
    check(job, None, calm)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_killed_client_of_a_detached_job(fleet: Fleet, group_job: MakeJob, calm: dict[str, bytes], tmp_path: Path) -> None:
    job = group_job("detached")
    client = command("render", str(write_job(job, tmp_path)), "--scheduler", fleet.address, "--detach")
    until(lambda: recorded(job.store_path) >= 2)
    if client.poll() is None:
        client.kill()
    client.wait()
    assert recorded(job.store_path) < FRAMES
    until(lambda: recorded(job.store_path) == FRAMES, 150)
    check(job, None, calm)
