"""Jobs on render groups of real processes that nobody kills: who renders what, who comes and goes, what people ask of a job."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from distributed import Client

from landmark_batch.cli import cli
from landmark_batch.errors import CheckpointError, StoreError
from landmark_batch.frames.fence import read_fence
from landmark_batch.frames.layout import StoreLayout
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.workflows import control
from landmark_batch.workflows.in_hand import CHUNKS
from tests.factories import make_scene
from tests.workflows import faults
from tests.workflows.conftest import executions, pixels
from tests.workflows.faults import allowance
from tests.workflows.fleet import Fleet, command
from tests.workflows.group_runs import Run, end_shared_fleet, group_jobs, ranks_of, shared_fleet, write_job
from tests.workflows.processes import until

FRAMES = 24
SPARE = "waiting for a group"
MakeJob = Callable[..., RenderJob]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    yield from shared_fleet(request.config, tmp_path_factory)


@pytest.fixture(scope="module", autouse=True)
def _end_of_the_fleet(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    end_shared_fleet(request.config)


@pytest.fixture
def group_job(make_job: MakeJob, tmp_path: Path) -> MakeJob:
    make = group_jobs(make_job, tmp_path)
    return lambda name, tensor=2, data=1, *overrides: make(name, tensor, data, f"cameras.frames=0-{FRAMES - 1}", *overrides)


def states(fleet: Fleet) -> dict[str, str]:
    """Name of each rank -> its state as a worker metric."""
    return {name: str(info["metrics"].get("state", "")) for name, info in fleet.workers().items()}


def test_a_calm_job(fleet: Fleet, group_job: MakeJob, tmp_path: Path) -> None:
    """Two groups of TP 2: neighbouring chunks stay together, tasks are named after the job, every rank shows what it is."""
    with allowance(fleet.client, tmp_path, 4):
        run = Run(fleet, group_job("calm job"))
        run.until(lambda run: run.done())
        keys = [key for key in fleet.on_scheduler(faults.task_keys) if key.startswith("render_")]
        metrics = {name: info["metrics"] for name, info in until(lambda: _all_ranks(fleet), what="every rank works").items()}
    assert keys
    assert all(key.startswith("render_calm_job-0000") for key in keys)
    assert {name: metric["role"] for name, metric in metrics.items()} == {
        "a-w0": "leader",
        "a-w1": "follower",
        "b-w0": "leader",
        "c-w0": "follower",
    }
    assert metrics["a-w0"]["group"] == metrics["a-w1"]["group"] != metrics["b-w0"]["group"] == metrics["c-w0"]["group"]
    assert all(metric["epoch"] >= 1 and metric["gpu_memory"] == 0 for metric in metrics.values())

    page = fleet.on_scheduler(faults.workers_page)
    rows = {name: row for row, name in enumerate(page["name"])}
    for column in ("group", "epoch", "role", "state", "gpu_memory"):
        assert {type(page[column][rows[name]]) for name in metrics} <= {str, int}, column
    assert page["role"][rows["a-w1"]] == "follower"
    with urllib.request.urlopen(f"http://127.0.0.1:{fleet.dashboard_port}/workers", timeout=20) as answer:
        assert answer.status == 200

    result = run.result()
    assert (result.state, result.rendered, result.workers) == ("complete", FRAMES, 4)
    assert executions(run.job.store_path) == dict.fromkeys(range(FRAMES), 1)
    done = sorted(run.done(), key=lambda event: event.frames)
    assert {event.worker for event in done} == {"g0(a-w0+a-w1)", "g1(b-w0+c-w0)"}
    switches = sum(one.worker != other.worker for one, other in pairwise(done))
    assert switches <= 5, [event.worker for event in done]  # 1, and 2 for each taking of a back half at the end
    assert not run.failed()
    until(lambda: set(states(fleet).values()) <= {"", SPARE}, what="no rank is in a group any more")


def _all_ranks(fleet: Fleet) -> dict[str, dict[str, object]] | None:
    """What the scheduler knows of the ranks, once all of them have told that they work."""
    found = fleet.workers()
    working = [name for name, info in found.items() if info["metrics"].get("state") in ("rendering", "idle", "serving")]
    return found if set(working) == fleet.names else None


@pytest.mark.chaos
def test_a_group_of_four_gives_the_same_bits(fleet: Fleet, group_job: MakeJob) -> None:
    """DP changes no bit: TP 2 x DP 2 as TP 2."""
    one, other = group_job("pairs", 2, 1, "cameras.frames=0-7"), group_job("four", 2, 2, "cameras.frames=0-7")
    for job in (one, other):
        assert Run(fleet, job).result().state == "complete"
    assert pixels(one.store_path) == pixels(other.store_path)


def test_pause_continue_attach_cancel(fleet: Fleet, group_job: MakeJob, tmp_path: Path) -> None:
    """By the store alone, from other processes than the client's."""
    job = group_job("steered")
    with allowance(fleet.client, tmp_path, 2) as allow:
        run = Run(fleet, job)
        run.until(lambda run: run.done())
        assert [found.name for found in control.pause(job.store_path)] == ["steered"]
        until(lambda: set(states(fleet).values()) == {SPARE}, what="every rank has left its group")
        standing = len(FrameStore.open(job.store_path).finished())
        with (tmp_path / "attach.out").open("wb") as out:
            attached = command("attach", str(job.store_path), stdout=out, stderr=out)
        fleet.endings.append(lambda: (attached.kill(), attached.wait()))
        until(lambda: b"rendering" in (tmp_path / "attach.out").read_bytes(), what="attach tells of the job")
        assert len(FrameStore.open(job.store_path).finished()) == standing < FRAMES, "a paused job renders nothing"
        allow(standing + 3)
        control.go_on(job.store_path)
        run.until(lambda run: run.frames() > standing + 2)
        control.cancel(job.store_path)
        result = run.result()
    assert result.state == "interrupted"
    assert standing < FRAMES - len(result.missing) < FRAMES
    assert attached.wait(60) == 3, (tmp_path / "attach.out").read_text()
    assert Run(fleet, job).result().state == "complete"
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)


@pytest.mark.chaos
def test_a_job_of_higher_priority_passes(fleet: Fleet, group_job: MakeJob) -> None:
    slow = Run(fleet, group_job("patient", 2, 1, "cameras.frames=0-59"))
    slow.until(lambda run: run.done())
    urgent = Run(fleet, group_job("urgent", 2, 1, "cameras.frames=0-9", "parallel.priority=10"))
    assert urgent.result().state == "complete"
    assert not slow.over, "the job that came first is done first"
    begun_at = urgent.begun()[0].at
    busy_until = {ranks_of(event.worker)[0]: event.at for event in urgent.done()}  # by leader; it has done its last one then
    meanwhile = [event for event in slow.done() if begun_at < event.at < busy_until.get(ranks_of(event.worker)[0], 0.0)]
    most = 2 * (CHUNKS + 1)
    assert len(meanwhile) <= most, "what each of two leaders had in hand, and one where the other job's last chunk is on the way"


@pytest.mark.chaos
def test_a_host_that_drains_and_comes_back(fleet: Fleet, group_job: MakeJob) -> None:
    """SIGTERM: the chunk in hand is finished, exit 3, the partner is free. Late workers join it in a new group of the same job."""
    job = group_job("drained", 2, 1, "cameras.frames=0-59", "sampling.samples=480")
    run = Run(fleet, job)
    run.until(lambda run: any("c-w0" in event.worker for event in run.begun()))
    assert fleet.terminate("c") == 3
    left_at = time.time()
    until(lambda: states(fleet).get("b-w0") == SPARE, what="its partner is free")
    run.until(lambda run: run.done()[-1].at > left_at)
    fleet.start("c")
    run.until(lambda run: "c-w0" in run.begun()[-1].worker and run.begun()[-1].at > left_at, 120, "a new group with it")
    result = run.result()
    assert (result.state, result.rendered) == ("complete", 60)
    assert executions(job.store_path) == dict.fromkeys(range(60), 1)
    assert not run.failed()


@pytest.mark.chaos
def test_commits_of_an_older_epoch_are_refused(fleet: Fleet, group_job: MakeJob) -> None:
    """A group that the store has fenced off writes nothing more; the other finishes the job."""
    job = group_job("fenced")
    run = Run(fleet, job)
    run.until(lambda run: len({event.worker for event in run.done()}) == 2)
    found = read_fence(StoreLayout(job.store_path)).epochs
    group = next(name for name in found if name.endswith("/g0"))
    FrameStore.open(job.store_path).fence(found[group] + 1, group=group)
    fenced_at = time.time()
    result = run.result()
    assert (result.state, result.missing) == ("complete", ())
    assert not [event for event in run.done() if event.worker.startswith("g0") and event.at > fenced_at + 1.0]
    refused = [event for event in run.failed() if event.worker.startswith("g0")]
    assert refused
    assert all("its epoch" in event.error and not event.final for event in refused)


@pytest.mark.chaos
def test_heartbeats_while_collectives_run_and_hang(fleet: Fleet, group_job: MakeJob) -> None:
    limit = 3 * fleet.on_scheduler(faults.heartbeat_interval)
    run = Run(fleet, group_job("heartbeats"))
    run.until(lambda run: run.done())
    running = fleet.on_scheduler(faults.heartbeat_ages, 3.0)
    fleet.run("a-w1", faults.block_once_in_exchange)
    time.sleep(1.0)
    before = len([event for event in run.done() if "a-w0" in event.worker])
    hanging = fleet.on_scheduler(faults.heartbeat_ages, 5.0)
    assert len([event for event in run.done() if "a-w0" in event.worker]) <= before + 1, "the group did not hang"
    fleet.run("a-w1", faults.release)
    assert set(running) == set(hanging) >= fleet.names
    assert max(running.values()) < limit, running
    assert max(hanging.values()) < limit, hanging
    assert run.result().state == "complete"
    assert not run.failed()


@pytest.mark.chaos
def test_a_pose_of_wrong_dtype_or_shape_ends_no_group(fleet: Fleet, group_job: MakeJob) -> None:
    job = group_job("spoiled")
    run = Run(fleet, job)
    run.until(lambda run: run.done())
    before = {name: fleet.pid(name) for name in fleet.names}
    fleet.run("a-w0", faults.spoil_poses)
    failures = run.until(lambda run: len(run.failed()) >= 2 and run.failed())
    assert run.result().state == "complete"
    assert {name: fleet.pid(name) for name in fleet.names} == before, "a group was ended"
    for said in ("dtype complex128", "shape [2, 4]"):  # both fail at once, either may be told first
        assert sum(said in failure.error for failure in failures) == 1, failures
    assert len(run.failed()) == 2


@pytest.mark.chaos
def test_a_rank_that_raises_in_a_collective(fleet: Fleet, group_job: MakeJob) -> None:
    """Contained; the user reads once which rank, host, chunk and log file; the other group goes on."""
    job = group_job("raising", 2, 1, "sampling.samples=200")
    run = Run(fleet, job)
    run.until(lambda run: len({event.worker for event in run.done()}) == 2)
    fleet.run("a-w1", faults.raise_once_in_exchange)
    run.until(lambda run: run.failed())
    failed_at = run.failed()[0].at
    result = run.result()
    assert (result.state, result.missing) == ("complete", ())
    told = [event for event in run.failed() if faults.INJECTED in event.error]
    assert len(told) == 1, run.failed()
    assert told[0].worker == "g0(a-w0+a-w1)"
    assert told[0].chunk
    for part in ("rank 1", "/a-w1", f"log: {job.log_path}"):
        assert part in told[0].error, told[0].error
    assert len(run.failed()) <= CHUNKS, "the chunks that waited behind it, and nothing else"
    assert [event for event in run.done() if event.worker.startswith("g1") and event.at > failed_at]


@pytest.mark.chaos
def test_workers_that_see_another_scene_or_no_store(fleet: Fleet, group_job: MakeJob, scene_dir: Path, tmp_path: Path) -> None:
    """One host, in a mount namespace of its own, has another file at the scene's path, and nothing at the store's."""
    try:
        subprocess.run(["unshare", "-m", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to make mount namespaces (root)")
    other, hidden = tmp_path / "other.th", tmp_path / "hidden"
    save_landmark_checkpoint(make_scene(resolutions=(1,), seed=1), other)
    hidden.mkdir()
    mounts = f'mount --bind {other} {scene_dir / "scene.th"} && mount -t tmpfs none {hidden} && exec "$@"'
    assert fleet.terminate("c") == 3
    plain = fleet.services["c"]
    fleet.services["c"] = fleet.service_of("c", 1, prefix=["unshare", "-m", "bash", "-c", mounts, "bash"])
    try:
        fleet.start("c")
        fleet.wait()
        with pytest.raises(CheckpointError, match=r"worker host .*scene\.th is another scene than the job's") as wrong:
            Run(fleet, group_job("other-scene", 2, 2)).result()
        assert wrong.value.remedy
        fleet.wait()
        with pytest.raises(StoreError, match=r"worker host \S+ does not see .*hidden/no-store\.zarr") as lacking:
            Run(fleet, group_job("no-store", 2, 2, f"output.store={hidden / 'no-store.zarr'}")).result()
        assert "shared file system" in str(lacking.value.remedy)
    finally:
        fleet.terminate("c")
        fleet.services["c"] = plain
        fleet.start("c")


def test_workers_that_do_not_divide(group_job: MakeJob, tmp_path: Path) -> None:
    job = group_job("odd", 2, 2)
    words = ["render", str(write_job(job, tmp_path)), "--workers", "6"]
    refused = CliRunner().invoke(cli, words)
    assert refused.exit_code == 2, refused.output
    assert "6 workers do not divide into groups of 4 (tensor_parallel 2 x data_parallel 2): use 4 or 8" in refused.output
    assert not job.store_path.exists()


@pytest.mark.chaos
def test_a_group_on_tls(group_job: MakeJob, tmp_path: Path) -> None:
    """A whole render with every connection of Dask's encrypted; a plain connection and a stranger's certificate are refused."""
    pytest.importorskip("cryptography")
    from landmark_batch.workflows.security import temporary_credentials, temporary_security

    with Fleet(tmp_path / "tls", {"t": 2}, tls=temporary_security(tmp_path / "keys")) as fleet:
        assert fleet.address.startswith("tls://")
        assert all(info["address"].startswith("tls://") for info in fleet.workers().values())
        job = group_job("secret")
        run = Run(fleet, job)
        result = run.result()
        assert (result.state, result.rendered) == ("complete", FRAMES)
        assert {event.worker for event in run.done()} == {"g0(t-w0+t-w1)"}
        for security in (None, temporary_credentials().security()):
            address = fleet.address if security else fleet.address.replace("tls://", "tcp://")
            with pytest.raises(OSError):
                Client(address, security=security, timeout=3, set_as_default=False)
