"""Rendered floats to the store's dtypes: rounded, clamped, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import PixelError

from .spec import OutputSpec


def quantise(rendered: Mapping[str, NDArray[np.floating[Any]]], outputs: Sequence[OutputSpec], *, frame: int) -> dict[str, NDArray[Any]]:
    """One frame in the store's dtypes.

    rendered: 'rgb' [H, W, 3], 'depth' [H, W], 'alpha' [H, W], float32; rgb and alpha in 0..1, depth in scene units. For an rgb of
    four channels, rgb is premultiplied and joined with alpha to [H, W, 4].
    Integers: floor(x · max + 0.5) after clamping to 0..1, in float32, so that 0 and 1 are exact. Floats keep their values.
    Raises PixelError naming frame and output for NaN, infinity, or a value past float16's range; KeyError if an output was not rendered.
    """
    return {output.name: _quantise(_planes(rendered, output, frame), output, frame) for output in outputs}


def _planes(rendered: Mapping[str, NDArray[np.floating[Any]]], output: OutputSpec, frame: int) -> NDArray[np.float32]:
    values = _finite(rendered[output.name], output.name, frame)
    if output.channels == 4:
        return np.concatenate([values, _finite(rendered["alpha"], "alpha", frame)[..., None]], axis=-1)
    return values


def _finite(values: NDArray[np.floating[Any]], name: str, frame: int) -> NDArray[np.float32]:
    array = np.asarray(values, dtype=np.float32)
    if not np.isfinite(array).all():
        wrong = ~np.isfinite(array)
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise PixelError(
            f"frame {frame}: {name} holds {int(wrong.sum())} values that are NaN or infinite, the first at {first}",
            remedy="nothing of this chunk was written; look at the checkpoint and at near and far",
        )
    return array


def _quantise(values: NDArray[np.float32], output: OutputSpec, frame: int) -> NDArray[Any]:
    dtype = np.dtype(output.dtype)
    if dtype.kind == "f":
        if dtype == np.float16 and values.size and float(np.abs(values).max()) > float(np.finfo(np.float16).max):
            raise PixelError(
                f"frame {frame}: {output.name} reaches {np.abs(values).max():g}, past float16",
                remedy=f"set output.{output.name} = 'float32'",
            )
        return np.ascontiguousarray(values.astype(dtype))
    top = np.float32(np.iinfo(dtype).max)
    scaled = np.clip(values, np.float32(0), np.float32(1)) * top + np.float32(0.5)
    return np.ascontiguousarray(np.floor(scaled).astype(dtype))
