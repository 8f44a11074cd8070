"""A driver's own exports: of a job nobody watches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from landmark_batch.events import ChunkDone, ChunkStarted, Event
from landmark_batch.job import job_from_dict
from landmark_batch.workflows.messages import told_events
from landmark_batch.workflows.order import ExportOrder, JobOrder
from landmark_batch.workflows.station import DaskStation
from tests.frames.export_sources import commit, pictures, write_store


def station_of(folder: Path, exports: ExportOrder | None) -> tuple[DaskStation, list[Any]]:
    told: list[Any] = []
    job = job_from_dict({"name": "city", "output": {"store": folder / "city.zarr"}})
    order = JobOrder(
        run="0a", request=cast(Any, SimpleNamespace(job=job)), chunk_frames=2, placement=None, log=folder / "l", exports=exports
    )
    return DaskStation(cast(Any, None), order, lambda topic, message: told.append((topic, message))), told


def test_a_detached_job_keeps_the_newest_frame_beside_its_store(tmp_path: Path) -> None:
    shots = pictures(4, 24, 32)
    store = write_store(tmp_path / "city.zarr", {"rgb": shots}, frames=[0])
    for exports, expected in ((None, False), (ExportOrder(latest=False), False), (ExportOrder(), True)):
        station, told = station_of(tmp_path, exports)
        station.begin(range(4), [1, 2])
        if expected:
            commit(store, {"rgb": shots}, [1, 2])
        station.emit(ChunkDone("chunk", (1, 2), "worker", 0, 1.0, {}, {}))
        station.end()
        assert len(told) == 1
        assert (tmp_path / "city.latest.jpg").exists() is expected
    with Image.open(tmp_path / "city.latest.jpg") as image:
        assert image.size == (32, 24)
    assert not (tmp_path / "city").exists()
    assert not (tmp_path / "city.mp4").exists()


def test_beginnings_of_chunks_travel_with_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is told at once, later ones with the next event, at the latest when the station ends."""
    now = [100.0]
    monkeypatch.setattr("landmark_batch.workflows.station.time", SimpleNamespace(monotonic=lambda: now[0]))
    station, told = station_of(tmp_path, None)

    def messages() -> list[list[Event]]:
        found = [told_events(message) for _, message in told]
        told.clear()
        return found

    begun = [ChunkStarted(f"c{i}", "w0") for i in range(5)]
    done = ChunkDone("c0", (1, 2), "w0", 0, 1.0, {}, {})
    station.emit(begun[0])
    assert messages() == [[begun[0]]]
    station.emit(begun[1])
    assert messages() == []
    station.emit(done)
    assert messages() == [[begun[1], done]]
    now[0] += 5.0
    station.emit(begun[2])
    station.tell_held()
    assert messages() == []
    now[0] += 0.6
    station.emit(begun[3])
    now[0] += 0.4
    station.tell_held()
    assert messages() == [[begun[2], begun[3]]]
    station.emit(begun[4])
    station.end()
    assert messages() == [[begun[4]]]
