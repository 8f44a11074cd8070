"""Orders of chunks in space: a Hilbert curve over where the cameras are, and a tour over block sets.

A tour goes to the set that adds the fewest blocks to those held, then is shortened by 2-opt moves on the Hamming distance of
neighbouring sets: summed over an order it is twice the blocks loaded with memory for one set, but for the two ends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .block_sets import BlockSets, Int64

HILBERT = "Hilbert curve"
TOUR = "tour over block sets"
HILBERT_BITS = 16  # cells of the curve a side: 2^16
LOOKS = 2_000_000  # 2-opt moves that are looked at: about two seconds, whatever the machine's load
WINDOW = 128  # how far apart along the tour the two ends of a 2-opt move may lie

Float64 = NDArray[np.float64]


def hilbert_order(points: Float64) -> Int64:
    """Order of points [n, 2] along a Hilbert curve over their square; points of one cell stay in their order."""
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    low = points.min(axis=0)
    span = float((points.max(axis=0) - low).max()) or 1.0
    side = 1 << HILBERT_BITS
    cell = np.minimum(((points - low) / span * side).astype(np.int64), side - 1)
    x, y = cell[:, 0].copy(), cell[:, 1].copy()
    along = np.zeros(len(points), dtype=np.int64)
    half = side // 2
    while half:
        right, upper = (x & half) > 0, (y & half) > 0
        along += half * half * ((3 * right) ^ upper)
        flip = right & ~upper  # turn the quarter so that the curve enters and leaves it where its neighbours do
        x, y = np.where(flip, side - 1 - x, x), np.where(flip, side - 1 - y, y)
        x, y = np.where(upper, x, y), np.where(upper, y, x)
        half //= 2
    return np.argsort(along, kind="stable")


def spatial_orders(sets: BlockSets, points: Float64, slots: int) -> list[tuple[str, Int64]]:
    """Orders of n sets at `points` [n, 2], each with the name of its kind; which is best depends on the flight and on the slots.

    A Hilbert curve over the points and one over the mean points of equal sets; a tour that always goes to the nearest set, that tour
    shortened, and the second curve shortened. But for the first, equal sets stay together, in their order.
    """
    if not len(sets):
        return []
    kinds, first = _kinds(sets)
    different = sets.take(first)
    amount = np.bincount(kinds)
    middle = np.stack([np.bincount(kinds, points[:, axis]) / amount for axis in (0, 1)], axis=1)
    curve = hilbert_order(middle)
    nearest = _nearest_first(different, middle, slots)
    made = [(HILBERT, curve), (TOUR, nearest), (TOUR, _shortened(different, nearest)), (TOUR, _shortened(different, curve))]
    return [(HILBERT, hilbert_order(points)), *((name, np.argsort(_places(order)[kinds], kind="stable")) for name, order in made)]


def _kinds(sets: BlockSets) -> tuple[Int64, Int64]:
    """([n] number of each set among the different ones, in the order of first appearance; [U] where each first appears)."""
    seen: dict[bytes, int] = {}
    kinds = np.fromiter((seen.setdefault(blocks.tobytes(), len(seen)) for blocks in sets), dtype=np.int64, count=len(sets))
    _, first = np.unique(kinds, return_index=True)
    return kinds, first.astype(np.int64)


def _places(tour: Int64) -> Int64:
    places = np.empty_like(tour)
    places[tour] = np.arange(len(tour))
    return places


def _nearest_first(sets: BlockSets, points: Float64, slots: int) -> Int64:
    """From set 0 always on to the set of fewest blocks not held, the nearest of these; held are the `slots` blocks last used."""
    by_block = np.argsort(sets.ids, kind="stable")
    owners = sets.frames[by_block]
    _, first, dense = np.unique(sets.ids, return_index=True, return_inverse=True)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(dense, minlength=len(first)))])
    blocks_of = np.split(dense, sets.offsets[1:-1])
    span = float(np.square(points - points.min(axis=0)).sum(axis=1).max()) or 1.0
    x, y = np.ascontiguousarray(points.T)
    missing = sets.counts.astype(np.float64)
    held: dict[int, None] = {}
    tour = np.empty(len(sets), dtype=np.int64)
    at = 0
    for step in range(len(sets)):
        tour[step] = at
        missing[at] = np.inf
        for block in blocks_of[at].tolist():
            if block in held:
                del held[block]
            else:
                missing[owners[bounds[block] : bounds[block + 1]]] -= 1
            held[block] = None
        while len(held) > slots:
            block = next(iter(held))
            del held[block]
            missing[owners[bounds[block] : bounds[block + 1]]] += 1
        away = np.square(x - x[at])
        away += np.square(y - y[at])
        away /= 4.5 * span  # below 1: it decides only between equals
        away += missing
        at = int(np.argmin(away))
    return tour


def _shortened(sets: BlockSets, tour: Int64) -> Int64:
    """2-opt: turn a stretch of the tour round while that shortens it, at most LOOKS looks."""
    count = len(tour)
    _, dense = np.unique(sets.ids, return_inverse=True)
    member = np.zeros((count, int(dense.max(initial=0)) + 1), dtype=np.float32)  # [U, blocks that occur]
    member[sets.frames, dense] = 1
    member = member[tour]
    size = member.sum(axis=1)
    tour = tour.copy()
    looks, better = 0, True
    while better and looks < LOOKS:
        better = False
        for i in range(count - 2):
            stop = min(i + 2 + WINDOW, count)
            looks += stop - i - 2
            if looks > LOOKS:
                break
            # turning tour[i + 1 .. j] round joins i to j and i + 1 to j + 1; behind the last set there is no edge
            ends = slice(i + 2, stop)
            new = size[i] + size[ends] - 2 * (member[ends] @ member[i])
            old = np.full(stop - i - 2, size[i] + size[i + 1] - 2 * float(member[i] @ member[i + 1]), dtype=np.float32)
            behind = slice(i + 3, min(stop + 1, count))
            inner = behind.stop - behind.start
            new[:inner] += size[i + 1] + size[behind] - 2 * (member[behind] @ member[i + 1])
            edges = np.einsum("ij,ij->i", member[i + 2 : i + 2 + inner], member[behind])
            old[:inner] += size[i + 2 : i + 2 + inner] + size[behind] - 2 * edges
            gain = old - new
            best = int(np.argmax(gain))
            if gain[best] > 0:
                stretch = slice(i + 1, i + 3 + best)
                tour[stretch], member[stretch], size[stretch] = (
                    tour[stretch][::-1].copy(),
                    member[stretch][::-1].copy(),
                    size[stretch][::-1].copy(),
                )
                better = True
    return tour
