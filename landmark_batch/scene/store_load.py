"""A block store as a whole scene in memory: the same SceneWeights that its checkpoint gives."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.scene.shard import WHOLE, ChannelShard
from landmark_batch.scene.store import BlockStore
from landmark_batch.scene.store_layout import BlockTable
from landmark_batch.scene.tensors import grid
from landmark_batch.scene.weights import PLANE_AXES, SceneWeights

_MOST_THREADS = 16


def load_store(
    store: BlockStore,
    shard: ChannelShard | None = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> SceneWeights:
    """Read every block into memory; a cut scene's planes are put together again. Several blocks are read at a time.

    shard: the share of the channels to keep. device, dtype: of the planes, default the CPU and float32; a GPU's get each as it is read,
    and the host holds no more. Memory: the scene (or its share) there, and one plane of a block a thread where the store's numbers are not
    kept as they are. Raises CheckpointError and StoreError as `BlockStore.read_plane_into`, torch.OutOfMemoryError.
    """
    base = store.base(shard)
    share, config = shard or WHOLE, store.config
    sizes = [(h, w) for h, w, _ in config.level_sizes()]
    planes: dict[BlockTable, Tensor] = {}
    for table in store.tables:
        start, stop, width = share.span(table.channels)
        planes[table] = grid(config.blocks, sizes[table.level], width, stop - start < width, device, dtype)
    origins = store.origins
    reader = _Reader(store, planes, share, origins)
    work = [(block, table) for block in range(store.blocks) for table in store.tables if _is_first(store, block, table)]
    with ThreadPoolExecutor(threads or min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="load") as pool:
        try:
            for _ in pool.map(reader.read, work):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return replace(
        base,
        density_planes=tuple(plane for table, plane in planes.items() if table.kind == "density"),
        app_planes=tuple(plane for table, plane in planes.items() if table.kind == "app"),
    )


class _Reader:
    """Reads planes of blocks to their places in the whole. Buffers are a thread's own."""

    def __init__(self, store: BlockStore, planes: dict[BlockTable, Tensor], share: ChannelShard, origins: NDArray[np.int32] | None) -> None:
        self._store, self._planes, self._share, self._origins = store, planes, share, origins
        self._buffers = threading.local()

    def read(self, item: tuple[int, BlockTable]) -> None:
        block, table = item
        plane, store = self._planes[table], self._store
        start, stop, _ = self._share.span(table.channels)
        if self._origins is None and plane.device.type == "cpu" and plane.shape[-1] == table.channels:
            place = plane[block].numpy()
            if place.dtype == store.head.dtype:
                store.read_plane_into(block, table, place)
                return
        buffer = self._buffer(table)
        store.read_plane_into(block, table, buffer)
        part = torch.from_numpy(buffer)[..., start:stop]
        if self._origins is None:
            plane[block, :, :, : stop - start].copy_(part)
            return
        x, y = (int(value) for value in self._origins[block, table.level])
        plane[0, y : y + table.height, x : x + table.width, : stop - start].copy_(part)

    def _buffer(self, table: BlockTable) -> NDArray[Any]:
        count = table.height * table.width * table.channels
        held: NDArray[Any] | None = getattr(self._buffers, "values", None)
        if held is None or held.size < count:
            held = self._buffers.values = np.empty(count, self._store.head.dtype)
        return held[:count].reshape(table.shape)


def _is_first(store: BlockStore, block: int, table: BlockTable) -> bool:
    """Whether no block before holds the same part of a cut scene: planes of dims 1 and 2 are cut along one axis only."""
    if store.origins is None:
        return True
    axes = PLANE_AXES[table.level // len(store.config.resolutions)]
    column, row = divmod(block, store.division[1])
    return (0 in axes or column == 0) and (1 in axes or row == 0)
