"""Near and far of a depth picture: given, or percentiles over the frames that are exported."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import ConfigError

from .source import FrameSource

_log = logging.getLogger(__name__)
_SAMPLES = 1 << 22  # values the percentiles are taken from, over all frames
_LEAST = 256  # of each frame, however many there are


def check_range(near: float | None, far: float | None, percentiles: tuple[float, float]) -> None:
    """Raises ConfigError if near or far is not finite, near is not below far or the percentiles are not 0 <= low < high <= 100."""
    for name, value in (("near", near), ("far", far)):
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{name} = {value:g} is not finite", remedy="scene units along the view axis; default from the frames")
    if near is not None and far is not None and not near < far:
        raise ConfigError(f"near = {near:g} must be below far = {far:g}", remedy="both in scene units along the view axis")
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ConfigError(f"percentiles {low:g} and {high:g}: not 0 ≤ low < high ≤ 100", remedy="for example 1 and 99")


def depth_range(
    source: FrameSource,
    frames: Sequence[int],
    *,
    near: float | None = None,
    far: float | None = None,
    percentiles: tuple[float, float] = (1.0, 99.0),
) -> tuple[float, float]:
    """(near, far) in scene units: what is given, the rest from percentiles of the depth of `frames`.

    Pixels of depth 0 (nothing was hit) do not count. A regular grid of pixels of every frame is read, 4 million values or 256 a frame.
    """
    check_range(near, far, percentiles)
    if near is not None and far is not None:
        return near, far
    each = max(_LEAST, _SAMPLES // max(1, len(frames)))
    samples = [_grid(source.read("depth", frame), each) for frame in frames]
    values = np.concatenate(samples) if samples else np.zeros(0, np.float32)
    if values.size == 0:
        low, high = 0.0, 1.0
    else:
        low, high = (float(value) for value in np.percentile(values, percentiles))
    low = low if near is None else near
    high = high if far is None else far
    if not low < high:  # a flat scene, or one end given beyond the other
        low, high = (low, low + 1.0) if far is None else (high - 1.0, high)
    _log.info("depth range of %d frames: %g to %g scene units (percentiles %g and %g)", len(frames), low, high, *percentiles)
    return low, high


def _grid(depth: NDArray[np.floating], most: int) -> NDArray[np.float32]:
    step = max(1, int(np.ceil(np.sqrt(depth.size / most))))
    values = depth[step // 2 :: step, step // 2 :: step].astype(np.float32).ravel()
    return values[values > 0]
