"""Looking at every byte of a store: pixels against their digests, metadata, coordinates, ledger."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import StoreError
from landmark_batch.object_path import StorePath

from .adopt import remember_damaged
from .inventory import check_frame, check_metadata
from .layout import PARTIAL, chunk_index, entry_names
from .owner import StoreOwner
from .records import FrameRecord
from .store import FrameStore

_log = logging.getLogger(__name__)
_BATCH = 64  # frames handed to the threads at a time: bounds memory, keeps progress smooth


@dataclass(frozen=True)
class Damage:
    """One file whose pixels are not what was written."""

    frame: int
    output: str
    path: str
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """checked: frames looked at. damaged: pixels. other: everything else that is wrong. notes: harmless, gone after the next render."""

    checked: int
    damaged: tuple[Damage, ...]
    other: tuple[str, ...]
    notes: tuple[str, ...] = ()
    discarded: bool = False

    @property
    def ok(self) -> bool:
        return not self.damaged and not self.other

    @property
    def frames(self) -> tuple[int, ...]:
        """Damaged frames, ascending."""
        return tuple(sorted({item.frame for item in self.damaged}))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "frames": list(self.frames)}


def verify_store(
    path: StorePath | str, *, discard_damaged: bool = False, progress: Callable[[int, int], None] | None = None, threads: int | None = None
) -> VerifyReport:
    """Decode every recorded frame and compare it with its digest; check every other file too. May run beside a job.

    discard_damaged: make damaged frames missing, which needs the store for itself. Without it they are noted, and the next render
    looks at them again. progress: called with (frames looked at, all). threads: default one a core, at most 8.
    Raises StoreError if there is no store or both of its descriptions are lost, StoreBusyError.
    """
    store = FrameStore.open(path)
    other = check_metadata(store)
    with contextlib.ExitStack() as stack:
        if discard_damaged:
            stack.enter_context(StoreOwner.acquire(path))
            store.reload()
        finished = store.finished()
        damaged = _check_all(store, finished, progress, threads or min(8, os.cpu_count() or 1))
        again = store.finished()  # a job may have written some of them anew meanwhile
        fresh = {item.frame for item in damaged if again.get(item.frame) != finished[item.frame]}
        damaged = [item for item in damaged if item.frame not in fresh]
        if fresh:
            damaged += _check_all(store, {frame: again[frame] for frame in fresh if frame in again}, None, 1)
        frames = sorted({item.frame for item in damaged})
        if discard_damaged and frames:
            store.discard(frames, "found damaged by verify")
        try:
            remember_damaged(store, [] if discard_damaged else frames)
        except StoreError as error:
            _log.warning("the findings cannot be noted in the store: %s", error.message)
    damaged.sort(key=lambda item: (item.frame, item.output))
    return VerifyReport(len(finished), tuple(damaged), tuple(other), tuple(_notes(store, again)), discard_damaged and bool(frames))


def _check_all(
    store: FrameStore, finished: dict[int, FrameRecord], progress: Callable[[int, int], None] | None, threads: int
) -> list[Damage]:
    def check(record: FrameRecord) -> list[Damage]:
        found = []
        for name in store.spec.names:
            reason = check_frame(store, record, name)
            if reason is not None:
                found.append(Damage(record.frame, name, str(store.chunk_file(name, record.frame)), reason))
        return found

    records, damaged = list(finished.values()), []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(records), _BATCH):
            batch = records[start : start + _BATCH]
            for found in pool.map(check, batch):
                damaged += found
            if progress is not None:
                progress(start + len(batch), len(records))
    return damaged


def _notes(store: FrameStore, finished: dict[int, FrameRecord]) -> list[str]:
    """Files that belong to no recorded frame: of interrupted commits, or of frames that were given up."""
    notes: list[str] = []
    loose: set[int] = set()
    partial = 0
    for name in store.spec.names:
        for entry in entry_names(store.path / name):
            index = chunk_index(entry)
            partial += entry.endswith(PARTIAL)
            if index is not None and not any(frame in finished for frame in store.spec.shard_of(index * store.spec.frames_per_shard)):
                loose.update(store.spec.shard_of(index * store.spec.frames_per_shard))
    if loose:
        notes.append(f"frames {format_frame_ranges(sorted(loose))} have files but no record: they will be rendered")
    if partial:
        notes.append(f"{partial} temporary files of commits that run or were cut short")
    return notes
