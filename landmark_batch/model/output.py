"""RenderOutput: a finished frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.model.quantise import Output, quantise


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

    def quantised(
        self, outputs: Sequence[Output], *, frame: int, into: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The frame in a store's dtypes, rounded on its device: `landmark_batch.model.quantise.quantise`, whose errors it raises."""
        return quantise({"rgb": self.rgb, "depth": self.depth, "alpha": self.alpha}, outputs, frame=frame, into=into)


def on_background(rgb: Tensor, alpha: Tensor, background: str) -> Tensor:
    """rgb [..., 3], sums of weight * colour, with their alpha [...], on a background of RenderSettings, clamped to 0..1."""
    if background == "white":
        rgb = rgb + (1.0 - alpha[..., None])
    return rgb.clamp(0.0, 1.0)
