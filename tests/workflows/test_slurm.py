"""SLURM: which task a process is, how tasks meet, and whole jobs by stub commands that start real processes."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from landmark_batch.errors import ConfigError, GroupError
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.workflows import allocation
from landmark_batch.workflows.machine import Gpu, Machine
from landmark_batch.workflows.security import TlsCredentials
from landmark_batch.workflows.slurm import Meeting, SlurmTask, slurm_task
from tests.workflows.conftest import FRAMES
from tests.workflows.slurm_stubs import write_stubs

ROOT = Path(__file__).resolve().parents[2]
MakeJob = Callable[..., RenderJob]
STEP = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}
TASK = SlurmTask(number=0, tasks=2, job="12", step="0")


def test_a_task_of_srun() -> None:
    more = {
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_RESTART_COUNT": "1",
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
    }
    task = slurm_task({**STEP, **more})
    assert task == SlurmTask(3, 4, "12", "0", 1, 2, 2, 8, 2, 1, "10.0.0.1")
    assert task.meeting_file(Path("/s/f.zarr")) == Path("/s/f.zarr.landmark-12.0.r1.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"SLURM_PROCID": None},
        {"SLURM_NTASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_ID": None},  # a batch script itself, however many tasks it was granted
        {"SLURM_STEP_ID": "4294967290"},  # salloc's interactive step
        {"SLURM_STEP_ID": "batch"},
        {"SLURM_PROCID": "x"},
    ],
)
def test_no_task_of_several(changed: dict[str, str | None]) -> None:
    assert slurm_task({name: value for name, value in {**STEP, **changed}.items() if value is not None}) is None


@pytest.mark.parametrize(
    ("local", "local_tasks", "on_node", "visible", "own"),
    [
        (0, 1, 4, 4, None),  # one task a node: every GPU
        (1, 4, 4, 1, None),  # a GPU of its own by SLURM
        (1, 2, None, 1, None),
        (1, 4, 4, 4, [1]),  # all tasks see all: in turns
        (1, 2, 4, 4, [1, 3]),
        (0, 2, 4, 2, None),  # two of its own
        (1, 2, 1, 1, []),  # two tasks, one GPU
        (1, 2, None, 0, None),
    ],
)
def test_gpus_of_a_task(local: int, local_tasks: int, on_node: int | None, visible: int, own: list[int] | None) -> None:
    assert dataclasses.replace(TASK, local=local, local_tasks=local_tasks, gpus_on_node=on_node).own_gpus(visible) == own


def test_cores_of_a_task() -> None:
    assert TASK.own_cores(8) == 8
    assert dataclasses.replace(TASK, local_tasks=3).own_cores(8) == 2
    assert dataclasses.replace(TASK, local_tasks=16).own_cores(8) == 1
    assert dataclasses.replace(TASK, local_tasks=2, cpus=6).own_cores(4) == 4


def test_ranks_of_a_task(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job().model_copy(update={"parallel": make_job().parallel.model_copy(update={"device": "auto", "workers": 0})})
    gpus = tuple(Gpu(number, "A", 2**30) for number in range(2))
    machine = Machine("here", "cpu", 4, 2**34, gpus, 2, None, "2.13", "13.0")
    monkeypatch.setattr(allocation, "describe_machine", lambda: machine)
    task = dataclasses.replace(TASK, number=1, local=1, local_tasks=2, gpus_on_node=2)
    [rank] = allocation.task_ranks(task, job)
    assert rank.name.endswith("-t1-gpu1")
    assert rank.env == {"CUDA_VISIBLE_DEVICES": "1"}
    with pytest.raises(ConfigError, match=r"task 1 on .* has no GPU: 3 tasks share 1"):
        monkeypatch.setattr(allocation, "describe_machine", lambda: dataclasses.replace(machine, gpus=gpus[:1]))
        allocation.task_ranks(dataclasses.replace(task, local_tasks=3, gpus_on_node=1), job)


def test_tasks_meet_through_a_file(tmp_path: Path) -> None:
    store = tmp_path / "new" / "f.zarr"
    first, second = Meeting(TASK, store), Meeting(dataclasses.replace(TASK, number=1), store)
    tls = TlsCredentials("ca", "cert", "key")
    first.write("starting")
    second.arrive(4)
    assert first.ranks() == {1: 4}
    threading.Timer(0.3, lambda: first.write("open", "tls://head:1", tls)).start()
    invitation = second.wait_until_open(seconds=30)
    assert invitation is not None
    assert (invitation.address, invitation.credentials()) == ("tls://head:1", tls)
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert not second.over()
    first.end()
    assert second.over()
    second.leave()
    started = time.monotonic()
    first.close(seconds=30)
    assert time.monotonic() - started < 10, "everybody has left: nothing to wait for"
    assert list(store.parent.iterdir()) == []


def test_task_0_fails_before_it_began(tmp_path: Path) -> None:
    first, second = Meeting(TASK, tmp_path / "f.zarr"), Meeting(dataclasses.replace(TASK, number=1), tmp_path / "f.zarr")
    first.write("starting")
    closing = threading.Thread(target=first.close)
    closing.start()
    assert second.wait_until_open(seconds=30) is None
    second.leave()
    closing.join()
    assert list(tmp_path.iterdir()) == []


def test_task_0_is_not_to_be_seen(tmp_path: Path) -> None:
    second = Meeting(dataclasses.replace(TASK, number=1), tmp_path / "f.zarr")
    second.arrive(1)
    with pytest.raises(GroupError, match=r"task 1 of job 12 on .* sees no .*f\.zarr\.landmark-12\.0\.json after 0 s"):
        second.wait_until_open(seconds=0.3)
    assert second.wait_until_open(seconds=30, stopped=lambda: True) is None
    second.leave()
    assert list(tmp_path.iterdir()) == []


def job_file(folder: Path, scene_dir: Path, *, checkpoint: str = "scene.th") -> Path:
    file = folder / "job.toml"
    file.write_text(
        f'[scene]\ncheckpoint = "{scene_dir / checkpoint}"\n[cameras]\nfile = "{scene_dir / "path.json"}"\n[sampling]\nsamples = 16\n'
        '[model]\nruntime = "torch"\n[parallel]\ndevice = "cpu"\n[output]\nchunk_frames = 2\n'
    )
    return file


def srun(stubs: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Two tasks of landmark-batch."""
    environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["srun", "-n", "2", sys.executable, "-m", "landmark_batch.cli", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.timeout(600)
def test_srun_renders_a_job_over_its_tasks(tmp_path: Path, scene_dir: Path) -> None:
    """Two tasks render one job, by frames of both; nothing is left of the meeting; a failing job ends all tasks."""
    stubs = write_stubs(tmp_path / "bin")
    job = job_file(tmp_path, scene_dir)
    done = srun(stubs, "render", job, "-o", tmp_path / "f.zarr", "--no-dashboard")
    assert done.returncode == 0, done.stderr
    assert "2 workers of 2 tasks have joined" in done.stdout
    assert f"{FRAMES} frames rendered" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    finished = FrameStore.open(tmp_path / "f.zarr").finished()
    assert len(finished) == FRAMES
    assert {record.worker.rpartition("-")[0].rpartition("-")[2] for record in finished.values()} <= {"t0", "t1"}
    assert [path.name for path in tmp_path.iterdir() if "landmark-77" in path.name] == []
    assert not [child for child in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(child.info["cmdline"] or [])]


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_srun_of_a_job_that_fails(tmp_path: Path, scene_dir: Path) -> None:
    stubs = write_stubs(tmp_path / "bin")
    (tmp_path / "broken.th").write_bytes(b"no checkpoint")
    job = job_file(tmp_path, scene_dir, checkpoint=str(tmp_path / "broken.th"))
    done = srun(stubs, "render", job, "-o", tmp_path / "f.zarr", "--no-dashboard")
    assert done.returncode == 2
    assert "task codes 2 0" in done.stderr
    assert done.stderr.count("broken.th") == 1
    assert [path.name for path in tmp_path.iterdir() if "landmark" in path.name] == []
