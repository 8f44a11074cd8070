from __future__ import annotations

from pathlib import Path

import pytest
import torch

from landmark_batch.fetching.block_reader import BlockReader
from landmark_batch.fetching.slots import SlotTables
from landmark_batch.fetching.stats import FetchStats
from landmark_batch.scene.shard import ChannelShard
from tests.fetching.cached import make_store


@pytest.mark.parametrize("cut", [False, True])
def test_tables_have_a_row_to_every_slot(tmp_path: Path, cut: bool) -> None:
    store = make_store(tmp_path, cut=cut)
    shard = ChannelShard(0, 2)
    base = store.base(shard)
    reader = BlockReader(store, base, precision="fp16", shard=shard, pad=True, stats=FetchStats())
    tables = SlotTables(store, reader, torch.device("cpu"), 3)
    levels = len(store.config.level_sizes())
    for name, width in (("density", 8), ("app", 8)):  # 3 of 5 and 4 of 8 channels, filled up
        planes, lines = getattr(tables, f"{name}_planes"), getattr(tables, f"{name}_lines")
        shapes = [(3, table.height, table.width, width) for table in store.tables if table.kind == name]
        assert [tuple(plane.shape) for plane in planes] == shapes and len(planes) == len(lines) == levels
        assert [tuple(line.shape) for line in lines] == [(3, n, width) for n in store.config.line_sizes]
        assert all(table.dtype == torch.float16 and table.is_contiguous() for table in (*planes, *lines))
    shared = [line[0] for line in base.density_lines] if cut else [torch.zeros_like(line[0]) for line in base.density_lines]
    for line, want in zip(tables.density_lines, shared, strict=True):  # lines of a cut scene are there from the beginning
        assert torch.equal(line[..., :3], want.half().expand(3, -1, -1)) and not line[..., 3:].any()
    assert tables.slot_bytes == sum(t.numel() * 2 for t in (*tables.density_planes, *tables.app_planes)) + sum(
        t.numel() * 2 for t in (*tables.density_lines, *tables.app_lines)
    )
    assert len(tables.views(2)) == reader.moved == (2 * levels if cut else 4 * levels)


def test_the_list_tells_exactly_what_is_shown(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    reader = BlockReader(store, store.base(), precision="fp32", shard=None, pad=False, stats=FetchStats())
    tables = SlotTables(store, reader, torch.device("cpu"), 2)
    address = tables.slots.data_ptr()
    assert tables.slots.tolist() == [-1] * 6
    tables.show({4: 0, 1: 1})
    assert tables.slots.tolist() == [-1, 1, -1, -1, 0, -1]
    tables.show({4: 1})
    assert tables.slots.tolist() == [-1, -1, -1, -1, 1, -1]
    held = tables.density_planes
    tables.allocate(5)
    assert tables.slots.tolist() == [-1] * 6 and tables.slots.data_ptr() == address
    assert tables.count == 5 and held is tables.density_planes and held[0].shape[0] == 5
