"""SharedReads: the ranks of a group on one host read each plane of a block from the store once; the others copy it from memory.

Planes in transit are files in a folder that the ranks share. Every rank may be killed at any instant: locks are the kernel's, which
frees them with the process that held them, and a file gets its name when it is whole and checked. Names are those of contents, by the
digests that the store recorded, so that a file can only ever stand for the right bytes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Literal

from .board import Board
from .transit import ALIVE, NUMBERS, Offer, locked, open_folder, remove_folder, unlock

logger = logging.getLogger(__name__)

Source = Literal["store", "neighbour", "later"]

PATIENCE = 60.0  # seconds for another's read; after that a rank reads itself
FIRST_PAUSE, LONGEST_PAUSE = 0.0005, 0.016  # seconds between looks whether it is over
LOCK_SECONDS = 5.0  # for the lock of the folder, which is held for microseconds
PART = ".part"  # of a file that is being written, by whoever holds its lock
ROOM = "room"  # its lock: what is begun, named and removed


class SharedReads:
    """Planes that one of `ranks` ranks of this host has read, for the others; `rank` counts among these. Used from any thread.

    budget: bytes of files at most. A file goes when all ranks have taken it, or when there is no room, that first which nobody has
    taken for longest. Where something is wrong with the folder, a rank reads by itself.
    """

    def __init__(self, folder: Path, alive: int, *, here: Sequence[int], place: int, number: int, budget: int, own_bytes: int) -> None:
        """folder, alive: of `open_folder`, of that number. here: the ranks of the group that share; place: this one. own_bytes: of the
        budget, this rank's part.
        """
        self.rank, self.ranks, self.budget, self.own_bytes = here.index(place), len(here), budget, own_bytes
        self._here, self._place, self._number = here, place, number
        self._folder = folder
        self._alive = alive
        self._closed = False

    @classmethod
    def join(cls, root: Path | None, offers: Sequence[Offer], rank: int) -> SharedReads | None:
        """What this rank shares with its neighbours, by the offers of all ranks of the group; None where there is nobody or nothing.

        root: where `make_offer` found room.
        """
        own = offers[rank]
        here = [place for place, offer in enumerate(offers) if offer.bytes and offer.host == own.host]
        if root is None or not own.bytes or len(here) < 2:
            return None
        number = offers[here[0]].nonce
        opened = open_folder(root, number)
        if opened is None:
            return None
        budget = sum(offers[place].bytes for place in here)
        logger.info("%d ranks of this host share what they read, in %s: at most %.1f MiB", len(here), opened[0], budget / 2**20)
        return cls(*opened, here=here, place=rank, number=number, budget=budget, own_bytes=own.bytes)

    def board(self, tensor: int, blocks: int) -> Board | None:
        """For those of the ranks that hold the same channels as this one, of `tensor` shares; None where it is the only one. blocks: of the
        scene. Whoever gets it leaves it.
        """
        alike = [place for place in self._here if place % tensor == self._place % tensor]
        if len(alike) < 2:
            return None
        number = (self._number + 1 + self._place % tensor) % NUMBERS
        return Board.open(self._folder.parent, number, rank=alike.index(self._place), ranks=len(alike), blocks=blocks)

    def fill(self, name: str, into: memoryview, read: Callable[[], None], *, wait: bool) -> Source:
        """Fill `into` (bytes) with what `name` stands for: from a neighbour, or by `read`, which fills and checks it itself.

        'later': another rank is reading it, and wait is False; nothing was done. Raises what `read` raises.
        """
        until, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
        while True:
            if self._take(name, into):
                return "neighbour"
            part = self._begin(name, into.nbytes)
            if not isinstance(part, str):
                break
            if not wait:
                return "later"
            if self._closed or time.monotonic() > until:
                part = None
                break
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        try:
            read()
        except BaseException:
            if part is not None:
                self._drop(name, part)
            raise
        if part is not None:
            self._publish(name, part, into)
        return "store"

    def close(self) -> None:
        """Share no more. The last rank removes the folder. Safe to call twice."""
        if not self._closed:
            self._closed = True
            os.close(self._alive)
            remove_folder(self._folder)

    def _take(self, name: str, into: memoryview) -> bool:
        """Copy a whole file, and note that this rank has it."""
        path = self._folder / name
        try:
            with FileIO(path, "r+") as file:
                filled = 0
                while filled < into.nbytes and (count := file.readinto(into[filled:])):
                    filled += count
                if filled < into.nbytes:
                    raise OSError(f"{path}: cut off")
                file.seek(into.nbytes + self.rank)
                file.write(b"\1")
                file.seek(into.nbytes)
                if file.read(self.ranks) == b"\1" * self.ranks:
                    path.unlink(missing_ok=True)
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            logger.debug("%s cannot be taken: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return False

    def _begin(self, name: str, size: int) -> FileIO | Literal["busy"] | None:
        """The file to write `name` to, locked, with its room taken. 'busy': another writes it, or just has. None: there is no room."""
        whole = size + self.ranks
        path = self._folder / (name + PART)
        try:
            with self._room() as held:
                if not held or self._closed:
                    return None
                if (self._folder / name).exists():
                    return "busy"
                file = FileIO(path, "r+" if path.exists() else "x+")
                try:
                    if not locked(file.fileno()):
                        file.close()
                        return "busy"
                    if self._make_room(whole, path.name):
                        file.truncate(whole)  # counts from now on, for the others too
                        return file
                    path.unlink()
                except BaseException:
                    file.close()
                    raise
                file.close()
                return None
        except OSError as error:
            logger.debug("%s is not shared: %s", path, error)
            return None

    def _make_room(self, size: int, besides: str) -> bool:
        if size > self.budget:
            return False
        found = []
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # somebody has taken it meanwhile
                if entry.name not in (ROOM, ALIVE, besides):
                    found.append((entry.name.endswith(PART), entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        left = self.budget - sum(entry[2] for entry in found)
        for writing, _, freed, path in sorted(found):
            if left >= size or writing:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
            left += freed
        return left >= size

    def _publish(self, name: str, file: FileIO, content: memoryview) -> None:
        """Write what was read and give it its name; where that fails, the others read it themselves."""
        try:
            written = 0
            while written < content.nbytes:
                written += file.write(content[written:])
            taken = bytearray(self.ranks)
            taken[self.rank] = 1
            if file.write(taken) == self.ranks:
                with self._room() as held:
                    if held and not self._closed:
                        os.rename(self._folder / (name + PART), self._folder / name)  # noqa: PTH104
                        file.close()
                        return
        except OSError as error:
            logger.debug("%s is not shared: %s", name, error)
        self._drop(name, file)

    def _drop(self, name: str, file: FileIO) -> None:
        with suppress(OSError), self._room() as held:
            if held:
                (self._folder / (name + PART)).unlink(missing_ok=True)
        file.close()

    @contextmanager
    def _room(self) -> Iterator[bool]:
        """Alone in the folder; False where that could not be had in time. Nobody waits for anything while he is."""
        until = time.monotonic() + LOCK_SECONDS
        with FileIO(os.open(self._folder / ROOM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as file:
            while not (held := locked(file.fileno())) and time.monotonic() < until:
                time.sleep(FIRST_PAUSE / 2)
            try:
                yield held
            finally:
                if held:
                    unlock(file.fileno())
