"""A data rank that is out of GPU memory takes fewer slots, though the other rank has the old ones open: on two GPUs and on one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from landmark_batch.fetching.cache import RELEASE_SECONDS
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.parallel.share import ray_shares
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.store import BlockStore
from tests.fetching.flights import HEIGHT, LENS, POSES, WIDTH, open_fetching, write_store
from tests.fetching.short_memory import fill_memory
from tests.gpu_pairs import WAYS, gpus_of
from tests.parallel.gpu_memory_tasks import (
    BATCH,
    FLIGHT,
    PATIENCE,
    capacity,
    close,
    fill,
    keep_open,
    make_settings_of,
    offer,
    open_part,
    render,
    render_full,
)
from tests.parallel.ranks import Ranks

pytestmark = pytest.mark.gpu

USUAL = {"resolutions": (1, 2, 4), "app_dim": 27, "density_channels": 16, "appearance_channels": 48, "feature_width": 128}
GRID = (77, 77, 5)  # texels of a block's coarsest planes: the block has 16 MB
BLOCKS = 6
SMALL, LARGE = 8, 10  # scales of frames


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = write_store(tmp_path_factory.mktemp("large"), "blocks", grid_size=GRID, **USUAL)[1]
    assert BlockStore.open(found).block_bytes("fp16") > 12 * 2**20
    return found


@pytest.fixture(params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path: Path, path: Path) -> Iterator[Ranks]:
    """Two data ranks that share their copies, with all blocks' slots each."""
    devices, hide = gpus_of(request.param)
    (tmp_path / "memory").mkdir()
    processes = Ranks(2)
    try:
        offers = [answer.get() for answer in processes.all(range(2), offer, path, tmp_path / "memory")]
        for answer in processes.all(range(2), open_part, path, tmp_path, devices, hide, BLOCKS, offers):
            answer.get()
        yield processes
        for answer in processes.all(range(2), close):
            answer.get()
    finally:
        processes.close()


def expected(path: Path, index: int, scale: int) -> list[dict[str, NDArray[np.float32]]]:
    """Each rank's pixels of a frame, by a renderer with the whole scene."""
    lens, size = [value * scale for value in LENS], (WIDTH * scale, HEIGHT * scale)
    renderer = FusedRenderer(load_scene(path), make_settings_of(BlockStore.open(path)), "cuda")
    shares = ray_shares(*size, count=2, device=torch.device("cuda"))
    found = [renderer.render_pixels(POSES[index], lens, size[0], pixels)[:3] for pixels in shares]
    return [{name: plane.cpu().numpy() for name, plane in zip(("rgb", "depth", "alpha"), planes, strict=True)} for planes in found]


def assert_same(found: dict[str, NDArray[np.float32]], wanted: dict[str, NDArray[np.float32]], note: str) -> None:
    assert wanted["alpha"].max() > 0.5
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=f"{name}, {note}")


def test_slots_become_fewer_though_the_other_rank_has_them_open(pair: Ranks, path: Path) -> None:
    """There is no memory for other slots before the other rank lets go, which does nothing at that time. Both render on."""
    first = [answer.get() for answer in pair.all(range(2), render, FLIGHT[0], SMALL, PATIENCE)]
    assert sum(counters["fetch_bytes_pulled"] for _, counters in first) > 0
    for rank, wanted in enumerate(expected(path, FLIGHT[0], SMALL)):
        assert_same(first[rank][0], wanted, f"rank {rank}, shared")

    pair.call(0, fill, 0, LARGE)
    pair.call(1, keep_open, 1, RELEASE_SECONDS / 2)
    pixels, told, asked = pair.call(0, render_full, 0, FLIGHT[0], LARGE)
    left = pair.call(0, capacity, 0)
    wanted = expected(path, FLIGHT[0], LARGE)
    assert_same(pixels, wanted[0], "rank 0, with fewer slots")
    fewer = [line for line in told if "slots" in line]
    assert fewer[0].startswith(f"rank 0: out of GPU memory with {BLOCKS} slots: ") and fewer[0].endswith("with the same pixels"), told
    assert left < BLOCKS and f": {left} from here on" in fewer[-1]
    assert asked > len(fewer), "tables were made before the other rank had let go of the old ones"

    assert_same(pair.call(1, render, 1, FLIGHT[0], LARGE)[0], wanted[1], "rank 1, with its own slots")
    again = [answer.get() for answer in pair.all(range(2), render, FLIGHT[1], LARGE)]
    for rank, want in enumerate(expected(path, FLIGHT[1], LARGE)):
        assert_same(again[rank][0], want, f"rank {rank}, afterwards")
    assert not again[0][1]["fetch_bytes_pulled"], "who made other slots shares no more"
    assert [pair.call(rank, capacity, rank) for rank in range(2)] == [left, BLOCKS]


def in_a_full_process(path: Path) -> tuple[dict[str, NDArray[np.float32]], int]:
    """A renderer of one rank, with no byte of the device left but what its slots give back; its slots in the end."""
    store = BlockStore.open(path)
    renderer = open_fetching([], store, make_settings_of(store), BLOCKS, None, "cuda", memory=BATCH)
    hogs = fill_memory(torch.device("cuda", 0))
    pixels = renderer.render(POSES[0], [value * LARGE for value in LENS], WIDTH * LARGE, HEIGHT * LARGE).numpy()
    assert hogs
    slots = renderer._fetcher.capacity
    renderer.close()
    return pixels, slots


def test_a_renderer_of_one_rank_takes_fewer_slots(path: Path) -> None:
    """In a process of its own, whose memory it fills."""
    processes = Ranks(1)
    try:
        pixels, slots = processes.call(0, in_a_full_process, path)
    finally:
        processes.close()
    renderer = FusedRenderer(load_scene(path), make_settings_of(BlockStore.open(path)), "cuda")
    lens = [value * LARGE for value in LENS]
    assert_same(pixels, renderer.render(POSES[0], lens, WIDTH * LARGE, HEIGHT * LARGE).numpy(), "with fewer slots")
    assert 1 <= slots < BLOCKS
