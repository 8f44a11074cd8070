"""The pieces a demo city is built of: one primitive, its palettes, and the small things (trees, cars, roof plants)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from landmark_batch.scene.city_ground import Colour, linear

MAX_HEIGHT = 98.0  # metres
WINDOW_TYPES = 6  # storeys as in city_field.window_rows
PLANT_INSET = 4.0  # metres from a roof's edge: nearer, its walls would show through the facade below

Footprint = tuple[float, float, float, float]  # x0, y0, x1, y1

ROOFS = [linear(c) for c in ("#8d8a86", "#a39e95", "#77797c", "#b8b2a6", "#6a6c70", "#97908a")]
TILES = [linear(c) for c in ("#9c5440", "#a65f45", "#8a4b3c", "#ad7052", "#774a42")]
PLASTER = [linear(c) for c in ("#e6d8bd", "#dcc4a0", "#e9e2d2", "#cfae8b", "#d8b9a2", "#c9c3b4", "#e3cf9f")]
BRICK = [linear(c) for c in ("#9c5a44", "#8a5646", "#b07858", "#a86a4c")]
STONE = [linear(c) for c in ("#cfc8ba", "#b9b6b0", "#d9d4c8", "#a9a49a", "#e2ded6")]
STEEL = [linear(c) for c in ("#7f8c96", "#95a2aa", "#5f6d78", "#aab4b8", "#8a9599")]
GLASS = [linear(c) for c in ("#3d5668", "#35505a", "#46627a", "#2f4656", "#4a6a74")]
LEAVES = [linear(c) for c in ("#3f5e2c", "#4c6b32", "#5a7a3a", "#456237", "#66803e")]
CARS = [linear(c) for c in ("#d8d8d6", "#2b2d30", "#8d9196", "#a92f2a", "#2f4f86", "#e3e3e0", "#b9b4a6", "#c8a23a")]
PANES, MARBLE, COPPER, TURF = linear("#34414b"), linear("#dad4c6"), linear("#5f9080"), linear("#74864c")


@dataclass(frozen=True)
class Solid:
    """One primitive standing on the ground or on another. Footprint and heights in metres, colours linear albedo.

    shape: 'box' (flat roof), 'gable' (ridge along the longer side), 'round' (cylinder), 'crown' (a tree), 'car',
    'garden' (a layer on a flat roof).
    top: height of the roof or eaves; ridge: height of a gable above the eaves. windows: type 0..5 or -1; bay: metres a window.
    carrier: footprint of the building whose roof carries it.
    """

    shape: str
    foot: Footprint
    top: float
    roof: Colour
    wall: Colour
    glass: Colour = PANES
    windows: int = -1
    bay: float = 3.2
    ridge: float = 0.0
    shops: bool = False
    carrier: Footprint | None = None

    @property
    def size(self) -> tuple[float, float]:
        return self.foot[2] - self.foot[0], self.foot[3] - self.foot[1]

    def inset(self, by: float, top: float) -> Solid:
        """The same, smaller on all sides and of another height, without shops."""
        x0, y0, x1, y1 = self.foot
        return replace(self, foot=(x0 + by, y0 + by, x1 - by, y1 - by), top=top, shops=False)


def pick(rng: np.random.Generator, colours: list[Colour], spread: float = 0.08) -> Colour:
    """One of the colours, a little lighter or darker."""
    r, g, b = colours[int(rng.integers(len(colours)))]
    gain = float(rng.uniform(1 - spread, 1 + spread))
    return (r * gain, g * gain, b * gain)


def tree(rng: np.random.Generator, x: float, y: float, scale: float = 1.0) -> Solid:
    r, height = float(rng.uniform(2.2, 4.2)) * scale, float(rng.uniform(5.5, 10.0)) * scale
    leaf = pick(rng, LEAVES, 0.2)
    return Solid("crown", (x - r, y - r, x + r, y + r), height, leaf, (leaf[0] * 0.6, leaf[1] * 0.6, leaf[2] * 0.6))


def car(rng: np.random.Generator, x: float, y: float, *, along_x: bool) -> Solid:
    a, b = (2.2, 1.0) if along_x else (1.0, 2.2)
    paint = pick(rng, CARS)
    return Solid("car", (x - a, y - b, x + a, y + b), 1.5, paint, paint)


def roof_plant(rng: np.random.Generator, s: Solid) -> Iterator[Solid]:
    """Machine rooms, fans and now and then a garden on a flat roof."""
    w, d = s.size
    x0, y0, x1, y1 = s.foot
    if min(w, d) < 2 * PLANT_INSET + 2:
        return
    if rng.random() < 0.22:
        yield replace(s.inset(1.6, s.top + 0.05), shape="garden", roof=TURF, carrier=s.foot)
    for _ in range(int(rng.integers(1, 4))):
        a = float(rng.uniform(1.8, min(6.0, w - 2 * PLANT_INSET)))
        b = float(rng.uniform(1.8, min(5.0, d - 2 * PLANT_INSET)))
        x = float(rng.uniform(x0 + PLANT_INSET, x1 - a - PLANT_INSET))
        y = float(rng.uniform(y0 + PLANT_INSET, y1 - b - PLANT_INSET))
        shade = pick(rng, ROOFS, 0.25)
        yield Solid("box", (x, y, x + a, y + b), min(s.top + float(rng.uniform(1.6, 3.4)), MAX_HEIGHT), shade, shade, carrier=s.foot)
