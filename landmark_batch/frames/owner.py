"""StoreOwner: one job writes a store at a time, across processes and hosts; with join=True several share it.

Who owns a store stands in `owners/`: one file a process, locked as long as it lives and touched every few seconds. Taking the
store is: write your own file, then look for others. Of two that come at once at least one sees the other, so that never both
believe to be alone; a short mutex keeps them from sending each other away. A dead owner is known
- on the same machine at once: its lock is free, or its process is gone although a forked child still holds the lock;
- from another machine when its file has not been touched for a minute, by the file server's clock, not ours;
- in an object store, which knows no locks, by its process on the same machine, by the minute from any other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from landmark_batch.errors import StoreBusyError, StoreError
from landmark_batch.object_path import StorePath

from . import durable
from .claims import FrameClaims, remove_dead_claims
from .conditions import require_conditions
from .definition import load_definition
from .entries import HeldEntry, OwnerEntry, entry_file, live_entries, make_entry
from .entries import store_owners as store_owners
from .fence import change_fence_locked, new_job, next_generation
from .layout import StoreLayout, layout_of
from .ledger import LedgerIndex
from .leftovers import remove_leftovers
from .locks import store_mutex

_log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 10.0


class StoreOwner:
    """Held by the process that runs a job; a context manager. Made by `acquire`.

    generation: hand it to the workers' `FrameStore.writer`: their commits are refused once this job has ended.
    sole: no other process shared the store when it was taken.
    """

    def __init__(self, layout: StoreLayout, entry: HeldEntry, generation: int, *, id_: str, sole: bool) -> None:
        self.layout = layout
        self.id = id_
        self.generation = generation
        self.sole = sole
        self._entry: HeldEntry | None = entry
        self.index = LedgerIndex(layout.ledger)
        self._claims = FrameClaims(layout, id_, self._other_ids)
        self._stop = threading.Event()
        self._lost = False
        self._beat = threading.Thread(target=self._heartbeat, name="store-heartbeat", daemon=True)
        self._beat.start()

    # -- taking and giving back

    @classmethod
    def acquire(cls, path: StorePath | str, *, join: bool = False, wait: float = 60.0) -> Self:
        """Take the store at `path`. join: share it with those that hold it. wait: seconds to wait for one that is changing its flight.

        Alone, it first finishes a change of flight that was cut short and removes what killed writers left.
        Raises StoreBusyError naming host, process and start of the holder; StoreError if there is no store or it cannot be written.
        """
        layout = layout_of(path)
        load_definition(layout)
        require_conditions(layout)
        id_ = f"{os.getpid()}-{secrets.token_hex(6)}"
        try:
            for folder in layout.directories():
                folder.mkdir(parents=True, exist_ok=True)
            deadline = time.monotonic() + wait
            while (taken := _enter(layout, id_, join=join)) is None:
                if time.monotonic() > deadline:
                    raise StoreBusyError(f"{layout.root}: another job is changing its flight", remedy="try again when it renders")
                time.sleep(0.2)
        except OSError as error:
            raise durable.store_error(error, layout.root) from error
        entry, generation, sole = taken
        owner = cls(layout, entry, generation, id_=id_, sole=sole)
        try:
            remove_dead_claims(layout, lambda: [owner.id, *owner._other_ids()])
            if sole and layout.journal.exists():
                owner._recover()
        except BaseException:
            owner.close()
            raise
        return owner

    def _recover(self) -> None:
        from .relocate import recover

        recover(self.layout)
        self.layout.restructuring.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the store back: claims, entry, lock. Safe to call twice."""
        if self._entry is None:
            return
        self._stop.set()
        self._beat.join(timeout=5)
        with contextlib.suppress(OSError, StoreError):
            self._claims.give_up_all()
            entry_file(self.layout, self.id).unlink(missing_ok=True)
        self._entry.close()
        self._entry = None

    # -- while it is held

    def require_held(self) -> None:
        """Raises StoreBusyError if it was closed, or if this process slept so long that another took the store over."""
        if self._entry is None:
            raise StoreBusyError(f"{self.layout.root}: this process has given the store back")
        if self._lost or not entry_file(self.layout, self.id).exists():
            raise StoreBusyError(f"{self.layout.root}: another process took the store over while this one did not answer")

    def _heartbeat(self) -> None:
        entry, file = self._entry, entry_file(self.layout, self.id)
        while entry is not None and not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                entry.beat()
            except FileNotFoundError:
                self._lost = True
                _log.error("%s: another process took the store over", self.layout.root)
                return
            except (OSError, StoreError) as error:
                _log.warning("%s: heartbeat failed: %s", file, error)

    def others(self) -> list[OwnerEntry]:
        """The other processes that hold the store now."""
        return live_entries(self.layout, self.id)

    def _other_ids(self) -> list[str]:
        return [entry.id for entry in self.others()]

    def claim(self, frames: Iterable[int]) -> list[int]:
        """Those of `frames` that this process shall render: not recorded by now, and not claimed by a living other. Ascending.

        Raises StoreBusyError if the store was lost, StoreError if it cannot be written.
        """
        self.require_held()
        held = self._claims.take(frames)
        standing = self.index.refresh().standing(held)
        self._claims.give_up(standing, later=True)
        return [frame for frame in held if frame not in standing]

    def release(self, frames: Iterable[int], *, recorded: bool = False) -> None:
        """Give up claims. recorded: the frames stand, so that nobody wants them and it need not be told at once."""
        self._claims.give_up(frames, later=recorded)

    @contextlib.contextmanager
    def restructuring(self) -> Iterator[None]:
        """Hold off those who want to join while the flight is changed. Raises StoreBusyError if another shares the store now."""
        self.require_held()
        with store_mutex(self.layout):
            for other in self.others():
                raise StoreBusyError(
                    f"{self.layout.root} is shared with another job: {other}",
                    remedy="a store's flight or settings change only when one job holds it: wait for the other, or render the same job",
                )
            durable.replace_file(self.layout.restructuring, self.id.encode())
        yield
        self.layout.restructuring.unlink(missing_ok=True)


def _enter(layout: StoreLayout, id_: str, *, join: bool) -> tuple[HeldEntry, int, bool] | None:
    """(entry, generation, sole); None if another is changing the flight just now. Raises StoreBusyError, OSError."""
    with store_mutex(layout):
        file = entry_file(layout, id_)
        entry = make_entry(layout, id_)
        try:
            live = live_entries(layout, id_)
            if live and not join:
                others = f" and {len(live) - 1} others" if len(live) > 1 else ""
                raise StoreBusyError(
                    f"{layout.root} is being written by another job: {live[0]}{others}",
                    remedy="wait for it, stop it, or share the work with --join",
                )
            changing = _changing(layout)
            if any(other.id == changing for other in live):
                file.unlink()
                entry.close()
                return None
            remove_leftovers(layout, sole=not live)  # before anyone who joins can have files here
            if not live and layout.journal.exists():
                durable.replace_file(layout.restructuring, id_.encode())  # whoever joins waits until the change is finished
            elif not live:
                layout.restructuring.unlink(missing_ok=True)
            fence = change_fence_locked(layout, next_generation if live else new_job)
        except BaseException:
            file.unlink(missing_ok=True)
            entry.close()
            raise
        return entry, fence.generation, not live


def _changing(layout: StoreLayout) -> str | None:
    try:
        return layout.restructuring.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
