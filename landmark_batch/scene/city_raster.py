"""Ground and solids drawn onto a node grid: the height field and the unlit surface of roofs and facades."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landmark_batch.scene.city_ground import draw_ground
from landmark_batch.scene.city_layout import City
from landmark_batch.scene.city_noise import Array, Bools, Floats, value_noise
from landmark_batch.scene.city_quarters import solids
from landmark_batch.scene.city_solids import WINDOW_TYPES, Solid

SUN = np.asarray([-0.57, -0.48, 0.67]) / np.linalg.norm([-0.57, -0.48, 0.67])  # towards the sun
WALL_DEPTH = 4.0  # metres behind a wall that still carry its facade: rays are sampled inside the surface


@dataclass
class Raster:
    """Node grid x [w], y [h] in metres with step `step`; every array is [..., h, w] float32.

    height: the surface. facade_top: height of the solid whose facade a node carries (its own, or that of a neighbour one node away).
    top, wall, glass: linear albedo of roof or ground, wall, window. sun_cosine: between the roof's normal and the sun.
    wall_sun: the same for the facade. out_x, out_y: metres from a node to just outside its facade. windows: column pattern
    of each window type in 0..1, shop fronts last. gloss: reflectivity of the top (water).
    """

    x: Array
    y: Array
    step: float
    height: Array
    facade_top: Array
    top: Array
    wall: Array
    glass: Array
    sun_cosine: Array
    wall_sun: Array
    out_x: Array
    out_y: Array
    windows: Array
    gloss: Array


@dataclass(frozen=True)
class _Shape:
    """A solid over its part of the grid, [h, w]: offsets u, v from its middle, depth inside its edge, outward normal, way along it."""

    u: Floats
    v: Floats
    half: tuple[float, float]
    depth: Floats
    normal: tuple[Floats, Floats]
    along: Floats


def draw(city: City, x: Array, y: Array) -> Raster:
    """The unlit city at nodes x [w], y [h] metres (ascending, even steps)."""
    step, shape = float(x[1] - x[0]), (len(y), len(x))
    ground = draw_ground(city, x, y)
    raster = Raster(
        x=x,
        y=y,
        step=step,
        height=ground.height,
        facade_top=ground.height.copy(),
        top=ground.albedo,
        wall=0.22 * ground.albedo,
        glass=0.22 * ground.albedo,
        sun_cosine=np.full(shape, SUN[2], np.float32),
        wall_sun=np.zeros(shape, np.float32),
        out_x=np.zeros(shape, np.float32),
        out_y=np.zeros(shape, np.float32),
        windows=np.zeros((WINDOW_TYPES + 1, *shape), np.float32),
        gloss=ground.gloss,
    )
    for solid in solids(city, float(x[0]) - step, float(y[0]) - step, float(x[-1]) + step, float(y[-1]) + step):
        _draw_solid(raster, solid)
    raster.top *= 0.95 + 0.10 * value_noise(x, y, 1.3, city.seed + 21)
    return raster


def _draw_solid(r: Raster, s: Solid) -> None:
    ring = 1.01 * r.step  # the nodes around a solid carry its facade: the wall stands between them and the rim
    ix = slice(int(np.searchsorted(r.x, s.foot[0] - ring)), int(np.searchsorted(r.x, s.foot[2] + ring)))
    iy = slice(int(np.searchsorted(r.y, s.foot[1] - ring)), int(np.searchsorted(r.y, s.foot[3] + ring)))
    if ix.stop <= ix.start or iy.stop <= iy.start:
        return
    at = (iy, ix)
    shape = _shape(s, r.x[None, ix].astype(np.float64), r.y[iy, None].astype(np.float64))
    height, cosine = _roof(s, shape)
    inside = (shape.depth >= 0) & (height > r.height[at])
    facade = (shape.depth >= -ring) & (height > r.facade_top[at]) & (s.shape != "garden")
    _fill(r.height[at], inside, height)
    _fill(r.sun_cosine[at], inside, cosine)
    _fill(r.gloss[at], inside, 0.0)
    shade = _roof_shade(s, shape)
    for c in range(3):
        _fill(r.top[c][at], inside, s.roof[c] * shade)
        _fill(r.wall[c][at], facade, s.wall[c])
        _fill(r.glass[c][at], facade, s.glass[c])
    _fill(r.facade_top[at], facade, height)
    _fill(r.wall_sun[at], facade, np.maximum(shape.normal[0] * SUN[0] + shape.normal[1] * SUN[1], 0.0))
    outside = np.where(shape.depth < WALL_DEPTH, np.maximum(shape.depth, -ring) + 2.2 * r.step, 0.0)
    _fill(r.out_x[at], facade, shape.normal[0] * outside)
    _fill(r.out_y[at], facade, shape.normal[1] * outside)
    for kind, columns in enumerate(_window_columns(s, shape)):
        _fill(r.windows[kind][at], facade, columns)


def _shape(s: Solid, x: Floats, y: Floats) -> _Shape:
    x0, y0, x1, y1 = s.foot
    rx, ry = (x1 - x0) / 2, (y1 - y0) / 2
    u, v = np.broadcast_arrays(x - (x0 + x1) / 2, y - (y0 + y1) / 2)
    if s.shape in ("round", "crown"):
        radius = np.sqrt(u**2 + v**2)
        safe = np.maximum(radius, 1e-6)
        return _Shape(u, v, (rx, ry), rx - radius, (u / safe, v / safe), np.arctan2(v, u) * rx)
    to_x, to_y = rx - np.abs(u), ry - np.abs(v)
    on_x = to_x < to_y
    normal = (np.where(on_x, np.sign(u), 0.0), np.where(on_x, 0.0, np.sign(v)))
    return _Shape(u, v, (rx, ry), np.minimum(to_x, to_y), normal, np.where(on_x, v, u))


def _roof(s: Solid, shape: _Shape) -> tuple[Floats, Floats]:
    """Height of the solid's upper surface (extended over its ring) and the cosine between its normal and the sun."""
    rx, ry = shape.half
    if s.shape == "gable":
        along_x = rx >= ry
        half, across = (ry, shape.v) if along_x else (rx, shape.u)
        pitch = s.ridge / half
        height = s.top + s.ridge * np.clip(1 - np.abs(across) / half, 0, 1)
        cosine = (SUN[2] + pitch * np.sign(across) * (SUN[1] if along_x else SUN[0])) / np.hypot(1, pitch)
        return height, np.maximum(cosine, 0.0)
    if s.shape == "crown":
        dome = np.sqrt(np.clip(1 - (shape.depth / rx - 1) ** 2, 0, 1))  # 1 at the stem, 0 at the rim
        cosine = dome * SUN[2] + (shape.u * SUN[0] + shape.v * SUN[1]) / rx
        return s.top * (0.42 + 0.58 * dome), np.maximum(cosine, 0.0)
    return np.full(shape.depth.shape, s.top), np.full(shape.depth.shape, SUN[2])


def _roof_shade(s: Solid, shape: _Shape) -> Floats:
    """A lighter parapet around flat roofs; the dark body around a car's cabin."""
    if s.shape == "car":
        cabin = (np.abs(shape.u) < 0.55 * shape.half[0]) & (np.abs(shape.v) < 0.55 * shape.half[1])
        return np.where(cabin, 1.0, 0.55)
    parapet = (shape.depth < 0.9) & (s.shape in ("box", "round")) & (s.top > 4)
    return 1.0 + 0.35 * parapet


def _window_columns(s: Solid, shape: _Shape) -> Floats:
    """[WINDOW_TYPES + 1, h, w]: how much of a storey's length is window, along the facade."""
    columns = np.zeros((WINDOW_TYPES + 1, *shape.depth.shape))
    near = shape.depth < WALL_DEPTH
    wave = np.cos(2 * np.pi * shape.along / s.bay)
    if s.windows in (1, 3):  # ribbons and curtain walls: thin mullions
        columns[s.windows] = near * (0.92 - 0.22 * (0.5 + 0.5 * wave) ** 4)
    elif s.windows >= 0:
        columns[s.windows] = near * np.clip(0.5 + 0.95 * wave, 0, 1)
    if s.shops:
        columns[WINDOW_TYPES] = near * np.clip(0.75 + 0.6 * np.cos(2 * np.pi * shape.along / 5.1), 0, 1)
    return columns


def _fill(target: Array, where: Bools, value: Floats | float) -> None:
    np.copyto(target, np.asarray(value, dtype=np.float32), where=where)
