"""Board: which parts of which blocks the ranks of one host have in their slots, and who reads them there, in memory that they share.

Numbers only. A rank may be killed at any instant: the lock is the kernel's, which frees it with the process that held it, and what a
dead rank had noted holds up nobody.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import GroupError

from .transit import locked, open_folder, remove_folder, unlock

logger = logging.getLogger(__name__)

FILE = "board"
TAKEN = ".taken"  # of a message that its rank is reading
LOCK_TRIES, LOCK_PAUSE = 300_000, 0.0001  # half a minute or more, and no less for a process that is stopped meanwhile


class Source(NamedTuple):
    """Where a part of a block can be read: in that slot of that rank, when the rank's device has passed the mark."""

    peer: int
    slot: int
    mark: int


class Board:
    """Of `ranks` ranks that hold the same channels of `blocks` blocks; `rank` counts among these. Used by one thread of each.

    A mark is a number, from 0 on, that tells a place in the work of a rank's device; what it means is the ranks' affair.

    An owner posts the parts of a block that lie, or will lie, in one of its slots. A reader claims some, gives its device the copies, and
    confirms the claim with the mark behind them. An owner that wants the slot withdraws the block: it learns after which marks it may write
    there. A claim that is not confirmed yet is revoked by that: the reader learns it when it confirms, and uses nothing of what it copied.
    So neither ever waits for the other.
    """

    def __init__(self, folder: Path, alive: int, *, rank: int, ranks: int, blocks: int) -> None:
        """folder, alive: of `open_folder`. Raises OSError where the host has no memory for it."""
        self.rank, self.ranks = rank, ranks
        self._folder = folder
        self._alive = alive
        self._closed = False
        entry = 1 + 3 * ranks
        size = 8 * (ranks * ranks + ranks * blocks * entry)
        self._file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(self._file, 0, size)  # all of it: a page that is missing later would end the process
            cells = np.frombuffer(mmap.mmap(self._file, size), np.int64)
        except BaseException:
            os.close(self._file)
            raise
        self._met = cells[: ranks * ranks].reshape(ranks, ranks)  # [r, r]: it is here; [r, p]: it can wait for the marks of p
        entries = cells[ranks * ranks :].reshape(ranks, blocks, entry)  # of owners, by block; 0: nothing, else the number + 1
        self._slot: NDArray[np.int64] = entries[:, :, 0]
        self._parts: NDArray[np.int64] = entries[:, :, 1 : 1 + ranks]  # mark behind each part
        self._claims: NDArray[np.int64] = entries[:, :, 1 + ranks : 1 + 2 * ranks]  # by reader: 1, not yet confirmed
        self._reads: NDArray[np.int64] = entries[:, :, 1 + 2 * ranks :]  # by reader: mark behind its last copy

    @classmethod
    def open(cls, root: Path, number: int, *, rank: int, ranks: int, blocks: int) -> Board | None:
        """The board of that number, the same for all of its ranks, in a folder of its own; None where it cannot be had."""
        opened = open_folder(root, number)
        if opened is None:
            return None
        try:
            return cls(*opened, rank=rank, ranks=ranks, blocks=blocks)
        except OSError as error:
            logger.warning("ranks of this host do not share what they copy to their GPUs: %s", error)
            os.close(opened[1])
            remove_folder(opened[0])
            return None

    @property
    def peers(self) -> list[int]:
        """The other ranks."""
        return [rank for rank in range(self.ranks) if rank != self.rank]

    def come(self, messages: Mapping[int, bytes]) -> None:
        """Be here from now on, with a message for each of the others. Raises OSError."""
        for peer, message in messages.items():
            path = self._message(self.rank, peer)
            part = path.with_suffix(".part")
            part.write_bytes(message)
            part.rename(path)
        with self._alone():
            self._met[self.rank, self.rank] = 1

    def is_here(self, peer: int) -> bool:
        return bool(self._met[peer, peer])

    def take(self, peer: int) -> bytes | None:
        """The message of a peer, once; None where there is none any more."""
        path = self._message(peer, self.rank)
        taken = path.with_suffix(TAKEN)
        try:
            path.rename(taken)
            message = taken.read_bytes()
            taken.unlink()
        except OSError:
            return None
        return message

    def meet(self, peer: int) -> None:
        """This rank can wait for the marks of a peer, which may read its slots from now on."""
        with self._alone():
            self._met[self.rank, peer] = 1

    def post(self, block: int, slot: int, parts: Iterable[int], mark: int) -> None:
        """These parts of a block are in a slot when this rank's device has passed the mark."""
        with self._alone():
            self._slot[self.rank, block] = slot + 1
            for part in parts:
                self._parts[self.rank, block, part] = mark + 1

    def withdraw(self, blocks: Iterable[int]) -> dict[int, int]:
        """This rank will write where these blocks are. Returns {reader: mark}: when their devices have passed these, nobody reads there."""
        found: dict[int, int] = {}
        with self._alone():
            for block in blocks:
                self._slot[self.rank, block] = 0
                self._parts[self.rank, block] = 0
                self._claims[self.rank, block] = 0
                for reader in np.flatnonzero(self._reads[self.rank, block]).tolist():
                    if self.is_here(reader):
                        found[reader] = max(found.get(reader, 0), int(self._reads[self.rank, block, reader]) - 1)
                self._reads[self.rank, block] = 0
        return found

    def claim(self, block: int, parts: Collection[int], peers: Collection[int]) -> dict[int, Source]:
        """Those of the parts that one of these peers has, {part: source}. Copy them, then `confirm`."""
        found: dict[int, Source] = {}
        with self._alone():
            able = [peer for peer in peers if self.is_here(peer) and self._met[peer, self.rank] and self._slot[peer, block]]
            for part in parts if able else ():
                for peer in sorted(able, key=lambda peer: (peer - part) % self.ranks):  # that whose part it is before the others
                    if self._parts[peer, block, part]:
                        found[part] = Source(peer, int(self._slot[peer, block]) - 1, int(self._parts[peer, block, part]) - 1)
                        self._claims[peer, block, self.rank] = 1
                        break
        return found

    def confirm(self, block: int, peers: Iterable[int], mark: int) -> set[int]:
        """What was claimed of these peers is read when this rank's device has passed the mark. Returns those that wanted their slot back
        meanwhile: what was copied from them may be anything.
        """
        revoked: set[int] = set()
        with self._alone():
            for peer in peers:
                if self._claims[peer, block, self.rank]:
                    self._claims[peer, block, self.rank] = 0
                    self._reads[peer, block, self.rank] = mark + 1
                else:
                    revoked.add(peer)
        return revoked

    def leave(self) -> list[int]:
        """Be here no more; nobody claims anything of this rank from now on. Returns the peers that have not taken their message, and cannot
        any more. The last rank removes the folder. A second call does nothing.
        """
        if self._closed:
            return []
        self._closed = True
        try:
            with self._alone():
                self._met[self.rank] = 0
                self._claims[self.rank] = 0
        finally:
            left = [peer for peer in self.peers if _removed(self._message(self.rank, peer))]
            os.close(self._file)
            os.close(self._alive)
            remove_folder(self._folder)
        return left

    def _message(self, sender: int, receiver: int) -> Path:
        return self._folder / f"from-{sender}-to-{receiver}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """With the lock, in which nobody waits for anything. Raises GroupError where a rank that was stopped keeps it."""
        for _ in range(LOCK_TRIES):
            if locked(self._file):
                break
            time.sleep(LOCK_PAUSE)
        else:
            raise GroupError(f"{self._folder / FILE}: another rank keeps the lock", remedy="see whether a process of this host is stopped")
        try:
            yield
        finally:
            unlock(self._file)


def _removed(path: Path) -> bool:
    with suppress(OSError):
        path.unlink()
        return True
    return False
