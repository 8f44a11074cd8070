"""The demo city's plan: streets, river and quarters. All lengths in metres.

Everything is a function of the seed and the place, so any part of the city can be made alone and parts meet without a seam.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from landmark_batch.scene.city_noise import Array, Floats, cell_rng

AVENUE_PITCH = 84.0  # avenues run along y, streets along x
STREET_PITCH = 66.0
SIDEWALK = 3.6
QUAY = 9.0  # promenade on both sides of the river
HUB_PITCH = 1100.0  # a large city has a centre about every kilometre
_TAGS = {"avenue": 1, "street": 2, "quarter": 3, "hub": 4, "river": 5}


@dataclass(frozen=True)
class Road:
    """One road: position of its centre line and half its carriageway."""

    centre: float
    half: float


@dataclass(frozen=True)
class Cell:
    """One city block between four roads, inside its sidewalks. centrality: 1 downtown, 0 far from it."""

    i: int
    j: int
    x0: float
    y0: float
    x1: float
    y1: float
    kind: str
    centrality: float


@dataclass(frozen=True)
class City:
    """A procedural city of half_x x half_y metres about the origin."""

    seed: int
    half_x: float
    half_y: float

    def avenue(self, i: int) -> Road:
        rng = cell_rng(self.seed, _TAGS["avenue"], i)
        return Road(i * AVENUE_PITCH + 36.0 + rng.uniform(-6, 6), 10.5 if i % 3 == 0 else 6.0)

    def street(self, j: int) -> Road:
        rng = cell_rng(self.seed, _TAGS["street"], j)
        return Road(j * STREET_PITCH + 30.0 + rng.uniform(-5, 5), 8.0 if j % 4 == 0 else 5.2)

    @property
    def river_half(self) -> float:
        """Half the river's width."""
        return 13.0 if min(self.half_x, self.half_y) < 300 else 20.0

    def river(self, y: Floats) -> Array:
        """x of the river's middle at y."""
        phase = cell_rng(self.seed, _TAGS["river"], 0).uniform(0, 2 * np.pi)
        swing, length = min(0.12 * self.half_x, 60.0), max(0.42 * self.half_y, 60.0)
        return np.asarray(-0.52 * self.half_x + swing * np.sin(y / length + phase), dtype=np.float32)

    def river_distance(self, x: Floats, y: Floats) -> Array:
        """Metres from the bank, negative in the water (x, y broadcast)."""
        slope = (self.river(y + 1.0) - self.river(y - 1.0)) / 2
        return np.asarray(np.abs(x - self.river(y)) / np.sqrt(1 + slope**2) - self.river_half, dtype=np.float32)

    def centrality(self, x: float, y: float) -> float:
        """1 in the middle of downtown, 0 far from it."""
        reach = min(0.62 * min(self.half_x, self.half_y), 300.0)
        best = 0.0
        for i in range(int(x // HUB_PITCH) - 1, int(x // HUB_PITCH) + 3):
            for j in range(int(y // HUB_PITCH) - 1, int(y // HUB_PITCH) + 3):
                away = cell_rng(self.seed, _TAGS["hub"], i, j).uniform(-250, 250, 2)
                first = i == 0 and j == 0
                hub_x = 0.16 * min(self.half_x, 300.0) if first else i * HUB_PITCH + float(away[0])
                hub_y = 0.0 if first else j * HUB_PITCH + float(away[1])
                best = max(best, float(np.exp(-((x - hub_x) ** 2 + (y - hub_y) ** 2) / reach**2)))
        return best

    def cells(self, x0: float, y0: float, x1: float, y1: float) -> list[Cell]:
        """Every block that touches the rectangle."""
        i0, i1 = int(np.floor((x0 - 60) / AVENUE_PITCH)) - 1, int(np.ceil((x1 - 20) / AVENUE_PITCH)) + 1
        j0, j1 = int(np.floor((y0 - 50) / STREET_PITCH)) - 1, int(np.ceil((y1 - 15) / STREET_PITCH)) + 1
        found = (_cell(self, i, j) for i in range(i0, i1 + 1) for j in range(j0, j1 + 1))
        return [c for c in found if c.x1 > x0 and c.x0 < x1 and c.y1 > y0 and c.y0 < y1]


@lru_cache(maxsize=65536)
def _cell(city: City, i: int, j: int) -> Cell:
    """The block between avenues i, i+1 and streets j, j+1."""
    left, right, low, high = city.avenue(i), city.avenue(i + 1), city.street(j), city.street(j + 1)
    x0, x1 = left.centre + left.half + SIDEWALK, right.centre - right.half - SIDEWALK
    y0, y1 = low.centre + low.half + SIDEWALK, high.centre - high.half - SIDEWALK
    centre = city.centrality((x0 + x1) / 2, (y0 + y1) / 2)
    return Cell(i, j, x0, y0, x1, y1, _kind(cell_rng(city.seed, _TAGS["quarter"], i, j).random(), centre), centre)


def _kind(draw: float, centrality: float) -> str:
    if draw < 0.11:
        return "park"
    if centrality > 0.62:
        return "plaza" if draw < 0.17 else "towers" if draw < 0.80 else "offices"
    if centrality > 0.30:
        return "plaza" if draw < 0.15 else "offices" if draw < 0.45 else "perimeter" if draw < 0.85 else "slabs"
    return "houses" if draw < 0.52 else "perimeter" if draw < 0.80 else "slabs"
