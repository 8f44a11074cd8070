"""Which worker renders which chunk next: contiguous ranges, a shallow window, work taken from the longest range.

Pure logic over chunk numbers; knows neither Dask nor time, so that every order of events can be tested.
Neighbouring chunks stay on one worker (neighbouring poses touch the same blocks of the scene); a worker that has run
dry takes the back half of the longest range left, by cost where costs are known; what a lost worker had in hand goes
out again first.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from landmark_batch.fetching.ranges import balanced_cuts

W = TypeVar("W", bound=Hashable)


@dataclass
class _Range:
    """Chunks start..stop-1 that nobody has yet."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Feeder(Generic[W]):
    """Hands out chunks 0..count-1, each exactly once unless it is given back.

    depth: chunks a worker may have in hand at once (one it renders, the others waiting beside it, so that it never idles); may change.
    costs: [count] what each chunk takes, any unit: ranges are balanced by it. None: all alike.
    """

    def __init__(self, count: int, workers: Iterable[W] = (), *, depth: int = 2, costs: Sequence[float] | None = None) -> None:
        if count < 0 or depth < 1:
            raise ValueError(f"count = {count}, depth = {depth}: at least 0 chunks and depth 1")
        if costs is not None and (len(costs) != count or not all(0 <= cost < math.inf for cost in costs)):
            raise ValueError(f"costs: one for each of {count} chunks, finite and at least 0")
        self.depth = depth
        self._costs = costs
        each = [1.0] * count if costs is None else list(costs)
        if not all(each):  # a chunk that costs nothing is still a chunk: the longer of two ranges of no cost is the dearer one
            least = 1e-6 * sum(each) / count or 1.0
            each = [cost + least for cost in each]
        self._before = [0.0, *accumulate(each)]  # [count + 1] cost of all chunks before
        self._ranges: dict[W, _Range] = {}
        self._orphans: list[_Range] = []
        self._returned: deque[int] = deque()
        self._in_hand: dict[W, list[int]] = {}
        self._failed: dict[int, set[W]] = {}  # chunk -> workers on which it failed
        self._deal(count, list(dict.fromkeys(workers)))

    def _deal(self, count: int, workers: Sequence[W]) -> None:
        """Contiguous ranges for the workers known at the start: of sizes that differ by one at most, or of balanced cost."""
        if not workers:
            self._orphans = [_Range(0, count)] if count else []
            return
        if self._costs is not None:
            cuts = balanced_cuts(self._costs, len(workers))
        else:
            base, extra = divmod(count, len(workers))
            cuts = [i * base + min(i, extra) for i in range(len(workers) + 1)]
        for worker, start, stop in zip(workers, cuts, cuts[1:], strict=False):
            self._ranges[worker] = _Range(start, stop)
            self._in_hand[worker] = []

    @property
    def workers(self) -> tuple[W, ...]:
        return tuple(self._in_hand)

    @property
    def left(self) -> int:
        """Chunks nobody has in hand."""
        return sum(map(len, self._ranges.values())) + sum(map(len, self._orphans)) + len(self._returned)

    @property
    def out(self) -> int:
        """Chunks in somebody's hand."""
        return sum(map(len, self._in_hand.values()))

    def in_hand(self, worker: W) -> tuple[int, ...]:
        """Chunks of a worker, the one given first in front; empty for an unknown worker."""
        return tuple(self._in_hand.get(worker, ()))

    def add_worker(self, worker: W) -> None:
        """A worker came (or came back). Known workers are left as they are."""
        if worker not in self._in_hand:
            self._in_hand[worker] = []
            self._ranges[worker] = self._orphans.pop(0) if self._orphans else _Range(0, 0)

    def remove_worker(self, worker: W) -> tuple[int, ...]:
        """A worker is gone: its range waits for others, what it had in hand goes out again first. Returns the latter."""
        lost = tuple(self._in_hand.pop(worker, ()))
        left = self._ranges.pop(worker, None)
        if left:
            self._orphans.append(left)
        self._returned.extend(lost)
        return lost

    def take(self, worker: W, *, apart: bool = False) -> int | None:
        """The next chunk for a worker, or None while its hand is full, nothing is left or it is unknown.

        The last chunks, fewer than there are workers, go to empty hands only, so that all workers end together. apart: a new one comes
        from the middle of the longest range that anybody has; it is not the neighbour of the one before.
        """
        hand = self._in_hand.get(worker)
        if hand is None or len(hand) >= self.depth or (hand and self.left < len(self._in_hand)):
            return None
        chunk = self._again(worker)
        if chunk is None:
            if apart:
                self._move(worker)
            chunk = self._next(worker)
        if chunk is not None:
            hand.append(chunk)
        return chunk

    def _again(self, worker: W) -> int | None:
        """The first chunk that has to be rendered again; not where it failed, while there is another who has not tried it."""
        for chunk in self._returned:
            failed = self._failed.get(chunk, set())
            if worker not in failed or not self._in_hand.keys() - failed:
                self._returned.remove(chunk)
                return chunk
        return None

    def _next(self, worker: W) -> int | None:
        own = self._ranges[worker]
        if not own:
            if self._orphans:
                own = self._ranges[worker] = self._orphans.pop(0)
            else:
                longest = max(self._ranges.values(), key=self._cost)
                if not longest:
                    return None
                middle = self._middle(longest)
                own = self._ranges[worker] = _Range(middle, longest.stop)
                longest.stop = middle
        own.start += 1
        return own.start - 1

    def _move(self, worker: W) -> None:
        """Have a worker go on in the middle of the longest range; what it leaves behind waits for others."""
        own = self._ranges[worker]
        longest = max([*self._ranges.values(), *self._orphans], key=self._cost)
        if not longest:
            return
        middle = self._middle(longest)
        self._ranges[worker] = _Range(middle, longest.stop)
        longest.stop = middle
        self._orphans = [left for left in [*self._orphans, own] if left]

    def _cost(self, chunks: _Range) -> float:
        return self._before[chunks.stop] - self._before[chunks.start]

    def _middle(self, chunks: _Range) -> int:
        """Where the back half of a range begins: the cut of least difference, of two such the one with the longer back."""
        half = (self._before[chunks.start] + self._before[chunks.stop]) / 2
        cut = bisect_left(self._before, half, chunks.start, chunks.stop)
        if cut > chunks.start and half - self._before[cut - 1] <= self._before[cut] - half:
            cut -= 1
        return cut if cut < chunks.stop else chunks.stop - 1

    def done(self, worker: W, chunk: int) -> bool:
        """A chunk needs no more work. False if the worker did not have it in hand (a late word from a lost worker)."""
        hand = self._in_hand.get(worker, [])
        if chunk in hand:
            hand.remove(chunk)
            return True
        return False

    def give_back(self, worker: W, chunk: int, *, failed: bool = False) -> bool:
        """A chunk has to be rendered again, before anything new; failed: better by another. False as for `done`."""
        if self.done(worker, chunk):
            if failed:
                self._failed.setdefault(chunk, set()).add(worker)
            self._returned.append(chunk)
            return True
        return False

    def drop(self, chunk: int) -> None:
        """A chunk that was given back is not to go out again."""
        if chunk in self._returned:
            self._returned.remove(chunk)
