"""A group's finished frame in the store's dtypes: on the leader's device until it is asked for, or in host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.errors import PixelError
from landmark_batch.model.profile import span
from landmark_batch.model.quantise import FLOAT16_MAX, Output, PendingPixels, check_place, picture_stream, pinned_place, stored
from landmark_batch.model.transfer import Fetch, side_stream

from .pixels import PLANES, Layout, totals


class QuantisedFrame:
    """A finished frame in the store's dtypes.

    packed: [size] uint8 of `layout`, put together on the side stream where it is on a CUDA device. numbers: [ranks, NUMBERS] float64 of
    it, in host memory. counters, stages: as of RenderOutput, summed over ranks.
    """

    def __init__(self, layout: Layout, packed: Tensor, numbers: Tensor, width: int, height: int) -> None:
        self._layout, self._packed = layout, packed
        self._width, self._height = width, height
        self.counters, self.stages = totals(numbers)
        self._largest = dict(zip(PLANES, numbers[:, -len(PLANES) :].amax(0).tolist(), strict=True))  # NaN stays NaN

    def numpy(self) -> dict[str, NDArray[np.float32]]:
        """Raises PixelError: the floats have stayed on the ranks that rendered them."""
        raise PixelError("this frame was rounded where it was rendered: its floats are gone", remedy="render it with floats=True")

    def quantise_begin(
        self,
        outputs: Sequence[Output],
        *,
        frame: int,
        into: Mapping[str, NDArray[Any]] | None = None,
        picture: NDArray[np.uint8] | None = None,
    ) -> PendingPixels:
        """As RenderOutput.quantise_begin, for outputs among those that the renderer was made for. From a GPU, pinned arrays are written
        by the device itself. Without `into`, the arrays of a frame in host memory lie in the frame's own, nothing is copied.

        `finish` raises PixelError for NaN, infinity, and values past float16's range. Raises PixelError for other outputs, KeyError if an
        output has no array, TypeError or ValueError for an array of another dtype or shape.
        """
        values = [self._values(output) for output in outputs]
        if into is not None:
            for output, own in zip(outputs, values, strict=True):
                check_place(into[output.name], tuple(own.shape), output)
        refused = self._refused(outputs, frame)
        if self._packed.is_cuda and refused is None:
            return _DeviceCopies(outputs, values, into, picture, self._packed.device)
        return _HostCopies(outputs, values, into, refused)

    def quantised(
        self, outputs: Sequence[Output], *, frame: int, into: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """`quantise_begin` and its `finish` in one."""
        return self.quantise_begin(outputs, frame=frame, into=into).finish()

    def _values(self, output: Output) -> Tensor:
        """[H, W] or [H, W, channels] of an output, in `packed`."""
        shape = (self._height, self._width) if output.channels is None else (self._height, self._width, output.channels)
        for index, own in enumerate(self._layout.outputs):
            if (own.name, own.dtype, own.channels) == (output.name, output.dtype, output.channels):
                return self._layout.values(self._packed, index, self._width * self._height).view(shape)
        raise PixelError(f"{output.name} {output.dtype} was not gathered", remedy="make the renderer with the store's outputs")

    def _refused(self, outputs: Sequence[Output], frame: int) -> PixelError | None:
        """What is wrong with the first output that cannot be stored."""
        for output in outputs:
            for name in (output.name, "alpha") if output.channels == 4 else (output.name,):
                largest = self._largest[name]
                if not np.isfinite(largest):
                    return PixelError(
                        f"frame {frame}: {name} holds values that are NaN or infinite",
                        remedy="nothing of this chunk was written; look at the checkpoint and at near and far",
                    )
                if output.dtype == "float16" and largest > FLOAT16_MAX:
                    return PixelError(
                        f"frame {frame}: {output.name} reaches {largest:g}, past float16", remedy=f"set output.{output.name} = 'float32'"
                    )
        return None


class _HostCopies(PendingPixels):
    stage = "quantise"

    def __init__(
        self, outputs: Sequence[Output], values: Sequence[Tensor], into: Mapping[str, NDArray[Any]] | None, refused: PixelError | None
    ) -> None:
        self._outputs, self._values, self._into, self._refused = outputs, values, into, refused

    def finish(self) -> dict[str, NDArray[Any]]:
        if self._refused is not None:
            raise self._refused
        with span("unpack"):
            pairs = zip(self._outputs, self._values, strict=True)
            return {output.name: stored(values, output, self._into, own=True) for output, values in pairs}


class _DeviceCopies(PendingPixels):
    stage = "copy"

    def __init__(
        self,
        outputs: Sequence[Output],
        values: Sequence[Tensor],
        into: Mapping[str, NDArray[Any]] | None,
        picture: NDArray[np.uint8] | None,
        device: torch.device,
    ) -> None:
        self._outputs, self._into = outputs, into
        places = [pinned_place(into[output.name]) if into is not None else None for output in outputs]
        self._direct = {output.name for output, place in zip(outputs, places, strict=True) if place is not None}
        with torch.cuda.stream(side_stream(device)), torch.inference_mode():  # where the frame was put together
            streams, rooms = picture_stream(outputs, values, picture)
            with span("copy", device):
                self._fetch = Fetch([*values, *streams], [*places, *rooms], device)

    def finish(self) -> dict[str, NDArray[Any]]:
        copied = self._fetch.wait()
        try:
            with span("unpack"):
                found = {}
                for output, values in zip(self._outputs, copied, strict=False):
                    if self._into is not None and output.name in self._direct:
                        found[output.name] = self._into[output.name]
                    else:
                        found[output.name] = stored(values, output, self._into, own=False)
                return found
        finally:
            self._fetch.release()
