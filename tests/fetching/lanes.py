"""A stand-in for GPUs that reach each other's slots: threads are lanes, files that processes share are slots and marks."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from landmark_batch.fetching.peer_copies import HOST, PULL, Piece

LONG = 60.0  # seconds that nothing takes


class LaneDevice:
    """A `PeerDevice` that does what its lanes are given some time later, in their order, as a GPU's streams do."""

    def __init__(self, folder: Path, rank: int, sizes: Sequence[int], slots: int) -> None:
        self.folder, self.rank, self.sizes, self.slots = folder, rank, tuple(sizes), slots
        self.tables = self._map(rank, slots)
        self.errors: list[BaseException] = []
        self.between: Callable[[], object] = lambda: None  # before a mark of PULL is made
        self.refuses = False
        self.untaken: list[int] = []
        self.closed: list[int] = []
        self._marks = {rank: self._marks_of(rank)}
        self._peers: dict[int, list[Tensor]] = {}
        self._counts = [0, 0]
        self._queues: list[queue.Queue[Callable[[], object]]] = [queue.Queue(), queue.Queue()]
        for lane in (HOST, PULL):
            threading.Thread(target=self._work, args=(lane,), daemon=True).start()

    def messages(self, peers: Sequence[int]) -> dict[int, bytes]:
        return {peer: json.dumps({"for": peer, "slots": self.slots}).encode() for peer in peers}

    def open(self, peer: int, message: bytes) -> None:
        told = json.loads(message)
        assert told["for"] == self.rank
        if self.refuses:
            raise RuntimeError("out of reach\nwith a trace")
        self._peers[peer], self._marks[peer] = self._map(peer, told["slots"]), self._marks_of(peer)

    def copy(self, buffer: Sequence[Tensor], slot: int, pieces: Sequence[Piece]) -> None:
        for table, start, stop in pieces:
            self._give(HOST, self._copying(self.tables[table][slot, start:stop], buffer[table].view(-1)[start:stop]))

    def pull(self, peer: int, source: int, slot: int, pieces: Sequence[Piece]) -> None:
        for table, start, stop in pieces:
            self._give(PULL, self._copying(self.tables[table][slot, start:stop], self._peers[peer][table][source, start:stop]))

    def mark(self, lane: int) -> int:
        if lane == PULL:
            self.between()
        self._counts[lane] += 1
        count, marks = self._counts[lane], self._marks[self.rank]
        self._give(lane, lambda: marks.__setitem__(lane, count))
        return 2 * count + lane

    def wait(self, lane: int, rank: int, mark: int) -> None:
        marks = self._marks[rank]
        self._give(lane, lambda: _until(lambda: bool(marks[mark % 2] >= mark // 2)))

    def close_peer(self, peer: int) -> None:
        self.settle()
        self.closed.append(peer)
        del self._peers[peer], self._marks[peer]

    def close(self, untaken: Sequence[int]) -> None:
        self.untaken += untaken

    def settle(self) -> None:
        """Here until all is done, or for long."""
        for waiting in self._queues:
            _until(lambda waiting=waiting: waiting.unfinished_tasks == 0)  # type: ignore[misc]
        assert not self.errors, self.errors

    def hold_up(self, lane: int) -> threading.Event:
        """The lane goes on when the event is set."""
        gate = threading.Event()
        self._give(lane, lambda: gate.wait(LONG))
        return gate

    def check(self, lane: int, slot: int, wanted: Sequence[Tensor]) -> None:
        """The lane finds these tables in a slot when it comes to that; else `settle` fails."""

        def compare() -> None:
            for table, want in zip(self.tables, wanted, strict=True):
                assert torch.equal(table[slot], want.view(-1)), f"rank {self.rank}, slot {slot}"

        self._give(lane, compare)

    def _give(self, lane: int, action: Callable[[], object]) -> None:
        self._queues[lane].put(action)

    def _work(self, lane: int) -> None:
        while True:
            action = self._queues[lane].get()
            try:
                action()
            except BaseException as error:  # noqa: BLE001
                self.errors.append(error)
            self._queues[lane].task_done()

    def _copying(self, into: Tensor, source: Tensor) -> Callable[[], object]:
        return lambda: into.copy_(source)

    def _map(self, rank: int, slots: int) -> list[Tensor]:
        found = []
        for number, size in enumerate(self.sizes):
            path = str(self.folder / f"table-{rank}-{number}")
            found.append(torch.from_file(path, shared=True, size=slots * size, dtype=torch.int32).view(slots, size))
        return found

    def _marks_of(self, rank: int) -> np.memmap[tuple[int], np.dtype[np.int64]]:
        path = self.folder / f"marks-{rank}"
        return np.memmap(path, np.int64, "r+" if path.exists() else "w+", shape=(2,))


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("a lane waits for a mark that does not come")
        time.sleep(0.0002)
