"""RenderOutput: a finished frame, and the buffer that it is put together in."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.model.begun import Begun
from landmark_batch.model.quantise import Output, PendingPixels, quantise_begin
from landmark_batch.model.tiles import Tile

COUNTERS = ("rays", "samples", "survived", "coloured")


@dataclass(frozen=True)
class RenderOutput:
    """A frame on the renderer's device.

    rgb: [H, W, 3] float32 in 0..1, on the background (transparent: premultiplied by alpha). depth: [H, W] float32, sum of
    weight * t. alpha: [H, W] float32, sum of weights. counters: rays, samples (rays * samples a ray), survived (inside the box and
    the mask), coloured (above the weight threshold). stages: seconds by stage, summed over threads (CPU, or asked for). after: the event
    after which the tensors are there, where the device's stream has gone on to other frames; None: all that it was told.
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor
    counters: dict[str, int]
    stages: dict[str, float] = field(default_factory=dict)
    after: torch.cuda.Event | None = None

    def numpy(self) -> dict[str, NDArray[np.float32]]:
        """rgb, depth and alpha as numpy arrays."""
        return {name: getattr(self, name).cpu().numpy() for name in ("rgb", "depth", "alpha")}

    def quantise_begin(
        self,
        outputs: Sequence[Output],
        *,
        frame: int,
        into: Mapping[str, NDArray[Any]] | None = None,
        picture: NDArray[np.uint8] | None = None,
    ) -> PendingPixels:
        """Round the frame to a store's dtypes on its device and have it copied to the host while the next one is rendered:
        `landmark_batch.model.quantise.quantise_begin`. The frame's tensors are not to be changed before it is finished.
        """
        rendered = {"rgb": self.rgb, "depth": self.depth, "alpha": self.alpha}
        return quantise_begin(rendered, outputs, frame=frame, into=into, picture=picture, after=self.after)

    def quantised(
        self, outputs: Sequence[Output], *, frame: int, into: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The frame in a store's dtypes: `quantise_begin` and its `finish` in one."""
        return self.quantise_begin(outputs, frame=frame, into=into).finish()


BegunFrame: TypeAlias = Begun[RenderOutput]


class FrameBuffer:
    """A frame that is put together from tiles, by any threads at once. stages: names whose seconds are summed."""

    def __init__(self, width: int, height: int, device: torch.device, stages: Sequence[str]) -> None:
        self._rgb = torch.empty(height, width, 3, dtype=torch.float32, device=device)
        self._depth = torch.empty(height, width, dtype=torch.float32, device=device)
        self._alpha = torch.empty(height, width, dtype=torch.float32, device=device)
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._stages = dict.fromkeys(stages, 0.0)
        self._lock = threading.Lock()

    def place(
        self, tile: Tile, rgb: Tensor, depth: Tensor, alpha: Tensor, counters: Mapping[str, int], stages: Mapping[str, float]
    ) -> None:
        """The pixels of one tile: rgb [R, 3] on the background, depth [R], alpha [R], row by row, and what they cost."""
        region = (slice(tile.top, tile.bottom), slice(tile.left, tile.right))
        shape = (tile.bottom - tile.top, tile.right - tile.left)
        self._rgb[region] = rgb.view(*shape, 3)
        self._depth[region] = depth.view(shape)
        self._alpha[region] = alpha.view(shape)
        with self._lock:
            for name in self._counters:
                self._counters[name] += counters[name]
            for name, seconds in stages.items():
                self._stages[name] += seconds

    def output(self, *, stages: bool) -> RenderOutput:
        """The frame, once every tile is in its place. stages: whether its seconds are wanted."""
        return RenderOutput(self._rgb, self._depth, self._alpha, self._counters, self._stages if stages else {})


def on_background(rgb: Tensor, alpha: Tensor, background: str) -> Tensor:
    """rgb [..., 3], sums of weight * colour, with their alpha [...], on a background of RenderSettings, clamped to 0..1."""
    if background == "white":
        rgb = rgb + (1.0 - alpha[..., None])
    return rgb.clamp(0.0, 1.0)
