"""run_render on real worker processes: the pixels, the dashboard, a worker that dies, Ctrl-C, a scheduler of someone else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from landmark_batch.errors import ConfigError
from landmark_batch.events import ChunkDone, ChunkFailed, ChunkStarted, Event, JobStarted
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.workflows import cluster
from landmark_batch.workflows.machine import Placement
from landmark_batch.workflows.render import run_render
from tests.ports import free_port
from tests.workflows.conftest import FRAMES, InlineCluster, RenderProcess, executions, pixels
from tests.workflows.faults import KilledOnce, allowance
from tests.workflows.processes import gone, kill_tree, spawned, tree, until

MakeJob = Callable[..., RenderJob]
Spawn = Callable[..., RenderProcess]


def recorded(path: Path) -> int:
    return len(FrameStore.open(path).finished()) if (path / "zarr.json").exists() else 0


def test_a_dead_worker_costs_no_frame(
    make_job: MakeJob, capfd: pytest.CaptureFixture[str], inline_pixels: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker is killed while it renders: its chunk is rendered again, the job completes, the pixels are those of a calm run."""
    job = make_job("output.chunk_frames=2")
    events: list[Event] = []
    page: list[bytes] = []
    start_cluster = cluster.start_cluster

    def start(placement: Placement, **options: Any) -> cluster.RenderCluster:
        made = start_cluster(placement, **options)
        made.client.register_plugin(KilledOnce(4, tmp_path / "killed"))
        return made

    def look(event: Event) -> None:
        events.append(event)
        if isinstance(event, JobStarted):
            assert event.dashboard is not None
            assert event.dashboard.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(event.dashboard.removesuffix("/status") + "/health", timeout=10) as answer:
                page.append(answer.read())

    monkeypatch.setattr(cluster, "start_cluster", start)
    result = run_render(job, sinks=[look])
    assert (result.state, result.missing) == ("complete", ())
    assert page == [b"ok"]
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)
    assert pixels(job.store_path) == inline_pixels
    failures = [event for event in events if isinstance(event, ChunkFailed)]
    assert [event for event in failures if "died" in event.error]
    assert not any(event.final for event in failures)
    assert {event.worker for event in events if isinstance(event, ChunkDone)} <= {"w0", "w1"}
    assert 0 < result.startup_seconds < result.seconds
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""  # Dask's chatter, and the worker's death, stand in the log
    assert "lost" in job.log_path.read_text()


@pytest.fixture
def inline_pixels(make_job: MakeJob, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, bytes]:
    """Pixel files of the same job rendered without processes."""
    monkeypatch = pytest.MonkeyPatch()
    try:
        monkeypatch.setattr(cluster, "start_cluster", lambda placement, **_: InlineCluster(placement.workers))
        calm = make_job(f"output.store={tmp_path / 'calm.zarr'}")
        run_render(calm)
        return pixels(calm.store_path)
    finally:
        monkeypatch.undo()


def test_ctrl_c_twice(make_job: MakeJob, spawn: Spawn) -> None:
    """SIGINT to the whole process group, as a terminal sends it: workers do not see it, and the second one ends all at once."""
    job = make_job("output.chunk_frames=1", "sampling.samples=512", "cameras.width=128", "cameras.height=72")
    run = spawn(job)
    until(lambda: recorded(job.store_path) >= 2)
    pids = tree(run.process.pid)
    assert len(pids) >= 3
    os.killpg(run.process.pid, signal.SIGINT)  # nothing handles it there but Python: KeyboardInterrupt, 'at once'
    result = run.result()
    assert result["state"] == "interrupted"
    assert 0 < recorded(job.store_path) < FRAMES
    until(lambda: gone(pids), 60)


@pytest.fixture
def foreign_cluster(tmp_path: Path) -> Iterator[str]:
    """A scheduler and one worker that somebody else started."""
    port = free_port()
    root = Path(__file__).resolve().parents[2]
    address = f"tcp://127.0.0.1:{port}"
    log = (tmp_path / "foreign.log").open("w")
    common = {"stdout": log, "stderr": log, "env": {**os.environ, "PYTHONPATH": str(root)}, "start_new_session": True}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        address,
        "--nthreads",
        "1",
        "--no-nanny",
        "--name",
        "theirs",
        "--no-dashboard",
    ]
    processes = [subprocess.Popen(command, **common) for command in (dask, worker)]  # type: ignore[call-overload]
    yield address
    for process in processes:
        kill_tree(process.pid)
        process.wait()
    log.close()


def test_a_job_on_a_cluster_of_someone_else_leaves_it_running(make_job: MakeJob, foreign_cluster: str, tmp_path: Path) -> None:
    job, stop = make_job("cameras.frames=0-11", "output.chunk_frames=2"), threading.Event()
    events: list[Event] = []

    def stop_soon(event: Event) -> None:
        events.append(event)
        if isinstance(event, ChunkDone):
            stop.set()

    with Client(foreign_cluster, set_as_default=False, timeout=60) as client, allowance(client, tmp_path, 4):
        stopped = run_render(job, scheduler=foreign_cluster, sinks=[stop_soon], stop=stop)
    assert stopped.state == "interrupted"
    assert 0 < stopped.rendered < 12
    again = run_render(job, scheduler=foreign_cluster, sinks=[events.append])  # it lives, and takes the next run
    assert (again.state, again.rendered) == ("complete", 12 - stopped.rendered)
    assert {event.worker for event in events if isinstance(event, ChunkDone)} == {"theirs"}
    assert executions(job.store_path) == dict.fromkeys(range(12), 1)


def test_no_scheduler_answers(make_job: MakeJob) -> None:
    from landmark_batch.workflows.cluster import join_cluster

    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=f"no Dask scheduler answers at {address}"):
        join_cluster(address, timeout=0.5)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_chunk_that_ends_every_worker_is_set_aside(make_job: MakeJob) -> None:
    """Each worker that begins frame 4 dies, as if the frame crashed it: after three the chunk is left out and named."""
    job = make_job("output.chunk_frames=1", "cameras.frames=0-9")
    events: list[Event] = []

    def crash(event: Event) -> None:
        events.append(event)
        if isinstance(event, ChunkStarted) and event.chunk.startswith("000004"):
            for pid in spawned():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    result = run_render(job, sinks=[crash], dashboard=False)
    assert result.state in ("complete", "incomplete")  # a kill may come after its commit
    deaths = [event for event in events if isinstance(event, ChunkFailed) and event.chunk.startswith("000004")]
    if result.state == "incomplete":
        assert (result.exit_code, result.missing) == (3, (4,))
        assert [event.final for event in deaths][-1]
        assert "worker died" in str(result.error())
    assert executions(job.store_path).keys() >= set(range(10)) - {4}
