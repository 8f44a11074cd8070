"""The demo city's bare ground: asphalt with its marks, sidewalks, lawns, parks, plazas and the river. Colours are linear albedo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landmark_batch.scene.city_layout import AVENUE_PITCH, QUAY, SIDEWALK, STREET_PITCH, Cell, City, Road
from landmark_batch.scene.city_noise import Array, Bools, Floats, value_noise

Colour = tuple[float, float, float]

WATER_LEVEL = -1.4  # metres


def linear(hexcode: str) -> Colour:
    """'#rrggbb' in sRGB -> linear RGB."""
    channels = [int(hexcode[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return (r, g, b)


ASPHALT, PAVING, PAINT, YELLOW = linear("#54565b"), linear("#a8a49c"), linear("#e4e4e0"), linear("#d9b24a")
GRASS, MEADOW, PATH = linear("#67803f"), linear("#7d8f4a"), linear("#cdbf9d")
WATER, POND, QUAY_STONE = linear("#2f5560"), linear("#3f7f93"), linear("#b5ab98")
INTERIOR = {
    "park": GRASS,
    "plaza": linear("#bcb4a6"),
    "towers": linear("#aaa8a4"),
    "offices": linear("#a29f98"),
    "perimeter": linear("#76884f"),
    "houses": linear("#6e8446"),
    "slabs": linear("#6f884a"),
}


@dataclass(frozen=True)
class Ground:
    """On a node grid: albedo [3, h, w] linear, height [h, w] metres, gloss [h, w] in 0..1 (water)."""

    albedo: Array
    height: Array
    gloss: Array


@dataclass(frozen=True)
class _Axis:
    """Nodes [n] along one axis: signed offset from the nearest road's centre line, distance to it, that road's half width."""

    nodes: Array
    offset: Array
    distance: Array
    half: Array

    def within(self, margin: float, step: float) -> Array:
        return _soft(self.half + margin - self.distance, step)


def draw_ground(city: City, x: Array, y: Array) -> Ground:
    """The ground at nodes x [w], y [h] metres (ascending, evenly spaced)."""
    step = float(x[1] - x[0])
    across = _roads_at(x, [city.avenue(i) for i in _span(x, AVENUE_PITCH)])
    along = _roads_at(y, [city.street(j) for j in _span(y, STREET_PITCH)])
    cells = city.cells(float(x[0]), float(y[0]), float(x[-1]), float(y[-1]))
    speckle = value_noise(x, y, 1.7, city.seed + 11) - 0.5
    patches = value_noise(x, y, 13.0, city.seed + 12) - 0.5
    albedo = _interiors(cells, x, y)
    green = (albedo[1] > 1.25 * albedo[0]).astype(np.float32)
    albedo *= 1 + green * (0.35 * speckle + 0.5 * patches) + (1 - green) * (0.08 * speckle + 0.10 * patches)
    for cell in cells:
        if cell.kind in ("park", "plaza"):
            _garden(cell, albedo, x, y, step)
    pavement = np.maximum(across.within(SIDEWALK, step)[None, :], along.within(SIDEWALK, step)[:, None])
    _blend(albedo, PAVING, pavement, 1 + 0.10 * speckle + 0.12 * patches)
    roadway = np.maximum(across.within(0, step)[None, :], along.within(0, step)[:, None])
    _blend(albedo, ASPHALT, roadway, 1 + 0.14 * speckle + 0.22 * patches)
    _marks(albedo, across, along, step, streets=False)
    _marks(albedo, along, across, step, streets=True)
    return _water(city, albedo, x, y, along, step)


def _interiors(cells: list[Cell], x: Array, y: Array) -> Array:
    albedo = np.empty((3, len(y), len(x)), np.float32)
    albedo[:] = np.asarray(INTERIOR["offices"], np.float32)[:, None, None]
    for cell in cells:
        sx, sy = _slice(x, cell.x0 - SIDEWALK, cell.x1 + SIDEWALK), _slice(y, cell.y0 - SIDEWALK, cell.y1 + SIDEWALK)
        albedo[:, sy, sx] = np.asarray(INTERIOR[cell.kind], np.float32)[:, None, None]
    return albedo


def _marks(albedo: Array, across: _Axis, along: _Axis, step: float, *, streets: bool) -> None:
    """Lane marks, medians and zebra crossings of all roads that lie across one axis and run along the other."""

    def spread(profile: Floats, course: Floats) -> Floats:
        return course[None, :] * profile[:, None] if streets else course[:, None] * profile[None, :]

    wide = (across.half > 7.0).astype(np.float32)
    clear = _soft(along.distance - along.half - 4.5, step)  # no marks on a crossing
    dashes = clear * _soft(1.8 - np.abs(np.mod(along.nodes, 9.0) - 4.5), step)
    zebra = _soft(1.5 - np.abs(along.distance - along.half - 2.2), step)
    inside = _soft(across.half - 0.6 - across.distance, step)
    bars = inside * (0.5 + 0.5 * np.cos(2 * np.pi * across.offset / 2.4))
    centre = _soft(0.22 - np.abs(across.distance - 0.35), step) * wide + _soft(0.2 - across.distance, step) * (1 - wide)
    lanes = _soft(0.2 - np.abs(across.distance - across.half / 2), step) * wide
    boulevard = _soft(1.6 - across.distance, step) * (across.half > 10)
    _blend(albedo, PAINT, 0.85 * spread(bars, zebra))
    _blend(albedo, PAINT, 0.9 * spread(lanes, dashes))
    _blend(albedo, PAINT if streets else YELLOW, 0.85 * spread(centre, dashes if streets else clear))
    _blend(albedo, GRASS, spread(boulevard, clear))


def _water(city: City, albedo: Array, x: Array, y: Array, streets: _Axis, step: float) -> Ground:
    """The river between its quays, under a bridge wherever a street meets it."""
    bank = city.river_distance(x[None, :], y[:, None])
    bridge = _soft(streets.half + 1.5 - streets.distance, step)[:, None] * np.ones_like(bank)
    quay = _soft(QUAY - bank, step) * (1 - bridge)
    _blend(albedo, QUAY_STONE, quay, 1 + 0.2 * (value_noise(x, y, 3.1, city.seed + 13) - 0.5))
    _blend(albedo, GRASS, quay * _soft(1.6 - np.abs(bank - 6.0), step))
    water = _soft(-bank, step) * (1 - bridge)
    ripple = value_noise(x, y, 5.0, city.seed + 14) - 0.5
    _blend(albedo, WATER, water, 1 + 0.25 * ripple + 0.35 * np.clip(1 + bank / city.river_half, 0, 1))
    parapet = _soft(0.5 - np.abs(streets.distance - streets.half - 1.2), step)[:, None] * (bank < 1.0)
    _blend(albedo, PAINT, 0.8 * parapet)
    height = np.where(parapet > 0.4, 0.9, np.where(water > 0.5, WATER_LEVEL, 0.0)).astype(np.float32)
    return Ground(albedo, height, water.astype(np.float32))


def _garden(cell: Cell, albedo: Array, x: Array, y: Array, step: float) -> None:
    """Paths and pond of a park, paving rings of a plaza."""
    sx, sy = _slice(x, cell.x0, cell.x1), _slice(y, cell.y0, cell.y1)
    part = albedo[:, sy, sx]
    u, v = x[None, sx] - (cell.x0 + cell.x1) / 2, y[sy, None] - (cell.y0 + cell.y1) / 2
    half_w, half_h = (cell.x1 - cell.x0) / 2, (cell.y1 - cell.y0) / 2
    radius = np.sqrt(u**2 + v**2)
    if cell.kind == "plaza":
        _blend(part, QUAY_STONE, 0.6 * (0.5 + 0.5 * np.sin(radius * 2 * np.pi / 6.0)))
        return
    ring = np.abs(np.sqrt((u / half_w) ** 2 + (v / half_h) ** 2) - 0.62) * min(half_w, half_h)
    diagonal = np.minimum(np.abs(u * half_h - v * half_w), np.abs(u * half_h + v * half_w)) / np.hypot(half_w, half_h)
    _blend(part, MEADOW, 0.6 * _soft(0.55 * min(half_w, half_h) - radius, step))
    _blend(part, PATH, np.maximum(_soft(1.3 - ring, step), _soft(1.2 - diagonal, step) * _soft(radius - 9, step)))
    _blend(part, PATH, _soft(10.5 - radius, step))
    _blend(part, POND, _soft(8.5 - radius, step))


def _roads_at(nodes: Array, roads: list[Road]) -> _Axis:
    centres, halves = np.asarray([r.centre for r in roads]), np.asarray([r.half for r in roads])
    offsets = nodes[:, None] - centres
    nearest = np.argmin(np.abs(offsets) - halves, axis=1)
    offset = np.take_along_axis(offsets, nearest[:, None], 1)[:, 0].astype(np.float32)
    return _Axis(nodes, offset, np.abs(offset), halves[nearest].astype(np.float32))


def _span(nodes: Array, pitch: float) -> range:
    return range(int(np.floor(nodes[0] / pitch)) - 2, int(np.ceil(nodes[-1] / pitch)) + 2)


def _soft(inside: Floats, step: float) -> Array:
    """Coverage of a node by a shape, from the distance inside its edge."""
    return np.asarray(np.clip(inside / step + 0.5, 0, 1), dtype=np.float32)


def _slice(nodes: Array, low: float, high: float) -> slice:
    return slice(int(np.searchsorted(nodes, low)), int(np.searchsorted(nodes, high)))


def _blend(albedo: Array, colour: Colour, coverage: Floats | Bools, texture: Floats | float = 1.0) -> None:
    for c in range(3):
        albedo[c] += coverage * (colour[c] * texture - albedo[c])
