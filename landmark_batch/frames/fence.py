"""The fence: which writers may still commit. One small checksummed file, read at every commit.

generation: grows with each job that takes the store and each discard; orders the ledger. min_generation: writers that opened
the store before it belong to a job that has ended. epochs: per render group, the lowest epoch that may commit. discards: how many
times frames were made missing, counted before the ledger says so; a ledger with fewer such lines has lost one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from landmark_batch.errors import StaleWriterError, StoreBusyError, StoreError
from landmark_batch.object_client import ObjectStoreError
from landmark_batch.object_path import ObjectPath

from . import durable
from .layout import StoreLayout
from .ledger import LedgerIndex
from .locks import store_mutex
from .sealed import DamagedError, read_sealed, seal

_MEETINGS = 10  # of processes that change a fence in an object store
_FAR = 1000  # a rebuilt fence is above any generation that was handed out and never recorded


@dataclass(frozen=True)
class Fence:
    generation: int = 1
    min_generation: int = 1
    epochs: Mapping[str, int] = field(default_factory=dict)
    discards: int | None = None  # None: not known

    def check(self, writer: str, generation: int, epoch: int, group: str) -> None:
        """Raises StaleWriterError if that writer's time is over."""
        if generation < self.min_generation:
            raise StaleWriterError(
                f"writer {writer}: its job (generation {generation}) has ended, generation {self.min_generation} owns the store"
            )
        if epoch < self.epochs.get(group, 0):
            raise StaleWriterError(f"writer {writer}: its epoch {epoch} has ended, group {group!r} is in epoch {self.epochs[group]}")


def write_fence(layout: StoreLayout, fence: Fence) -> None:
    durable.replace_file(layout.fence, _sealed(fence))


def _sealed(fence: Fence) -> bytes:
    values: dict[str, Any] = {"generation": fence.generation, "min_generation": fence.min_generation, "epochs": dict(fence.epochs)}
    return seal(values if fence.discards is None else {**values, "discards": fence.discards})


def read_fence(layout: StoreLayout) -> Fence:
    """Raises StoreError if it is missing or damaged."""
    try:
        values = read_sealed(layout.fence)
        return Fence(values["generation"], values["min_generation"], values["epochs"], values.get("discards"))
    except (OSError, DamagedError, KeyError) as error:
        raise StoreError(f"{layout.fence}: damaged ({error})", remedy="start the job again: it mends the store") from error


def read_or_rebuild(layout: StoreLayout) -> Fence:
    """The fence, or one that is above everything the ledger says."""
    try:
        return read_fence(layout)
    except ObjectStoreError:
        raise
    except StoreError:
        return Fence(generation=LedgerIndex(layout.ledger).refresh().generation + _FAR)


def change_fence(layout: StoreLayout, change: Callable[[Fence], Fence]) -> Fence:
    """Replace the fence under the store's mutex and return the new one."""
    with store_mutex(layout):
        return change_fence_locked(layout, change)


def change_fence_locked(layout: StoreLayout, change: Callable[[Fence], Fence]) -> Fence:
    """As `change_fence`, for callers that hold the mutex."""
    if isinstance(layout.fence, ObjectPath):
        return _change_object(layout, layout.fence, change)
    fence = change(read_or_rebuild(layout))
    write_fence(layout, fence)
    return fence


def _change_object(layout: StoreLayout, file: ObjectPath, change: Callable[[Fence], Fence]) -> Fence:
    """Over the very fence that was read: a mutex in an object store is taken from who holds it for too long."""
    for _ in range(_MEETINGS):
        found = file.found()
        fence = change(read_or_rebuild(layout))
        try:
            file.put(_sealed(fence), over=None if found is None else found.version)
            return fence
        except FileExistsError:
            continue
    raise StoreBusyError(f"{file}: others change it again and again", remedy="see who else uses this store, then try again")


def next_generation(fence: Fence) -> Fence:
    return replace(fence, generation=fence.generation + 1)


def next_discard(fence: Fence) -> Fence:
    """A fresh generation in which frames are made missing."""
    return replace(next_generation(fence), discards=None if fence.discards is None else fence.discards + 1)


def new_job(fence: Fence) -> Fence:
    """A fresh generation that shuts out the writers of all jobs before it."""
    return Fence(generation=fence.generation + 1, min_generation=fence.generation + 1, discards=fence.discards)
