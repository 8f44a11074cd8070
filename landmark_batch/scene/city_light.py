"""Sun, sky and shadow on the drawn city: what a node's roof, wall and windows look like, ready to be written into planes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from landmark_batch.scene.city_layout import City
from landmark_batch.scene.city_noise import Array
from landmark_batch.scene.city_raster import SUN, Raster, draw
from landmark_batch.scene.city_solids import MAX_HEIGHT

SUN_COLOUR = np.asarray([1.62, 1.50, 1.30], np.float32)
SKY_COLOUR = np.asarray([0.46, 0.53, 0.66], np.float32)
OCCLUSION_REACH = 16.0  # metres


@dataclass(frozen=True)
class Surface:
    """The lit city at one block's nodes. All [..., h, w] float32; heights in metres, colours display sRGB in 0..1.

    top: roof or ground in sun, shadow and occlusion. wall, glass: facade in the sky's light alone. gain: factor on both in the sun.
    shade: below this height the facade lies in shadow. facade_top: height of the facade's upper edge. windows: column patterns.
    """

    height: Array
    facade_top: Array
    top: Array
    wall: Array
    glass: Array
    gain: Array
    shade: Array
    windows: Array
    gloss: Array


def light(city: City, x: Array, y: Array) -> Surface:
    """Draw and light the city at nodes x [w], y [h] metres. The surroundings that throw shadows are drawn as well."""
    step = float(x[1] - x[0])
    reach = MAX_HEIGHT / SUN[2] * np.hypot(SUN[0], SUN[1])
    toward = [round(float(a / np.hypot(SUN[0], SUN[1])), 4) for a in SUN[:2]]
    rim = int(np.ceil(OCCLUSION_REACH / step)) + 3
    low = [max(rim, int(np.ceil(reach * max(0.0, -t) / step)) + rim) for t in toward]
    high = [max(rim, int(np.ceil(reach * max(0.0, t) / step)) + rim) for t in toward]
    wide_x, wide_y = _extend(x, low[0], high[0]), _extend(y, low[1], high[1])
    raster = draw(city, wide_x, wide_y)
    keep = (slice(low[1], low[1] + len(y)), slice(low[0], low[0] + len(x)))

    horizon = shadow_height(raster.height, step, (toward[0], toward[1]), SUN[2] / np.hypot(SUN[0], SUN[1]))
    lit = np.clip((raster.height - horizon) / 0.9 + 0.6, 0, 1)
    lit = uniform_filter(lit, 3)
    occlusion = _occlusion(raster)
    sun = (raster.sun_cosine * lit)[keep] / np.float32(SUN[2]) * np.float32(0.74)
    open_sky = (1 - 0.62 * occlusion)[keep]
    top = np.stack(
        [_display(raster.top[c][keep] * (SUN_COLOUR[c] * sun * (0.55 + 0.45 * open_sky) + SKY_COLOUR[c] * open_sky)) for c in range(3)]
    )
    ambient = np.float32(0.80)
    wall = np.stack([_display(raster.wall[c][keep] * SKY_COLOUR[c] * ambient) for c in range(3)])
    glass = np.stack([_display(raster.glass[c][keep] * SKY_COLOUR[c] * ambient) for c in range(3)])
    gain = ((ambient * SKY_COLOUR[1] + SUN_COLOUR[1] * raster.wall_sun[keep]) / (ambient * SKY_COLOUR[1])) ** np.float32(1 / 2.2)
    rows = np.clip(np.arange(len(wide_y))[:, None] + np.rint(raster.out_y / step).astype(np.int64), 0, len(wide_y) - 1)
    columns = np.clip(np.arange(len(wide_x))[None, :] + np.rint(raster.out_x / step).astype(np.int64), 0, len(wide_x) - 1)
    shade = np.clip(horizon[rows[keep], columns[keep]], -4.0, MAX_HEIGHT)
    return Surface(
        raster.height[keep],
        raster.facade_top[keep],
        top,
        wall,
        glass,
        gain.astype(np.float32),
        shade.astype(np.float32),
        raster.windows[:, keep[0], keep[1]],
        raster.gloss[keep],
    )


def shadow_height(height: Array, step: float, toward: tuple[float, float], tangent: float) -> Array:
    """Height below which each node lies in shadow: max over distance s of height(p + s·toward) − s·tangent.

    By doubling: the maximum over 2n steps is that over n steps, and the same n steps further.
    """
    shadow = _shift(height, toward[1], toward[0]) - np.float32(step * tangent)
    reach = 1
    while reach * step * tangent < MAX_HEIGHT + 4:
        further = _shift(shadow, toward[1] * reach, toward[0] * reach) - np.float32(reach * step * tangent)
        np.maximum(shadow, further, out=shadow)
        reach *= 2
    return shadow


def _shift(a: Array, dy: float, dx: float) -> Array:
    """a at (row + dy, column + dx), rounded to nodes; −1000 beyond the edge."""
    iy, ix = round(dy), round(dx)
    h, w = a.shape
    out = np.full_like(a, -1000.0)
    if abs(iy) < h and abs(ix) < w:
        out[max(0, -iy) : h - max(0, iy), max(0, -ix) : w - max(0, ix)] = a[max(0, iy) : h - max(0, -iy), max(0, ix) : w - max(0, -ix)]
    return out


def _occlusion(raster: Raster) -> Array:
    """0 under open sky, towards 1 where the surroundings rise above a node."""
    total = np.zeros_like(raster.height)
    for radius, share in ((3.0, 0.45), (9.0, 0.35), (OCCLUSION_REACH, 0.35)):
        size = 2 * max(1, round(radius / raster.step)) + 1
        rise = uniform_filter(raster.height, size) - raster.height
        total += np.float32(share) * np.clip(rise / np.float32(radius * 0.9), 0, 1)
    return np.clip(total, 0, 1)


def _display(albedo: Array) -> Array:
    """Linear light to display values, with a soft shoulder."""
    exposed = albedo * np.float32(1.12)
    return np.clip(exposed / (1 + 0.18 * exposed), 0, 1) ** np.float32(1 / 2.2)


def _extend(nodes: Array, low: int, high: int) -> Array:
    step = (float(nodes[-1]) - float(nodes[0])) / (len(nodes) - 1)
    return (float(nodes[0]) + step * np.arange(-low, len(nodes) + high)).astype(np.float32)
