"""The link that a scene comes over: which one limits, what is read, and when reading ends."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from numpy.typing import NDArray

from landmark_batch.errors import CheckpointError
from landmark_batch.fetching.choice import FetchChoice
from landmark_batch.job import RenderJob
from landmark_batch.scene.convert import convert_scene
from landmark_batch.scene.store import BlockStore, BlockTable
from landmark_batch.scene.store_load import load_store
from landmark_batch.workflows import bench_link
from landmark_batch.workflows.bench_link import SceneLink, read_rate, scene_link, scene_reads
from landmark_batch.workflows.machine import describe_machine, place_workers
from landmark_batch.workflows.request import RenderRequest, scene_request
from tests.fetching.flights import write_store

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


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def bytes_of_load(store: BlockStore, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of planes, as they come while a scene is read whole."""
    counts: list[int] = []
    whole, pieces = BlockStore.read_plane_into, BlockStore.plane_rows

    def read_whole(self: BlockStore, block: int, table: BlockTable, into: NDArray[Any]) -> None:
        whole(self, block, table, into)
        counts.append(into.nbytes)

    def read_rows(self: BlockStore, block: int, table: BlockTable, spare: Callable[[], NDArray[Any]]) -> Iterator[tuple[int, NDArray[Any]]]:
        for first, rows in pieces(self, block, table, spare):
            counts.append(rows.nbytes)
            yield first, rows

    with monkeypatch.context() as patch:
        patch.setattr(BlockStore, "read_plane_into", read_whole)
        patch.setattr(BlockStore, "plane_rows", read_rows)
        load_store(store)
    return sum(counts)


@pytest.mark.parametrize("kind", ["blocks", "cut3", "half"])
@pytest.mark.parametrize("remote", [False, True], ids=["folder", "url"])
def test_what_a_worker_reads_of_a_store(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, remote: bool
) -> None:
    """A part that lies in several blocks counts once, unless the scene is fetched block by block; lines do not count."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _, path = write_store(tmp_path, kind)
    job = make_job()
    with served(tmp_path) as url:
        place = f"{url}/{path.name}" if remote else path
        store = BlockStore.open(place)
        request = scene_request(job.model_copy(update={"scene": job.scene.model_copy(update={"checkpoint": place})}), "cpu")
        stored, reads = scene_reads(request)
        assert stored == sum(read() for read in reads) == bytes_of_load(store, monkeypatch)
        fetched, reads = scene_reads(replace(request, fetching=FetchChoice("dynamic", "test", 2, 1)))
        every = store.blocks * sum(math.prod(table.shape) for table in store.tables) * (2 if kind == "half" else 4)
        assert fetched == sum(read() for read in reads) == every
    assert (stored < fetched) == (kind == "cut3")
