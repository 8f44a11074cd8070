"""`landmark-batch scheduler` and `landmark-batch worker` as real processes: who joins, who listens where, who comes back, who is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

from landmark_batch.errors import ConfigError
from landmark_batch.job import RenderJob
from landmark_batch.workflows.cluster import SENT_LAST
from landmark_batch.workflows.host_scheduler import SchedulerOptions, scheduler_process
from landmark_batch.workflows.host_worker import SchedulerLostError, Supervisor
from landmark_batch.workflows.hosts import Rank, host_ranks
from landmark_batch.workflows.machine import Gpu, Machine
from landmark_batch.workflows.nanny import EXITS_TOPIC
from landmark_batch.workflows.render import run_render
from tests.ports import free_port
from tests.workflows.processes import gone, kill_tree, tree, until
from tests.workflows.test_cluster_memory import KEPT, kept, ticks

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Machine("here", "cpu", 4, 2**34, (Gpu(0, "A", 2**30), Gpu(1, "A", 2**30)), 2, None, "2.13", "13.0")
MakeJob = Callable[..., RenderJob]


class Processes:
    """landmark-batch commands that run until the end of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.started: list[subprocess.Popen[bytes]] = []

    def call(self, *words: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (self.folder / f"{words[0]}.out").open("ab") as out:
            command = [sys.executable, "-m", "landmark_batch.cli", *words]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        self.started.append(process)
        return process

    def scheduler(self) -> subprocess.Popen[bytes]:
        return self.call("scheduler", "--port", str(self.port), "--no-dashboard")

    def worker(self, *words: str) -> subprocess.Popen[bytes]:
        return self.call("worker", self.address, "--device", "cpu", "--workers", "1", "--name", "host", *words)

    def said(self, command: str) -> str:
        return (self.folder / f"{command}.out").read_text()

    def end(self) -> None:
        for process in self.started:
            kill_tree(process.pid)
            process.wait()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(tmp_path)
    yield found
    found.end()


def workers(client: Client) -> dict[str, dict[str, Any]]:
    """Name -> what the scheduler knows of it; none while it does not answer."""
    try:
        identity = client.sync(client.scheduler.identity, callback_timeout=5)
    except (OSError, TimeoutError):
        return {}
    return {info["name"]: {**info, "address": address} for address, info in identity["workers"].items()}


def pid_of(client: Client, name: str) -> int:
    address = until(lambda: workers(client).get(name))["address"]
    return int(client.run(os.getpid, workers=[address])[address])


CLIENT = """\
import sys
from landmark_batch.cli import main
try:
    main()
finally:
    sys.stdout.write(f"torch is loaded: {'torch' in sys.modules}")
"""


def assert_a_client_without_torch(processes: Processes, scene_dir: Path, folder: Path) -> None:
    """`render --scheduler` of a checkpoint: torch's import, seconds long, is left to the workers, who did it before."""
    job = folder / "job.toml"
    job.write_text(
        f'[scene]\ncheckpoint = "{scene_dir / "scene.th"}"\n[cameras]\nfile = "{scene_dir / "path.json"}"\n[sampling]\nsamples = 16\n'
        f'[model]\nruntime = "torch"\n[parallel]\ndevice = "cpu"\n[output]\nstore = "{folder / "tiny.zarr"}"\nchunk_frames = 4\n'
    )
    words = ["render", str(job), "--scheduler", processes.address, "--frames", "0-3", "--png"]
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "4 frames rendered" in done.stdout and done.stdout.endswith("torch is loaded: False"), done.stdout


@pytest.mark.timeout(600)
def test_a_cluster_of_two_commands(processes: Processes, scene_dir: Path, tmp_path: Path) -> None:
    """A job renders on it; nothing listens beyond loopback; a killed rank is told of and comes back; SIGTERM leaves nothing behind."""
    scheduler, supervisor = processes.scheduler(), processes.worker()
    until(lambda: "host-w0 is at" in processes.said("worker"))
    said = processes.said("scheduler")
    assert f"scheduler  {processes.address}" in said
    assert f"landmark-batch worker {processes.address}" in said
    assert "warning" not in said
    with Client(processes.address, set_as_default=False) as client:
        found = until(lambda: workers(client) if len(workers(client)) == 2 else None)
        assert set(found) == {"driver", "host-w0"}
        assert found["driver"]["resources"] == {"driver": 1000}
        assert found["driver"]["nthreads"] == 8
        pids = [pid for process in (scheduler, supervisor) for pid in tree(process.pid)]
        listening = {conn.laddr.ip for pid in pids for conn in psutil.Process(pid).net_connections() if conn.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}

        assert client.run_on_scheduler(kept, KEPT + 10) == (KEPT, {SENT_LAST}, 5000.0)
        assert list(client.run(ticks, nanny=True).values()) == [False, False]

        assert_a_client_without_torch(processes, scene_dir, tmp_path)

        before = found["host-w0"]["address"]
        os.kill(pid_of(client, "host-w0"), signal.SIGKILL)
        until(lambda: workers(client).get("host-w0", {}).get("address", before) != before)
        event = {**client.get_events(EXITS_TOPIC)[-1][1]}
        assert event == {"name": "host-w0", "worker": before, "exitcode": -signal.SIGKILL, "host": socket.gethostname()}

    pids = tree(supervisor.pid)
    assert len(pids) >= 3
    supervisor.terminate()
    assert supervisor.wait(60) == 3
    until(lambda: gone(pids), 60)
    pids = tree(scheduler.pid)
    scheduler.send_signal(signal.SIGINT)
    assert scheduler.wait(60) == 0
    until(lambda: gone(pids), 60)
    assert "Traceback" not in processes.said("worker") + processes.said("scheduler")


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_ranks_outlive_their_scheduler_and_their_nanny(processes: Processes, make_job: MakeJob) -> None:
    """SIGKILL to the nanny, to the scheduler, and at last to the supervisor, whose ranks go with it."""
    scheduler, supervisor = processes.scheduler(), processes.worker()
    with Client(processes.address, set_as_default=False, timeout=60) as client:
        until(lambda: "host-w0" in workers(client))
        before = workers(client)["host-w0"]["address"]
        os.kill(psutil.Process(pid_of(client, "host-w0")).ppid(), signal.SIGKILL)
        until(lambda: workers(client).get("host-w0", {}).get("address", before) != before)
        assert "the nanny of host-w0 ended (signal 9)" in processes.said("worker")

        scheduler.kill()
        scheduler.wait()
        until(lambda: "waiting up to 600 s" in processes.said("worker"))
        processes.scheduler()
        until(lambda: {"driver", "host-w0"} == set(workers(client)), 90)
        result = run_render(make_job("cameras.frames=0-3"), scheduler=processes.address)
        assert (result.state, result.rendered) == ("complete", 4)

        pids = tree(supervisor.pid)
        rank = pid_of(client, "host-w0")
        os.kill(rank, signal.SIGSTOP)  # it cannot see that its nanny's pipe breaks
        supervisor.kill()
        supervisor.wait()
        until(lambda: gone(pids), 60)


def test_no_scheduler_for_too_long() -> None:
    said: list[str] = []
    supervisor = Supervisor([Rank(f"tcp://127.0.0.1:{free_port()}", "w0")], tell=said.append, patience=0.5)
    with pytest.raises(SchedulerLostError, match=r"no scheduler at tcp://127.0.0.1:\d+ for 0 s") as caught:
        supervisor.run()
    assert caught.value.exit_code == 1
    assert "waiting up to 0 s" in said[0]


def test_the_job_is_over_before_it_began() -> None:
    ranks = [Rank(f"tcp://127.0.0.1:{free_port()}", "w0")]
    assert Supervisor(ranks, tell=lambda line: None, over=lambda: True).run() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 3), (signal.SIGINT, 130)])
def test_stopped_while_it_waits(number: int, code: int) -> None:
    before = signal.getsignal(number)
    supervisor = Supervisor([Rank(f"tcp://127.0.0.1:{free_port()}", "w0")], tell=lambda line: os.kill(os.getpid(), number))
    assert supervisor.run() == code
    assert signal.getsignal(number) is before


def test_one_rank_a_gpu() -> None:
    ranks = host_ranks("tcp://head:1", host="node7", machine=MACHINE)
    assert [(rank.name, rank.env) for rank in ranks] == [
        ("node7-gpu0", {"CUDA_VISIBLE_DEVICES": "0"}),
        ("node7-gpu1", {"CUDA_VISIBLE_DEVICES": "1"}),
    ]
    assert [rank.name for rank in host_ranks("tcp://head:1", host="node7", gpus=[1], machine=MACHINE)] == ["node7-gpu1"]


def test_one_rank_a_core() -> None:
    machine = replace(MACHINE, gpus=(), gpus_present=0)
    ranks = host_ranks("tcp://head:1", machine=machine)
    assert [rank.name for rank in ranks] == [f"{socket.gethostname()}-w{number}" for number in range(4)]
    assert {rank.env["CUDA_VISIBLE_DEVICES"] for rank in ranks} == {""}
    assert len(host_ranks("tcp://head:1", device="cpu", workers=3, machine=MACHINE)) == 3


@pytest.mark.parametrize("gpus", [[2], [0, 0]])
def test_gpus_that_are_not_there(gpus: list[int]) -> None:
    with pytest.raises(ConfigError, match="gpus ="):
        host_ranks("tcp://head:1", gpus=gpus, machine=MACHINE)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1")
        with refused, scheduler_process(SchedulerOptions(port=taken.getsockname()[1], dashboard_port=None)):
            pass


def test_a_host_that_is_not_this_one() -> None:
    refused = pytest.raises(ConfigError, match=r"cannot listen on 203\.0\.113\.7")
    with refused, scheduler_process(SchedulerOptions(host="203.0.113.7", port=0, dashboard_port=None)):
        pass


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_second_sigterm_ends_a_rank_that_hangs(processes: Processes) -> None:
    processes.scheduler()
    supervisor = processes.worker()
    with Client(processes.address, set_as_default=False, timeout=60) as client:
        until(lambda: "host-w0" in workers(client))
        pids = tree(supervisor.pid)
        os.kill(pid_of(client, "host-w0"), signal.SIGSTOP)
        supervisor.terminate()
        until(lambda: "draining" in processes.said("worker"))
        assert supervisor.poll() is None
        supervisor.terminate()
        assert supervisor.wait(60) == 3
        until(lambda: gone(pids), 60)
