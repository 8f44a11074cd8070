"""SlotCopies: from host buffers into slots; on a GPU by a stream of its own, ordered by events with the one that renders."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress

import torch

from landmark_batch.errors import GroupError

from .board import Board
from .cuda_peers import open_peer_copies
from .host_tier import HostTier
from .peer_copies import PeerCopies
from .slots import SlotTables, is_over, new_event
from .stats import FetchStats

STALL_FLOOR = 1e-4  # seconds: two events are some microseconds apart even where nothing was waited for
CLOSE_SECONDS = 0.25


class SlotCopies:
    """Copies blocks into slots in the order it is asked for. Used by one thread, the one that renders.

    On a GPU a copy begins when the kernels that read its slot before are over, and kernels begin when the copies they need are over:
    the device waits, the host does not. On a CPU a copy is over when it was asked for. With a board, of a GPU, copies are shared with its
    other ranks; it is left with `close`.
    """

    def __init__(self, host: HostTier, tables: SlotTables, block_bytes: int, stats: FetchStats, board: Board | None = None) -> None:
        self._host = host
        self._tables = tables
        self._bytes = block_bytes
        self._stats = stats
        self._device = tables.device
        self._stream: torch.cuda.Stream | None = None
        self._renders: torch.cuda.Stream | None = None  # the stream of the last hold
        self._left: torch.cuda.Event | None = None  # end of the last hold
        self._read: dict[int, torch.cuda.Event] = {}  # slot: end of the last hold that read it
        self._filled: dict[int, torch.cuda.Event] = {}  # slot: end of its copy, until a hold has waited for it
        self._copies: deque[tuple[int, torch.cuda.Event, torch.cuda.Event, int]] = deque()  # block, begin, end, bytes from the host
        self._peers: PeerCopies | None = None
        self._pulls: torch.cuda.Stream | None = None  # from peers
        self._begun: dict[int, torch.cuda.Event] = {}  # slot: begin of a load that peers share, until it is completed
        self._kernels: list[torch.cuda.Event] = []  # behind kernels, which the lanes wait for
        self._over: torch.cuda.Event | None = None  # end of the copy before
        self._stalls: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if board is not None:
                self._pulls = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._peers = open_peer_copies(board, tables.moved, (self._stream, self._pulls))
            self.follow()

    def follow(self) -> None:
        """Copy only when what the current stream did up to here is over: tables that were just made."""
        if self._stream is not None:
            made = new_event()
            made.record(torch.cuda.current_stream(self._device))
            self._wait(made)

    def start(self, block: int, slot: int) -> bool:
        """Copy a block into a slot, at the latest with the next `flush`; False if it is not in host memory yet."""
        buffer = self._host.lend(block)
        if buffer is None:
            return False
        pairs = list(zip(buffer, self._tables.views(slot), strict=True))
        if self._stream is None:
            with torch.no_grad():
                for source, view in pairs:
                    view.copy_(source)
            self._host.give_back(block)
            return True
        before = self._read.pop(slot, None)
        if before is not None:
            self._wait(before)
        if self._peers is not None:
            if slot in self._filled:  # with a block that nothing has read; the stream that filled it last is not the first to write now
                self._stream.wait_event(self._filled[slot])
            self._begun[slot] = new_event(timed=True)
            self._begun[slot].record(self._stream)
            self._kernels = [event for event in self._kernels if not is_over(event)]
            self._peers.start(block, slot, buffer, share=not self._kernels)
            return True
        begin, end = new_event(timed=True), new_event(timed=True)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream), torch.no_grad():
            begin.record(self._stream)
            for source, view in pairs:
                view.copy_(source, non_blocking=True)
            end.record(self._stream)
        self._filled[slot] = end
        self._copies.append((block, begin, end, self._bytes))
        return True

    def flush(self) -> None:
        """Give the device what is left of the blocks that were started. Waits a moment for ranks that copy the same ones."""
        if self._peers is not None:
            for load in self._peers.complete():
                end = self._filled[load.slot] = new_event(timed=True)
                end.record(self._pulls)
                self._copies.append((load.block, self._begun.pop(load.slot), end, load.copied))

    def wait(self, blocks: Collection[int]) -> None:
        """Until it may be worth to `start` one of the blocks again. Raises what reading one of them raised."""
        self.settle()
        if not self._host.wait(blocks) and self._copies:  # every buffer is being copied from
            self._copies[0][2].synchronize()
            self.settle()

    def join(self, slots: Collection[int]) -> None:
        """What the current stream does from here on begins when these slots are filled."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        if self._left is not None and current != self._renders:
            current.wait_event(self._left)
        self._renders = current
        filled = [event for slot in slots if (event := self._filled.pop(slot, None)) is not None]
        late = [event for event in filled if not is_over(event)]
        if late:
            begin, end = new_event(timed=True), new_event(timed=True)
            begin.record(current)
            for event in late:
                current.wait_event(event)
            end.record(current)
            self._stalls.append((begin, end))

    def release(self, slots: Collection[int]) -> None:
        """What the current stream was given up to here is the last that reads these slots."""
        if self._stream is not None:
            self._left = new_event()
            self._left.record(torch.cuda.current_stream(self._device))
            self._read.update(dict.fromkeys(slots, self._left))

    def settle(self) -> None:
        """Give back the buffers, and count the time, of what the device has done meanwhile. Does not wait."""
        while self._copies and is_over(self._copies[0][1]) and is_over(self._copies[0][2]):  # they may lie on two lanes
            block, begin, end, copied = self._copies.popleft()
            self._host.give_back(block)
            seconds = begin.elapsed_time(end) / 1e3
            if self._pulls is not None:  # loads overlap
                seconds = seconds if self._over is None else min(seconds, self._over.elapsed_time(end) / 1e3)
                self._over = end
            self._stats.add(bytes_copied=copied, bytes_pulled=self._bytes - copied, copy_seconds=seconds)
        while self._stalls and is_over(self._stalls[0][1]):
            begin, end = self._stalls.popleft()
            seconds = begin.elapsed_time(end) / 1e3
            if seconds > STALL_FLOOR:
                self._stats.add(stalls=1, stall_seconds=seconds)

    @property
    def shared(self) -> bool:
        """Whether other ranks may have the tables open."""
        return self._peers is not None

    def finish(self) -> None:
        """Wait until nothing reads or writes slots any more. What is copied afterwards is not shared."""
        self.flush()
        for stream in self._lanes():
            stream.synchronize()
        if self._left is not None:
            self._left.synchronize()
        self._leave()
        self.settle()
        self._read.clear()
        self._filled.clear()

    def close(self) -> None:
        """Wait a moment for the copies under way, so that the memory they use can be given back."""
        until = time.monotonic() + CLOSE_SECONDS
        with suppress(RuntimeError, GroupError):  # of a device, or a host, in a bad state
            while self._copies and not is_over(self._copies[-1][2]) and time.monotonic() < until:
                time.sleep(0.001)
            self._leave()

    def _leave(self) -> None:
        """Share no more."""
        if self._peers is not None:
            self._peers.leave()
            self._peers = None

    def _wait(self, event: torch.cuda.Event) -> None:
        """Copy from here on only when it is over."""
        for stream in self._lanes():
            stream.wait_event(event)
        if self._peers is not None:
            self._kernels.append(event)

    def _lanes(self) -> list[torch.cuda.Stream]:
        """The streams that fill slots."""
        return [stream for stream in (self._stream, self._pulls) if stream is not None]
