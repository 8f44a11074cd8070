"""Coarse to fine: every 2^k-th frame of a flight, then the gaps, level by level; and how levels are dealt to groups. Pure integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

from landmark_batch.chunks import FrameChunk

T = TypeVar("T")


def coarse_to_fine(frames: Iterable[int], chunk_frames: int, *, flight: Iterable[int], unit: int = 1) -> list[list[FrameChunk]]:
    """Frames to render in chunks of at most `chunk_frames`, by level, coarsest first; each frame in one chunk.

    flight: all frames the job wants, done or not: a frame's level is its place among them, so it is the same whatever stands already.
    The first level is at most one chunk, spread evenly over the flight; each other one halves the gaps. Levels with nothing to render
    are left out. unit: frames i·unit .. i·unit + unit - 1 share a file and stay together; a chunk holds one unit at least.
    """
    groups: dict[int, list[int]] = {}
    for frame in sorted(set(frames)):
        groups.setdefault(frame // unit, []).append(frame)
    places = {number: place for place, number in enumerate(sorted({frame // unit for frame in flight} | groups.keys()))}
    each = max(1, chunk_frames // unit)
    top = 0
    while -(-len(places) >> top) > each:
        top += 1
    levels: list[list[int]] = [[] for _ in range(top + 1)]
    for number in groups:
        levels[top - min(top, _halvings(places[number], top))].append(number)
    return [
        [FrameChunk(tuple(frame for number in level[i : i + each] for frame in groups[number])) for i in range(0, len(level), each)]
        for level in levels
        if level
    ]


def deal_levels(levels: Sequence[Sequence[T]], groups: int) -> tuple[list[T], tuple[int, ...]]:
    """One list in which every group's range goes through all levels, each with its contiguous part of a level; and the ranges' cuts.

    Ranges differ by one at most, the longer ones first, after every level: all groups are at the same level at the same time.
    """
    ranges: list[list[T]] = [[] for _ in range(groups)]
    dealt = 0
    for level in levels:
        before, after = _shares(dealt, groups), _shares(dealt + len(level), groups)
        cuts = accumulate((new - old for old, new in zip(before, after, strict=True)), initial=0)
        for own, (low, high) in zip(ranges, pairwise(cuts), strict=True):
            own.extend(level[low:high])
        dealt += len(level)
    return [item for own in ranges for item in own], (0, *accumulate(len(own) for own in ranges))


def _shares(count: int, groups: int) -> list[int]:
    base, extra = divmod(count, groups)
    return [base + (number < extra) for number in range(groups)]


def _halvings(place: int, most: int) -> int:
    """How often a place can be halved; 0 as often as you like."""
    return most if place == 0 else (place & -place).bit_length() - 1
