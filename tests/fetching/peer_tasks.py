"""What rank processes do in tests of copies that peers share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from landmark_batch.fetching import peer_copies, transit
from landmark_batch.fetching.board import Board
from landmark_batch.fetching.peer_copies import HOST, PULL, PeerCopies
from tests.fetching.lanes import LONG, LaneDevice

SIZES = (301, 70, 5)  # numbers of a block's tables
BYTES = 4 * sum(SIZES)
BLOCKS = 8
SLOTS = 4


@dataclass
class Rank:
    board: Board
    device: LaneDevice
    copies: PeerCopies

    def load(self, *loads: tuple[int, int], patience: float = LONG, share: bool = True) -> list[tuple[int, int]]:
        """Blocks into slots, together. Returns bytes from the host and from peers; when the lanes come to it, each slot is looked at."""
        found = []
        with mock.patch.object(peer_copies, "PATIENCE", patience):
            for lane, other in ((HOST, PULL), (PULL, HOST)):
                self.device.wait(lane, self.board.rank, self.device.mark(other))  # what was looked at before
            for block, slot in loads:
                self.copies.start(block, slot, content(block), share=share)
            for load in self.copies.complete():
                self.device.check(PULL, load.slot, content(load.block))
                found.append((load.copied, load.pulled))
        return found


def content(block: int) -> list[Tensor]:
    return [torch.arange(size, dtype=torch.int32) * 31 + 1000 * block + number for number, size in enumerate(SIZES)]


def make_rank(root: Path, rank: int, ranks: int = 2) -> Rank:
    """A rank of one host. root: shared memory."""
    transit.MEMORY = root  # whose leftovers are looked for
    board = Board.open(root, 5, rank=rank, ranks=ranks, blocks=BLOCKS)
    assert board is not None
    device = LaneDevice(root.parent, rank, SIZES, SLOTS)
    return Rank(board, device, PeerCopies(board, device, SIZES, 4))


KEPT: dict[str, Rank] = {}


def open_rank(rank: int, root: Path) -> None:
    KEPT["rank"] = make_rank(root, rank)


def load_blocks(rank: int, loads: Sequence[tuple[int, int]], patience: float = LONG) -> list[tuple[int, int]]:
    """After `open_rank`: as Rank.load, until it is done."""
    found = KEPT["rank"].load(*loads, patience=patience)
    KEPT["rank"].device.settle()
    return found


def leave(rank: int) -> list[int]:
    KEPT["rank"].copies.leave()
    return KEPT["rank"].device.untaken


def die_reading(rank: int, block: int) -> None:
    """Having claimed a peer's block, and with the lock."""
    own = KEPT["rank"]
    own.copies._meet()
    assert len(own.board.claim(block, range(2), own.board.peers)) == 2
    with own.board._alone():
        os._exit(1)


@contextmanager
def together(*ranks: Rank) -> Iterator[None]:
    """Leave, whatever happens."""
    try:
        yield
    finally:
        for rank in ranks:
            rank.copies.leave()
