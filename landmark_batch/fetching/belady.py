"""What is to be held and what is to leave when the future is known (L. A. Belady, 1966): the block whose next use is farthest.

A frame needs all of its blocks together. With slots of one size, leaving out the farthest next use moves the fewest blocks for a
given order of frames. A frame that needs more blocks than there are slots is rendered in passes: every block once for the
densities, then every block again for the appearances. A slot holds both kinds of a block, so each pass loads whole blocks: n blocks
through s slots cost n less those held before, then n less the s that the density pass ended on.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from .block_sets import AnySets, BlockSets, Int64, block_sets

NEVER = 2**62  # next use of a block that no frame to come needs


class Lookahead:
    """The future of one worker: the block sets of the frames it will render, in its order.

    position: the frame that comes next; frames before it do not count any more.
    """

    def __init__(self, sets: AnySets) -> None:
        flat = block_sets(sets)
        order = np.argsort(flat.ids, kind="stable")
        self._uses = flat.frames[order]  # by block, then by frame
        blocks, first = np.unique(flat.ids[order], return_index=True)
        bounds = [*first.tolist(), len(order)]
        self._uses_of = dict(zip(blocks.tolist(), pairwise(bounds), strict=True))  # block -> its stretch of _uses
        self.position = 0

    def advance(self, position: int) -> None:
        """Frame `position` comes next: uses before it are past (going back is allowed)."""
        self.position = position

    def next_use(self, block: int) -> int:
        """First frame from `position` on that needs the block; NEVER if none does."""
        low, high = self._uses_of.get(block, (0, 0))
        found = bisect_left(self._uses, self.position, low, high)
        return int(self._uses[found]) if found < high else NEVER


@dataclass(frozen=True)
class FetchPlan:
    """Every load of a flight through `slots` slots, in turn; arrays of one entry a load.

    frame: position in the order before which (in a passes frame: during which) the block is loaded. block: what is loaded.
    slot: where to. leaving: the block that was there, -1 where the slot was empty.
    frames: of the order. passes: how many of them need more blocks than there are slots.
    """

    slots: int
    frames: int
    passes: int
    frame: Int64
    block: Int64
    slot: Int64
    leaving: Int64

    @property
    def loads(self) -> int:
        return len(self.block)


def belady(sets: AnySets, slots: int) -> FetchPlan:
    """The fewest loads for frames in this order through `slots` slots of one size (see the top of this file for passes). Through one slot
    a frame of two blocks may cost one load more than it has to.

    Raises ValueError for slots < 1.
    """
    board = _Board(block_sets(sets), slots)
    held = board.held
    next_of: dict[int, int] = {}
    heap: list[tuple[int, int]] = []  # (-next use, -block) of blocks that the very next frame does not need; stale entries stay in
    following = board.sets.next_frames().tolist()
    for position, (low, high) in enumerate(board.bounds):
        blocks, uses = board.ids[low:high], following[low:high]
        if high - low > slots:
            _passes(board, position, blocks, uses)
        else:
            for block in blocks:
                if block in held:
                    continue
                if not board.free:
                    use, victim = heappop(heap)
                    while -victim not in held or next_of[-victim] != -use:
                        use, victim = heappop(heap)
                    board.evict(-victim)
                board.load(position, block)
        for block, use in zip(blocks, uses, strict=True):
            next_of[block] = use
            if use > position + 1:
                heappush(heap, (-use, -block))
    return board.plan()


def lru(sets: AnySets, slots: int) -> FetchPlan:
    """Exact demand fetching: what is missing is loaded when its frame comes, the block unused for longest leaves.

    Frames in passes load as in `belady`. Raises ValueError for slots < 1.
    """
    board = _Board(block_sets(sets), slots)
    for position, (low, high) in enumerate(board.bounds):
        blocks = board.ids[low:high]
        for _ in range(2 if high - low > slots else 1):
            missing = [block for block in blocks if block not in board.held]
            if missing:
                board.touch(blocks)
            for block in missing:
                if not board.free:
                    board.evict(next(iter(board.held)))
                board.load(position, block)
        board.touch(blocks)
    return board.plan()


def _passes(board: _Board, position: int, blocks: list[int], uses: list[int]) -> None:
    """A frame of more blocks than slots: 2 n - slots - (held before) loads; the `slots` blocks used again soonest stay.

    The density pass takes first what is held, then the others, and lets go what is used again soonest; the appearance pass starts
    with what that left, and lets go what is used again latest.
    """
    mine = dict(zip(blocks, uses, strict=True))
    for block in [block for block in board.held if block not in mine]:
        board.evict(block)
    for sign in (1, -1):
        done = [(sign * mine[block], sign * block) for block in board.held]
        heapify(done)
        for use, block in sorted((sign * mine[block], sign * block) for block in blocks if block not in board.held):
            if not board.free:
                board.evict(sign * heappop(done)[1])
            board.load(position, sign * block)
            heappush(done, (use, block))


class _Board:
    """Slots while a plan is made. A frame that needs the same as the frame before it is left out, unless it goes in passes."""

    def __init__(self, sets: BlockSets, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"slots = {slots}: at least 1")
        self._slots, self._frames = slots, len(sets)
        crowded = sets.counts > slots
        self._passes = int(crowded.sum())
        self._rows = np.flatnonzero(crowded | ~sets.repeats())
        self.sets = sets.take(self._rows)
        self.ids: list[int] = self.sets.ids.tolist()
        self.bounds: list[tuple[int, int]] = list(pairwise(self.sets.offsets.tolist()))
        self.free = list(range(slots - 1, -1, -1))
        self.held: dict[int, int] = {}  # block -> slot
        self._left = [-1] * slots
        self._log: list[tuple[int, int, int, int]] = []

    def evict(self, block: int) -> None:
        slot = self.held.pop(block)
        self._left[slot] = block
        self.free.append(slot)

    def load(self, position: int, block: int) -> None:
        slot = self.free.pop()
        self._log.append((position, block, slot, self._left[slot]))
        self.held[block] = slot

    def touch(self, blocks: list[int]) -> None:
        """Put those of `blocks` that are held at the end of `held`, in their order."""
        for block in blocks:
            slot = self.held.pop(block, None)
            if slot is not None:
                self.held[block] = slot

    def plan(self) -> FetchPlan:
        log = np.array(self._log, dtype=np.int64).reshape(-1, 4)
        return FetchPlan(self._slots, self._frames, self._passes, self._rows[log[:, 0]], log[:, 1], log[:, 2], log[:, 3])
