"""Frames of a worker in overlapped stages: what runs beside what, what waits for what, and that nothing of it shows in the pixels."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from landmark_batch.errors import PixelError
from landmark_batch.frames.pictures import PictureOrder
from landmark_batch.frames.pixels import quantise
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.frames.staging import Stage
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.writer import PendingCommit
from landmark_batch.workflows.chunk_arrays import ChunkArrays
from landmark_batch.workflows.in_hand import CHUNKS
from landmark_batch.workflows.load import WINDOW, LoadMeter
from landmark_batch.workflows.opened import open_snapshot
from landmark_batch.workflows.pipeline import COPYING
from landmark_batch.workflows.session import RenderSession
from landmark_batch.workflows.simulated import simulated_job, simulated_request
from landmark_batch.workflows.snapshot import JobSnapshot, write_snapshot
from tests.workflows.processes import until

PATIENCE = 60.0  # seconds after which a test that waits has failed
FRAMES = 20


@dataclass
class Frame:
    """A frame that shows its number, and tells when it is put into its place."""

    number: int
    renderer: Renderer
    counters: dict[str, int] = field(default_factory=lambda: {"rays": 1})

    def numpy(self) -> dict[str, NDArray[np.float32]]:
        plain = np.ones((18, 32), np.float32)
        rgb = np.full((18, 32, 3), self.number / FRAMES, np.float32)
        if self.number in self.renderer.bad:
            rgb[3, 4, 1] = np.nan
        return {"rgb": rgb, "depth": plain, "alpha": plain}

    def quantised(self, outputs: Sequence[OutputSpec], *, frame: int, into: Mapping[str, NDArray[Any]]) -> None:
        self.renderer.note("copy", frame)
        assert self.renderer.copying(frame)
        for name, values in quantise(self.numpy(), outputs, frame=frame).items():
            into[name][...] = values


@dataclass
class Renderer:
    """Notes what happens. copying: called in the copies' thread; false where it waited in vain."""

    bad: tuple[int, ...] = ()
    copying: Callable[[int], bool] = lambda _: True
    events: list[tuple[str, int]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def render(self, c2w: Any, intrinsics: Any, width: int, height: int, *, frame: int | None = None) -> Frame:
        assert frame is not None
        self.note("render", frame)
        return Frame(frame, self)

    def note(self, what: str, number: int) -> None:
        with self.changed:
            self.events.append((what, number))
            self.changed.notify_all()

    def count(self, what: str) -> int:
        return sum(name == what for name, _ in self.events)

    def await_event(self, what: str, number: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: (what, number) in self.events, PATIENCE)

    def await_count(self, what: str, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.count(what) >= count, PATIENCE)


@contextmanager
def session_of(
    place: Path, renderer: Any, *, overlap: bool = True, device: str = "cpu", pictures: PictureOrder | None = None
) -> Iterator[tuple[RenderSession, FrameStore]]:
    """A session on a store of 20 frames of 32 × 18, with this renderer. pictures: that an export asks for."""
    job = simulated_job(place / "s.zarr", chunk_frames=4, workers=1)
    request = simulated_request(job, FRAMES, 0.0)
    store = FrameStore.create(job.store_path, request.spec, request.flight, request.settings)
    snapshot = JobSnapshot("abcd1234", job.model_dump(mode="json"), dict(request.settings.values), str(store.path), "cpu", 1, 1)
    opened = open_snapshot(write_snapshot(snapshot, request.flight))
    told = json.loads(json.dumps(snapshot.job))
    told["parallel"]["overlap"] = overlap
    ordered = None if pictures is None else pictures.as_dict()
    opened = replace(opened, snapshot=replace(snapshot, job=told, pictures=ordered))
    session = RenderSession(place, opened, renderer, worker="here/w0", device=device)
    yield session, store
    session.close()


def level(frame: int) -> int:
    """What a frame's pixels are stored as."""
    return int(np.float32(frame / FRAMES) * np.float32(255) + np.float32(0.5))


def chunk(first: int, frames: int = 4) -> tuple[int, ...]:
    return tuple(range(first, first + frames))


def render_all(session: RenderSession, chunks: Sequence[tuple[int, ...]]) -> tuple[list[dict[str, Any]], list[threading.Thread]]:
    """Each chunk in a thread. Receipts come as threads end."""
    receipts: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda frames=frames: receipts.append(session.render(str(frames), frames, 0))) for frames in chunks]
    for thread in threads:
        thread.start()
    return receipts, threads


def test_a_frame_is_rendered_while_the_one_before_it_is_copied(tmp_path: Path) -> None:
    renderer = Renderer()
    renderer.copying = lambda frame: frame == 3 or renderer.await_event("render", frame + 1)
    with session_of(tmp_path, renderer) as (session, store):
        receipt = session.render("c", chunk(0), 0)
    assert receipt["queue"]["frames"] >= 1
    assert [number for what, number in renderer.events if what == "copy"] == [0, 1, 2, 3]
    assert [int(store.read("rgb", frame)[0, 0, 0]) for frame in range(4)] == [level(frame) for frame in range(4)]


def test_without_overlap_one_step_follows_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, finish, write = Renderer(), PendingCommit.finish, Stage.write

    def noted(self: PendingCommit, *, seconds: float) -> Any:
        renderer.note("commit", self._frames[0])
        receipt = finish(self, seconds=seconds)
        renderer.note("committed", self._frames[0])
        return receipt

    def written(self: Stage, *parts: Any) -> None:
        assert renderer.events[-1][0] == "commit"
        write(self, *parts)

    monkeypatch.setattr(PendingCommit, "finish", noted)
    monkeypatch.setattr(Stage, "write", written)
    with session_of(tmp_path / "off", renderer, overlap=False) as (session, store):
        receipts, threads = render_all(session, [chunk(0, 2), chunk(2, 2), chunk(4, 2)])
        for thread in threads:
            thread.join()
        off = {frame: record.digests for frame, record in store.finished().items()}
    order = list(dict.fromkeys(number // 2 * 2 for _, number in renderer.events))
    steps = [("render", 0), ("copy", 0), ("render", 1), ("copy", 1), ("commit", 0), ("committed", 0)]
    assert renderer.events == [(what, first + number) for first in order for what, number in steps]
    assert {receipt["queue"]["chunks"] for receipt in receipts} == {1}
    monkeypatch.undo()
    with session_of(tmp_path / "on", Renderer()) as (session, store):
        session.render("c", chunk(0, 6), 0)
        assert {frame: record.digests for frame, record in store.finished().items()} == off


def test_a_frame_is_written_while_the_next_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it stands before the chunk's last frame is there."""
    renderer, write = Renderer(), Stage.write

    def noted(self: Stage, final: Any, *parts: Any) -> None:
        write(self, final, *parts)
        renderer.note("written", 0)

    monkeypatch.setattr(Stage, "write", noted)
    standing: list[int] = []

    def last(frame: int) -> bool:
        there = frame < 3 or renderer.await_count("written", 3)
        standing.append(len(store.finished()))
        return there

    with session_of(tmp_path, renderer) as (session, store):
        renderer.copying = last
        session.render("c", chunk(0), 0)
        assert sorted(store.finished()) == [0, 1, 2, 3]
    assert standing == [0] * 4 and renderer.count("written") == 4


def test_rendering_waits_for_copies(tmp_path: Path) -> None:
    gate, renderer = threading.Event(), Renderer()
    renderer.copying = lambda _: gate.wait(PATIENCE)
    with session_of(tmp_path, renderer) as (session, store):
        receipts, threads = render_all(session, [chunk(0, 8)])
        assert renderer.await_count("render", COPYING + 1)
        time.sleep(0.5)
        assert renderer.count("render") == COPYING + 1
        gate.set()
        threads[0].join()
        assert sorted(store.finished()) == list(range(8))
    assert receipts[0]["queue"]["frames"] <= COPYING
    assert receipts[0]["stages"]["wait"] >= 0.1
    assert receipts[0]["busy"] < 1


def test_rendering_waits_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of two chunks are in memory at most, whatever threads there are; all frames come, with their own pixels."""
    gate, renderer, finish = threading.Event(), Renderer(), PendingCommit.finish

    def slow(self: PendingCommit, *, seconds: float) -> Any:
        renderer.note("commit", self._frames[0])
        assert gate.wait(PATIENCE)
        return finish(self, seconds=seconds)

    made: list[int] = []
    array = ChunkArrays._array

    def counted(self: ChunkArrays, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        made.append(shape[0])
        return array(self, shape, dtype)

    monkeypatch.setattr(PendingCommit, "finish", slow)
    monkeypatch.setattr(ChunkArrays, "_array", counted)
    with session_of(tmp_path, renderer) as (session, store):
        receipts, threads = render_all(session, [chunk(first) for first in range(0, FRAMES, 4)])
        assert renderer.await_count("commit", CHUNKS)
        time.sleep(0.1)
        assert renderer.count("render") == 4 * CHUNKS
        gate.set()
        for thread in threads:
            thread.join()
        assert sorted(store.finished()) == list(range(FRAMES))
        for frame in range(FRAMES):
            assert (store.read("rgb", frame) == level(frame)).all()
    assert len(made) == CHUNKS * len(store.spec.outputs)
    assert max(receipt["queue"]["chunks"] for receipt in receipts) == CHUNKS


@pytest.mark.parametrize("overlap", [True, False])
def test_an_error_reaches_its_own_chunk(tmp_path: Path, overlap: bool) -> None:
    renderer = Renderer(bad=(5,))
    with session_of(tmp_path, renderer, overlap=overlap) as (session, store):
        session.render("a", chunk(0), 0)
        for _ in range(2 * CHUNKS):  # no set of arrays is lost with a chunk
            with pytest.raises(PixelError, match="frame 5: rgb holds 1 values that are NaN"):
                session.render("b", chunk(4), 0)
        session.render("c", chunk(8), 0)
        assert sorted(store.finished()) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_renderer_that_fails_leaves_no_copy_behind(tmp_path: Path) -> None:
    """Frames that are on their way are waited for: their arrays are the next chunk's."""
    gate, renderer = threading.Event(), Renderer()
    renderer.copying = lambda _: gate.wait(PATIENCE)
    render = renderer.render

    def failing(*args: Any, frame: int) -> Frame:
        if frame == 2:
            threading.Timer(0.1, gate.set).start()
            raise MemoryError("no more")
        return render(*args, frame=frame)

    renderer.render = failing  # type: ignore[method-assign, assignment]
    with session_of(tmp_path, renderer) as (session, store):
        with pytest.raises(Exception, match="MemoryError: no more"):
            session.render("a", chunk(0), 0)
        assert renderer.count("copy") == 2
        renderer.render = render  # type: ignore[method-assign]
        session.render("b", chunk(4), 0)
        assert sorted(store.finished()) == [4, 5, 6, 7]


def test_whoever_looks_on_sees_how_full_the_stages_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that wait for copies, then files that wait for the disk; at the end, nothing."""
    copies, disk = threading.Event(), threading.Event()
    write = Stage.write

    def slow(self: Stage, *parts: Any) -> None:
        assert disk.wait(PATIENCE)
        write(self, *parts)

    monkeypatch.setattr(Stage, "write", slow)
    renderer = Renderer(copying=lambda _: copies.wait(PATIENCE))
    with session_of(tmp_path, renderer) as (session, _):
        before = session.load()
        receipts, threads = render_all(session, [chunk(0)])
        assert renderer.await_count("render", COPYING + 1)
        until(lambda: session.load()["copies_waiting"] == COPYING + 1, PATIENCE)
        copying = session.load()
        copies.set()
        until(lambda: session.load()["files_waiting"] == 4, PATIENCE)  # of one output
        writing = session.load()
        disk.set()
        threads[0].join()
        after = session.load()
    assert not any(before.values())
    assert (copying["frames_in_flight"], copying["chunks_out"], copying["files_waiting"]) == (COPYING + 1, 1, 0)
    assert (writing["frames_in_flight"], writing["chunks_out"], writing["copies_waiting"]) == (4, 1, 0)
    assert (after["frames_in_flight"], after["chunks_out"], after["copies_waiting"], after["files_waiting"]) == (0, 0, 0, 0)
    assert after["frames_per_second"] > 0
    assert 0 < after["busy"] <= 1
    assert receipts[0]["frames"] == [0, 1, 2, 3]


def test_a_failed_chunk_leaves_no_load_behind(tmp_path: Path) -> None:
    with session_of(tmp_path, Renderer(bad=(2,))) as (session, _):
        with pytest.raises(PixelError):
            session.render("a", chunk(0), 0)
        load = session.load()
    assert (load["frames_in_flight"], load["chunks_out"], load["copies_waiting"], load["files_waiting"]) == (0, 0, 0, 0)


def test_a_meter_looks_back_for_its_window() -> None:
    now = [100.0]
    meter = LoadMeter(lambda: now[0])
    assert meter.read(50.0, 7) == (0.0, 0.0)
    now[0] += 10
    assert meter.read(55.0, 17) == (0.5, 1.0)
    for _ in range(40):  # a second each, in which all time is spent on one frame
        now[0] += 1
        busy, rate = meter.read(55.0 + now[0] - 110, 17 + int(now[0] - 110))
    assert (busy, rate) == (1.0, 1.0)
    now[0] += WINDOW + 1
    assert meter.read(95.0, 57)[1] < 1
    now[0] += WINDOW + 1
    assert meter.read(95.0, 57) == (0.0, 0.0)


def test_a_receipt_says_where_time_went(tmp_path: Path) -> None:
    with session_of(tmp_path, Renderer()) as (session, _):
        receipt = session.render("c", chunk(0), 0)
        nothing = session.render("c", chunk(0), 0)
    assert set(receipt["stages"]) == {"check", "render", "quantise", "wait", "encode", "write"}
    assert all(seconds >= 0 for seconds in receipt["stages"].values())
    assert receipt["stages"]["encode"] > 0
    assert receipt["stages"]["write"] > 0
    assert 0 < receipt["busy"] <= 1
    assert (nothing["frames"], nothing["busy"], nothing["queue"]) == ([], 0.0, {"frames": 0, "chunks": 0})
