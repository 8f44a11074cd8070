"""HostTier: blocks in host memory between the store and a device: read ahead in the order of the plan, kept by the farthest next use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from landmark_batch.errors import ConfigError

from .block_reader import BlockReader
from .readers import Readers
from .stats import FetchStats

logger = logging.getLogger(__name__)


@dataclass
class _Entry:
    """A block in a buffer. ready: it has been read. copies: how many copies out of it are under way."""

    buffer: list[Tensor]
    ready: bool = False
    copies: int = 0


class HostTier:
    """At most `host_bytes` of buffers of one block each, allocated once. One thread asks; reading threads fill.

    host_bytes: None for a buffer to every slot. pinned: page-locked memory, which a GPU copies from while the host goes on; where
    the system gives none, pageable memory, with a warning. Its allocator gives powers of two: pieces of such sizes are filled. Where
    blocks are converted while they are read, what reading threads need beside counts too. There is one buffer at least.
    Raises ConfigError for less memory than a block has.
    """

    def __init__(self, reader: BlockReader, *, host_bytes: int | None, slots: int, pinned: bool, threads: int, stats: FetchStats) -> None:
        self._reader = reader
        self._changed = threading.Condition()
        self._entries: dict[int, _Entry] = {}
        self._failed: dict[int, Exception] = {}
        self._asked: tuple[int, ...] | None = None  # the last order, if all of it found a buffer
        self._finished = self._seen = 0  # reads that are over; how many were at the last request
        size, scratch = reader.buffer_bytes, reader.scratch_bytes
        if host_bytes is not None and host_bytes < reader.moved_bytes:
            raise ConfigError(
                f"fetching.host_memory = {host_bytes} bytes: less than one block, which has {reader.moved_bytes}",
                remedy=f'set fetching.host_memory = "{-(-2 * (size + scratch) // 2**20)}MiB" or more',
            )
        memory = slots * size + threads * scratch if host_bytes is None else host_bytes
        if scratch:  # of each thread; rather fewer threads than no buffers
            threads = max(1, min(threads, (memory - 2 * size) // scratch))
        self._readers = Readers(threads)
        self._free = [reader.views(part) for part in _buffers(size, memory - threads * scratch, reader.blocks, pinned)]
        self.buffers = len(self._free)
        self._ahead = min(self.buffers, max(2 * threads, self.buffers // 2))  # the other buffers keep what is needed again
        stats.add(host_peak_bytes=self.buffers * size)

    def request(self, order: Sequence[int], need: Callable[[int], Any]) -> None:
        """Read ahead: blocks of `order`, soonest first, into about half of the buffers. Reads that have not begun are called back.

        The other buffers keep what is needed again: first those of `order`, then those that are needed soonest by need(block).
        """
        wanted = tuple(order[: self.buffers])
        with self._changed:
            self._seen = self._finished
            if wanted == self._asked:
                return
            for block in self._readers.recall():
                self._free.append(self._entries.pop(block).buffer)
            chosen = set(wanted)
            self._asked = wanted
            for urgency, block in enumerate(wanted[: self._ahead]):
                if block in self._entries or block in self._failed:
                    continue
                buffer = self._take_buffer(chosen, need)
                if buffer is None:
                    self._asked = None
                    break
                entry = self._entries[block] = _Entry(buffer)
                self._readers.submit(urgency, block, partial(self._read, block, entry))

    def lend(self, block: int) -> list[Tensor] | None:
        """The tables of a block that has been read, until `give_back`; None if it is not here yet."""
        with self._changed:
            entry = self._entries.get(block)
            if entry is None or not entry.ready:
                return None
            entry.copies += 1
            return entry.buffer

    def give_back(self, block: int) -> None:
        """A copy is over."""
        with self._changed:
            self._entries[block].copies -= 1
            self._asked = None

    def wait(self, blocks: Collection[int]) -> bool:
        """Until one of them is here, or a read is over that was not at the last `request`; False at once where nothing is being read.

        Raises what the read of one of them raised, once: asked for again, it is read again.
        """
        with self._changed:
            while True:
                for block in blocks:
                    error = self._failed.pop(block, None)
                    if error is not None:
                        self._asked = None
                        raise error
                if self._finished != self._seen or any(block in self._entries and self._entries[block].ready for block in blocks):
                    return True
                if all(entry.ready for entry in self._entries.values()):
                    return False
                self._changed.wait()

    def forget_errors(self) -> None:
        """Blocks whose read failed may be read again."""
        with self._changed:
            self._failed.clear()
            self._asked = None

    def close(self) -> None:
        self._readers.close()
        self._reader.close()

    def _take_buffer(self, chosen: Collection[int], need: Callable[[int], Any]) -> list[Tensor] | None:
        if self._free:
            return self._free.pop()
        loose = [block for block, entry in self._entries.items() if entry.ready and not entry.copies and block not in chosen]
        if not loose:
            return None
        return self._entries.pop(max(loose, key=need)).buffer

    def _read(self, block: int, entry: _Entry) -> None:
        error: Exception | None = None
        try:
            self._reader.read(block, entry.buffer)
        except Exception as found:  # noqa: BLE001  (it belongs to whoever waits for the block)
            error = found
        with self._changed:
            self._finished += 1
            if error is None:
                entry.ready = True
            else:
                logger.info("block %d was not read: %s", block, error)
                self._free.append(self._entries.pop(block).buffer)
                self._failed[block] = error
            self._changed.notify_all()


def _buffers(size: int, memory: int, count: int, pinned: bool) -> list[Tensor]:
    """At most `count` buffers [size] uint8 of zeros, of at most `memory` bytes in all; but one at least."""
    found: list[Tensor] = []
    with torch.inference_mode(False):
        while len(found) < count and memory >= size:
            missing = (count - len(found)) * size
            piece = min(memory // size * size, missing)
            if pinned:
                piece = min(1 << (memory.bit_length() - 1), 1 << (missing - 1).bit_length())
                if piece < size:
                    break
            arena = _pinned(piece) if pinned else torch.zeros(piece, dtype=torch.uint8)
            pinned = pinned and arena.is_pinned()
            memory -= piece
            found += [arena[start : start + size] for start in range(0, piece - size + 1, size)]
        if not found:
            found.append(_pinned(size) if pinned else torch.zeros(size, dtype=torch.uint8))
    return found[:count]


def _pinned(size: int) -> Tensor:
    try:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        logger.warning("no page-locked memory of %.1f GiB, copies to the GPU will be slower: %s", size / 2**30, reason)
        return torch.zeros(size, dtype=torch.uint8)
