"""Frames that need more blocks than there are slots: the regions of one, and what is loaded on a flight that has such frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .belady import FetchPlan, belady, lru
from .block_sets import AnySets, BlockSets, Int64
from .cells import cell_blocks
from .regions import PassCount, Region, cell_edges, cut_frame, in_turn, pass_count
from .visibility import FrustumBlocks

Regions: TypeAlias = Callable[[int], Sequence[Region]]
Plan: TypeAlias = Callable[[AnySets, int], FetchPlan]

STRETCH = 64  # frames that are looked at one after another, where not all are


def frame_regions(
    frustum: FrustumBlocks,
    c2w: NDArray[np.floating],
    intrinsics: Sequence[float],
    width: int,
    height: int,
    unit: tuple[int, int],
    slots: int,
    passes: PassCount = pass_count,
) -> list[Region]:
    """The rectangles that a frame is rendered in, as `cut_frame`; none for a frame that is too small to be cut.

    unit: columns and rows of pixels, of which rectangles are multiples.
    """
    columns, rows = cell_edges(width, unit[0]), cell_edges(height, unit[1])
    if len(columns) + len(rows) <= 4:
        return []
    return cut_frame(cell_blocks(frustum, c2w, intrinsics, columns, rows), columns, rows, slots, passes)


@dataclass(frozen=True)
class CrowdedLoads:
    """loads, demand: as of `ChunkOrder`, with crowded frames by regions. sampled: not every crowded frame was cut into its regions."""

    loads: int
    demand: int
    sampled: bool


def crowded_loads(
    sets: BlockSets, ranges: Sequence[Sequence[int]], regions: Regions, slots: int, *, most: int, passes: PassCount = pass_count
) -> CrowdedLoads:
    """Blocks moved by groups that render crowded frames region by region, as `FetchingRenderer` and each rank of a group do.

    ranges: rows of `sets` that each group renders, in its order. regions: of a crowded row, empty where it goes through passes whole;
    asked about `most` rows, about, at most: of more, stretches all over the flight tell how regions compare with whole passes.
    """
    parts = [np.asarray(part, dtype=np.int64) for part in ranges]
    flight = np.array_split(np.sort(np.concatenate(parts)), len(parts))
    step = max(1, -(-int((sets.counts > slots)[np.concatenate(parts)].sum()) // most))
    regions = cache(regions)
    loads, demand = (_count(sets, rows, regions, slots, step, plan, passes) for rows, plan in ((parts, belady), (flight, lru)))
    return CrowdedLoads(loads, demand, step > 1)


def _count(sets: BlockSets, parts: Sequence[Int64], regions: Regions, slots: int, step: int, plan: Plan, passes: PassCount) -> int:
    """Loads of `plan` on all parts; step: of so many stretches one is looked at."""
    if step == 1:
        return sum(plan(_holds(sets, part, regions, slots, passes), slots).loads for part in parts)
    stretches = [part[start : start + STRETCH] for part in parts for start in range(0, len(part), STRETCH)][::step]
    cut = sum(plan(_holds(sets, stretch, regions, slots, passes), slots).loads for stretch in stretches)
    whole = sum(plan(sets.take(stretch), slots).loads for stretch in stretches)
    return round(sum(plan(sets.take(part), slots).loads for part in parts) * cut / max(1, whole))


def _holds(sets: BlockSets, rows: Int64, regions: Regions, slots: int, passes: PassCount) -> list[Sequence[int]]:
    """The sets of blocks that are held in turn: one a frame, of a crowded one each region's; one that is left to passes comes as often as
    its rays go through them.
    """
    found: list[Sequence[int]] = []
    for row in rows.tolist():
        blocks: list[int] = sets[row].tolist()
        parts = regions(row) if len(blocks) > slots else ()
        if not parts:
            found.append(blocks)
            continue
        for part in in_turn(parts, slots, found[-1] if found else ()):
            rays = (part.right - part.left) * (part.bottom - part.top)
            found += [part.blocks] * (passes(rays) if len(part.blocks) > slots else 1)
    return found
