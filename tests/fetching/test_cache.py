from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from landmark_batch.errors import CheckpointError, ConfigError
from landmark_batch.fetching.belady import belady
from landmark_batch.fetching.block_sets import block_sets
from landmark_batch.fetching.cache import BlockCache
from landmark_batch.fetching.copies import SlotCopies
from landmark_batch.model.blocks import in_passes
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore, BlockTable
from tests.fetching.cached import assert_holds, expected, make_store

BLOCKS = 6
flights = st.lists(st.frozensets(st.integers(0, BLOCKS - 1), max_size=4), min_size=1, max_size=12)


class SlowStore(BlockStore):
    """Reads take `seconds`, or as long as `gate` is closed; they are counted."""

    seconds = 0.0
    gate: threading.Event | None = None
    reads = 0
    reading: threading.Event | None = None

    def read_plane_into(self, block: int, table: BlockTable, into: NDArray[Any]) -> None:
        self.reads += 1
        if self.reading is not None:
            self.reading.set()
        if self.gate is not None:
            self.gate.wait(20)
        time.sleep(self.seconds)
        super().read_plane_into(block, table, into)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BlockStore]:
    return {
        "blocks": make_store(tmp_path_factory.mktemp("blocks")),
        "half": make_store(tmp_path_factory.mktemp("half"), precision="fp16"),
        "cut": make_store(tmp_path_factory.mktemp("cut"), cut=True),
    }


@pytest.fixture
def opened() -> Iterator[list[BlockCache]]:
    """Caches that a test opens; closed after it."""
    caches: list[BlockCache] = []
    yield caches
    for cache in caches:
        cache.close()


def slow(store: BlockStore) -> SlowStore:
    found = SlowStore.open(store.location)
    assert isinstance(found, SlowStore)
    return found


@pytest.mark.parametrize(
    ("name", "precision", "shard", "pad"),
    [
        ("blocks", "fp32", None, False),
        ("blocks", "fp16", None, True),
        ("blocks", "fp32", ChannelShard(1, 2), False),
        ("blocks", "fp16", ChannelShard(3, 4), True),  # no channel of density is its own
        ("half", "fp16", None, False),
        ("half", "fp32", ChannelShard(0, 2), True),
        ("cut", "fp32", None, False),
        ("cut", "fp16", ChannelShard(1, 2), True),
    ],
)
def test_every_hold_finds_the_bytes_of_its_blocks(
    stores: dict[str, BlockStore], opened: list[BlockCache], name: str, precision: str, shard: ChannelShard | None, pad: bool
) -> None:
    store = stores[name]
    truth = [expected(store, block, precision, shard, pad) for block in range(BLOCKS)]
    cache = BlockCache(store, "cpu", slots=3, host_bytes=None, precision=precision, shard=shard, pad=pad)
    opened.append(cache)
    random = np.random.default_rng(5)
    sets = [random.choice(BLOCKS, size=random.integers(0, 4), replace=False).tolist() for _ in range(20)]
    address = cache.tables.slots.data_ptr()
    cache.expect(sets)
    for blocks in sets:
        with cache.hold(blocks):
            assert_holds(cache, truth, blocks)
    assert cache.tables.slots.data_ptr() == address
    assert cache.tables.division == store.division and cache.tables.extents == store.extents
    if store.origins is None:
        assert cache.tables.origins is None
    else:
        assert cache.tables.origins is not None and np.array_equal(cache.tables.origins.numpy(), store.origins)


@given(frames=flights, slots=st.integers(4, 5), buffers=st.integers(1, 6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loads_are_the_fewest_for_the_order(stores: dict[str, BlockStore], frames: list[frozenset[int]], slots: int, buffers: int) -> None:
    """However few the buffers: what is loaded, and what leaves, follows the plan and not the disk."""
    store = stores["blocks"]
    truth = [expected(store, block, "fp32", None, False) for block in range(BLOCKS)]
    sets = [sorted(blocks) for blocks in frames]
    cache = BlockCache(store, "cpu", slots=slots, host_bytes=buffers * store.block_bytes("fp32"), precision="fp32", threads=2)
    try:
        cache.expect(sets)
        for blocks in sets:
            with cache.hold(blocks):
                assert_holds(cache, truth, blocks)
        assert cache.stats.loads == belady(sets, slots).loads
    finally:
        cache.close()


@given(
    frames=flights,
    asked=st.lists(st.tuples(st.frozensets(st.integers(0, BLOCKS - 1), max_size=3), st.none() | st.integers(0, 12)), max_size=12),
    slots=st.integers(3, 4),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_holds_that_nobody_expected_are_right_too(
    stores: dict[str, BlockStore], frames: list[frozenset[int]], asked: list[tuple[frozenset[int], int | None]], slots: int
) -> None:
    """Jumps, parts of frames, blocks beyond the sets, frames of more blocks than slots: the bytes are always the block's."""
    store = stores["blocks"]
    truth = [expected(store, block, "fp32", None, False) for block in range(BLOCKS)]
    cache = BlockCache(store, "cpu", slots=slots, host_bytes=2 * store.block_bytes("fp32"), precision="fp32", threads=2)
    try:
        cache.expect([sorted(blocks) for blocks in frames])
        for blocks, position in asked:
            with cache.hold(sorted(blocks), position):
                assert_holds(cache, truth, sorted(blocks))
    finally:
        cache.close()


def test_passes_over_one_frame_load_what_they_must(stores: dict[str, BlockStore], opened: list[BlockCache]) -> None:
    """Six blocks through three slots: each once for the densities; the last three stay for the second half."""
    store = stores["blocks"]
    truth = [expected(store, block, "fp32", None, False) for block in range(BLOCKS)]
    cache = BlockCache(store, "cpu", slots=3, host_bytes=None, precision="fp32")
    opened.append(cache)
    cache.expect([range(BLOCKS), [0, 1, 2]])
    for group in ([0, 1, 2], [3, 4, 5], [3, 4, 5], [0, 1, 2]):
        with cache.hold(group, position=0):
            assert_holds(cache, truth, group)
    with cache.hold([0, 1, 2]):
        assert_holds(cache, truth, [0, 1, 2])
    assert cache.stats.loads == 9


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    slots=st.integers(1, 5),
    before=st.frozensets(st.integers(0, 5), max_size=5),
    crowded=st.frozensets(st.integers(0, 5), min_size=2),
    after=st.frozensets(st.integers(0, 5), max_size=5),
    times=st.integers(1, 2),
)
def test_passes_in_order_load_hardly_more_than_the_plan(
    stores: dict[str, BlockStore],
    slots: int,
    before: frozenset[int],
    crowded: frozenset[int],
    after: frozenset[int],
    times: int,
) -> None:
    """A frame, one in passes (or twice), and one behind it: what the slots hold is taken first, and what is needed again stays."""
    if len(crowded) <= slots:
        return
    frames = [sorted(before)[:slots], *[sorted(crowded)] * times, sorted(after)[:slots]]
    cache = BlockCache(stores["blocks"], "cpu", slots=slots, host_bytes=None, precision="fp32")
    try:
        cache.expect(frames)
        for position, blocks in enumerate(frames):
            if len(blocks) <= slots:
                with cache.hold(blocks, position=position):
                    continue
            for last in (False, True):
                for group in in_passes(cache.in_order(blocks, position, last=last), slots):
                    with cache.hold(group, position=position):
                        pass
        assert 0 <= cache.stats.loads - belady(frames, slots).loads <= 1
    finally:
        cache.close()


def test_a_new_order_keeps_what_is_there(stores: dict[str, BlockStore], opened: list[BlockCache]) -> None:
    cache = BlockCache(stores["blocks"], "cpu", slots=3, host_bytes=None, precision="fp32")
    opened.append(cache)
    cache.expect([[0, 1], [1, 2]])
    for blocks in ([0, 1], [1, 2]):
        with cache.hold(blocks):
            pass
    cache.expect(block_sets([[2, 1, 0], [0]]))
    with cache.hold([0, 1, 2]):
        pass
    assert cache.stats.loads == cache.stats.blocks_read == 3


def test_the_next_frames_are_read_while_one_is_rendered(stores: dict[str, BlockStore], opened: list[BlockCache]) -> None:
    """Inside a hold, what the next ones need is read; when they come, rendering waits for no read."""
    store = slow(stores["blocks"])
    cache = BlockCache(store, "cpu", slots=2, host_bytes=6 * store.block_bytes("fp32"), precision="fp32")
    opened.append(cache)
    cache.expect([[0, 1], [2, 3], [4, 5]])
    with cache.hold([0, 1]):
        until = time.monotonic() + 60
        while cache.stats.blocks_read < BLOCKS or not all(entry.ready for entry in [*cache._host._entries.values()]):
            assert time.monotonic() < until, "what comes next is not read"
            time.sleep(0.01)
    before = cache.stats.stalls
    for blocks in ([2, 3], [4, 5]):
        with cache.hold(blocks):
            pass
    assert cache.stats.blocks_read == BLOCKS and cache.stats.stalls == before


def test_host_memory_keeps_what_is_needed_again(stores: dict[str, BlockStore], opened: list[BlockCache]) -> None:
    """Six blocks in turn through one slot and four buffers, two of which read ahead: two blocks of each round are still there."""
    store = stores["blocks"]
    cache = BlockCache(store, "cpu", slots=1, host_bytes=4 * store.block_bytes("fp32") + 4096, precision="fp32", threads=1)
    opened.append(cache)
    cache.expect([[frame % BLOCKS] for frame in range(10 * BLOCKS)])
    for frame in range(10 * BLOCKS):
        with cache.hold([frame % BLOCKS]):
            pass
    assert cache.stats.loads == 10 * BLOCKS
    assert BLOCKS <= cache.stats.blocks_read <= 9 * BLOCKS


def test_slow_reads_are_stalls_that_are_counted(stores: dict[str, BlockStore], opened: list[BlockCache]) -> None:
    store = slow(stores["blocks"])
    store.seconds = 0.02
    cache = BlockCache(store, "cpu", slots=2, host_bytes=None, precision="fp32")
    opened.append(cache)
    for blocks in ([0], [0], [1]):
        with cache.hold(blocks):
            pass
    stats = cache.stats
    assert (stats.stalls, stats.loads, stats.hits, stats.blocks_read) == (2, 2, 1, 2)
    assert stats.stall_seconds >= 2 * 0.02 * len(store.tables)
    read = sum(table.height * table.width * table.channels * 4 for table in store.tables)
    found = stats.as_dict()
    assert found["bytes_read"] == 2 * read and found["loads"] == 2 and found["stall_seconds"] == stats.stall_seconds
    assert stats.slot_bytes == cache.tables.slot_bytes == 2 * store.block_bytes("fp32")
    assert stats.copy_rate == 0.0


def test_memory_stays_as_it_was_made(stores: dict[str, BlockStore], opened: list[BlockCache]) -> None:
    store = stores["half"]
    cache = BlockCache(store, "cpu", slots=2, host_bytes=3 * store.block_bytes("fp32") + 2**16, precision="fp32", threads=2)
    opened.append(cache)
    sets = [[block % BLOCKS, (block * 5 + 1) % BLOCKS] for block in range(30)]
    cache.expect(sets)
    addresses = [table.data_ptr() for table in cache.tables.density_planes]
    for blocks in sets:
        with cache.hold(blocks):
            pass
    assert [table.data_ptr() for table in cache.tables.density_planes] == addresses
    assert 0 < cache.stats.host_peak_bytes <= 3 * store.block_bytes("fp32") + 2**16


def test_a_damaged_block_is_named_and_others_go_on(tmp_path: Path, opened: list[BlockCache]) -> None:
    store = make_store(tmp_path)
    truth = [expected(store, block, "fp32", None, False) for block in range(BLOCKS)]
    file = tmp_path / "scene.zarr" / store.tables[-1].key(3)
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    cache = BlockCache(store, "cpu", slots=4, host_bytes=None, precision="fp32")
    opened.append(cache)
    cache.expect([[0, 1], [1, 2], [3], [4]])
    for blocks in ([0, 1], [1, 2]):
        with cache.hold(blocks):
            assert_holds(cache, truth, blocks)
    with pytest.raises(CheckpointError, match="block 3") as caught, cache.hold([3]):
        pass
    assert str(file) in str(caught.value)
    with cache.hold([2, 4], position=3):
        assert_holds(cache, truth, [2, 4])
    file.write_bytes(whole)
    with cache.hold([3, 4], position=3):  # asked for again, it is read again
        assert_holds(cache, truth, [3, 4])


def test_closing_does_not_wait_for_a_read(stores: dict[str, BlockStore]) -> None:
    store = slow(stores["blocks"])
    store.gate, store.reading = threading.Event(), threading.Event()
    cache = BlockCache(store, "cpu", slots=2, host_bytes=None, precision="fp32", threads=1)
    cache.expect([[0], [1], [2]])
    assert store.reading.wait(20)
    threads = {thread for thread in threading.enumerate() if thread.name.startswith("landmark-fetch")}
    cache.close()  # would hang here
    assert store.reads == 1
    store.gate.set()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads) and store.reads == len(store.tables)


def test_other_slots_after_a_resize(stores: dict[str, BlockStore], opened: list[BlockCache]) -> None:
    store = stores["cut"]
    truth = [expected(store, block, "fp32", None, False) for block in range(BLOCKS)]
    cache = BlockCache(store, "cpu", slots=4, host_bytes=None, precision="fp32")
    opened.append(cache)
    sets = [[0, 1], [1, 2], [2, 3], [4, 5]]
    cache.expect(sets)
    address = cache.tables.slots.data_ptr()
    with cache.hold(sets[0]):
        pass
    cache.resize(2)
    assert cache.capacity == 2 and cache.tables.slots.data_ptr() == address
    assert bool((cache.tables.slots == -1).all())
    with cache.hold(sets[0], position=0):
        assert_holds(cache, truth, sets[0])
    for blocks in sets[1:]:
        with cache.hold(blocks):
            assert_holds(cache, truth, blocks)
    assert cache.stats.slot_bytes == 4 * store.block_bytes("fp32")  # the peak


def test_slots_that_others_have_open_are_waited_for(
    stores: dict[str, BlockStore], opened: list[BlockCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose memory comes back when other ranks have let go of it."""
    cache = BlockCache(stores["blocks"], "cpu", slots=4, host_bytes=None, precision="fp32")
    opened.append(cache)
    allocate, full, looked = cache.tables.allocate, list[int](), list[int]()

    def refuse(slots: int) -> None:
        full.append(slots)
        if not looked:
            cache.tables.free()
            raise torch.OutOfMemoryError("all of it")
        allocate(slots)

    monkeypatch.setattr(cache.tables, "allocate", refuse)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: looked.append(1))
    with pytest.raises(torch.OutOfMemoryError):
        cache.resize(2)
    assert full == [2] and not looked, "nobody else has them"
    monkeypatch.setattr(SlotCopies, "shared", True)
    cache.resize(2)
    assert full == [2, 2, 2] and looked == [1] and cache.capacity == 2


def test_tables_made_in_inference_mode_serve_outside(stores: dict[str, BlockStore], opened: list[BlockCache]) -> None:
    with torch.inference_mode():
        cache = BlockCache(stores["blocks"], "cpu", slots=2, host_bytes=None, precision="fp16")
        opened.append(cache)
        with cache.hold([0]):
            pass
    with cache.hold([1, 2]):
        truth = [expected(stores["blocks"], block, "fp16", None, False) for block in range(BLOCKS)]
        assert_holds(cache, truth, [1, 2])


def test_what_cannot_be_held_is_refused(stores: dict[str, BlockStore], opened: list[BlockCache]) -> None:
    store = stores["blocks"]
    with pytest.raises(ValueError, match="0 slots"):
        BlockCache(store, "cpu", slots=0, host_bytes=None, precision="fp32")
    with pytest.raises(ConfigError, match="less than one block"):
        BlockCache(store, "cpu", slots=1, host_bytes=1000, precision="fp32")
    cache = BlockCache(store, "cpu", slots=2, host_bytes=None, precision="fp32")
    opened.append(cache)
    with pytest.raises(ValueError, match="3 blocks at once in 2 slots"), cache.hold([0, 1, 2]):
        pass
    with pytest.raises(ValueError, match="blocks 1 to 6 of 6"), cache.hold([1, 6]):
        pass
    with cache.hold([0]):
        with pytest.raises(RuntimeError, match="a hold ends"), cache.hold([1]):
            pass
        with pytest.raises(ValueError, match="inside a hold"):
            cache.resize(1)
