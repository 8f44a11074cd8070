"""What stands on each of the demo city's blocks: towers, offices, courtyard blocks, houses, slabs, parks, plazas, and street life."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from landmark_batch.scene.city_layout import QUAY, SIDEWALK, Cell, City
from landmark_batch.scene.city_noise import cell_rng
from landmark_batch.scene.city_solids import (
    BRICK,
    COPPER,
    GLASS,
    MARBLE,
    MAX_HEIGHT,
    PANES,
    PLASTER,
    ROOFS,
    STEEL,
    STONE,
    TILES,
    Footprint,
    Solid,
    car,
    pick,
    roof_plant,
    tree,
)

Solids = Iterator[Solid]
_TAG = 9


def solids(city: City, x0: float, y0: float, x1: float, y1: float) -> list[Solid]:
    """Every solid that touches the rectangle (metres), in an order that does not depend on the rectangle."""
    found: list[Solid] = []
    margin = 30.0  # cars and trees of a block stand on the roads around it
    for cell in city.cells(x0 - margin, y0 - margin, x1 + margin, y1 + margin):
        found.extend(s for s in _cell_solids(city, cell) if s.foot[2] > x0 and s.foot[0] < x1 and s.foot[3] > y0 and s.foot[1] < y1)
    return found


@lru_cache(maxsize=4096)
def _cell_solids(city: City, cell: Cell) -> tuple[Solid, ...]:
    rng = cell_rng(city.seed, _TAG, cell.i, cell.j)
    built = [s for s in _MAKERS[cell.kind](rng, cell) if _inside(city, s) and _dry(city, s)]
    return tuple(built + [s for s in _street_life(rng, city, cell) if _inside(city, s)])


def _inside(city: City, s: Solid) -> bool:
    x0, y0, x1, y1 = s.carrier or s.foot
    return x0 > 1 - city.half_x and x1 < city.half_x - 1 and y0 > 1 - city.half_y and y1 < city.half_y - 1


def _dry(city: City, s: Solid) -> bool:
    """Whole on one side of the river, clear of its quay."""
    x0, y0, x1, y1 = s.carrier or s.foot
    x, y = np.asarray([x0, x1, x0, x1]), np.asarray([y0, y0, y1, y1])
    one_side = np.ptp(np.sign(x - city.river(y))) == 0
    return bool(one_side) and bool(city.river_distance(x, y).min() > (2.0 if s.shape == "crown" else QUAY + 1.5))


def _lots(rng: np.random.Generator, cell: Cell, size: float, gap: float) -> Iterator[Footprint]:
    """Cut a block into lots about `size` metres along both axes."""
    nx, ny = max(1, round((cell.x1 - cell.x0) / size)), max(1, round((cell.y1 - cell.y0) / size))
    xs, ys = np.linspace(cell.x0, cell.x1, nx + 1), np.linspace(cell.y0, cell.y1, ny + 1)
    xs[1:-1] += rng.uniform(-3, 3, nx - 1)
    ys[1:-1] += rng.uniform(-3, 3, ny - 1)
    for i in range(nx):
        for j in range(ny):
            yield float(xs[i] + gap), float(ys[j] + gap), float(xs[i + 1] - gap), float(ys[j + 1] - gap)


def _towers(rng: np.random.Generator, cell: Cell) -> Solids:
    for lot in _lots(rng, cell, 34.0, 2.5):
        height = float(np.clip(rng.uniform(32, 58) + 46 * cell.centrality**2 * rng.random(), 24, 91))
        glassy = rng.random() < 0.55
        wall = pick(rng, STEEL if glassy else STONE + PLASTER[:3] + BRICK)
        glass = pick(rng, GLASS, 0.2) if glassy else PANES
        windows = int(rng.choice([1, 3, 3] if glassy else [0, 1, 4]))
        base = Solid("box", lot, float(rng.uniform(7, 13)), pick(rng, ROOFS), pick(rng, STONE), PANES, 0, 3.6, shops=True)
        if rng.random() < 0.75:
            yield base
            yield from roof_plant(rng, base)
        inset, bay = float(rng.uniform(2.5, 5.5)), float(rng.uniform(2.6, 3.8))
        trunk = replace(base.inset(inset, height), wall=wall, glass=glass, windows=windows, bay=bay)
        yield from _rotunda(trunk) if rng.random() < 0.16 else _setbacks(rng, trunk)


def _rotunda(trunk: Solid) -> Solids:
    x0, y0, x1, y1 = trunk.foot
    cx, cy, radius = (x0 + x1) / 2, (y0 + y1) / 2, min(trunk.size) / 2
    trunk = replace(trunk, shape="round", foot=(cx - radius, cy - radius, cx + radius, cy + radius))
    yield trunk
    yield trunk.inset(radius * 0.45, min(trunk.top + 3.5, MAX_HEIGHT))


def _setbacks(rng: np.random.Generator, trunk: Solid) -> Solids:
    yield trunk
    for step in range(int(rng.integers(0, 3))):
        if min(trunk.size) < 14:
            break
        trunk = trunk.inset(float(rng.uniform(2.2, 3.6)), min(trunk.top + float(rng.uniform(6, 13)) / (1 + step), MAX_HEIGHT - 4))
        yield trunk
    yield from roof_plant(rng, trunk)


def _offices(rng: np.random.Generator, cell: Cell) -> Solids:
    for lot in _lots(rng, cell, 25.0, 1.0):
        wall = pick(rng, STONE[:3] + PLASTER + BRICK + STEEL[:2])
        top, windows = float(rng.uniform(13, 26 + 20 * cell.centrality)), int(rng.choice([0, 1, 2, 4]))
        block = Solid("box", lot, top, pick(rng, ROOFS), wall, PANES, windows, 3.2, shops=True)
        yield block
        if rng.random() < 0.45:
            block = block.inset(float(rng.uniform(3, 6)), block.top + float(rng.uniform(4, 9)))
            yield block
        yield from roof_plant(rng, block)


def _perimeter(rng: np.random.Generator, cell: Cell) -> Solids:
    """A closed row of houses around a green courtyard."""
    depth, base, tiled = 12.5, float(rng.uniform(14, 20)), bool(rng.random() < 0.6)
    inner = (cell.x0 + depth, cell.y0 + depth, cell.x1 - depth, cell.y1 - depth)
    sides: list[tuple[Footprint, bool]] = [
        ((cell.x0, cell.y0, cell.x1, inner[1]), True),
        ((cell.x0, inner[3], cell.x1, cell.y1), True),
        ((cell.x0, inner[1], inner[0], inner[3]), False),
        ((inner[2], inner[1], cell.x1, inner[3]), False),
    ]
    for (x0, y0, x1, y1), along_x in sides:
        low, high = (x0, x1) if along_x else (y0, y1)
        cuts = np.linspace(low, high, max(2, round((high - low) / 17.0)) + 1).tolist()
        for a, b in pairwise(cuts):
            foot = (a, y0, b, y1) if along_x else (x0, a, x1, b)
            roof, wall = pick(rng, TILES if tiled else ROOFS), pick(rng, PLASTER + BRICK[:1])
            top, windows = base + float(rng.integers(-1, 2)) * 3.1, int(rng.choice([0, 2, 2, 5]))
            house = Solid("box", foot, top, roof, wall, PANES, windows, 3.0, shops=bool(rng.random() < 0.6))
            if not tiled:
                yield house
                yield from roof_plant(rng, house)
            elif along_x == (house.size[0] >= house.size[1]):
                yield replace(house, shape="gable", ridge=4.2)
            else:
                yield house
    for _ in range(int(rng.integers(4, 9))):
        yield tree(rng, float(rng.uniform(inner[0] + 4, inner[2] - 4)), float(rng.uniform(inner[1] + 4, inner[3] - 4)))


def _houses(rng: np.random.Generator, cell: Cell) -> Solids:
    """Rows of gabled houses with gardens between."""
    rows = [cell.y0 + 3.0, cell.y1 - 13.0]
    if cell.y1 - cell.y0 > 50:
        rows.insert(1, (cell.y0 + cell.y1) / 2 - 5)
    for y in rows:
        x = cell.x0 + 1.5
        while x < cell.x1 - 8:
            width = float(min(rng.uniform(9, 14), cell.x1 - 1.5 - x))
            top, front, ridge = float(rng.uniform(5.5, 8.5)), y + float(rng.uniform(0, 1.5)), float(rng.uniform(2.8, 4.2))
            roof, wall = pick(rng, TILES if rng.random() < 0.75 else ROOFS), pick(rng, PLASTER)
            if width > 7:
                foot = (x, front, x + width - 0.6, front + 9.5)
                yield Solid("gable", foot, top, roof, wall, PANES, int(rng.choice([2, 5])), 2.8, ridge)
            x += width + (float(rng.uniform(1.5, 5)) if rng.random() < 0.4 else 0.0)
    for _ in range(int(rng.integers(14, 26))):
        yield tree(rng, float(rng.uniform(cell.x0 + 2, cell.x1 - 2)), float(rng.uniform(cell.y0 + 14, cell.y1 - 15)), 0.75)


def _slabs(rng: np.random.Generator, cell: Cell) -> Solids:
    """Parallel slabs on a lawn."""
    wall, y = pick(rng, STONE + PLASTER), cell.y0 + 3
    while y < cell.y1 - 14:
        length = float(rng.uniform(0.6, 0.92)) * (cell.x1 - cell.x0)
        x = float(rng.uniform(cell.x0 + 1, cell.x1 - length - 1))
        top, windows = float(rng.uniform(16, 34)), int(rng.choice([1, 2, 5]))
        slab = Solid("box", (x, y, x + length, y + 11.5), top, pick(rng, ROOFS), wall, PANES, windows, 3.1)
        yield slab
        yield from roof_plant(rng, slab)
        for _ in range(8):
            yield tree(rng, float(rng.uniform(cell.x0 + 3, cell.x1 - 3)), y + 11.5 + float(rng.uniform(4, 9)))
        y += 11.5 + float(rng.uniform(13, 17))


def _park(rng: np.random.Generator, cell: Cell) -> Solids:
    """Trees where neither path nor pond is, densest along the edge."""
    half_w, half_h = (cell.x1 - cell.x0) / 2, (cell.y1 - cell.y0) / 2
    for _ in range(110):
        u, v = float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))
        ring, off_paths = np.hypot(u, v), abs(np.hypot(u, v) - 0.62) > 0.13 and abs(abs(u) - abs(v)) > 0.14
        if off_paths and np.hypot(u * half_w, v * half_h) > 13 and rng.random() < 0.35 + 0.65 * (ring > 0.75):
            yield tree(rng, cell.x0 + half_w * (1 + u * 0.95), cell.y0 + half_h * (1 + v * 0.95), 1.1)


def _plaza(rng: np.random.Generator, cell: Cell) -> Solids:
    """A column on a plinth between two rows of trees."""
    cx, cy = (cell.x0 + cell.x1) / 2, (cell.y0 + cell.y1) / 2
    plinth = (cx - 8, cy - 8, cx + 8, cy + 8)
    yield Solid("box", plinth, 0.8, MARBLE, MARBLE)
    yield Solid("round", (cx - 2.2, cy - 2.2, cx + 2.2, cy + 2.2), 34.0, COPPER, MARBLE, carrier=plinth)
    for x in np.linspace(cell.x0 + 4, cell.x1 - 4, 14).tolist():
        for y in (cell.y0 + 4, cell.y1 - 4):
            yield tree(rng, x, y, 0.7)


def _street_life(rng: np.random.Generator, city: City, cell: Cell) -> Solids:
    """Trees on the sidewalks, cars on the avenue to the left and the street below."""
    avenue, right, street, above = city.avenue(cell.i), city.avenue(cell.i + 1), city.street(cell.j), city.street(cell.j + 1)
    ys = (street.centre + street.half + 7, above.centre - above.half - 7)
    xs = (avenue.centre + avenue.half + 7, right.centre - right.half - 7)

    def bank(x: float, y: float) -> float:
        return float(city.river_distance(np.asarray([x]), np.asarray([y]))[0])

    rows = [-avenue.half - SIDEWALK / 2, avenue.half + SIDEWALK / 2] + ([0.0] if avenue.half > 10 else [])
    for offset in rows:
        for y in np.arange(ys[0], ys[1], 9.5).tolist():
            if rng.random() < (0.72 if avenue.half > 7 else 0.4) and bank(avenue.centre + offset, y) > 4:
                yield tree(rng, avenue.centre + offset, y + float(rng.uniform(-1, 1)), 0.62)
    for lane in (0.27, 0.75) if avenue.half > 7 else (0.42,):
        for x in (avenue.centre - lane * avenue.half, avenue.centre + lane * avenue.half):
            for y in np.arange(ys[0] - 4, ys[1] + 2, 8.0).tolist():
                if rng.random() < 0.34 and bank(avenue.centre, y) > 14:
                    yield car(rng, x, y + float(rng.uniform(0, 3)), along_x=False)
    for y in (street.centre - 0.45 * street.half, street.centre + 0.45 * street.half):
        for x in np.arange(xs[0] - 4, xs[1] + 2, 8.0).tolist():
            if rng.random() < 0.34:
                yield car(rng, x + float(rng.uniform(0, 3)), y, along_x=True)


_MAKERS: dict[str, Callable[[np.random.Generator, Cell], Solids]] = {
    "towers": _towers,
    "offices": _offices,
    "perimeter": _perimeter,
    "houses": _houses,
    "slabs": _slabs,
    "park": _park,
    "plaza": _plaza,
}
