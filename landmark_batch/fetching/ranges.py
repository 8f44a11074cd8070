"""Contiguous ranges of about equal cost: the linear partition with the least maximum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def balanced_cuts(costs: Sequence[float] | NDArray[np.float64], parts: int) -> list[int]:
    """Cut n costs into `parts` contiguous ranges whose dearest is as cheap as can be; range g is cuts[g] .. cuts[g + 1] - 1.

    Among such cuts every range comes near the mean of what is left, and none is empty while n ≥ parts. Costs of 0 throughout count alike.
    Raises ValueError for parts < 1 and for a cost that is negative or not finite.
    """
    cost = np.asarray(costs, dtype=np.float64)
    if parts < 1:
        raise ValueError(f"parts = {parts}: at least 1")
    if not np.isfinite(cost).all() or (cost < 0).any():
        raise ValueError("costs are finite and at least 0")
    if not cost.any():
        cost = np.ones_like(cost)
    count = len(cost)
    before = np.concatenate([np.zeros(1), np.cumsum(cost)])  # [n + 1]
    limit = _least_maximum(before, parts) + 1e-12 * float(before[-1])
    earliest = [count] * (parts + 1)  # of cut g, so that the ranges behind it keep the limit
    for part in range(parts - 1, 0, -1):
        earliest[part] = int(np.searchsorted(before, before[earliest[part + 1]] - limit, side="left"))
    cuts = [0]
    for part in range(1, parts):
        start, left = cuts[-1], parts - part + 1
        ideal = before[start] + (before[-1] - before[start]) / left
        near = int(np.searchsorted(before, ideal, side="left"))
        if near > start and ideal - before[near - 1] < before[near] - ideal:
            near -= 1
        latest = int(np.searchsorted(before, before[start] + limit, side="right")) - 1
        if count >= parts:
            latest = min(latest, count - left + 1)
            near = max(near, start + 1)
        cuts.append(min(max(near, earliest[part], start), max(latest, start)))
    return [*cuts, count]


def _least_maximum(before: NDArray[np.float64], parts: int) -> float:
    """The least cost that `parts` ranges can keep to, by bisection. before: [n + 1] running sums."""
    low = max(float(np.diff(before).max(initial=0.0)), float(before[-1]) / parts)
    high = float(before[-1])
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return high if not _fits(before, parts, low) else low
        if _fits(before, parts, middle):
            high = middle
        else:
            low = middle


def _fits(before: NDArray[np.float64], parts: int, limit: float) -> bool:
    at = 0
    for _ in range(parts):
        at = int(np.searchsorted(before, before[at] + limit, side="right")) - 1
        if at >= len(before) - 1:
            return True
    return False
