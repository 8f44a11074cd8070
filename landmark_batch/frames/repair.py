"""Mending what is not pixels: logs with damaged lines, settings, metadata, coordinates."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import StoreError

from .fence import change_fence
from .fingerprint import FrameSettings, flight_digest
from .inventory import check_metadata
from .layout import StoreLayout
from .ledger import LedgerIndex, rewrite_damaged
from .owner import StoreOwner
from .relocate import restructure
from .saved_settings import save_settings
from .sealed import DamagedError, read_sealed
from .store import FrameStore


def mend_records(layout: StoreLayout) -> None:
    """Rewrite logs without damaged lines and the fence if it is damaged, remove unreadable settings. For the owner alone.

    Raises StoreError.
    """
    index = LedgerIndex(layout.ledger)
    rewrite_damaged(layout.ledger, index.refresh().damaged())
    for path in layout.settings.glob("*.json"):
        try:
            whole = FrameSettings(read_sealed(path)["settings"]).digest == path.stem
        except (OSError, DamagedError, LookupError):
            whole = False
        if not whole:
            path.unlink(missing_ok=True)
    change_fence(layout, lambda fence: replace(fence, discards=index.refresh().discards))


def repair_store(store: FrameStore, flight: Flight, settings: FrameSettings, *, owner: StoreOwner | None = None) -> list[str]:
    """Rewrite everything of a store but its pixels from the flight and settings it was made with; returns what was wrong.

    Frames whose ledger line is damaged become missing, all others stay. owner: the store's, if it is held already.
    Raises StoreError if the store holds another flight (`adopt` changes flights), StoreBusyError.
    """
    problems = check_metadata(store)
    if not problems:
        return []
    if store.definition.flight != flight_digest(flight):
        raise StoreError(
            f"{store.path}: it holds another flight than {flight.source}",
            remedy="render the job: that changes the flight and mends the store",
        )
    with contextlib.ExitStack() as stack:
        held = owner if owner is not None else stack.enter_context(StoreOwner.acquire(store.path))
        with held.restructuring():
            mend_records(store.layout)
            save_settings(store.layout, settings)
            restructure(store.layout, store.definition, flight, settings.digest)
    store.reload()
    return problems
