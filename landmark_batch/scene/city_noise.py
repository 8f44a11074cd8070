"""Seeded randomness that any part of a city can ask for alone: a generator a city cell, and noise over the world plane."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

_CELL_OFFSET = 1 << 20  # SeedSequence takes no negative numbers


def cell_rng(seed: int, tag: int, i: int, j: int = 0) -> np.random.Generator:
    """The generator of lattice cell (i, j) for one purpose `tag`: the same wherever and whenever it is asked for."""
    return np.random.default_rng([seed, tag, i + _CELL_OFFSET, j + _CELL_OFFSET])


def _lattice(ix: NDArray[np.int64], iy: NDArray[np.int64], seed: int) -> Array:
    """Uniform values in [0, 1) of integer lattice points (a multiplicative hash, 32-bit arithmetic)."""
    mask = np.int64(0xFFFFFFFF)
    key = (ix * np.int64(0x1B873593) + iy * np.int64(0x19D699A5) + np.int64(seed) * np.int64(0x27D4EB2F)) & mask
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        key = ((key ^ (key >> np.int64(shift))) * np.int64(factor)) & mask
    key ^= key >> np.int64(15)
    return (key.astype(np.float64) / 4294967296.0).astype(np.float32)


def value_noise(x: Array, y: Array, cell: float, seed: int) -> Array:
    """Smooth noise in [0, 1) over world positions, features about `cell` metres wide.

    x: [w] and y: [h] metres, node coordinates -> [h, w]. A function of the position alone, hence without seams.
    """
    u, v = x / np.float32(cell), y / np.float32(cell)
    iu, iv = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    fu, fv = (u - iu).astype(np.float32), (v - iv).astype(np.float32)
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    # the lattice is looked up once a distinct cell and spread by index: far fewer hashes than nodes
    u0, v0 = int(iu[0]), int(iv[0])
    lattice = _lattice(np.arange(u0, int(iu[-1]) + 2)[None, :], np.arange(v0, int(iv[-1]) + 2)[:, None], seed)
    a, b = iv - v0, iu - u0
    rows = lattice[a] * (1 - fv)[:, None] + lattice[a + 1] * fv[:, None]
    return np.asarray(rows[:, b] * (1 - fu) + rows[:, b + 1] * fu, dtype=np.float32)
