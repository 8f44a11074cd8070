"""SlotPlan: which block goes into which slot, planned ahead of rendering so that loads can begin as soon as their slot is free.

The plan is Belady's: a block is loaded for the first frame that needs it, into the slot whose block is needed farthest after that
frame. Each load is begun early, when the last frame before it that reads the slot is over (P. Cao et al., 1995, call this
conservative prefetching): it never moves more blocks than loading on demand with the same knowledge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .belady import NEVER, Lookahead
from .block_sets import AnySets, block_sets

EMPTY = -1


@dataclass(frozen=True, slots=True)
class Load:
    """block goes into slot for frame `position`; it may begin when frame `after`, the last that reads the slot before, is over."""

    block: int
    slot: int
    position: int
    after: int


class SlotPlan:
    """Plans one order of frames for `slots` slots.

    queue: loads not begun, by frame; whoever begins one takes it out. cursor: first frame not planned.
    """

    def __init__(self, sets: AnySets, slots: int) -> None:
        self._sets = block_sets(sets)
        self._repeats = self._sets.repeats()
        self._ahead = Lookahead(self._sets)
        self.queue: deque[Load] = deque()
        self.cursor = 0
        self._fresh = True  # the frame before the cursor was not planned
        self._content = [EMPTY] * slots
        self._used = [EMPTY] * slots
        self._place: dict[int, int] = {}

    def restart(self, position: int, content: Sequence[int]) -> None:
        """Plan anew from frame `position`, with these blocks in the slots. The queue is emptied."""
        self.queue.clear()
        self.cursor = position
        self._fresh = True
        self._content = list(content)
        self._used = [position - 1] * len(content)
        self._place = {block: slot for slot, block in enumerate(content) if block != EMPTY}

    def extend(self, position: int, frames: int, loads: int) -> None:
        """Plan up to frame `position`, and beyond it up to `frames` more now while less than `loads` loads wait."""
        last = max(position + 1, self.cursor + frames)
        while self.cursor < min(last, len(self._sets)) and (self.cursor <= position or len(self.queue) < loads):
            if self.too_many(self.cursor):
                return
            self._plan(self.cursor)
            self.cursor += 1

    def demand(self, position: int, blocks: Sequence[int], last_used: Sequence[int]) -> None:
        """Loads for a hold that was not planned, in front of everything, after `restart` at `position`.

        last_used: by slot, when it was last held: of blocks that are needed equally late the longest unused one leaves. Planning goes
        on behind `position`, unless that frame needs more blocks than there are slots: then it waits until the frame is over.
        """
        missing = [block for block in blocks if block not in self._place]
        if missing:
            self._ahead.advance(position)
            keep = set(blocks)

            def rank(slot: int) -> tuple[bool, int, int]:
                block = self._content[slot]
                return block != EMPTY, -self._ahead.next_use(block), last_used[slot]

            free = sorted((slot for slot, block in enumerate(self._content) if block not in keep), key=rank)
            for block, slot in zip(missing, free, strict=False):
                self._put(Load(block, slot, position, position - 1))
        for block in blocks:
            self._used[self._place[block]] = position
        if not self.too_many(position):
            self.cursor = max(self.cursor, position + 1)
            self._fresh = True

    def too_many(self, position: int) -> bool:
        """Whether that frame needs more blocks than there are slots."""
        return 0 <= position < len(self._sets) and int(self._sets.offsets[position + 1] - self._sets.offsets[position]) > len(self._content)

    def order(self, limit: int) -> list[int]:
        """The blocks that will be read next, in order: those of the queue, then those of a frame that is rendered in passes."""
        blocks = [load.block for load in self.queue][:limit]
        if len(blocks) < limit and self.too_many(self.cursor):
            coming = (int(block) for block in self._sets[self.cursor])
            blocks += [block for block in coming if block not in self._place][: limit - len(blocks)]
        return blocks

    def need(self, block: int) -> tuple[bool, bool, int]:
        """How late a copy outside the slots is needed, as far as it is planned: larger is later. A block in a slot needs none soon."""
        self._ahead.advance(self.cursor)
        use = self._ahead.next_use(block)
        return use == NEVER, block in self._place, use

    def uses_after(self, position: int, blocks: Sequence[int]) -> dict[int, int]:
        """{block: first frame behind `position` that needs it}, as `Lookahead.next_use`."""
        self._ahead.advance(position + 1)
        return {block: self._ahead.next_use(block) for block in blocks}

    def _plan(self, position: int) -> None:
        wanted = self._sets[position].tolist()
        if self._fresh or not self._repeats[position]:
            missing = [block for block in wanted if block not in self._place]
            if missing:
                self._ahead.advance(position)
                keep = set(wanted)
                free = sorted((slot for slot, block in enumerate(self._content) if block not in keep), key=self._rank)
                for block, slot in zip(missing, free, strict=False):
                    self._put(Load(block, slot, position, self._used[slot]))
            self._fresh = False
        for block in wanted:
            self._used[self._place[block]] = position

    def _rank(self, slot: int) -> tuple[bool, int, int]:
        """Slots to be taken first: empty ones, those needed farthest, those that are free soonest."""
        block = self._content[slot]
        return block != EMPTY, -self._ahead.next_use(block), self._used[slot]

    def _put(self, load: Load) -> None:
        self._place.pop(self._content[load.slot], None)
        self._content[load.slot] = load.block
        self._place[load.block] = load.slot
        self.queue.append(load)
