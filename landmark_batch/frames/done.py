"""The array `done`: what the ledger says, in a form any Zarr reader understands. Derived, conservative, written by the store's owner."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from . import durable
from .arrays import open_array
from .definition import StoreDefinition
from .fence import change_fence_locked, next_discard, next_generation
from .layout import DONE_KEY, StoreLayout
from .ledger import LedgerIndex, LedgerLog
from .locks import store_mutex
from .process import writer_tag
from .records import discard_line
from .staging import make_stage, staged_store


def read_done(layout: StoreLayout, definition: StoreDefinition) -> NDArray[np.bool_]:
    """[F] bool as it stands on disk. Raises what its codecs raise if the file is damaged."""
    array = open_array(staged_store(layout.root, read_only=True, metadata=definition.metadata), "done")
    return np.asarray(array[...], dtype=np.bool_)


def _write(layout: StoreLayout, definition: StoreDefinition, mask: NDArray[np.bool_]) -> None:
    stage = make_stage(layout.root, writer_tag("done"))
    try:
        open_array(staged_store(layout.root, metadata=definition.metadata, stage=stage), "done")[...] = mask
        stage.publish()
    except OSError as error:
        raise durable.store_error(error, layout.root / "done") from error
    finally:
        stage.discard()


def write_done(layout: StoreLayout, definition: StoreDefinition, *, index: LedgerIndex | None = None) -> NDArray[np.bool_]:
    """Write `done` from the ledger as it is now, read through `index` if given. Returns it. Raises StoreError."""
    with store_mutex(layout):
        return _write_locked(layout, definition, (), index)


def _write_locked(
    layout: StoreLayout, definition: StoreDefinition, except_for: Iterable[int], index: LedgerIndex | None
) -> NDArray[np.bool_]:
    count = definition.spec.frames
    standing = (index or LedgerIndex(layout.ledger)).refresh().standing() - set(except_for)
    mask = np.zeros(count, dtype=np.bool_)
    mask[[frame for frame in standing if frame < count]] = True
    _write(layout, definition, mask)
    return mask


def discard_frames(
    layout: StoreLayout,
    definition: StoreDefinition | None,
    log: LedgerLog,
    frames: Iterable[int],
    reason: str,
    *,
    at: float,
    index: LedgerIndex | None = None,
) -> int:
    """Make recorded frames missing: first in `done`, then in the ledger, under a fresh generation, which is returned.

    definition: None where the array `done` is about to be replaced: then it is removed, which readers see as all false.
    Raises StoreError.
    """
    void = sorted(set(frames))
    with store_mutex(layout):
        if definition is None:
            _remove(layout)
        else:
            _write_locked(layout, definition, void, index)
        durable.step("hidden")
        generation = change_fence_locked(layout, next_discard if void else next_generation).generation
        durable.step("generation")
        if void:
            log.append(discard_line(void, generation, reason, at))
            durable.step("discarded")
    return generation


def _remove(layout: StoreLayout) -> None:
    file = layout.root / DONE_KEY
    try:
        file.unlink(missing_ok=True)
        durable.sync_directory(file.parent)
    except OSError as error:
        raise durable.store_error(error, file) from error
