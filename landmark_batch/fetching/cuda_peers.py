"""CudaPeers: slots and marks of GPUs of one host, reached from other processes by CUDA's interprocess handles.

A process need not see a peer's GPU: the handle of memory is opened on the process's own device, which maps it there if the two GPUs
reach each other, and refuses where they do not. To torch the memory looks like its own; a copy out of it goes over the link of the two.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from .board import Board
from .peer_copies import HOST, PULL, PeerCopies, Piece
from .slots import is_over

logger = logging.getLogger(__name__)

RING = 64  # marks of a lane that have an event of their own; an older one is that of a later mark, which is behind it
SETTLE_SECONDS = 0.25
POLL = 0.001

# Of a reduced tensor's arguments: where it lies, what tells its process that it is used no more, and what it is made of.
SIZE, STRIDE, OFFSET, DTYPE, DEVICE = 1, 2, 3, 5, 6
HANDLE, STORAGE_BYTES, STORAGE_OFFSET, GRAD, COUNTER, COUNTER_OFFSET, EVENT, EVENT_NEEDED = 7, 8, 9, 10, 11, 12, 13, 14
TOLD = (SIZE, STRIDE, OFFSET, HANDLE, STORAGE_BYTES, STORAGE_OFFSET, COUNTER, COUNTER_OFFSET, EVENT, EVENT_NEEDED)

Rings = tuple[list[torch.cuda.Event], list[torch.cuda.Event]]

_spare: dict[torch.device, list[Rings]] = {}  # what was told to other processes must not end before them: it is used again


class CudaPeers:
    """A `PeerDevice` of tables [S, ...] on a GPU, of rank `rank`. lanes: the streams of HOST and PULL."""

    def __init__(self, rank: int, tables: Sequence[Tensor], lanes: tuple[torch.cuda.Stream, torch.cuda.Stream]) -> None:
        self._tables = [table.view(table.shape[0], -1) for table in tables]
        self._whole = list(tables)
        self._device = tables[0].device
        self._lanes = lanes
        self._counts = [0, 0]
        spare = _spare.setdefault(self._device, [])
        self._rings: Rings = spare.pop() if spare else (_events(), _events())
        self._marks: dict[int, Rings] = {rank: self._rings}
        self._peers: dict[int, list[Tensor]] = {}
        self._counters: dict[int, list[tuple[bytes, int]]] = {}  # of what each peer was told

    def messages(self, peers: Sequence[int]) -> dict[int, bytes]:
        """What each peer needs. What it was told keeps the tables' memory until the peer lets go of it, or `close` says that it never will
        take it. Raises RuntimeError where the driver gives no handles.
        """
        events = [[_text(event.ipc_handle()) for event in ring] for ring in self._rings]  # type: ignore[no-untyped-call]
        found = {}
        for peer in peers:  # each has counts of its own
            told, counters = list[list[Any]](), self._counters.setdefault(peer, [])
            for table in self._whole:
                arguments = reduce_tensor(table)[1]  # type: ignore[no-untyped-call]
                counters.append((arguments[COUNTER], arguments[COUNTER_OFFSET]))
                told.append([_plain(arguments[place]) for place in TOLD])
            found[peer] = json.dumps({"gpu": _uuid(self._device), "events": events, "tables": told}).encode()
        return found

    def open(self, peer: int, message: bytes) -> None:
        """Raises RuntimeError where the GPUs do not reach each other, ValueError for tables of other shapes."""
        told = json.loads(message)
        tables: list[Tensor] = []
        try:
            self._check(told)
            for own, values in zip(self._whole, told["tables"], strict=True):
                tables.append(self._rebuild(own, values))
        except (RuntimeError, ValueError):
            for values in told["tables"][len(tables) :]:  # else the peer kept their memory for this rank
                arguments = dict(zip(TOLD, values, strict=True))
                _release(_bytes(arguments[COUNTER]), arguments[COUNTER_OFFSET])
            raise
        rings = [[torch.cuda.Event.from_ipc_handle(self._device, _bytes(text)) for text in ring] for ring in told["events"]]  # type: ignore[no-untyped-call]
        self._peers[peer], self._marks[peer] = tables, (rings[HOST], rings[PULL])

    def copy(self, buffer: Sequence[Tensor], slot: int, pieces: Sequence[Piece]) -> None:
        with torch.cuda.stream(self._lanes[HOST]), torch.no_grad():
            for table, start, stop in pieces:
                self._tables[table][slot, start:stop].copy_(buffer[table].view(-1)[start:stop], non_blocking=True)

    def pull(self, peer: int, source: int, slot: int, pieces: Sequence[Piece]) -> None:
        tables = self._peers[peer]
        with torch.cuda.stream(self._lanes[PULL]), torch.no_grad():
            for table, start, stop in pieces:
                self._tables[table][slot, start:stop].copy_(tables[table][source, start:stop], non_blocking=True)

    def mark(self, lane: int) -> int:
        number = self._counts[lane]
        self._counts[lane] += 1
        self._rings[lane][number % RING].record(self._lanes[lane])
        return 2 * number + lane

    def wait(self, lane: int, rank: int, mark: int) -> None:
        self._lanes[lane].wait_event(self._marks[rank][mark % 2][mark // 2 % RING])

    def close_peer(self, peer: int) -> None:
        self._lanes[PULL].synchronize()  # its memory may go with the last tensor here
        del self._peers[peer], self._marks[peer]

    def close(self, untaken: Sequence[int]) -> None:
        self._peers.clear()
        self._marks.clear()
        for peer in untaken:
            for handle, offset in self._counters.get(peer, ()):
                _release(handle, offset)
        self._counters.clear()
        _spare[self._device].append(self._rings)
        self._tables, self._whole = [], []

    def settle(self) -> None:
        until = time.monotonic() + SETTLE_SECONDS
        marks = [(lane, self._rings[lane][(count - 1) % RING]) for lane, count in enumerate(self._counts) if count]
        while any(not is_over(event) for _, event in marks) and time.monotonic() < until:
            time.sleep(POLL)

    def _check(self, told: Mapping[str, Any]) -> None:
        """Whether what a peer told can be reached, as far as that is known."""
        other = next((i for i in range(torch.cuda.device_count()) if _uuid(torch.device("cuda", i)) == told["gpu"]), None)
        if other not in (None, self._device.index) and not torch.cuda.can_device_access_peer(self._device, torch.device("cuda", other)):
            raise RuntimeError(f"GPU {self._device.index} cannot reach GPU {other}")
        if len(told["tables"]) != len(self._whole):
            raise ValueError(f"{len(told['tables'])} tables, {len(self._whole)} here")
        for own, values in zip(self._whole, told["tables"], strict=True):
            if values[0][1:] != list(own.shape[1:]):
                raise ValueError(f"a table of {values[0][1:]}, {list(own.shape[1:])} here")

    def _rebuild(self, own: Tensor, values: Sequence[Any]) -> Tensor:
        """A peer's table [S, numbers], on this device, by what the peer told of it."""
        arguments: list[Any] = [None] * 15
        for place, value in zip(TOLD, values, strict=True):
            arguments[place] = _bytes(value) if place in (HANDLE, COUNTER, EVENT) else value
        arguments[0], arguments[4] = torch.Tensor, torch.storage.TypedStorage
        arguments[DTYPE], arguments[DEVICE], arguments[GRAD] = own.dtype, self._device.index, False
        with torch.inference_mode(False):
            table: Tensor = rebuild_cuda_tensor(*arguments)  # type: ignore[no-untyped-call]
            return table.view(table.shape[0], -1)


def open_peer_copies(board: Board, tables: Sequence[Tensor], lanes: tuple[torch.cuda.Stream, torch.cuda.Stream]) -> PeerCopies | None:
    """Copies into tables [S, ...] of a GPU, shared with the ranks of a board; None, with the board left, where the system has no means
    for it. lanes: the streams that fill slots from host memory and from peers.
    """
    device = CudaPeers(board.rank, tables, lanes)
    try:
        return PeerCopies(board, device, [table[0].numel() for table in tables], tables[0].element_size())
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("ranks of this host do not share what they copy to their GPUs: %s", reason)
        board.leave()
        device.close(board.peers)
        return None


def _events() -> list[torch.cuda.Event]:
    return [torch.cuda.Event(interprocess=True) for _ in range(RING)]  # type: ignore[no-untyped-call]


def _release(handle: bytes, offset: int) -> None:
    """Undo the count of a reduced tensor that nobody rebuilds."""
    torch.UntypedStorage._release_ipc_counter_cuda(handle, offset)


def _uuid(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _plain(value: Any) -> Any:
    return _text(value) if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value
