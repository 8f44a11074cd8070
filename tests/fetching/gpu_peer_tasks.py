"""What rank processes do in tests of copies that GPUs share. Importing it touches no GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from landmark_batch.fetching import peer_copies, transit
from landmark_batch.fetching.board import Board
from landmark_batch.fetching.cuda_peers import open_peer_copies
from landmark_batch.fetching.peer_copies import PeerCopies

SHAPES = ((257, 129, 16), (257, 129, 8), (61, 16))  # of a block's tables
BYTES = 2 * sum(torch.Size(shape).numel() for shape in SHAPES)
BLOCKS = 8


@dataclass
class GpuRank:
    copies: PeerCopies
    tables: list[Tensor]
    buffers: dict[int, list[Tensor]]
    lanes: tuple[torch.cuda.Stream, torch.cuda.Stream]


KEPT: dict[str, GpuRank] = {}


def content(block: int) -> list[Tensor]:
    """The tables of a block, float16."""
    return [torch.rand(shape, generator=torch.Generator().manual_seed(100 * block + number)).half() for number, shape in enumerate(SHAPES)]


def open_rank(rank: int, root: Path, devices: Sequence[int], hide: bool, slots: int) -> None:
    """A rank of two. devices: their GPUs; hide: each sees its own alone."""
    device = torch.device("cuda", devices[rank])
    if hide:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(devices[rank])
        device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    transit.MEMORY = root
    board = Board.open(root, 5, rank=rank, ranks=2, blocks=BLOCKS)
    assert board is not None
    tables = [torch.zeros((slots, *shape), dtype=torch.float16, device=device) for shape in SHAPES]
    lanes = torch.cuda.Stream(device), torch.cuda.Stream(device)
    torch.cuda.synchronize()
    copies = open_peer_copies(board, tables, lanes)
    assert copies is not None
    KEPT["rank"] = GpuRank(copies, tables, {block: [table.pin_memory() for table in content(block)] for block in range(BLOCKS)}, lanes)


def load_blocks(rank: int, loads: Sequence[tuple[int, int]], patience: float, busy: int = 0) -> list[tuple[int, int]]:
    """After `open_rank`: blocks into slots. Returns bytes from the host and from the peer. busy: clock cycles that the lane which pulls
    does something else before; then the device is not waited for and what it did is not looked at: `look`.
    """
    own = KEPT["rank"]
    if busy:
        with torch.cuda.stream(own.lanes[1]):
            torch.cuda._sleep(busy)
    with mock.patch.object(peer_copies, "PATIENCE", patience):
        for block, slot in loads:
            own.copies.start(block, slot, own.buffers[block], share=True)
        found = [(load.copied, load.pulled) for load in own.copies.complete()]
    if not busy:
        look(rank, loads)
    return found


def look(rank: int, loads: Sequence[tuple[int, int]]) -> None:
    """What is in these slots when both lanes are done."""
    torch.cuda.synchronize()
    for block, slot in loads:
        for table, want in zip(KEPT["rank"].tables, content(block), strict=True):
            assert torch.equal(table[slot].cpu(), want), f"rank {rank}: block {block} in slot {slot}"


def refuse(rank: int) -> None:
    """A driver that opens the first table of a peer and no other."""
    device: Any = KEPT["rank"].copies._device
    rebuild = device._rebuild

    def first(own: Tensor, values: Sequence[Any]) -> Tensor:
        if own.shape != KEPT["rank"].tables[0].shape:
            raise RuntimeError("out of reach")
        found: Tensor = rebuild(own, values)
        return found

    device._rebuild = first


def leave(rank: int) -> None:
    KEPT["rank"].copies.leave()


def memory_soon(rank: int) -> int:
    """Bytes of the device that this process still has, when it has left and others, who do nothing, had time to let go."""
    KEPT.clear()
    until = time.monotonic() + 10
    while torch.cuda.memory_allocated() and time.monotonic() < until:
        time.sleep(0.02)
        torch.cuda.ipc_collect()
    return torch.cuda.memory_allocated()


def memory_left(rank: int) -> int:
    """Bytes of the device that this process still has, after all ranks left."""
    KEPT.clear()
    torch.cuda.synchronize()
    torch.cuda.ipc_collect()
    return torch.cuda.memory_allocated()
