"""Which worker renders which chunk next: contiguous ranges, a shallow window, work taken from the longest range.

Pure logic over chunk numbers; knows neither Dask nor time, so that every order of events can be tested.
Neighbouring chunks stay on one worker (neighbouring poses touch the same blocks of the scene); a worker that has run
dry takes the back half of the longest range left; what a lost worker had in hand goes out again first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

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

    depth: chunks a worker may have in hand at once (one it renders, the others waiting beside it, so that it never idles).
    """

    def __init__(self, count: int, workers: Iterable[W] = (), *, depth: int = 2) -> None:
        if count < 0 or depth < 1:
            raise ValueError(f"count = {count}, depth = {depth}: at least 0 chunks and depth 1")
        self._depth = depth
        self._ranges: dict[W, _Range] = {}
        self._orphans: list[_Range] = []
        self._returned: deque[int] = deque()
        self._in_hand: dict[W, list[int]] = {}
        self._failed: dict[int, set[W]] = {}  # chunk -> workers on which it failed
        self._deal(count, list(dict.fromkeys(workers)))

    def _deal(self, count: int, workers: Sequence[W]) -> None:
        """Equal contiguous ranges for the workers known at the start (their sizes differ by one at most)."""
        if not workers:
            self._orphans = [_Range(0, count)] if count else []
            return
        base, extra = divmod(count, len(workers))
        start = 0
        for i, worker in enumerate(workers):
            stop = start + base + (i < extra)
            self._ranges[worker] = _Range(start, stop)
            self._in_hand[worker] = []
            start = stop

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

    def take(self, worker: W) -> int | None:
        """The next chunk for a worker, or None while its hand is full, nothing is left or it is unknown.

        The last chunks, fewer than there are workers, go to empty hands only, so that all workers end together.
        """
        hand = self._in_hand.get(worker)
        if hand is None or len(hand) >= self._depth or (hand and self.left < len(self._in_hand)):
            return None
        chunk = self._again(worker)
        if chunk is None:
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
                longest = max(self._ranges.values(), key=len)
                if not longest:
                    return None
                middle = longest.stop - (len(longest) + 1) // 2
                own = self._ranges[worker] = _Range(middle, longest.stop)
                longest.stop = middle
        own.start += 1
        return own.start - 1

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
