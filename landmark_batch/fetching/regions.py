"""A frame that needs more blocks than there are slots, cut into rectangles that each need no more. Pure integers.

The blocks of a rectangle are those of its cells, and cuts run between cells. Rectangles come in an order in which neighbours share
blocks, so that little is loaded from one to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .belady import belady

CELLS = 8  # a side, at most: of the grid that a frame is cut along
PASS_RAYS = 2**18  # that go through passes together, about: as many as have samples that fit into memory

PassCount: TypeAlias = Callable[[int], int]  # how often a rectangle of so many rays goes through passes


@dataclass(frozen=True)
class Region:
    """Pixels of rows top..bottom-1 and columns left..right-1 of a frame, and the blocks, ascending, that they can touch."""

    left: int
    top: int
    right: int
    bottom: int
    blocks: tuple[int, ...]


def cell_edges(size: int, unit: int) -> list[int]:
    """Edges of at most CELLS cells of equal size along `size` pixels, each a multiple of `unit` pixels, the last cell cut off."""
    step = unit * -(-size // (unit * CELLS))
    return [*range(0, size, step), size]


def pass_count(rays: int) -> int:
    """How often a rectangle of so many rays goes through passes where one device renders it."""
    return -(-rays // PASS_RAYS)


def cut_frame(
    cells: NDArray[np.bool_], columns: Sequence[int], rows: Sequence[int], slots: int, passes: PassCount = pass_count
) -> list[Region]:
    """The regions of a frame, each of which needs at most `slots` blocks or is to be rendered in passes, in an order (or its reverse).

    cells [rows, columns, blocks]: what each cell touches, columns, rows: their edges, as for `cell_blocks`. A rectangle is left to
    passes, which load all of its blocks about twice each time, where parts of it would load more.
    """
    parts = _Cutter(cells, slots, columns, rows, passes).cut((0, 0, len(columns) - 1, len(rows) - 1))[1]
    found = []
    for left, top, right, bottom in parts:
        blocks = np.flatnonzero(cells[top:bottom, left:right].any((0, 1))).tolist()
        found.append(Region(columns[left], rows[top], columns[right], rows[bottom], tuple(blocks)))
    return found


def in_turn(regions: Sequence[Region], slots: int, held: Sequence[int]) -> list[Region]:
    """Regions, from that end which loads fewer blocks. held: blocks that are in slots before the first."""
    sets = [region.blocks for region in regions]
    forward, backward = (belady([held, *order], slots).loads for order in (sets, sets[::-1]))
    return [*regions] if forward <= backward else [*regions[::-1]]


_Rectangle = tuple[int, int, int, int]  # left, top, right, bottom, in cells


class _Cutter:
    """Halves rectangles along that line between cells which leaves the fewest blocks on both sides."""

    def __init__(self, cells: NDArray[np.bool_], slots: int, columns: Sequence[int], rows: Sequence[int], passes: PassCount) -> None:
        self._cells, self._slots, self._passes = cells, slots, passes
        self._columns, self._rows = columns, rows

    def cut(self, part: _Rectangle) -> tuple[int, list[_Rectangle]]:
        """About how many blocks a rectangle loads, and the rectangles it is rendered in."""
        left, top, right, bottom = part
        need = int(self._cells[top:bottom, left:right].any((0, 1)).sum())
        if need <= self._slots:
            return need, [part]
        rays = (self._columns[right] - self._columns[left]) * (self._rows[bottom] - self._rows[top])
        alone = (2 * need - self._slots) * self._passes(rays)
        best = min(self._cuts(part), default=None)
        if best is None:
            return alone, [part]
        (first, one), (second, two) = (self.cut(half) for half in best[-2:])
        shared, parts = max((self._joint(a, b) for a in (one, one[::-1]) for b in (two, two[::-1])), key=itemgetter(0))
        loads = first + second - shared
        return (alone, [part]) if loads > alone else (loads, parts)

    def _cuts(self, part: _Rectangle) -> Iterator[tuple[int, int, int, _Rectangle, _Rectangle]]:
        """Every cut: blocks of the larger half, of both, how far from the middle, and the halves."""
        left, top, right, bottom = part
        inside = self._cells[top:bottom, left:right]
        for axis in range(2):
            lines = np.asarray(inside.any(axis))  # of columns, then of rows
            before = np.logical_or.accumulate(lines).sum(1)
            after = np.logical_or.accumulate(lines[::-1]).sum(1)[::-1]
            for place in range(1, len(lines)):
                one, two = int(before[place - 1]), int(after[place])
                if axis == 0:
                    halves = (left, top, left + place, bottom), (left + place, top, right, bottom)
                else:
                    halves = (left, top, right, top + place), (left, top + place, right, bottom)
                yield max(one, two), one + two, abs(2 * place - len(lines)), *halves

    def _joint(self, one: list[_Rectangle], two: list[_Rectangle]) -> tuple[int, list[_Rectangle]]:
        """How many blocks the last of one list and the first of the other share, and both lists."""
        (left, top, right, bottom), (left_, top_, right_, bottom_) = one[-1], two[0]
        last, first = self._cells[top:bottom, left:right].any((0, 1)), self._cells[top_:bottom_, left_:right_].any((0, 1))
        return int((last & first).sum()), one + two
