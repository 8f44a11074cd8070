from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from landmark_batch.fetching.cache import BlockCache
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore
from tests.fetching.cached import NAMES, assert_holds, expected, make_store

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")]

BLOCKS = 6
LONG = 1_600_000_000  # clock cycles that a kernel idles: about a second, so that a busy host is not later
SHORT = 10_000_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    return make_store(tmp_path_factory.mktemp("gpu"), precision="fp16", grid_size=(96, 80, 16))


@pytest.fixture(scope="module")
def truth(store: BlockStore) -> list[dict[str, list[Tensor]]]:
    return [expected(store, block, "fp16", None, True) for block in range(BLOCKS)]


@pytest.fixture
def opened() -> Iterator[list[BlockCache]]:
    caches: list[BlockCache] = []
    yield caches
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("default")
    for cache in caches:
        cache.close()


def make_cache(store: BlockStore, slots: int, buffers: int, opened: list[BlockCache]) -> BlockCache:
    cache = BlockCache(store, "cuda", slots=slots, host_bytes=buffers * 4 * store.block_bytes("fp16"), precision="fp16", pad=True)
    opened.append(cache)
    return cache


def read_slots(cache: BlockCache, blocks: Tensor) -> list[Tensor]:
    """What kernels of the current stream find of these blocks, through the list of slots; the host asks for nothing."""
    rows = cache.tables.slots.index_select(0, blocks)
    return [table.index_select(0, rows) for name in NAMES for table in getattr(cache.tables, name)]


def assert_read(found: list[Tensor], truth: list[dict[str, list[Tensor]]], blocks: list[int]) -> None:
    wanted = [torch.stack([truth[b][name][level] for b in blocks]) for name in NAMES for level in range(len(truth[0][name]))]
    for table, want in zip(found, wanted, strict=True):
        assert torch.equal(table.cpu(), want)


def wait_for_reads(cache: BlockCache, blocks: int) -> None:
    until = time.monotonic() + 30
    while cache.stats.blocks_read < blocks and time.monotonic() < until:
        time.sleep(0.01)
    assert cache.stats.blocks_read >= blocks


def test_no_slot_is_overwritten_before_its_kernels_are_over(
    store: BlockStore, truth: list[dict[str, list[Tensor]]], opened: list[BlockCache]
) -> None:
    """Two slots, every frame other blocks, kernels that read them late: each finds its own blocks."""
    cache = make_cache(store, slots=2, buffers=3, opened=opened)
    sets = [[frame % BLOCKS, (frame * 5 + 1) % BLOCKS] for frame in range(24)]
    sets = [sorted(set(blocks)) for blocks in sets]
    index = [torch.tensor(blocks, device="cuda") for blocks in sets]
    address = cache.tables.slots.data_ptr()
    cache.expect(sets)
    found = []
    for blocks, rows in zip(sets, index, strict=True):
        with cache.hold(blocks):
            torch.cuda._sleep(SHORT)
            found.append(read_slots(cache, rows))
    torch.cuda.synchronize()
    for tables, blocks in zip(found, sets, strict=True):
        assert_read(tables, truth, blocks)
    stats = cache.stats
    assert stats.bytes_copied == stats.loads * sum(t.nbytes for name in NAMES for t in truth[0][name])
    assert stats.copy_rate > 0 and cache.tables.slots.data_ptr() == address


def test_the_host_waits_for_nothing_that_is_there(
    store: BlockStore, truth: list[dict[str, list[Tensor]]], opened: list[BlockCache]
) -> None:
    """The device is busy for long; the host enters and leaves holds all the same: of blocks in slots, of blocks in host memory, and of
    blocks whose slots the busy kernel still reads.
    """
    cache = make_cache(store, slots=4, buffers=6, opened=opened)
    sets = [[0, 1], [0, 1], [2, 3], [4, 5], [0, 1]]
    index = [torch.tensor(blocks, device="cuda") for blocks in sets]
    cache.expect(sets)
    with cache.hold(sets[0]):
        first = read_slots(cache, index[0])
    wait_for_reads(cache, BLOCKS)
    torch.cuda.synchronize()
    found = [first]
    over = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    for frame in range(1, len(sets)):
        with cache.hold(sets[frame]):
            if frame == 1:
                torch.cuda._sleep(LONG)
                over.record()
            found.append(read_slots(cache, index[frame]))
    busy = not over.query()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert busy
    for tables, blocks in zip(found, sets, strict=True):
        assert_read(tables, truth, blocks)
    with cache.hold([1, 5]):
        assert_holds(cache, truth, [1, 5])


def test_a_wait_of_the_device_is_a_stall(store: BlockStore, truth: list[dict[str, list[Tensor]]], opened: list[BlockCache]) -> None:
    """A slow link: kernels wait for the copy of their block, the host does not, and the wait is counted."""
    cache = make_cache(store, slots=1, buffers=6, opened=opened)
    rows = torch.tensor([1], device="cuda")
    cache.expect([[0], [1], [1]])
    with cache.hold([0]):
        read_slots(cache, rows - 1)  # a kernel that is loaded for the first time waits for the device
    wait_for_reads(cache, 2)
    torch.cuda.synchronize()
    before = cache.stats.as_dict()
    with torch.cuda.stream(cache._copies._stream):
        torch.cuda._sleep(LONG)
        over = torch.cuda.Event()
        over.record()
    with cache.hold([1]):
        found = read_slots(cache, rows)
    with cache.hold([1]):
        pass
    assert not over.query()
    torch.cuda.synchronize()
    assert_read(found, truth, [1])
    after = cache.stats.as_dict()
    assert after["stalls"] - before["stalls"] == 1 and after["stall_seconds"] - before["stall_seconds"] > 0.02


def test_a_recorded_graph_reads_what_is_held_now(store: BlockStore, truth: list[dict[str, list[Tensor]]], opened: list[BlockCache]) -> None:
    cache = make_cache(store, slots=2, buffers=3, opened=opened)
    rows = torch.zeros(1, dtype=torch.int64, device="cuda")
    with cache.hold([0]):
        read_slots(cache, rows)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with cache.hold([0]), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = read_slots(cache, rows)
    cache.expect([[block] for block in range(BLOCKS)])
    kept = []
    for block in range(BLOCKS):
        rows.fill_(block)
        with cache.hold([block]):
            graph.replay()
            kept.append([table.clone() for table in found])
    torch.cuda.synchronize()
    for block, tables in enumerate(kept):
        assert_read(tables, truth, [block])


def test_fewer_slots_give_their_memory_back(store: BlockStore, truth: list[dict[str, list[Tensor]]], opened: list[BlockCache]) -> None:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free = torch.cuda.memory_allocated()
    cache = make_cache(store, slots=4, buffers=3, opened=opened)
    with cache.hold([0, 1, 2, 3]):
        torch.cuda._sleep(SHORT)
    four = torch.cuda.memory_allocated() - free
    cache.resize(2)
    assert torch.cuda.memory_allocated() - free < 0.6 * four
    for blocks in ([4, 5], [0, 1]):
        with cache.hold(blocks):
            assert_holds(cache, truth, blocks)


def test_channels_of_a_share_and_a_cut_scene(tmp_path: Path, opened: list[BlockCache]) -> None:
    cut = make_store(tmp_path, cut=True)
    shard = ChannelShard(1, 2)
    truth = [expected(cut, block, "fp16", shard, True) for block in range(BLOCKS)]
    cache = BlockCache(cut, "cuda", slots=3, host_bytes=None, precision="fp16", shard=shard, pad=True)
    opened.append(cache)
    assert cache.tables.origins is not None and cache.tables.origins.device.type == "cuda"
    sets = [[0, 1, 2], [2, 3], [3, 4, 5]]
    cache.expect(sets)
    for blocks in sets:
        with cache.hold(blocks):
            assert_holds(cache, truth, blocks)
