"""What rank processes do in tests of what ranks of one host share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from landmark_batch.errors import LandmarkError
from landmark_batch.fetching import transit
from landmark_batch.fetching.block_reader import BlockReader
from landmark_batch.fetching.shared_reads import SharedReads
from landmark_batch.fetching.stats import FetchStats
from landmark_batch.fetching.transit import Offer
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore
from tests.fetching.cached import expected

MIB = 2**20
KEPT: dict[str, SharedReads] = {}


def sharing(root: Path, rank: int, *, ranks: int = 2, size: int = MIB, number: int = 1) -> SharedReads:
    """A rank of a host on which all share. size: of each rank's offer."""
    transit.MEMORY = root  # whose leftovers are looked for
    found = SharedReads.join(root, [Offer(7, size, number + place) for place in range(ranks)], rank)
    assert found is not None
    return found


def join_pair(rank: int, root: Path) -> None:
    """Share with one other, until `read_blocks` is over."""
    KEPT["shared"] = sharing(root, rank)


def read_blocks(
    rank: int,
    store: str,
    plain: Path,
    precision: str = "fp32",
    tensor: bool = False,
    threads: int = 3,
    blocks: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
) -> tuple[dict[int, str], dict[str, int | float]]:
    """After `join_pair`: read blocks, several at once; they are those of the store at `plain`. Returns errors and counters."""
    opened = BlockStore.open(store)
    shard = ChannelShard(rank, 2) if tensor else None
    stats = FetchStats()
    reader = BlockReader(opened, opened.base(shard), precision=precision, shard=shard, pad=False, stats=stats, shared=KEPT.pop("shared"))
    errors: dict[int, str] = {}
    found: dict[int, list[torch.Tensor]] = {}

    def read(block: int) -> None:
        tables = reader.views(torch.zeros(reader.buffer_bytes, dtype=torch.uint8))
        try:
            reader.read(block, tables)
            found[block] = tables
        except LandmarkError as error:
            errors[block] = f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, blocks))
    reader.close()
    local = BlockStore.open(plain)
    for block, tables in found.items():
        truth = [table for part in expected(local, block, precision, shard, False).values() for table in part]
        for table, want in zip(tables, truth, strict=False):
            assert torch.equal(table, want), block
    return errors, stats.as_dict()
