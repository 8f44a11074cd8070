"""A block store as a whole scene in memory: the same SceneWeights that its checkpoint gives."""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
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
PIECE_BYTES = 2**21  # read at once where a plane goes elsewhere: a processor's cache has them still when they are summed and copied
ALIGN = 4096  # bytes: where a piece of memory begins


def load_store(
    store: BlockStore,
    shard: ChannelShard | None = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> SceneWeights:
    """Read every block into memory; a cut scene's planes are put together again. Several blocks are read at a time.

    shard: the share of the channels to keep. device, dtype: of the planes, default the CPU and float32; a GPU's go there as they are
    read, through pinned memory, and the host holds no more. Memory: the scene (or its share) there, and where the store's numbers are not
    kept as they are two pieces of PIECE_BYTES a thread (of a remote store one plane of a block). Raises CheckpointError and StoreError as
    `BlockStore.read_plane_into`, torch.OutOfMemoryError; no plane is begun after a read that failed.
    """
    share, config = shard or WHOLE, store.config
    sizes = [(h, w) for h, w, _ in config.level_sizes()]
    planes: dict[BlockTable, Tensor] = {}
    for table in store.tables:
        start, stop, width = share.span(table.channels)
        planes[table] = grid(config.blocks, sizes[table.level], width, stop - start < width, device, dtype)
    threads = threads or min(_MOST_THREADS, os.cpu_count() or 1)
    reader = _Reader(store, planes, share, threads)
    work = planes_read(store)
    work.sort(key=lambda item: -math.prod(item[1].shape))  # small ones last: the threads end together
    with ThreadPoolExecutor(threads, thread_name_prefix="load") as pool:
        try:
            base = pool.submit(reader.base, shard)
            for _ in pool.map(reader.read, work):
                pass
            rest = base.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    reader.finish()
    return replace(
        rest,
        density_planes=tuple(plane for table, plane in planes.items() if table.kind == "density"),
        app_planes=tuple(plane for table, plane in planes.items() if table.kind == "app"),
    )


def planes_read(store: BlockStore) -> list[tuple[int, BlockTable]]:
    """(block, plane) of all that `load_store` reads: what a cut scene stores in several blocks once, and no plane without numbers."""
    tables = [table for table in store.tables if math.prod(table.shape)]
    return [(block, table) for table in tables for block in range(store.blocks) if _is_first(store, block, table)]


class _Reader:
    """Reads planes of blocks to their places in the whole, and what a scene has beside them, until one of these fails."""

    def __init__(self, store: BlockStore, planes: dict[BlockTable, Tensor], share: ChannelShard, threads: int) -> None:
        self._store, self._planes, self._share, self._origins = store, planes, share, store.origins
        self._failed = threading.Event()
        device = next(iter(planes.values())).device
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        count = 1 if self._stream is None else 2
        rows = max(table.width * table.channels * store.head.dtype.itemsize for table in store.tables)
        size = -(-max(PIECE_BYTES, rows) // ALIGN) * ALIGN if store.local else 0
        memory = torch.empty((threads, count, size), dtype=torch.uint8, pin_memory=self._stream is not None)
        self._spare: queue.SimpleQueue[_Pieces] = queue.SimpleQueue()
        for pieces in memory:
            self._spare.put(_Pieces(pieces, store.head.dtype, self._stream))

    def base(self, shard: ChannelShard | None) -> SceneWeights:
        """As `BlockStore.base`."""
        with self._noted():
            return self._store.base(shard)

    def read(self, item: tuple[int, BlockTable]) -> None:
        """Nothing after another read has failed: whoever waits for that one gets its error."""
        if not self._failed.is_set():
            with self._noted():
                self._read(*item)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._failed.set()
            raise

    def _read(self, block: int, table: BlockTable) -> None:
        plane, store = self._planes[table], self._store
        if self._origins is None and plane.device.type == "cpu" and plane.shape[-1] == table.channels:
            place = plane[block].numpy()
            if place.dtype == store.head.dtype:
                store.read_plane_into(block, table, place)
                return
        pieces = self._spare.get()
        try:
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                if not store.local:
                    whole = pieces.whole(table)
                    store.read_plane_into(block, table, whole)
                    self._put(block, table, 0, whole, wait=True)
                    return
                for first, rows in store.plane_rows(block, table, lambda: pieces.next(table)):
                    self._put(block, table, first, rows, wait=False)
                    pieces.sent()
        finally:
            self._spare.put(pieces)

    def finish(self) -> None:
        """Wait until the device has everything."""
        if self._stream is not None:
            self._stream.synchronize()

    def _put(self, block: int, table: BlockTable, first: int, rows: NDArray[Any], *, wait: bool) -> None:
        """Rows [n, w, C] of a block's plane, from row `first` on, to their place. wait: until a GPU has them."""
        start, stop, _ = self._share.span(table.channels)
        part = torch.from_numpy(rows)[..., start:stop]
        x, y = (0, 0) if self._origins is None else (int(value) for value in self._origins[block, table.level])
        whole = self._planes[table][block if self._origins is None else 0]
        whole[y + first : y + first + len(rows), x : x + table.width, : stop - start].copy_(part, non_blocking=not wait)


class _Pieces:
    """What one thread reads into: pieces in turn, each again when the device has what was in it."""

    def __init__(self, memory: Tensor, dtype: np.dtype[Any], stream: torch.cuda.Stream | None) -> None:
        """memory: [pieces, bytes] uint8, pinned where a stream copies from it. dtype: of the numbers in it."""
        self._dtype, self._stream = dtype, stream
        self._numbers: list[NDArray[Any]] = [piece.numpy().view(dtype) for piece in memory]
        self._copied: list[torch.cuda.Event | None] = [None] * len(self._numbers)
        self._turn = 0
        self._plane = np.empty(0, dtype)

    def next(self, table: BlockTable) -> NDArray[Any]:
        """[n, w, C] for some rows of a plane."""
        self._turn = (self._turn + 1) % len(self._numbers)
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        numbers, row = self._numbers[self._turn], table.width * table.channels
        return numbers[: len(numbers) // row * row].reshape(-1, table.width, table.channels)

    def sent(self) -> None:
        """What was given last is copied by what the stream has been given until now."""
        if self._stream is not None:
            event = self._copied[self._turn] or torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
            self._copied[self._turn] = event

    def whole(self, table: BlockTable) -> NDArray[Any]:
        """[h, w, C] for a plane; in use until the next is asked for."""
        count = math.prod(table.shape)
        if len(self._plane) < count:
            self._plane = np.empty(count, self._dtype)
        return self._plane[:count].reshape(table.shape)


def _is_first(store: BlockStore, block: int, table: BlockTable) -> bool:
    """Whether no block before holds the same part of a cut scene: planes of dims 1 and 2 are cut along one axis only."""
    if store.origins is None:
        return True
    axes = PLANE_AXES[table.level // len(store.config.resolutions)]
    column, row = divmod(block, store.division[1])
    return (0 in axes or column == 0) and (1 in axes or row == 0)
