"""A worker's session: what it commits, skips, splits and refuses; its snapshot; words that travel."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed.worker import thread_state

from landmark_batch.errors import CheckpointError, ConfigError, StaleWriterError, StoreError
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.workflows import in_hand
from landmark_batch.workflows.builds import Build, note_build, other_build, read_builds
from landmark_batch.workflows.graph import RenderGraph, task_prefix
from landmark_batch.workflows.measured import SpeedKey, recall_speed, record_speed
from landmark_batch.workflows.messages import told_receipt
from landmark_batch.workflows.order import PAUSE_FILE, STOP_FILE
from landmark_batch.workflows.renderers import SimulatedRenderer, open_renderer
from landmark_batch.workflows.session import ChunkError, RenderSession, SetupError
from landmark_batch.workflows.simulated import simulated_job, simulated_request
from landmark_batch.workflows.snapshot import JobSnapshot, read_snapshot, remove_dead_snapshots, remove_snapshot, write_snapshot
from landmark_batch.workflows.worker import RenderWorker, render_chunk

MakeJob = Callable[..., RenderJob]


@pytest.fixture
def opened(tmp_path: Path) -> tuple[RenderSession, FrameStore, Path]:
    """A session on a simulated job of 20 frames, its store and its snapshot's folder."""
    job = simulated_job(tmp_path / "s.zarr", chunk_frames=4, workers=1)
    request = simulated_request(job, 20, 0.0)
    store = FrameStore.create(job.store_path, request.spec, request.flight, request.settings)
    snapshot = JobSnapshot(
        run="abcd1234",
        job=job.model_dump(mode="json"),
        settings=dict(request.settings.values),
        store=str(store.path),
        device="cpu",
        threads=1,
        generation=1,
        renderer=dict(request.renderer),
    )
    folder = write_snapshot(snapshot, request.flight)
    return RenderSession.open(folder, "here/w0"), store, folder


def test_a_chunk_is_rendered_once_whatever_asks_for_it(opened: tuple[RenderSession, FrameStore, Path]) -> None:
    session, store, _ = opened
    begun: list[int] = []
    first = session.render("c", (2, 3, 4), 0, lambda: begun.append(1))
    assert (first["frames"], first["skipped"], begun) == ([2, 3, 4], [], [1])
    assert first["digests"]["rgb"] == [store.finished()[frame].digests["rgb"] for frame in (2, 3, 4)]
    assert first["began"] <= first["ended"]
    again = session.render("c", (1, 2, 3, 4), 1)
    assert (again["frames"], again["skipped"]) == ([1], [2, 3, 4])
    assert store.finished()[1].attempt == 1
    assert json.loads(json.dumps(first)) == first  # it travels as plain values


def test_two_chunks_at_once_do_not_disturb_each_other(opened: tuple[RenderSession, FrameStore, Path]) -> None:
    session, store, _ = opened
    chunks = [tuple(range(i, i + 4)) for i in range(0, 20, 4)]
    threads = [threading.Thread(target=session.render, args=(str(chunk), chunk, 0)) for chunk in chunks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.finished()) == list(range(20))
    assert session.chunk == ""
    assert session.frames_done == 20


def test_a_large_chunk_is_committed_in_parts(opened: tuple[RenderSession, FrameStore, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    session, store, _ = opened
    monkeypatch.setattr(in_hand, "COMMIT_BYTES", 3 * store.spec.bytes_per_frame)
    receipt = session.render("c", tuple(range(8)), 0)
    assert receipt["frames"] == list(range(8))
    assert len(receipt["digests"]["rgb"]) == 8
    lines = [line for log in store.layout.ledger.glob("*.log") for line in log.read_text().splitlines()]
    assert [json.loads(line)["frames"] for line in lines] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_stopped_job_begins_no_chunk(opened: tuple[RenderSession, FrameStore, Path]) -> None:
    session, store, folder = opened
    for name in (STOP_FILE, PAUSE_FILE):
        (folder / name).touch()
        assert session.render("c", (0, 1), 0) == {"stopped": True}
        (folder / name).unlink()
    assert store.finished() == {}


def test_a_session_of_an_ended_job_cannot_commit(opened: tuple[RenderSession, FrameStore, Path]) -> None:
    session, store, _ = opened
    with StoreOwner.acquire(store.path), pytest.raises(StaleWriterError):
        session.render("c", (0,), 0)
    assert store.finished() == {}


def test_errors_travel_as_what_they_are_or_as_text(opened: tuple[RenderSession, FrameStore, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, _ = opened

    class Unpicklable(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    def broken(*_: Any, **__: Any) -> Any:
        raise Unpicklable("illegal memory access")

    monkeypatch.setattr(SimulatedRenderer, "render", broken)
    with pytest.raises(ChunkError, match=r"chunk c on .*: Unpicklable: illegal memory access") as caught:
        session.render("c", (0,), 0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    for error in (SetupError(Unpicklable("x")), SetupError(CheckpointError("cut off", remedy="copy it again"))):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy.error) is type(error.error)
        assert str(copy.error) == str(error.error)


def test_a_task_without_a_session_says_so() -> None:
    with pytest.raises(SetupError, match="no open session for run nobody"):
        render_chunk("nobody", "c", (0,), 0)


def test_the_plugin_opens_a_session_shows_it_and_closes_it(
    opened: tuple[RenderSession, FrameStore, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    class FakeWorker:
        name = "w0"
        address = "tcp://127.0.0.1:1"
        state = SimpleNamespace(total_resources={})

        def __init__(self) -> None:
            self.metrics: dict[str, Any] = {}
            self.events: list[tuple[str, dict[str, Any]]] = []

        def log_event(self, topic: str, message: dict[str, Any]) -> None:
            self.events.append((topic, message))

    worker = FakeWorker()
    plugin = pickle.loads(pickle.dumps(RenderWorker("abcd1234", str(opened[2]))))
    plugin.setup(worker)
    monkeypatch.setattr(thread_state, "key", "render_c", raising=False)  # as Dask does for a task
    receipt = render_chunk("abcd1234", "c", (5, 6), 0)
    assert receipt["frames"] == [5, 6]
    assert len(worker.events) == 1, "what came of it waits for the task's end"
    plugin.transition("another", "executing", "memory")
    plugin.transition("render_c", "executing", "memory")
    plugin.transition("render_c", "memory", "released")
    assert len(worker.events) == 2
    assert worker.events[0][0] == "landmark-batch-abcd1234"
    assert worker.events[0][1]["name"] == "w0"
    assert {**receipt, **told_receipt(worker.events[-1][1])} == receipt, "what is told is the receipt, without digests"
    assert told_receipt(worker.events[-1][1])["frames"] == [5, 6]
    shown = asyncio.run(worker.metrics["landmark_abcd1234"](worker))
    assert shown["state"] == "idle"
    assert (shown["frames"], shown["chunk"], shown["runtime"], shown["device"], shown["role"]) == (2, "", "simulated", "cpu", "worker")
    assert asyncio.run(worker.metrics["state"](worker)) == "idle"  # a column of Dask's own pages
    asyncio.run(plugin.teardown(worker))
    assert worker.metrics == {}
    with pytest.raises(SetupError):
        render_chunk("abcd1234", "c", (7,), 0)


def test_a_snapshot_that_a_host_does_not_see_is_named(opened: tuple[RenderSession, FrameStore, Path], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"worker host .* does not see .*nowhere"):
        read_snapshot(tmp_path / "nowhere")
    snapshot, arrays = read_snapshot(opened[2])
    assert snapshot.render_job().name == "simulated"
    assert arrays["c2w"].shape == (20, 3, 4)


def test_snapshots_of_dead_runs_go_and_living_ones_stay(opened: tuple[RenderSession, FrameStore, Path]) -> None:
    _, store, folder = opened
    dead = folder.with_name("dead0000")
    dead.mkdir()
    told = json.loads((folder / "snapshot.json").read_text())
    told["process"]["pid"] = 2**22 + 1  # above any pid of this machine
    (dead / "snapshot.json").write_text(json.dumps(told))
    torn = folder.with_name("torn0000")
    torn.mkdir()
    remove_dead_snapshots(store.path)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    remove_snapshot(folder)
    assert not folder.parent.exists()


def test_keys_carry_the_jobs_name_and_are_unique() -> None:
    from landmark_batch.chunks import split_frames

    graph = RenderGraph("city north.2", "0a1b2c3d", split_frames(range(16), 4))
    assert list(graph)[:2] == ["render_city_north_2-000000-0a1b2c3d", "render_city_north_2-000001-0a1b2c3d"]
    assert graph.key(0, 1) not in graph
    assert graph.key(1, 2) == "render_city_north_2-000001-0a1b2c3d-0-2"
    assert graph[graph.key(1)] == (render_chunk, "0a1b2c3d", graph.chunks[1].id, (4, 5, 6, 7), 0)
    assert graph.task(1, 2, [5])[3:] == ((5,), 2)
    assert len(graph) == 4
    assert task_prefix("№") == "render_job"
    from distributed.utils import key_split

    assert key_split(next(iter(graph))) == "render_city_north_2"


def test_renderers_by_name() -> None:
    job = simulated_job(Path("s.zarr"), chunk_frames=1, workers=1)
    renderer, device = open_renderer({"kind": "simulated", "seconds": 0.0}, job, "cpu")
    frame = renderer.render(np.eye(3, 4), (1.0, 1.0, 1.0, 1.0), 4, 2)
    assert device == "cpu"
    assert frame.numpy()["rgb"].shape == (2, 4, 3)
    with pytest.raises(ConfigError, match="renderer 'magic'"):
        open_renderer({"kind": "magic"}, job, "cpu")
    with pytest.raises(ConfigError, match=r"scene\.checkpoint is not set"):
        open_renderer({"kind": "scene"}, job, "cpu")


def test_speeds_are_kept_by_machine_and_scene(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "speed.json"
    key = SpeedKey("here", "a CPU", 2, "torch", "fp32", "hull")
    assert recall_speed(key, "scene", 1.0, file=file) is None
    record_speed(key, "other", 2.0, 1.0, file=file)
    speed = recall_speed(key, "scene", 1.0, file=file)
    assert speed is not None
    assert not speed.same_scene
    record_speed(key, "scene", 1.0, 1.0, file=file)
    record_speed(key, "scene", 1.5, 1.0, file=file)
    speed = recall_speed(key, "scene", 1.0, file=file)
    assert speed is not None
    assert (speed.seconds_per_megasample, speed.same_scene) == (1.5, True)
    assert speed.seconds(frames=10, pixels=1000, samples=100, workers=2) == pytest.approx(0.75)
    assert recall_speed(SpeedKey("there", "a CPU", 2, "torch", "fp32", "hull"), "scene", 1.0, file=file) is None
    for wrong in (0, None, "many", float("nan"), -1.0):
        entries = json.loads(file.read_text())
        file.write_text(json.dumps([{**entry, "megasamples": wrong} for entry in entries]))
        assert recall_speed(key, "scene", 1.0, file=file) is None
        record_speed(key, "scene", 1.5, 1.0, file=file)
    assert recall_speed(key, "scene", 1.0, file=file) is not None
    file.write_text("{broken")
    assert recall_speed(key, "scene", 1.0, file=file) is None
    record_speed(key, "scene", 1.0, 1.0, file=file)
    assert recall_speed(key, "scene", 1.0, file=file) is not None
    (tmp_path / "plain").write_text("")
    record_speed(key, "scene", 1.0, 1.0, file=tmp_path / "plain" / "speed.json")  # cannot be written: no error


def test_the_speed_of_thumbnails_is_not_that_of_full_frames(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    key = SpeedKey("here", "a CPU", 2, "torch", "fp32", "hull")
    record_speed(key, "scene", 0.04, 150.0, file=file)
    record_speed(key, "scene", 1.3, 0.02, file=file)  # the newer one, and nearly nothing but what each frame costs beside its samples
    full, small = recall_speed(key, "scene", 100.0, file=file), recall_speed(key, "scene", 0.05, file=file)
    assert full is not None and small is not None
    assert (full.seconds_per_megasample, small.seconds_per_megasample) == (0.04, 1.3)
    assert recall_speed(key, "scene", 2.0, file=file) is None
    record_speed(key, "other", 0.2, 2.5, file=file)
    other = recall_speed(key, "scene", 2.0, file=file)
    assert other is not None
    assert (other.seconds_per_megasample, other.same_scene) == (0.2, False)


def test_builds_are_noted_once_and_compared(opened: tuple[RenderSession, FrameStore, Path]) -> None:
    store = opened[1].path
    here, there = Build("cpu", "x86_64", "2.13", "torch", "fp32"), Build("cuda", "x86_64", "2.13", "torch", "fp32")
    assert other_build(store, here) is None
    note_build(store, here)
    note_build(store, here)
    assert read_builds(store) == [here]
    assert other_build(store, here) is None
    assert "last bits" in str(other_build(store, there))
