"""Frames of a commit encoded by processes that see their pixels: the same files, and nothing lost with a process."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from landmark_batch.errors import DiskFullError
from landmark_batch.frames import durable, encoding_processes, shared_pixels, staged_frames
from landmark_batch.frames.encode import encoding_threads
from landmark_batch.frames.fingerprint import flight_fingerprints
from landmark_batch.frames.process_pool import ProcessPool
from landmark_batch.frames.shared_pixels import shared_array
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.frames.store import FrameStore
from tests.frames.store_kit import EVERY_COMPRESSOR, assert_is, make_flight, make_settings, make_spec, pixels_of
from tests.workflows.processes import until

OUTPUTS = (OutputSpec("rgb", "uint8", 3), OutputSpec("depth", "float32"), OutputSpec("alpha", "uint16"))
WIDTH, HEIGHT = 120, 90
FLIGHT, SETTINGS = make_flight(6, width=WIDTH, height=HEIGHT), make_settings()
PRINTS = flight_fingerprints(SETTINGS, FLIGHT)


@pytest.fixture(scope="module")
def made() -> Iterator[ProcessPool]:
    pool = ProcessPool(2, [encoding_processes.__name__])
    until(lambda: pool.ready)
    yield pool
    pool.close()


@pytest.fixture
def pool(made: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> ProcessPool:
    monkeypatch.setattr(encoding_processes, "_pools", {os.getpid(): made})
    return made


@pytest.fixture
def own_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessPool]:
    """For one test, which may break it."""
    pool = ProcessPool(2, [encoding_processes.__name__])
    monkeypatch.setattr(encoding_processes, "_pools", {os.getpid(): pool})
    monkeypatch.setattr(encoding_processes, "_alone", set())
    until(lambda: pool.ready)
    yield pool
    pool.close()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is encoded in this process."""

    def refuse(self: Any, *arguments: Any) -> Any:
        raise AssertionError("encoded here")

    monkeypatch.setattr(staged_frames.StagedFrames, "_here", refuse)


def create(path: Path, **more: Any) -> FrameStore:
    return FrameStore.create(path, make_spec(6, outputs=OUTPUTS, width=WIDTH, height=HEIGHT, **more), FLIGHT, SETTINGS)


def render(store: FrameStore, make: Callable[..., NDArray[Any]]) -> None:
    """All frames in one commit, their pixels in arrays of make(shape, dtype), one frame after another."""
    pixels = {output.name: make((6, *store.spec.frame_shape(output.name)), output.dtype) for output in OUTPUTS}
    with store.writer("w0") as writer, writer.begin(range(6), PRINTS) as commit:
        commit.take(pixels)
        for frame, fingerprint in enumerate(PRINTS):
            for name, values in pixels_of(store.spec, fingerprint).items():
                pixels[name][frame] = values
            commit.add(frame)
        commit.finish(seconds=1.0)
    store.refresh_done()


def frame_files(store: FrameStore) -> dict[str, bytes]:
    return {f"{name} {frame}": store.chunk_file(name, frame).read_bytes() for name in store.spec.names for frame in range(6)}


@pytest.mark.usefixtures("pool", "no_threads")
@pytest.mark.parametrize("compressor", EVERY_COMPRESSOR)
def test_files_of_processes_are_those_of_threads(fast_path: Path, compressor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(fast_path / "a.zarr", compressor=compressor)
    render(store, shared_array)
    assert_is(store.path, FLIGHT, SETTINGS)
    monkeypatch.undo()
    other = create(fast_path / "b.zarr", compressor=compressor)
    render(other, np.empty)
    assert frame_files(store) == frame_files(other)
    assert not list(store.path.rglob("*.partial"))


@pytest.mark.usefixtures("pool")
def test_frames_that_share_a_file_are_zarrs(fast_path: Path) -> None:
    store = create(fast_path / "a.zarr", frames_per_shard=2)
    render(store, shared_array)
    assert_is(store.path, FLIGHT, SETTINGS)


@pytest.mark.usefixtures("no_threads")
def test_what_a_file_meets_is_the_commits_error(fast_path: Path, own_pool: ProcessPool) -> None:
    """A disk that is full for the processes: as for threads."""
    store = create(fast_path / "a.zarr")
    own_pool.run(fill_disk)  # it comes back as the first that is asked again
    with pytest.raises(DiskFullError, match="disk is full"):
        render(store, shared_array)
    assert store.finished() == {} and not list(store.path.rglob("*.partial"))
    del store
    assert shared_pixels._memories == {}, "an error keeps no pixels"


def fill_disk() -> None:
    """In a process of a pool: no file can be written."""

    def full(path: Path, data: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    durable.write_new = full


def test_a_killed_process_loses_no_frame(fast_path: Path, own_pool: ProcessPool, caplog: pytest.LogCaptureFixture) -> None:
    """In the middle of a file: the process that renders writes that frame."""
    store = create(fast_path / "a.zarr")
    own_pool.run(hold, str(fast_path))
    rendering = threading.Thread(target=render, args=(store, shared_array))
    rendering.start()
    until(lambda: bool(list(fast_path.glob("held-*"))))
    for file in fast_path.glob("held-*"):
        os.kill(int(file.name.removeprefix("held-")), signal.SIGKILL)
    rendering.join()
    assert_is(store.path, FLIGHT, SETTINGS)
    assert [record.getMessage() for record in caplog.records] == ["a frame is encoded by the process that renders: the process has ended"]
    assert not list(store.path.rglob("*.partial"))


def hold(folder: str) -> int:
    """In a process of a pool: it stops in the middle of the next file, and says so."""
    write = durable.write_new

    def half(path: Path, data: Any) -> None:
        write(path, b"half of it")
        write(Path(folder) / f"held-{os.getpid()}", b"")
        signal.pause()

    durable.write_new = half
    return os.getpid()


def test_nobody_waits_for_processes_that_are_not_there_yet(
    fast_path: Path, own_pool: ProcessPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ProcessPool, "ready", False)
    store = create(fast_path / "a.zarr")
    render(store, shared_array)
    assert_is(store.path, FLIGHT, SETTINGS)
    assert caplog.records == []


def test_pixels_that_nobody_else_sees_are_encoded_here(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise AssertionError("a process was asked")

    monkeypatch.setattr(encoding_processes, "encoding_processes", none)
    store = create(fast_path / "a.zarr")
    render(store, np.empty)
    assert_is(store.path, FLIGHT, SETTINGS)


def test_memory_that_processes_do_not_see_is_told_once(fast_path: Path, own_pool: ProcessPool, caplog: pytest.LogCaptureFixture) -> None:
    own_pool.run(close_eyes)
    store = create(fast_path / "a.zarr")
    render(store, shared_array)
    assert_is(store.path, FLIGHT, SETTINGS)
    told = [record.getMessage() for record in caplog.records]
    assert 1 <= len(told) <= encoding_threads() and all("others do not see its memory" in text for text in told), (
        "those that were asked at once"
    )


def close_eyes() -> None:
    """In a process of a pool."""

    def unseen(place: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "/proc")

    encoding_processes.opened = unseen
