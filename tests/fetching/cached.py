"""Small block stores, and what a slot has to hold of each of their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.fetching.cache import BlockCache
from landmark_batch.model.field import STORAGE
from landmark_batch.scene.convert import convert_scene
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore
from landmark_batch.scene.store_layout import Precision
from tests.factories import make_scene

NAMES = ("density_planes", "app_planes", "density_lines", "app_lines")


def make_store(
    folder: Path, *, cut: bool = False, precision: Precision = "fp32", grid_size: tuple[int, int, int] = (9, 7, 5)
) -> BlockStore:
    """A store of 3 x 2 blocks: of a multi-block scene, or cut out of a scene of three planes."""
    division, ndims = ((1, 1), 3) if cut else ((3, 2), 1)
    weights = make_scene(seed=3, division=division, ndims=ndims, grid_size=grid_size, density_channels=5, appearance_channels=8)
    save_landmark_checkpoint(weights, folder / "scene.th")
    convert_scene(folder / "scene.th", folder / "scene.zarr", precision=precision, blocks=(3, 2) if cut else None)
    return BlockStore.open(folder / "scene.zarr")


def expected(store: BlockStore, block: int, precision: str, shard: ChannelShard | None, pad: bool) -> dict[str, list[Tensor]]:
    """The tables of a block by a plain way: read whole, cut, cast, filled up."""
    share = shard or ChannelShard(0, 1)
    base = store.base()
    row = 0 if store.origins is not None else block

    def shape(whole: Tensor) -> Tensor:
        start, stop, width = share.span(whole.shape[-1])
        part = torch.zeros((*whole.shape[:-1], width + (-width % 8 if pad else 0)), dtype=STORAGE[precision])
        part[..., : stop - start] = whole[..., start:stop].to(STORAGE[precision])
        return part

    planes = {kind: [torch.from_numpy(store.read_plane(block, t)) for t in store.tables if t.kind == kind] for kind in ("density", "app")}
    return {
        "density_planes": [shape(plane) for plane in planes["density"]],
        "app_planes": [shape(plane) for plane in planes["app"]],
        "density_lines": [shape(line[row]) for line in base.density_lines],
        "app_lines": [shape(line[row]) for line in base.app_lines],
    }


def assert_holds(cache: BlockCache, truth: Sequence[dict[str, list[Tensor]]], blocks: Sequence[int]) -> None:
    """`slots` tells exactly these blocks, in slots of their own, and each slot holds the bytes of its block in every table."""
    slots: NDArray[np.int64] = cache.tables.slots.cpu().numpy()
    assert sorted(np.flatnonzero(slots >= 0)) == sorted(set(blocks))
    used = [int(slots[block]) for block in set(blocks)]
    assert len(set(used)) == len(used) and all(slot < cache.capacity for slot in used)
    for block in set(blocks):
        for name in NAMES:
            for level, table in enumerate(getattr(cache.tables, name)):
                assert table.shape[0] == cache.capacity
                found = table[int(slots[block])].cpu()
                want = truth[block][name][level]
                assert found.dtype == want.dtype and torch.equal(found, want), (name, level, block)
