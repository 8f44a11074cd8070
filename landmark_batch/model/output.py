"""RenderOutput: a finished frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class RenderOutput:
    """A frame on the renderer's device.

    rgb: [H, W, 3] float32 in 0..1, on the background (transparent: premultiplied by alpha). depth: [H, W] float32, sum of
    weight * t. alpha: [H, W] float32, sum of weights. counters: rays, samples (rays * samples a ray), survived (inside the box and
    the mask), coloured (above the weight threshold). stages: seconds by stage, summed over threads (CPU, or asked for).
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor
    counters: dict[str, int]
    stages: dict[str, float] = field(default_factory=dict)

    def numpy(self) -> dict[str, NDArray[np.float32]]:
        """rgb, depth and alpha as numpy arrays."""
        return {name: getattr(self, name).cpu().numpy() for name in ("rgb", "depth", "alpha")}
