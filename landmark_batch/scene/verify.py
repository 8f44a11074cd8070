"""verify_scene: every byte of a checkpoint or a block store against the sums that it was written with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.archive import ArchiveRecord, archive_records
from landmark_batch.scene.layout import find_companion
from landmark_batch.scene.location import SceneLocation, as_location
from landmark_batch.scene.store import BlockStore, open_if_store
from landmark_batch.scene.store_layout import BlockTable

_MOST_THREADS = 8


@dataclass(frozen=True)
class SceneCheck:
    """What `verify_scene` found. records: looked at, of `bytes` bytes. damaged: a line each, naming file and record. unchecked: files
    that hold no sums."""

    records: int
    bytes: int
    seconds: float
    damaged: tuple[str, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.damaged

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True)
class _Part:
    """size: in bytes. look: returns what is wrong, None where nothing is."""

    size: int
    look: Callable[[], str | None]


def verify_scene(path: SceneLocation, *, threads: int | None = None, progress: Callable[[int, int], None] | None = None) -> SceneCheck:
    """Read all of a scene: a checkpoint's records are compared with the CRC-32 of each, a block store's planes with their digests.

    All files are looked at: each -sub{b}.th of a directory, and a companion beside the file that it was cut from. threads: default one a
    core, at most 8. progress: called with (records looked at, all).
    Raises CheckpointError for a file that is missing, foreign or without its directory, and StoreError for a store that does not answer.
    """
    started = time.monotonic()
    store = open_if_store(path)
    unchecked: list[str] = []
    parts = list(_store_parts(store)) if store is not None else list(_file_parts(Path(as_location(path)), unchecked))
    damaged: list[tuple[int, str]] = []
    with ThreadPoolExecutor(threads or min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="verify") as pool:
        order = sorted(range(len(parts)), key=lambda number: -parts[number].size)  # the largest first: no thread is left alone with it
        tasks = {pool.submit(parts[number].look): number for number in order}
        try:
            for count, task in enumerate(as_completed(tasks), 1):
                wrong = task.result()
                if wrong is not None:
                    damaged.append((tasks[task], wrong))
                if progress is not None:
                    progress(count, len(parts))
        finally:
            pool.shutdown(cancel_futures=True)
    lines = tuple(line for _, line in sorted(damaged))
    return SceneCheck(len(parts), sum(part.size for part in parts), time.monotonic() - started, lines, tuple(unchecked))


def _file_parts(path: Path, unchecked: list[str]) -> Iterator[_Part]:
    files = find_companion(path)
    for file in dict.fromkeys((*files.paths, *([files.companion] if files.companion is not None else []))):
        records = archive_records(file)
        if not records:
            unchecked.append(str(file))
        for record in records:
            yield _Part(record.size, partial(_record_damage, record))


def _record_damage(record: ArchiveRecord) -> str | None:
    wrong = record.damage()
    return None if wrong is None else f"{record.path}: record {record.name}: {wrong}"


def _store_parts(store: BlockStore) -> Iterator[_Part]:
    yield _Part(0, partial(_base_damage, store))
    for block in range(store.blocks):
        for table in store.tables:
            yield _Part(
                table.height * table.width * table.channels * store.head.dtype.itemsize, partial(_plane_damage, store, block, table)
            )


def _plane_damage(store: BlockStore, block: int, table: BlockTable) -> str | None:
    try:
        store.read_plane(block, table)
    except CheckpointError as error:
        return error.message
    return None


def _base_damage(store: BlockStore) -> str | None:
    try:
        store.base()
        _ = store.origins
    except CheckpointError as error:
        return error.message
    return None
