from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from landmark_batch.errors import CheckpointError
from landmark_batch.fetching.block_reader import BlockReader
from landmark_batch.fetching.host_tier import HostTier
from landmark_batch.fetching.stats import FetchStats
from landmark_batch.scene.store import BlockStore
from tests.fetching.cached import make_store

BLOCKS = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    return make_store(tmp_path_factory.mktemp("host"))


@pytest.fixture
def tiers() -> Iterator[list[HostTier]]:
    made: list[HostTier] = []
    yield made
    for tier in made:
        tier.close()


def make_tier(store: BlockStore, tiers: list[HostTier], buffers: int, *, precision: str = "fp32", pinned: bool = False) -> HostTier:
    stats = FetchStats()
    reader = BlockReader(store, store.base(), precision=precision, shard=None, pad=False, stats=stats)
    memory = buffers * reader.buffer_bytes + 2 * reader.scratch_bytes
    tier = HostTier(reader, host_bytes=memory, slots=1, pinned=pinned, threads=2, stats=stats)
    tiers.append(tier)
    assert stats.host_peak_bytes == buffers * reader.buffer_bytes
    return tier


def soon(block: int) -> int:
    """Blocks of a small number are needed sooner."""
    return block


def lend(tier: HostTier, block: int) -> list[Tensor]:
    """The tables of a block that was requested, when it has been read."""
    while (buffer := tier.lend(block)) is None:
        tier.wait([block])
    return buffer


def test_blocks_are_read_in_order_as_far_as_there_are_buffers(store: BlockStore, tiers: list[HostTier]) -> None:
    tier = make_tier(store, tiers, 3)
    assert tier.buffers == 3
    tier.request([4, 1, 5, 0], soon)
    for block in (4, 1, 5):
        for table, view in zip(store.tables, lend(tier, block), strict=False):
            assert torch.equal(view, torch.from_numpy(store.read_plane(block, table)))
    assert tier.lend(0) is None


def test_the_block_needed_farthest_leaves_but_not_while_it_is_copied(store: BlockStore, tiers: list[HostTier]) -> None:
    tier = make_tier(store, tiers, 3)
    tier.request([0, 4, 5], soon)
    for block in (0, 4, 5):
        lend(tier, block)
    tier.give_back(0)
    tier.give_back(4)  # 5 is still copied from
    tier.request([1], soon)
    lend(tier, 1)
    assert tier.lend(4) is None
    for block in (0, 5):
        assert tier.lend(block) is not None


def test_buffers_are_used_again(store: BlockStore, tiers: list[HostTier]) -> None:
    tier = make_tier(store, tiers, 2)
    addresses = set()
    for _ in range(2):
        for block in range(BLOCKS):
            tier.request([block], soon)
            addresses.add(lend(tier, block)[0].data_ptr())
            tier.give_back(block)
    assert len(addresses) == 2


def test_no_wait_where_nothing_is_read(store: BlockStore, tiers: list[HostTier]) -> None:
    tier = make_tier(store, tiers, 1)
    tier.request([2], soon)
    lend(tier, 2)
    tier.request([3], soon)  # the only buffer is being copied from
    assert tier.wait([3]) is False
    tier.give_back(2)
    tier.request([3], soon)
    lend(tier, 3)


def test_an_error_reaches_who_waits_for_the_block_once(tmp_path: Path, tiers: list[HostTier]) -> None:
    store = make_store(tmp_path)
    file = tmp_path / "scene.zarr" / store.tables[0].key(2)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    tier = make_tier(store, tiers, 3)
    tier.request([2, 1], soon)
    lend(tier, 1)
    with pytest.raises(CheckpointError, match="block 2"):
        lend(tier, 2)
    file.write_bytes(whole)
    tier.request([2], soon)
    assert torch.equal(lend(tier, 2)[0], torch.from_numpy(store.read_plane(2, store.tables[0])))


def test_where_memory_cannot_be_pinned_it_is_pageable(
    store: BlockStore, tiers: list[HostTier], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = torch.zeros

    def refuse(*args: int, pin_memory: bool = False, dtype: torch.dtype) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return zeros(*args, dtype=dtype)

    monkeypatch.setattr(torch, "zeros", refuse)
    stats = FetchStats()
    reader = BlockReader(store, store.base(), precision="fp32", shard=None, pad=False, stats=stats)
    with caplog.at_level(logging.WARNING):
        tier = HostTier(reader, host_bytes=9 * reader.buffer_bytes, slots=1, pinned=True, threads=2, stats=stats)
    tiers.append(tier)
    assert sum("page-locked" in record.message for record in caplog.records) == 1
    assert tier.buffers == BLOCKS and stats.host_peak_bytes <= 9 * reader.buffer_bytes
    tier.request([3], soon)
    lend(tier, 3)


def test_threads_that_convert_count_in_the_memory(store: BlockStore, tiers: list[HostTier]) -> None:
    """Too little for four planes beside two blocks: fewer threads, and a buffer at least."""
    stats = FetchStats()
    reader = BlockReader(store, store.base(), precision="fp16", shard=None, pad=False, stats=stats)
    assert reader.scratch_bytes == max(table.height * table.width * table.channels for table in store.tables) * 4
    memory = 2 * reader.buffer_bytes + reader.scratch_bytes
    tier = HostTier(reader, host_bytes=memory, slots=1, pinned=False, threads=4, stats=stats)
    tiers.append(tier)
    assert tier.buffers == 2
    for block in range(BLOCKS):
        tier.request([block], soon)
        lend(tier, block)
        tier.give_back(block)
    assert stats.host_peak_bytes <= memory
    least = HostTier(reader, host_bytes=reader.moved_bytes, slots=1, pinned=False, threads=4, stats=FetchStats())
    tiers.append(least)
    assert least.buffers == 1
