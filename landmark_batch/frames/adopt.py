"""Carrying out a ResumePlan: the store becomes the job's, so that what is missing in it is what the job renders."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

from landmark_batch.cameras.flight import Flight

from . import durable
from .fingerprint import FrameSettings, flight_digest
from .inventory import check_metadata
from .owner import StoreOwner
from .relocate import restructure
from .repair import mend_records
from .resume import ResumePlan, damaged_records
from .saved_settings import save_settings, settings_file
from .sealed import DamagedError, read_sealed, seal
from .spec import StoreInfo
from .store import FrameStore

_log = logging.getLogger(__name__)


def adopt(
    store: FrameStore,
    owner: StoreOwner,
    plan: ResumePlan,
    flight: Flight,
    settings: FrameSettings,
    *,
    info: StoreInfo | None = None,
    update: bool = False,
    overwrite: bool = False,
) -> tuple[int, ...]:
    """Make `store` that of the job and return the frames to render, ascending.

    Moves finished frames to their places, mends damaged metadata, gives up damaged frames, with `update` the differing ones and
    with `overwrite` all. info: replaces the store's, if given.
    Raises FramesDifferError if finished frames differ and neither flag is given; StoreBusyError if another process shares the
    store and anything but lost frames would change; StoreError. Before it raises FramesDifferError nothing is changed.
    """
    owner.require_held()
    owner.index = store.index  # read once
    if plan.differing and not (update or overwrite):
        raise plan.error(store.path)
    void = {*plan.damaged, *plan.differing}
    moves = plan.moved
    if overwrite:
        void, moves = set(store.finished()), ()
    problems = check_metadata(store, store.index)
    wanted = info or store.info
    changed = not store.definition.whole or store.definition.flight != flight_digest(flight) or wanted != store.info
    if problems or changed or moves or (void - set(plan.damaged)) or store.definition.settings != settings.digest:
        for problem in problems:
            _log.warning("mending %s", problem)
        with owner.restructuring():
            if problems:
                remember_damaged(store, plan.damaged)  # mending takes away what made them suspect; they become missing after it
                mend_records(store.layout)
            if not settings_file(store.layout, settings.digest).exists():
                save_settings(store.layout, settings)
            if problems or changed or moves:
                restructure(store.layout, store.definition, flight, settings.digest, info=wanted, moves=moves, void=void)
            else:
                dataclasses.replace(store.definition, settings=settings.digest).save(store.layout.definition)
                store.discard(void, "given up by a job with other settings")
        store.reload()
    else:
        store.discard(void, "damaged")
    forget_damaged(store)
    return tuple(range(plan.frames)) if overwrite else plan.to_render


def remember_damaged(store: FrameStore, frames: Iterable[int]) -> None:
    """Note frames whose pixels are damaged, for the next `compare`. Raises StoreError if the store cannot be written."""
    chosen = sorted(set(frames))
    if chosen:
        durable.replace_file(store.layout.damaged, seal({"frames": chosen}))
    elif store.layout.damaged.is_file():
        store.layout.damaged.unlink(missing_ok=True)


def forget_damaged(store: FrameStore) -> None:
    """Drop from that note what is no longer recorded or was written anew."""
    try:
        noted = read_sealed(store.layout.damaged)["frames"]
    except FileNotFoundError:
        return
    except (OSError, DamagedError, LookupError):
        noted = []
    finished = store.finished()
    remember_damaged(store, [record.frame for record in damaged_records(store, [finished[frame] for frame in noted if frame in finished])])
