"""PeerCopies: ranks of one host that fill their slots with the same blocks copy a part each from host memory, and the rest from each
other's slots: their own link to the host is the slow one.

Nobody has to come, and nobody waits for long: what no peer has after a moment is copied from host memory, as without peers. All parts
are the same bytes wherever they come from.

Lanes wait for lanes of peers, so nothing in them may wait for kernels: those of one rank wait, in exchanges, for those of another, which
wait for their own lanes. Only loads into slots that no kernel reads any more are shared. What a lane then waits for was always begun
before, on whichever device, so that there is no circle.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from .board import Board, Source

logger = logging.getLogger(__name__)

LEAST_BYTES = 16 * 2**20  # of a block: smaller ones are as fast whole, from the host
PATIENCE = 0.001  # seconds for peers that copy the same blocks
PAUSE = 0.00002  # seconds between looks at the board
LOOK = 0.1  # seconds between looks for peers that have left
MISSES, RETRY = 3, 16  # times that nobody came after which nobody is waited for, but for every 16th
HOST, PULL = 0, 1  # lanes


class Piece(NamedTuple):
    """Numbers start to stop of a table of a block."""

    table: int
    start: int
    stop: int


class PeerDevice(Protocol):
    """A device with two lanes: HOST fills its slots from host memory, PULL from the slots of peers. What a lane is given happens in its
    order, some time later; the host waits for nothing.
    """

    def messages(self, peers: Sequence[int]) -> dict[int, bytes]:
        """What peers need to reach this device's slots and marks."""
        ...

    def open(self, peer: int, message: bytes) -> None:
        """Reach a peer's slots and marks. Raises RuntimeError, OSError or ValueError where that cannot be."""
        ...

    def copy(self, buffer: Sequence[Tensor], slot: int, pieces: Sequence[Piece]) -> None:
        """HOST: pieces of a block's buffer into a slot."""
        ...

    def pull(self, peer: int, source: int, slot: int, pieces: Sequence[Piece]) -> None:
        """PULL: pieces of a peer's slot into a slot."""
        ...

    def mark(self, lane: int) -> int:
        """A mark behind what a lane was given up to here; of one lane, each is larger than those before."""
        ...

    def wait(self, lane: int, rank: int, mark: int) -> None:
        """What the lane is given from here on begins when the device of a rank, this one or a peer's, has passed its mark."""
        ...

    def close_peer(self, peer: int) -> None:
        """Reach a peer no more."""
        ...

    def close(self, untaken: Sequence[int]) -> None:
        """Reach nobody any more. untaken: peers whose messages were never read."""
        ...

    def settle(self) -> None:
        """Wait, not for long, until both lanes have done what they were given."""
        ...


@dataclass
class PeerLoad:
    """A block on its way into a slot. missing: parts that no lane was given yet. copied, pulled: bytes from the host, from peers."""

    block: int
    slot: int
    buffer: Sequence[Tensor]
    missing: set[int]
    shared: bool
    copied: int = 0
    pulled: int = 0
    host_mark: int | None = None  # behind the last of its copies from the host
    revoked: int | None = None  # behind pulls of parts that have to be copied over


class PeerCopies:
    """Fills slots of a device along with the peers of a board. Used by one thread; another lets go of peers that have left, whose memory
    would not be free before.
    """

    def __init__(self, board: Board, device: PeerDevice, sizes: Sequence[int], element: int) -> None:
        """sizes: numbers in each table of a block; element: bytes of one. Raises RuntimeError or OSError where the device's slots cannot
        be shared.
        """
        self._board = board
        self._device = device
        self._element = element
        self._parts = cut(sizes, board.ranks)
        self._open: set[int] = set()
        self._refused: set[int] = set()
        self._offered: dict[int, int] = {}  # block by slot
        self._loads: list[PeerLoad] = []
        self._misses = 0
        self._lock = threading.RLock()  # of what of peers is open
        self._left = threading.Event()
        board.come(device.messages(board.peers))
        threading.Thread(target=self._watch, name="peer-copies", daemon=True).start()

    def start(self, block: int, slot: int, buffer: Sequence[Tensor], *, share: bool) -> None:
        """Begin to fill a slot with a block; `complete` ends it. What else reads the slot, both lanes wait for already. The buffer stays as
        it is until then, and until the device is done. share: neither lane waits for kernels; else all comes from the host.
        """
        with self._lock:
            self._meet()
            before = self._offered.pop(slot, block)
            for reader, mark in self._board.withdraw({before, block}).items():
                for lane in (HOST, PULL):
                    self._device.wait(lane, reader, mark)
        load = PeerLoad(block, slot, buffer, set(range(self._board.ranks)), share)
        if share:
            self._offered[slot] = block
            self._pull(load)
        own = load.missing.difference(self._open if share else ())  # and those of ranks that are not here
        if own:
            self._copy(load, own)
        self._loads.append(load)

    def complete(self) -> Iterator[PeerLoad]:
        """The loads that were started, in their order, each when its lanes were given all of it: PULL then follows HOST up to there.
        Waits a moment for peers, all in all.
        """
        patient = self._misses < MISSES or self._misses % RETRY == 0
        until = time.monotonic() + (PATIENCE if patient else 0.0)
        alone, self._loads, loads = False, [], self._loads
        for load in loads:
            while load.missing:
                if self._pull(load):
                    continue
                if time.monotonic() >= until:
                    alone = True
                    self._copy(load, load.missing)
                else:
                    time.sleep(PAUSE)
            if load.host_mark is not None:
                self._device.wait(PULL, self._board.rank, load.host_mark)
            yield load
        if any(load.shared for load in loads):
            self._misses = self._misses + 1 if alone else 0

    def leave(self) -> None:
        """Share no more. What this rank's slots hold may change from here on."""
        self._left.set()
        with self._lock:
            self._device.settle()
            self._device.close(self._board.leave())
            self._open.clear()
            self._loads.clear()

    def _watch(self) -> None:
        while not self._left.wait(LOOK):
            try:
                with self._lock:
                    self._let_go()
            except RuntimeError as error:  # of a device in a bad state: who loads meets it, too
                logger.debug("peers that have left are not looked for any more: %s", error)
                return

    def _let_go(self) -> None:
        """Of those that have left."""
        for peer in [peer for peer in self._open if not self._board.is_here(peer)]:
            self._open.discard(peer)
            self._device.close_peer(peer)

    def _meet(self) -> None:
        """Reach those that have come since, and let go of those that have left."""
        self._let_go()
        for peer in self._board.peers:
            if self._board.is_here(peer) and peer not in self._open and peer not in self._refused:
                message = self._board.take(peer)
                try:
                    if message is None:
                        raise ValueError("it has gone")
                    self._device.open(peer, message)
                except (RuntimeError, OSError, ValueError) as error:
                    self._refused.add(peer)
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                    logger.warning("blocks are not copied from the GPU of rank %d of this host: %s", peer, reason)
                else:
                    self._open.add(peer)
                    self._board.meet(peer)

    def _copy(self, load: PeerLoad, parts: Collection[int]) -> None:
        """Parts from host memory, for peers too."""
        if load.revoked is not None:
            self._device.wait(HOST, self._board.rank, load.revoked)
            load.revoked = None
        pieces = self._pieces(parts)
        self._device.copy(load.buffer, load.slot, pieces)
        load.host_mark = self._device.mark(HOST)
        load.copied += self._bytes(pieces)
        if load.shared:
            self._board.post(load.block, load.slot, parts, load.host_mark)
        load.missing = load.missing.difference(parts)

    def _pull(self, load: PeerLoad) -> bool:
        """The missing parts that peers have, as far as they keep them; whether there were any."""
        with self._lock:
            return self._pull_open(load)

    def _pull_open(self, load: PeerLoad) -> bool:
        found = self._board.claim(load.block, load.missing, self._open)
        if not found:
            return False
        parts = _by_peer(found)
        for peer, own in parts.items():
            for mark in sorted({found[part].mark for part in own}):
                self._device.wait(PULL, peer, mark)
            self._device.pull(peer, found[own[0]].slot, load.slot, self._pieces(own))
        mark = self._device.mark(PULL)
        revoked = self._board.confirm(load.block, parts, mark)
        for peer, own in parts.items():
            if peer in revoked:
                load.revoked = mark
            else:
                load.missing.difference_update(own)
                load.pulled += self._bytes(self._pieces(own))
        return True

    def _pieces(self, parts: Collection[int]) -> list[Piece]:
        """Of these parts, ascending; neighbours joined."""
        found: list[Piece] = []
        for part in sorted(parts):
            for piece in self._parts[part]:
                if found and (found[-1].table, found[-1].stop) == (piece.table, piece.start):
                    found[-1] = found[-1]._replace(stop=piece.stop)
                else:
                    found.append(piece)
        return found

    def _bytes(self, pieces: Sequence[Piece]) -> int:
        return sum(piece.stop - piece.start for piece in pieces) * self._element


def cut(sizes: Sequence[int], parts: int) -> list[list[Piece]]:
    """Tables of so many numbers, one after another, in parts that differ by one number at most."""
    whole = sum(sizes)
    bounds = [whole * part // parts for part in range(parts + 1)]
    found: list[list[Piece]] = [[] for _ in range(parts)]
    first = 0
    for table, size in enumerate(sizes):
        for part in range(parts):
            start, stop = max(bounds[part], first), min(bounds[part + 1], first + size)
            if start < stop:
                found[part].append(Piece(table, start - first, stop - first))
        first += size
    return found


def _by_peer(sources: Mapping[int, Source]) -> dict[int, list[int]]:
    """{peer: parts}, ascending."""
    found: dict[int, list[int]] = {}
    for part, source in sorted(sources.items()):
        found.setdefault(source.peer, []).append(part)
    return found
