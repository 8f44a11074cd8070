"""BlockSets: which blocks each frame of a flight needs, flat arrays that stay small at 100,000 frames. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class FlatSets(Protocol):
    """Whatever holds block sets flat: the blocks of frame i are ids[offsets[i]:offsets[i + 1]], ascending, each once."""

    @property
    def offsets(self) -> NDArray[np.integer[Any]]: ...

    @property
    def ids(self) -> NDArray[np.integer[Any]]: ...


@dataclass(frozen=True)
class BlockSets:
    """Block sets of F frames. offsets: [F + 1] int64. ids: [offsets[F]] int64, ascending within a frame, each once."""

    offsets: Int64
    ids: Int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, frame: int) -> Int64:
        return self.ids[self.offsets[frame] : self.offsets[frame + 1]]

    def __iter__(self) -> Iterator[Int64]:
        return (self[frame] for frame in range(len(self)))

    @property
    def counts(self) -> Int64:
        """[F] blocks of every frame."""
        return np.diff(self.offsets)

    @property
    def frames(self) -> Int64:
        """[len(ids)] the frame that every entry of `ids` belongs to."""
        return np.repeat(np.arange(len(self)), self.counts)

    def take(self, frames: Sequence[int] | Int64) -> BlockSets:
        """The sets of `frames`, in that order."""
        rows = np.asarray(frames, dtype=np.int64)
        counts = self.counts[rows]
        offsets = _offsets(counts)
        entries = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return BlockSets(offsets, self.ids[entries])

    def unions(self, groups: Sequence[Sequence[int]]) -> BlockSets:
        """For every group of frames the blocks that any of them needs."""
        sizes = np.fromiter(map(len, groups), dtype=np.int64, count=len(groups))
        rows = self.take(np.fromiter(chain.from_iterable(groups), dtype=np.int64, count=int(sizes.sum())))
        group = np.repeat(np.arange(len(groups)), sizes)[rows.frames]
        width = int(self.ids.max(initial=0)) + 1
        keys = np.unique(group * width + rows.ids)
        return BlockSets(_offsets(np.bincount(keys // width, minlength=len(groups))), keys % width)

    def repeats(self) -> NDArray[np.bool_]:
        """[F] whether a frame needs exactly the blocks of the frame before it."""
        counts = self.counts
        alike = np.zeros(len(self), dtype=np.bool_)
        alike[1:] = counts[1:] == counts[:-1]
        frames, places = self.frames, np.arange(len(self.ids))
        paired = alike[frames]
        differing = self.ids[places[paired]] != self.ids[places[paired] - counts[frames[paired]]]
        alike[frames[paired][differing]] = False
        return alike

    def next_frames(self) -> Int64:
        """[len(ids)] for every entry the next frame that needs the same block, F if none does."""
        following = np.full(len(self.ids), len(self), dtype=np.int64)
        order = np.argsort(self.ids, kind="stable")  # by block, then by frame
        same = self.ids[order][1:] == self.ids[order][:-1]
        following[order[:-1][same]] = self.frames[order[1:][same]]
        return following


AnySets: TypeAlias = FlatSets | Sequence[Sequence[int]]


def block_sets(sets: AnySets) -> BlockSets:
    """Sets of any form as BlockSets; lists of blocks may be unordered and hold a block twice."""
    if isinstance(sets, BlockSets):
        return sets
    if not isinstance(sets, Sequence):
        return BlockSets(np.asarray(sets.offsets, dtype=np.int64), np.asarray(sets.ids, dtype=np.int64))
    clean = [sorted(set(map(int, blocks))) for blocks in sets]
    offsets = _offsets(np.fromiter(map(len, clean), dtype=np.int64, count=len(clean)))
    return BlockSets(offsets, np.fromiter(chain.from_iterable(clean), dtype=np.int64, count=int(offsets[-1])))


def _offsets(counts: Int64) -> Int64:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])
