"""Exports beside a render whose images are made by processes: they live as long as the session, and rendering goes first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.events import ChunkDone
from landmark_batch.frames import image_processes
from landmark_batch.frames.process_pool import ProcessPool
from landmark_batch.job import RenderJob, job_from_dict
from landmark_batch.workflows import export_session
from landmark_batch.workflows.bench_export import bench_export
from landmark_batch.workflows.export_session import ExportSession
from tests.frames.export_sources import commit, pictures, write_store
from tests.workflows.processes import until

SHOTS = {"rgb": pictures(9), "alpha": pictures(9)[..., 0]}


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[psutil.Process]]]:
    """Gives the processes that were begun below this one since. Those for images begin with the first, and none may be left."""
    monkeypatch.setattr(image_processes, "BEGIN_BYTES", 0)
    monkeypatch.setattr(image_processes, "LEAST", 2)
    monkeypatch.setattr(ProcessPool, "ready", True)  # calls wait for them
    before = set(psutil.Process().children(recursive=True))

    def found() -> list[psutil.Process]:
        return [process for process in psutil.Process().children(recursive=True) if process not in before]

    yield found
    assert found() == []


def done(*frames: int) -> ChunkDone:
    return ChunkDone("chunk", frames, "worker", 0, 1.0, {}, {})


def count(folder: Path) -> int:
    return len(list(folder.rglob("city.*.png")))


def job(folder: Path) -> RenderJob:
    return job_from_dict({"name": "city", "output": {"store": folder / "city.zarr", "alpha": "uint8"}})


def test_one_set_of_processes_for_all_outputs_and_batches(tmp_path: Path, begun: Callable[[], list[psutil.Process]]) -> None:
    store = write_store(tmp_path / "city.zarr", SHOTS, frames=[0, 1])
    session = ExportSession.of_job(job(tmp_path), frames=range(9), pending=range(2, 9), images=True, latest=False, workers=2)
    until(lambda: count(tmp_path / "city") == 4)
    until(lambda: len(begun()) == 3)
    first = {process.pid for process in begun()}
    assert {process.nice() for process in begun()} == {min(19, os.nice(0) + 5)}
    commit(store, SHOTS, range(2, 6))
    session(done(2, 3, 4, 5))
    until(lambda: count(tmp_path / "city") == 12)
    assert {process.pid for process in begun()} == first
    commit(store, SHOTS, range(6, 9))
    session(done(6, 7, 8))
    assert [report.written for report in session.finish().images] == [tuple(range(9))] * 2
    assert begun() == [] and sorted(path.name for path in (tmp_path / "city").iterdir()) == ["alpha", "rgb"]


def test_they_begin_before_the_first_frame_where_many_will_come(
    tmp_path: Path, begun: Callable[[], list[psutil.Process]], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 7 * pictures(1).nbytes + 7 * pictures(1)[..., 0].nbytes
    write_store(tmp_path / "city.zarr", SHOTS, frames=[0, 1])
    for least, many in ((size // 4 + 1, False), (size // 4, True)):
        monkeypatch.setattr(export_session, "BEGIN_BYTES", least)
        monkeypatch.setattr(image_processes, "BEGIN_BYTES", 2**40)
        session = ExportSession.of_job(job(tmp_path), frames=range(2, 9), pending=range(2, 9), images=True, latest=False, workers=2)
        assert bool(begun()) == many
        session.abort()


def test_processes_end_with_a_session_that_is_aborted(tmp_path: Path, begun: Callable[[], list[psutil.Process]]) -> None:
    write_store(tmp_path / "city.zarr", SHOTS, frames=[0, 1])
    session = ExportSession.of_job(job(tmp_path), frames=range(9), pending=range(2, 9), images=True, latest=False, workers=2)
    until(lambda: count(tmp_path / "city") == 4)
    assert begun() != []
    session.abort()
    assert begun() == [] and not list(tmp_path.rglob("*.partial"))


def test_processes_end_with_a_session_that_fails(tmp_path: Path, begun: Callable[[], list[psutil.Process]]) -> None:
    store = write_store(tmp_path / "city.zarr", SHOTS)
    store.chunk_file("rgb", 1).write_bytes(b"rubbish")
    session = ExportSession.of_job(job(tmp_path), frames=range(9), images=True, latest=False, workers=2)
    with pytest.raises(StoreError, match="rgb of frame 1 is damaged"):
        session.finish()
    assert begun() == [] and not list(tmp_path.rglob("*.partial"))


def test_a_bench_measures_the_processes_too(tmp_path: Path) -> None:
    """CPU time of theirs counts: of their start alone it is far more than of a few small images."""
    report = bench_export(tmp_path, width=64, height=48, frames=2, threads=2, codecs=["ffv1"])
    cpu = {row.what: row.cpu for row in report.rows if row.bits == 8}
    assert cpu["PNG, store to files"] > 0.1


def test_those_who_render_are_asked_for_pngs_while_the_session_lasts(tmp_path: Path) -> None:
    store = write_store(tmp_path / "city.zarr", SHOTS, frames=[0, 1])
    session = ExportSession.of_job(job(tmp_path), frames=range(9), pending=range(2, 9), images=True, latest=False, workers=1)
    order = session.pictures
    assert order is not None and order.is_seen
    assert (order.folder, order.name) == (str(tmp_path / "city" / "rgb"), "city")
    commit(store, SHOTS, range(2, 9))
    session.add(range(2, 9))
    assert len(session.finish().images) == 2
    assert not order.is_seen and not list(tmp_path.rglob("*.partial"))
    on_cpu = job_from_dict({"name": "city", "output": {"store": tmp_path / "city.zarr", "alpha": "uint8"}, "parallel": {"device": "cpu"}})
    for asked, frames in ((on_cpu, [8]), (job(tmp_path), [])):
        other = ExportSession.of_job(asked, frames=range(9), pending=frames, images=True, latest=False, workers=1)
        assert other.pictures is None
        other.abort()


def test_a_folder_that_cannot_be_made_is_told_at_the_end(tmp_path: Path) -> None:
    write_store(tmp_path / "city.zarr", SHOTS)
    (tmp_path / "file").write_text("no folder")
    asked = job(tmp_path).model_copy(update={"images": job(tmp_path).images.model_copy(update={"dir": tmp_path / "file"})})
    session = ExportSession.of_job(asked, frames=range(9), pending=[8], images=True, latest=False, workers=1)
    assert session.pictures is None
    with pytest.raises(ConfigError, match="file"):
        session.finish()
    session.abort()
