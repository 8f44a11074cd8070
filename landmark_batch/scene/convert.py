"""A checkpoint of any kind becomes a block store, strip by strip: memory stays near that of two blocks, whatever the scene's size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore, Event, Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.errors import CheckpointError, ConfigError
from landmark_batch.scene.archive import ArchiveRecord, archive_records
from landmark_batch.scene.assemble import (
    OpenCheckpoint,
    check_same_block,
    open_block,
    open_checkpoint,
    read_decoder,
    wide_bases,
)
from landmark_batch.scene.configure import configure
from landmark_batch.scene.cut import cut_planes, default_division
from landmark_batch.scene.edit import EditFiles, check_edit
from landmark_batch.scene.geometry import BASIS, BASIS_DENSITY, EMBEDDING
from landmark_batch.scene.layout import SceneFiles, find_scene_files
from landmark_batch.scene.mask import read_stored_mask, read_volume
from landmark_batch.scene.store_layout import BlockTable, LineTable, Precision, StoreHead, block_bytes
from landmark_batch.scene.store_writer import StoreWriter, refuse_target, write_chunk
from landmark_batch.scene.tensors import State, check_finite
from landmark_batch.scene.unpickle import is_mapped
from landmark_batch.scene.weights import SceneConfig

Progress = Callable[[str, float], None]

STRIP = 4 << 20  # bytes of float32 in memory a thread
_MOST_THREADS = 8
_BLOCKS_AT_ONCE = 2


@dataclass(frozen=True)
class Conversion:
    """What `convert_scene` wrote. notes: for the user. head: what the store says of itself."""

    target: Path
    head: StoreHead
    notes: tuple[str, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block as stored, its lines counted."""
        return block_bytes(self.head, self.head.dtype.itemsize)


@dataclass(frozen=True)
class _Scene:
    """An opened checkpoint and where each of its blocks comes from."""

    files: SceneFiles
    first: OpenCheckpoint
    config: SceneConfig
    decoder: dict[str, Tensor]
    edit: EditFiles | None
    mapped: bool

    def records(self, block: int) -> tuple[ArchiveRecord, ...]:
        """Of the files that this block is the first to be read from."""
        found = archive_records(self.files.paths[block]) if block < len(self.files.paths) else ()
        if self.edit is not None and block == self.edit.block:
            found += archive_records(self.edit.weights)
        return found

    def block(self, block: int, notes: list[str]) -> tuple[State, bool]:
        """(file that holds the block, whether it holds all blocks of the scene)."""
        if self.edit is not None and block == self.edit.block:
            part = open_checkpoint(self.edit.weights, SceneFiles("sub", (self.edit.weights,), self.files.stem, block=block))
            check_same_block(part, self.config, self.files.paths[0])
            return part.state, False
        if self.files.kind == "subs" and block > 0:
            return open_block(self.files, block, self.config, self.decoder, notes).state, False
        # opened for each block anew: the pages that were read of a mapped file go with it
        again = open_checkpoint(self.first.path, self.files) if self.mapped else self.first
        return again.state, again.geometry.stacked


def convert_scene(
    source: Path,
    target: Path,
    *,
    precision: Precision = "fp32",
    blocks: tuple[int, int] | None = None,
    plane_division: tuple[int, int] | None = None,
    edit: str | None = None,
    edit_block: int | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the block store `target` from a checkpoint; plane_division, edit and edit_block as for `load_scene`.

    blocks: along x and y, into which the planes of a sequential scene are cut; default such that a block's finest plane has about
    512 x 512 texels. threads: that work on two blocks at a time. force: replace a block store that stands there.
    The store gets its name when all of it stands: an interrupted conversion leaves nothing, a killed one a hidden folder that
    the next conversion to the same name removes. Every record of the files is compared with its CRC-32, where they hold any.
    Memory: two blocks, mapped from the file, and strips of STRIP bytes a thread, beside the decoder and the mask (a file in torch's format
    from before 1.6 is read whole).
    Raises CheckpointError, ConfigError, DiskFullError.
    """
    target = Path(target)
    refuse_target(target, force)
    if edit is None and edit_block is not None:
        raise CheckpointError(f"{source}: edit_block = {edit_block} without edit", remedy="say which edit: reset, new or remove")
    files = find_scene_files(Path(source))
    first = open_checkpoint(files.paths[0], files)
    config, notes = configure(files, first, plane_division)
    mask = read_stored_mask(first.content, first.path)
    found = None if edit is None else check_edit(config, files, edit, edit_block)
    cut = config.layout == "single"
    if blocks is not None and not cut and blocks != config.division:
        raise ConfigError(
            f"{source}: has {config.division[0]}x{config.division[1]} blocks of its own, not {blocks[0]}x{blocks[1]}",
            remedy="leave --blocks out: it cuts scenes that have none",
        )
    if blocks is not None and cut:
        _check_blocks(source, config, blocks)
    scene = _Scene(files, first, config, read_decoder(first), found, is_mapped(first.path))
    division, origins = config.division, None
    parts = tuple((h, w) for h, w, _ in config.level_sizes())
    if cut:
        division = blocks or default_division(config)
        origins, parts = cut_planes(config, division)
    with StoreWriter(target, config, division=division, parts=parts, precision=precision, origins=origins, force=force) as writer:
        notes += _write_blocks(scene, writer, origins, threads or min(_MOST_THREADS, os.cpu_count() or 1), progress or _silent)
        volume = None if mask is None else mask.volume()
        if mask is not None and found is not None:
            volume = read_volume(found.volume, mask.shape)
            notes.append(f"edit = {edit!r}: block {found.block} from {found.weights.name}, mask from {found.volume.name}")
        head = writer.finish(
            {name: tensor.numpy() for name, tensor in _decoder(scene).items()},
            None if volume is None else np.packbits(volume.reshape(-1)),
            None if mask is None else mask.aabb,
            notes,
        )
    return Conversion(target, head, tuple(notes))


def _check_blocks(source: Path, config: SceneConfig, blocks: tuple[int, int]) -> None:
    h, w, _ = min(config.level_sizes()[: len(config.resolutions)])
    if blocks[0] > w or blocks[1] > h:
        raise ConfigError(
            f"{source}: {blocks[0]}x{blocks[1]} blocks of a plane of {w}x{h} texels", remedy=f"at most {w}x{h}; a few hundred texels each"
        )


class _Block:
    """A block in work: its file is opened by the first task and let go by the last."""

    def __init__(self, scene: _Scene, block: int, tasks: int, done: Callable[[], None]) -> None:
        self.notes: list[str] = []
        self._scene, self._block, self._left, self._done = scene, block, tasks, done
        self._lock = Lock()
        self._opened: tuple[State, bool] | None = None

    def open(self) -> tuple[State, bool]:
        with self._lock:
            if self._opened is None:
                self._opened = self._scene.block(self._block, self.notes)
            return self._opened

    def leave(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._opened = None
                self._done()


def _write_blocks(scene: _Scene, writer: StoreWriter, origins: NDArray[np.int32] | None, threads: int, tell: Progress) -> list[str]:
    """Every block's planes and lines, two blocks at a time. Returns notes in block order."""
    head, stop, room = writer.head, Event(), BoundedSemaphore(_BLOCKS_AT_ONCE)
    tables, lines = head.tables(), head.line_tables()
    found: list[_Block] = []
    tasks: list[Future[None]] = []

    def plane(opened: _Block, block: int, number: int) -> None:
        try:
            if not stop.is_set():
                (state, stacked), table = opened.open(), tables[number]
                corner = (0, 0) if origins is None else (int(origins[block, table.level, 0]), int(origins[block, table.level, 1]))
                strips = _strips(state, table, block if stacked else None, corner, writer.dtype)
                writer.note_plane(block, number, write_chunk(writer.root, table.key(block), strips))
        finally:
            opened.leave()

    def every_line(opened: _Block, block: int) -> None:
        try:
            if not stop.is_set() and (block == 0 or not head.cut):
                state, stacked = opened.open()
                for number, line in enumerate(lines):
                    writer.put_line(block, number, _line(state, line, block if stacked else 0, writer.dtype))
        finally:
            opened.leave()

    def check(record: ArchiveRecord) -> None:
        if not stop.is_set():
            record.check()

    with ThreadPoolExecutor(threads, thread_name_prefix="convert") as pool:
        try:
            for block in range(head.blocks):
                room.acquire()
                _raise_first(tasks)
                tell("blocks", block / head.blocks)
                opened = _Block(scene, block, len(tables) + 1, room.release)
                found.append(opened)
                tasks += [pool.submit(check, record) for record in scene.records(block)]
                tasks += [pool.submit(plane, opened, block, number) for number in reversed(range(len(tables)))]  # the largest first
                tasks.append(pool.submit(every_line, opened, block))
            for task in tasks:
                task.result()
            tell("blocks", 1.0)
        finally:
            stop.set()
    return [note for opened in found for note in opened.notes]


def _raise_first(tasks: list[Future[None]]) -> None:
    """Raise what a finished task raised; forget the others that are finished."""
    for task in [task for task in tasks if task.done()]:
        task.result()
        tasks.remove(task)


def _strips(state: State, table: BlockTable, block: int | None, corner: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """A block's plane [h, w, C] in strips of rows. block: of a tensor that holds all; corner: first column and row of a cut plane."""
    name = f"{table.kind}_plane.{table.level}"
    source = state.view(name)[0]  # [C, h, w] or [C, B, h, w]
    plane = source if block is None else source[:, block]
    x, y = corner
    step = max(1, STRIP // (4 * table.width * table.channels))
    for first in range(0, table.height, step):
        last = min(first + step, table.height)
        part = plane[:, y + first : y + last, x : x + table.width]
        strip = torch.zeros(last - first, table.width, table.channels)
        strip[:, :, : part.shape[0]].copy_(part.permute(1, 2, 0))
        yield _stored(strip, state, name, dtype)


def _line(state: State, table: LineTable, block: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    name = f"{table.kind}_line.{table.level}"
    source = state.view(name)[0][:, :, block]  # [C, n]
    line = torch.zeros(table.length, table.channels)
    line[:, : source.shape[0]].copy_(source.t())
    return _stored(line, state, name, dtype)


def _stored(values: Tensor, state: State, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Float32 in the store's dtype. Raises CheckpointError for NaN, Inf, and what float16 cannot hold."""
    check_finite(values, state.path, state.names[name])
    if dtype.itemsize == 4:
        return values.numpy()
    half = values.half()
    if not bool(torch.isfinite(torch.stack(torch.aminmax(half))).all()):
        most = float(values.abs().max())
        raise CheckpointError(
            f"{state.path}: {state.names[name]} holds {most:g}, float16 ends at 65504", remedy="convert it with --precision fp32"
        )
    return half.numpy()


def _decoder(scene: _Scene) -> dict[str, Tensor]:
    """The decoder's arrays by their names in a store."""
    basis, basis_density = wide_bases(scene.decoder, scene.first.geometry, scene.config)
    found = {name: tensor for name, tensor in scene.decoder.items() if name not in (BASIS, BASIS_DENSITY, EMBEDDING)}
    found["basis_mat"] = basis
    if basis_density is not None:
        found["basis_density"] = basis_density
    if EMBEDDING in scene.decoder:
        found["embedding"] = scene.decoder[EMBEDDING]
    return found


def _silent(_label: str, _share: float) -> None:
    return None
