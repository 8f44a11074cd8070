"""A scene small enough to render a frame in milliseconds, a flight around it, and a job; real files, real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.cameras.paths import orbit_flight
from landmark_batch.cameras.write import write_transforms
from landmark_batch.errors import LandmarkError
from landmark_batch.events import ChunkStarted, Event
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob, job_from_dict
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.workflows.drive import drive
from landmark_batch.workflows.order import STOP_FILE, JobOrder
from tests.factories import make_scene
from tests.workflows.processes import kill_tree, until

WIDTH, HEIGHT, FRAMES = 32, 18, 24
BOX = ((-1.0, -0.8, -0.1), (1.2, 0.9, 0.5))


@pytest.fixture(scope="session")
def scene_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scene.th and path.json (24 frames of 32×18)."""
    folder = tmp_path_factory.mktemp("scene")
    save_landmark_checkpoint(make_scene(resolutions=(1,)), folder / "scene.th")
    write_transforms(orbit_flight(BOX, width=WIDTH, height=HEIGHT, frames=FRAMES, fps=24), folder / "path.json")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured speeds and scene digests stay out of the user's cache, and out of the next test's: chunks are cut by them. Compiled
    kernels are all tests'. No proxy stands before what tests serve.
    """
    cache, kernels = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp() / "cache" / "landmark-batch" / "kernels"
    if kernels.exists():
        (cache / "landmark-batch").mkdir()
        (cache / "landmark-batch" / "kernels").symlink_to(kernels.resolve(), target_is_directory=True)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def make_job(scene_dir: Path, tmp_path: Path) -> Callable[..., RenderJob]:
    """make_job('cameras.frames=0-7', ...): the tiny job, its store in tmp_path, two workers on the CPU."""

    def make(*overrides: str) -> RenderJob:
        return job_from_dict(
            {
                "name": "tiny",
                "scene": {"checkpoint": str(scene_dir / "scene.th")},
                "cameras": {"file": str(scene_dir / "path.json")},
                "sampling": {"samples": 16},
                "model": {"runtime": "torch"},
                "parallel": {"device": "cpu", "workers": 2},
                "output": {"store": str(tmp_path / "tiny.zarr"), "chunk_frames": 4},
            },
            overrides,
        )

    return make


def pixels(path: Path) -> dict[str, bytes]:
    """Every pixel file of a store by its name in it: what 'byte-identical' compares."""
    store = FrameStore.open(path)
    return {
        str(file.relative_to(path)): file.read_bytes()
        for name in store.spec.names
        for file in sorted((path / name).iterdir())
        if file.name.startswith("c.")
    }


def executions(path: Path) -> dict[int, int]:
    """How often each frame was recorded, over all ledger logs of a store."""
    counted: dict[int, int] = {}
    for log in FrameStore.open(path).layout.ledger.glob("*.log"):
        for line in log.read_text(encoding="utf-8").splitlines():
            for frame in json.loads(line)["frames"]:
                counted[frame] = counted.get(frame, 0) + 1
    return counted


SCRIPT = """\
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background ignores it for all
import json, sys
from pathlib import Path
from landmark_batch.job import job_from_dict
from landmark_batch.workflows.render import run_render
job = job_from_dict(json.loads(Path(sys.argv[1]).read_text()))
result = run_render(job, dashboard=False, **json.loads(sys.argv[2]))
print(json.dumps(result.as_dict()))
"""  # without a main guard, on purpose


class RenderProcess:
    """A job rendered by a process of its own, so that tests can kill it."""

    def __init__(self, job: RenderJob, folder: Path, **options: Any) -> None:
        script, values = folder / "script.py", folder / "job.json"
        script.write_text(SCRIPT)
        values.write_text(json.dumps(job.model_dump(mode="json")))
        root = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(values), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
            start_new_session=True,
        )

    def result(self, timeout: float = 200) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, err
        assert err == "", err
        found: dict[str, Any] = json.loads(out)
        return found

    def kill(self) -> None:
        """SIGKILL the whole tree at once."""
        kill_tree(self.process.pid)
        self.process.communicate()


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., RenderProcess]]:
    """spawn(job, **options of run_render) -> RenderProcess, killed at the end of the test whatever happens."""
    started: list[RenderProcess] = []

    def start(job: RenderJob, **options: Any) -> RenderProcess:
        process = RenderProcess(job, tmp_path, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.process.poll() is None:
            process.kill()


class InlineCluster:
    """Stands in for worker processes: sessions live in this process, chunks are rendered when the driver asks for the next outcome."""

    dashboard = None
    address = "inline://"
    word: tuple[int, str] | None = None  # (chunks, file): after so many chunks nothing is rendered until the client has left that word

    def __init__(self, workers: int) -> None:
        self.names = {f"inline://{i}": f"w{i}" for i in range(workers)}
        self.closed = False

    def has_driver(self) -> bool:
        return True

    def start(self, order: JobOrder, watch: Callable[[Event], None]) -> InlineHandle:
        return InlineHandle(self, order, watch)

    def close(self) -> None:
        self.closed = True


class InlineHandle:
    """A driver in a thread of this process."""

    def __init__(self, cluster: InlineCluster, order: JobOrder, watch: Callable[[Event], None]) -> None:
        self.outcome: Any = None
        self.station = InlineStation(cluster, order, watch)
        self.thread = threading.Thread(target=self.run, args=(order,), daemon=True)
        self.thread.start()

    def run(self, order: JobOrder) -> None:
        try:
            self.outcome = drive(order, self.station)
        except LandmarkError as error:
            self.outcome = error

    def poll(self) -> Any:
        return self.outcome

    def lost(self) -> bool:
        return False


class InlineStation:
    def __init__(self, cluster: InlineCluster, order: JobOrder, watch: Callable[[Event], None]) -> None:
        self.cluster, self.order, self.emit = cluster, order, watch
        self.sessions: dict[str, Any] = {}

    def begin(self, wanted: Any, todo: Any) -> None:
        pass

    def open_run(self, folder: Path, snapshot: Any) -> int:
        from landmark_batch.workflows.session import RenderSession

        self.sessions = {address: RenderSession.open(folder, name) for address, name in self.cluster.names.items()}
        return len(self.sessions)

    def pool(self, graph: Any, folder: Path, claim: Any) -> InlinePool:
        return InlinePool(self, graph, folder, claim)

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()


class InlinePool:
    def __init__(self, station: InlineStation, graph: Any, folder: Path, claim: Any) -> None:
        self.station, self.graph, self.folder, self.claim = station, graph, folder, claim
        self.names = station.cluster.names
        self.waiting: list[tuple[int, int, str]] = []
        self.begun = False
        self.rendered = 0

    def workers(self) -> dict[str, str]:
        return dict(self.names)

    def resting(self) -> frozenset[str]:
        return frozenset()

    def dismiss(self, address: str) -> None:
        pass

    def replace(self, address: str, reason: str) -> None:
        pass

    def exclude(self, address: str, reason: str) -> None:
        pass

    def coming(self) -> bool:
        return False

    def lacking(self) -> str:
        return ""

    def pause(self, paused: bool) -> None:
        pass

    def submit(self, number: int, attempt: int, address: str) -> None:
        self.waiting.append((number, attempt, address))

    def forget(self, number: int, attempt: int) -> None:
        self.waiting = [item for item in self.waiting if item[:2] != (number, attempt)]

    def next(self, timeout: float) -> Any:
        from landmark_batch.workflows.driver import Failed, Finished

        if not self.waiting:
            return None
        number, attempt, address = self.waiting[0]
        chunk = self.graph.chunks[number]
        self.begun = not self.begun
        if self.begun:
            return ChunkStarted(chunk.id, self.names[address])
        self.waiting.pop(0)
        word = self.station.cluster.word
        if word is not None and self.rendered >= word[0]:
            until((self.folder / word[1]).exists, 100, f"the client's {word[1]}")
        self.rendered += 1
        try:
            mine, standing = self.claim(chunk.frames)
            receipt = self.station.sessions[address].render(chunk.id, mine, attempt)
            return Finished(number, attempt, {**receipt, "skipped": [*receipt.get("skipped", []), *standing]})
        except Exception as error:  # noqa: BLE001  as a worker would
            return Failed(number, attempt, error)

    def hold(self) -> None:
        (self.folder / STOP_FILE).touch()


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[InlineCluster]:
    """run_render without processes; gives the clusters it made."""
    from landmark_batch.workflows import cluster, outcomes

    made: list[InlineCluster] = []

    def start(placement: Any, **_: Any) -> InlineCluster:
        made.append(InlineCluster(placement.workers))
        return made[-1]

    monkeypatch.setattr(cluster, "start_cluster", start)
    monkeypatch.setattr(outcomes, "LOOK_SECONDS", -1.0)  # all of a small job passes between two looks at the client's words
    return made


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with town-merged-stack.th, its block store town.zarr, and flight.json."""
    from tests.workflows.block_jobs import write_flight, write_town  # which takes its box from here

    folder = tmp_path_factory.mktemp("town")
    write_town(folder)
    write_flight(folder)
    return folder
