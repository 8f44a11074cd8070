"""In which order chunks are rendered, and by which group, so that the fewest blocks are moved. Pure numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .belady import FetchPlan, belady, lru
from .block_sets import AnySets, BlockSets, Int64, block_sets
from .ranges import balanced_cuts
from .tour import spatial_orders

FLIGHT = "flight order"


@dataclass(frozen=True)
class ChunkOrder:
    """An order of n chunks, cut into a contiguous range a group.

    name: of the order. order: [n] chunk numbers as they are rendered. cuts: group g renders order[cuts[g]:cuts[g + 1]].
    plans: of every group. demand: loads of exact demand fetching: flight order, least recently used block leaves, as many slots.
    candidates: loads of every kind of order that was tried, the best of its kind.
    """

    name: str
    order: Int64
    cuts: tuple[int, ...]
    plans: tuple[FetchPlan, ...]
    demand: int
    candidates: dict[str, int]

    @property
    def loads(self) -> int:
        """Blocks moved by all groups together."""
        return sum(plan.loads for plan in self.plans)

    @property
    def passes(self) -> int:
        """Frames that need more blocks than there are slots."""
        return sum(plan.passes for plan in self.plans)


def order_chunks(
    sets: AnySets,
    chunks: Sequence[Sequence[int]],
    centres: NDArray[np.floating[Any]],
    costs: Sequence[float] | NDArray[np.float64],
    slots: int,
    groups: int = 1,
) -> ChunkOrder:
    """The order that moves the fewest blocks under each group's Belady plan; flight order where it is not beaten.

    sets: blocks of every frame. chunks: rows of `sets` that each chunk renders, in flight order. centres: [n, 2] where a chunk's
    cameras stand on average. costs: [n] what a chunk takes to render, any unit; ranges are balanced by it. slots: of each group.
    Flight order is among those tried, so never more blocks are moved than by exact demand fetching.
    Raises ValueError for slots < 1, groups < 1 and numbers of chunks that differ.
    """
    if not len(chunks) == len(centres) == len(costs):
        raise ValueError(f"{len(chunks)} chunks, {len(centres)} centres, {len(costs)} costs: one of each a chunk")
    flat = block_sets(sets)
    points = np.asarray(centres, dtype=np.float64).reshape(-1, 2)
    cost = np.asarray(costs, dtype=np.float64)
    flight = np.arange(len(chunks))
    cuts, ranges = _ranges(flat, chunks, flight, cost, groups)
    demand = sum(lru(part, slots).loads for part in ranges)
    best = ChunkOrder(FLIGHT, flight, cuts, tuple(belady(part, slots) for part in ranges), demand, {})
    found = {FLIGHT: best.loads}
    wanted = flat.take([frame for chunk in chunks for frame in chunk])
    if best.loads > len(np.unique(wanted.ids)):  # else every block is loaded once: no order moves less
        for name, order in spatial_orders(flat.unions(chunks), points, slots):
            cuts, ranges = _ranges(flat, chunks, order, cost, groups)
            made = ChunkOrder(name, order, cuts, tuple(belady(part, slots) for part in ranges), demand, {})
            found[name] = min(made.loads, found.get(name, made.loads))
            if made.loads < best.loads:
                best = made
    return ChunkOrder(best.name, best.order, best.cuts, best.plans, demand, found)


def follow_order(name: str, sets: AnySets, chunks: Sequence[Sequence[int]], cuts: Sequence[int], slots: int) -> ChunkOrder:
    """The plans of an order that is decided already: chunks as they come, group g renders chunks[cuts[g]:cuts[g + 1]].

    sets, slots: as for `order_chunks`. Demand fetching, to compare, gives each group as many frames in flight order.
    """
    flat = block_sets(sets)
    plans = tuple(belady(part, slots) for part in _parts(flat, chunks, np.arange(len(chunks)), cuts))
    flight = sorted(row for chunk in chunks for row in chunk)
    demand = sum(lru(flat.take(part), slots).loads for part in np.array_split(np.asarray(flight, np.int64), len(plans)))
    made = ChunkOrder(name, np.arange(len(chunks)), tuple(cuts), plans, demand, {})
    return replace(made, candidates={name: made.loads})


def _ranges(
    sets: BlockSets, chunks: Sequence[Sequence[int]], order: Int64, cost: NDArray[np.float64], groups: int
) -> tuple[tuple[int, ...], list[BlockSets]]:
    """Cuts of `order` for the groups, and the sets of each group's frames in the order it renders them."""
    cuts = balanced_cuts(cost[order], groups)
    return tuple(cuts), _parts(sets, chunks, order, cuts)


def _parts(sets: BlockSets, chunks: Sequence[Sequence[int]], order: Int64, cuts: Sequence[int]) -> list[BlockSets]:
    numbers = order.tolist()
    return [sets.take([frame for i in numbers[low:high] for frame in chunks[i]]) for low, high in pairwise(cuts)]
