"""--cluster slurm.toml: the file, the job script dask-jobqueue is given, and a whole job on workers that stub sbatch starts."""

from __future__ import annotations

import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from landmark_batch.errors import ConfigError, GroupError
from landmark_batch.job import RenderJob
from landmark_batch.workflows import slurm_cluster as module
from landmark_batch.workflows.cluster import SENT_LAST
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.security import TlsCredentials
from landmark_batch.workflows.slurm_cluster import render_slurm_cluster, slurm_cluster, start_slurm_cluster
from landmark_batch.workflows.slurm_file import SlurmFile, read_slurm_file
from tests.workflows.slurm_stubs import write_stubs
from tests.workflows.test_cluster_memory import KEPT, kept

pytest.importorskip("dask_jobqueue")
pytest.importorskip("cryptography")

ROOT = Path(__file__).resolve().parents[2]
MakeJob = Callable[..., RenderJob]
TLS = TlsCredentials("/s/ca.pem", "/s/cert.pem", "/s/key.pem")


def write(folder: Path, text: str) -> Path:
    (folder / "slurm.toml").write_text(text)
    return folder / "slurm.toml"


def test_the_file_in_configs() -> None:
    found = read_slurm_file(ROOT / "configs" / "slurm.toml")
    assert found.nodes >= 1
    assert found.device == "cuda"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes = 1\ngpus = 4", "unknown key 'gpus'"),
        ("partition = 'gpu'", "nodes is missing"),
        ("nodes = 0", "nodes: .*greater than or equal to 1"),
        ("nodes = 1\ntime = 'long'", "time = 'long'"),
        ("nodes = 1\nmemory = '64 gigabytes'", "memory = '64 gigabytes'"),
        ('nodes = 1\nextra = ["-C a\\nrm"]', "one line each"),
        ("nodes = ", "slurm.toml: Invalid value"),
    ],
)
def test_a_wrong_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_slurm_file(write(tmp_path, text))
    assert "slurm.toml" in str(caught.value)
    assert caught.value.remedy


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such cluster file"):
        read_slurm_file(tmp_path / "none.toml")


def script(**values: object) -> str:
    wanted = SlurmFile.model_validate({"nodes": 2, **values})
    job = render_slurm_cluster().job_cls("tls://head:1", "n0", wanted=wanted, tls=TLS)
    return str(job.job_script())


def test_the_job_script() -> None:
    text = script(
        partition="gpu",
        account="city",
        time="4:00:00",
        gpus_per_node=4,
        cores_per_task=16,
        memory="64G",
        prologue=["module load cuda", "source venv/bin/activate"],
        extra=["--signal=B:TERM@300"],
        python="/opt/python",
    )
    lines = text.splitlines()
    for line in ("-p gpu", "-A city", "-t 4:00:00", "--gpus-per-node=4", "--cpus-per-task=16", "--mem=64G", "-N 1", "--signal=B:TERM@300"):
        assert f"#SBATCH {line}" in lines
    command = lines[-1]
    assert lines[-3:-1] == ["module load cuda", "source venv/bin/activate"]
    assert command.startswith("exec /opt/python -m landmark_batch.cli worker tls://head:1 --name n0 ")
    assert "--tls-ca-file /s/ca.pem --tls-cert /s/cert.pem --tls-key /s/key.pem" in command
    assert command.endswith("--gpus 4")


def test_what_the_file_leaves_out_is_left_to_slurm() -> None:
    text = script()
    for word in ("-p ", "-A ", "-t ", "--mem", "--cpus-per-task", "--gpus"):
        assert f"#SBATCH {word}" not in text
    assert text.splitlines()[-1].startswith(f"exec {sys.executable} -m landmark_batch.cli worker")
    assert text.splitlines()[-1].endswith("--device cpu")


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_stubs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def test_no_sbatch_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="this host has no sbatch"):
        start_slurm_cluster(write(tmp_path, "nodes = 1"), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["slurm.toml"]


@pytest.mark.timeout(600)
def test_a_whole_job(tmp_path: Path, stubs: Path, make_job: MakeJob) -> None:
    """sbatch starts the workers, TLS joins them, the job renders, closing cancels the jobs and leaves nothing."""
    said: list[str] = []
    seen: list[tuple[int, str]] = []
    memory: list[object] = []

    def make(stopped: Callable[[], bool]) -> object:
        host = "host = '127.0.0.1'\nprologue = ['export LANDMARK_TEST=1']\nnodes = 1"
        cluster = slurm_cluster(write(tmp_path, host), folder=tmp_path, tell=said.append, dashboard=False, stopped=stopped)
        [private] = tmp_path.glob(".landmark-slurm-*")
        memory.append(cluster.client.run_on_scheduler(kept, KEPT + 10))
        seen.append((stat.S_IMODE(private.stat().st_mode), cluster.address))
        return cluster

    result = run_render(make_job("cameras.frames=0-7", "output.chunk_frames=1"), cluster=make)  # type: ignore[arg-type]
    assert (result.state, result.rendered) == ("complete", 8)
    assert seen[0][0] == 0o700
    assert memory == [(KEPT, {SENT_LAST}, 5000.0)]
    assert seen[0][1].startswith("tls://127.0.0.1:")
    assert "export LANDMARK_TEST=1" in (stubs / "job-0.sh").read_text()
    job = said[0].split()[2].rstrip(":")
    assert (stubs / "cancelled").read_text().split() == [job]
    end = time.monotonic() + 30
    while psutil.pid_exists(int(job)) and psutil.Process(int(job)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert list(tmp_path.glob(".landmark-slurm-*")) == []


@pytest.mark.timeout(600)
def test_jobs_that_come_to_nothing(tmp_path: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that sbatch refuses, and a job that ends before its workers come."""
    with pytest.raises(ConfigError, match=r"sbatch refused the job: sbatch: error: invalid partition specified: nosuch"):
        start_slurm_cluster(write(tmp_path, "nodes = 1\npartition = 'nosuch'\nhost = '127.0.0.1'"), folder=tmp_path)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.2)
    with pytest.raises(GroupError, match=r"every SLURM job ended before its workers came: .*no such module"):
        text = "nodes = 1\nhost = '127.0.0.1'\nprologue = ['echo no such module: cuda >&2', 'exit 1']"
        start_slurm_cluster(write(tmp_path, text), folder=tmp_path, dashboard=False)
    assert list(tmp_path.glob(".landmark-slurm-*")) == []
