"""The link that a scene comes over: which one limits, what is read, and when reading ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from landmark_batch.errors import CheckpointError
from landmark_batch.job import RenderJob
from landmark_batch.scene.convert import convert_scene
from landmark_batch.scene.store import BlockStore
from landmark_batch.workflows import bench_link
from landmark_batch.workflows.bench_link import SceneLink, read_rate, scene_link, scene_reads
from landmark_batch.workflows.machine import describe_machine, place_workers
from landmark_batch.workflows.request import RenderRequest, scene_request

MakeJob = Callable[..., RenderJob]


def test_the_slower_of_two_ways_limits() -> None:
    disk = SceneLink(stored=8_000_000_000, held=4_000_000_000, reading=2e9, copying=50e9)
    assert (disk.seconds, disk.rate) == (4.0, 2e9)
    assert disk.describe() == "reading is what limits: 8.00 GB take 4.00 s; to the GPU 50.00 GB/s, 4.00 GB take 0.08 s"
    bus = SceneLink(stored=8_000_000_000, held=16_000_000_000, reading=20e9, copying=10e9)
    assert (bus.seconds, bus.rate) == (1.6, 10e9)
    assert bus.describe() == "the link to the GPU is what limits: 16.00 GB take 1.60 s; reading 20.00 GB/s, 8.00 GB take 0.40 s"
    alone = SceneLink(stored=500_000_000, held=10**12, reading=1e9)
    assert (alone.seconds, alone.rate) == (0.5, 1e9)
    assert alone.describe() == "reading: 0.50 GB take 0.50 s"


def test_reading_ends_in_time() -> None:
    asked: list[int] = []

    def read() -> int:
        asked.append(1)
        return 100

    assert read_rate(read for _ in range(50)) > 0 and len(asked) == 50
    assert read_rate((read for _ in range(50)), seconds=0.0) > 0 and len(asked) == 50


def test_all_of_a_scene_is_read(make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint its files, of a store the planes of its blocks, in spans that may be smaller than these."""
    monkeypatch.setattr(bench_link, "SPAN", 500)
    monkeypatch.setattr(bench_link, "PIECE", 300)
    job = make_job()
    assert job.scene.checkpoint is not None
    checkpoint = Path(job.scene.checkpoint)
    target = convert_scene(checkpoint, tmp_path / "blocks.zarr", blocks=(2, 2)).target
    store = BlockStore.open(target)
    planes = sum(Path(store.where(block, table)).stat().st_size for block in range(store.blocks) for table in store.tables)
    requests: list[RenderRequest] = []
    for place, size in ((checkpoint, checkpoint.stat().st_size), (target, planes)):
        scene = job.scene.model_copy(update={"checkpoint": place})
        requests.append(scene_request(job.model_copy(update={"scene": scene}), "cpu"))
        stored, reads = scene_reads(requests[-1])
        counts = [read() for read in reads]
        assert stored == size == sum(counts) and max(counts) == 500 and len(counts) > 4
        link = scene_link(requests[-1], place_workers(job.parallel, describe_machine(renders=False), device="cpu")[0])
        assert link.stored == size and link.copying is None and link.held == 4 * store.config.grid_parameters()
    _, reads = scene_reads(requests[1])
    shutil.rmtree(target / "app_plane")
    with pytest.raises(CheckpointError, match=r"app_plane.*: cannot read it: No such file"):
        [read() for read in reads]
