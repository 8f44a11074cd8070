"""A job whose frames go to an object store, with real worker processes: killed in the middle, it goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from landmark_batch.errors import StoreError
from landmark_batch.events import ChunkDone, Event
from landmark_batch.frames.layout import layout_of
from landmark_batch.frames.owner import store_owners
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store
from landmark_batch.job import RenderJob
from landmark_batch.object_path import ObjectPath, as_store_path
from landmark_batch.workflows.control import running_jobs
from landmark_batch.workflows.export import export_images
from landmark_batch.workflows.render import run_render
from tests.object_server import on
from tests.workflows.block_jobs import SLOTS, block_job, write_flight, write_town
from tests.workflows.conftest import FRAMES, RenderProcess, pixels

MakeJob = Callable[..., RenderJob]
Spawn = Callable[..., RenderProcess]


def finished(url: str) -> int:
    with suppress(StoreError):  # not made yet
        return len(FrameStore.open(url).finished())
    return 0


@on("s3", "gs")
@pytest.mark.timeout(240)
def test_a_killed_job_goes_on_in_its_bucket(
    make_job: MakeJob, spawn: Spawn, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)  # where log and pictures of a store in an object store are put
    url = f"{bucket}/flights/tiny.zarr"
    job = make_job(f"output.store={url}", "output.chunk_frames=1", "output.depth=true")
    assert job.store_path == as_store_path(url)
    process = spawn(job)
    deadline = time.monotonic() + 100
    while finished(url) < 3:
        assert process.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert [found.stopping for found in running_jobs(as_store_path(url))] == [False]
    process.kill()
    before = finished(url)
    assert store_owners(url) == []  # a dead process holds nothing
    request.getfixturevalue("inline")
    result = run_render(job)
    assert (result.state, result.rendered) == ("complete", FRAMES - before)
    assert result.as_dict()["store"] == url
    calm = make_job("output.chunk_frames=4", "output.depth=true")
    run_render(calm)
    root = as_store_path(url)
    assert isinstance(root, ObjectPath) and isinstance(calm.store_path, Path)
    assert {name: (root / name).read_bytes() for name in pixels(calm.store_path)} == pixels(calm.store_path)
    report = verify_store(url)
    assert (report.checked, report.ok, report.notes) == (FRAMES, True, ())
    assert [path.name for path in (layout_of(url).hidden / "runs").iterdir()] == []
    assert [path.name for path in layout_of(url).claims.iterdir()] == []
    assert (
        sum(len(json.loads(line)["frames"]) for log in layout_of(url).ledger.glob("*.log") for line in log.read_text().splitlines())
        == FRAMES
    )
    images = export_images(root, frames="5")
    assert images.folder == Path("tiny/rgb")
    with Image.open(next(iter((tmp_path / "tiny/rgb").glob("*.png")))) as picture:
        assert picture.tobytes() == FrameStore.open(url).read("rgb", 5).tobytes()
    assert (tmp_path / "tiny.log").is_file()


@pytest.mark.usefixtures("inline")
def test_blocks_are_fetched_by_the_plan_that_lies_in_the_bucket(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers read which blocks frames see, and in which order frames go out, from the run's place in the store."""
    monkeypatch.chdir(tmp_path)
    _, scene = write_town(tmp_path)
    cameras, url = write_flight(tmp_path), f"{bucket}/town.zarr"
    inside: list[set[str]] = []
    folder = layout_of(url).hidden / "runs"

    def look(event: Event) -> None:
        if isinstance(event, ChunkDone) and not inside:
            inside.append({path.name for run in folder.iterdir() for path in run.iterdir()})

    result = run_render(block_job(scene, cameras, Path("unused"), *SLOTS, f"output.store={url}"), sinks=[look])
    assert result.state == "complete" and result.counters["fetch_loads"] > 0
    assert inside and inside[0] >= {"snapshot.json", "flight.npz", "seen.npz", "route.npz"}
    calm = block_job(scene, cameras, tmp_path / "calm.zarr", "fetching.mode=resident")
    run_render(calm)
    root = as_store_path(url)
    assert isinstance(root, ObjectPath) and isinstance(calm.store_path, Path)
    assert {name: (root / name).read_bytes() for name in pixels(calm.store_path)} == pixels(calm.store_path)
