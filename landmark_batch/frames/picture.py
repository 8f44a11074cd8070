"""Stored pixels to what a file wants: 8 or 16 bits, straight or premultiplied alpha, display-referred or linear.

A store's rgb is display-referred sRGB, as the scene was trained. With a transparent background it is RGBA premultiplied in those same
display values, so that laying it over a colour is rgb + (1 − alpha)·colour, as the renderer itself does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
Float32 = NDArray[np.float32]
MATTES = {"white": 1.0, "black": 0.0}


def to_float(values: Pixels) -> Float32:
    """Integers to [0, 1], floats as float32. Any shape."""
    if values.dtype == np.uint8:
        known: Float32 = (np.arange(256, dtype=np.float32) / np.float32(255.0))[values]
        return known
    if values.dtype == np.uint16:
        return values.astype(np.float32) / np.float32(65535.0)
    return values.astype(np.float32)


def to_bits(values: Pixels, bits: int) -> Pixels:
    """uint8 (bits = 8) or uint16 (16), rounded to nearest; floats are clipped to [0, 1]. Integers of that width come back as they are."""
    if values.dtype == (np.uint8 if bits == 8 else np.uint16):
        return values
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * np.uint16(257)
    if values.dtype == np.uint16:
        narrow: Pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return narrow
    scaled = np.clip(values.astype(np.float32), 0.0, 1.0) * np.float32(255 if bits == 8 else 65535) + np.float32(0.5)
    rounded: Pixels = np.floor(scaled, out=scaled).astype(np.uint8 if bits == 8 else np.uint16)  # as the store itself rounds
    return rounded


def straight(rgba: Float32) -> Float32:
    """Premultiplied to straight alpha: [..., 4] in [0, 1]. Where alpha is 0 the colour is 0."""
    alpha = rgba[..., 3:]
    colour = np.divide(rgba[..., :3], alpha, out=np.zeros_like(rgba[..., :3]), where=alpha > 0)
    return np.concatenate([np.clip(colour, 0.0, 1.0), alpha], axis=-1)


def over(rgba: Float32, matte: str) -> Float32:
    """Premultiplied [..., 4] laid over 'white' or 'black'. Returns [..., 3] in [0, 1]."""
    return np.clip(rgba[..., :3] + (1.0 - rgba[..., 3:]) * np.float32(MATTES[matte]), 0.0, 1.0)


def linear(values: Float32) -> Float32:
    """Display-referred sRGB to linear light: the piecewise transfer function of IEC 61966-2-1. values in [0, 1], any shape."""
    high = np.power((values + np.float32(0.055)) / np.float32(1.055), np.float32(2.4))
    return np.where(values <= np.float32(0.04045), values / np.float32(12.92), high).astype(np.float32)


def linear_rgb(pixels: Pixels, dtype: str = "float32") -> Pixels:
    """Stored [H, W, 3|4] to linear light, float16 or float32.

    RGBA stays premultiplied: the straight colour is linearised and multiplied by alpha again.
    """
    if pixels.shape[-1] == 4:
        rgba = straight(to_float(pixels))
        return np.concatenate([linear(rgba[..., :3]) * rgba[..., 3:], rgba[..., 3:]], axis=-1, dtype=dtype)
    if pixels.dtype in (np.uint8, np.uint16):
        levels = np.arange(np.iinfo(pixels.dtype).max + 1, dtype=pixels.dtype)
        picture: Pixels = linear(to_float(levels)).astype(dtype)[pixels]
        return picture
    return linear(np.clip(to_float(pixels), 0.0, 1.0)).astype(dtype, copy=False)


def opaque(pixels: Pixels, matte: str) -> Pixels:
    """[H, W, 3] of stored [H, W, 3|4]: RGBA is laid over the matte (then float32), RGB comes back as it is."""
    return over(to_float(pixels), matte) if pixels.shape[-1] == 4 else pixels


def straight_bits(pixels: Pixels, bits: int) -> Pixels:
    """[H, W, 3|4] as integers with straight alpha, as PNG wants it."""
    return to_bits(straight(to_float(pixels)), bits) if pixels.shape[-1] == 4 else to_bits(pixels, bits)
