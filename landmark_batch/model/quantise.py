"""Rendered floats to the store's dtypes on their own device: the same bits as frames.pixels.quantise makes on the host.

What leaves a GPU is then a quarter of the floats, on a stream of its own while the next frame is rendered: straight into pinned arrays,
or through a pinned buffer that is used again for every frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.errors import PixelError
from landmark_batch.kernels.picture import png_stream
from landmark_batch.kernels.rounding import read_back, rounded
from landmark_batch.model.profile import span
from landmark_batch.model.transfer import Landing, side_stream

FLOAT16_MAX = 65504.0
BAND = 2**15 - 1  # values converted at once on a CPU: one more, and torch would share them out to its threads
# Integers wider than a byte travel as the signed type of their width: not every device computes with unsigned ones.
STORED = {"uint8": torch.uint8, "uint16": torch.int16, "float16": torch.float16, "float32": torch.float32}


class Output(Protocol):
    """name: 'rgb', 'depth' or 'alpha'. dtype: 'uint8', 'uint16', 'float16' or 'float32'. channels: 4 joins rgb with alpha."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def channels(self) -> int | None: ...


Parts = Sequence[tuple[Output, Sequence[Tensor]]]


class PendingPixels(ABC):
    """A frame on its way into host arrays. Its floats stay as they are until `finish` has returned.

    stage: what `finish` spends its time on: 'quantise' on a CPU, 'copy' from a GPU.
    """

    stage: ClassVar[Literal["quantise", "copy"]]

    @abstractmethod
    def finish(self) -> dict[str, NDArray[Any]]:
        """The arrays by output name. Call it once, from any thread.

        Raises PixelError naming frame and output for NaN, infinity, or a value past float16's range.
        """


def quantise_begin(
    rendered: Mapping[str, Tensor],
    outputs: Sequence[Output],
    *,
    frame: int,
    into: Mapping[str, NDArray[Any]] | None = None,
    picture: NDArray[np.uint8] | None = None,
    after: torch.cuda.Event | None = None,
) -> PendingPixels:
    """Have one frame put into host arrays of the store's dtypes; `finish` of what is returned gives them.

    rendered: 'rgb' [H, W, 3], 'depth' [H, W], 'alpha' [H, W], float32, on one device. Integers: floor(x · max + 0.5) after clamping
    to 0..1, in float32. On a CUDA device the work goes to its side stream, behind `after`, or behind all that the current stream was
    told so far; this returns at once. On a CPU all is done in `finish`.
    into: contiguous arrays of the outputs' shapes and dtypes that get the values, by name; default new ones. Pinned ones are written
    by the device itself, and hold pixels even of a frame that `finish` refuses; others are then as they were.
    picture: pinned array that gets the image data of a PNG of rgb, where that is uint8 with 3 channels and comes from a CUDA device:
    as `png_stream` leaves it. Otherwise it stays as it is.
    Raises KeyError if an output was not rendered or has no array, TypeError or ValueError for an array of another dtype or shape.
    """
    parts = [(output, _planes(rendered, output)) for output in outputs]
    if into is not None:
        for output, planes in parts:
            check_place(into[output.name], _shape(planes), output)
    device = parts[0][1][0].device if parts else torch.device("cpu")
    if device.type == "cuda":
        return _DevicePixels(parts, frame, into, picture, device, after)
    return _HostPixels(parts, frame, into)


class _HostPixels(PendingPixels):
    stage = "quantise"

    def __init__(self, parts: Parts, frame: int, into: Mapping[str, NDArray[Any]] | None) -> None:
        self._parts, self._frame, self._into = parts, frame, into

    def finish(self) -> dict[str, NDArray[Any]]:
        with span("quantise"), torch.inference_mode():
            results = [_in_bands(planes, output) for output, planes in self._parts]
            if any(bool(wrong) for wrong, _ in results):
                _refuse(self._parts, self._frame)
        found = {}
        with span("unpack"):
            for (output, _), (_, values) in zip(self._parts, results, strict=True):
                found[output.name] = stored(values, output, self._into, own=True)
        return found


class _DevicePixels(PendingPixels):
    stage = "copy"

    def __init__(
        self,
        parts: Parts,
        frame: int,
        into: Mapping[str, NDArray[Any]] | None,
        picture: NDArray[np.uint8] | None,
        device: torch.device,
        after: torch.cuda.Event | None,
    ) -> None:
        self._parts, self._frame, self._into = parts, frame, into
        places = [pinned_place(into[output.name]) if into is not None else None for output, _ in parts]
        self._direct = [place is not None for place in places]
        kinds = [((len(parts),), torch.int32), *((_shape(planes), STORED[output.dtype]) for output, planes in parts)]
        self._landing = Landing(kinds, [None, *places])
        wrong, *values = self._landing.tensors
        index, room = _picture_of([output for output, _ in parts], picture)
        side = side_stream(device)
        if after is not None:
            side.wait_event(after)
        else:
            side.wait_stream(torch.cuda.current_stream(device))
        colours, alphas = [planes[0] for _, planes in parts], [planes[1] if len(planes) > 1 else None for _, planes in parts]
        limits = [_largest(output) for output, _ in parts]
        try:
            with torch.cuda.stream(side), torch.inference_mode(), span("read back", device):
                read_back(colours, alphas, limits, values, wrong, room, index)  # one op: other threads wait for Python's lock as well
            self._over = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._over.record(side)
        except BaseException:
            side.synchronize()  # nothing writes into memory that goes back
            self._landing.release()
            raise

    def finish(self) -> dict[str, NDArray[Any]]:
        self._over.synchronize()
        wrong, *values = self._landing.tensors
        try:
            if bool(wrong.any()):
                _refuse(self._parts, self._frame)
            found = {}
            with span("unpack"):
                for (output, _), value, direct in zip(self._parts, values, self._direct, strict=True):
                    if direct and self._into is not None:
                        found[output.name] = self._into[output.name]
                    else:
                        found[output.name] = stored(value, output, self._into, own=False)
            return found
        finally:
            self._landing.release()


def stored(values: Tensor, output: Output, into: Mapping[str, NDArray[Any]] | None, *, own: bool) -> NDArray[Any]:
    """Host values as an array of the output's dtype: in `into`, else themselves if they are our own, else copied."""
    array: NDArray[Any] = values.numpy().view(np.dtype(output.dtype))
    if into is None:
        return array if own else array.copy()
    np.copyto(into[output.name], array, casting="no")
    return into[output.name]


def check_place(place: NDArray[Any], shape: tuple[int, ...], output: Output) -> None:
    """Raises TypeError or ValueError for an array that an output of this shape does not fit."""
    if place.dtype != np.dtype(output.dtype):
        raise TypeError(f"{output.name} is stored as {output.dtype}, and its array is {place.dtype}")
    if place.shape != shape:
        raise ValueError(f"{output.name} is {list(shape)}, and its array is {list(place.shape)}")


def pinned_place(array: NDArray[Any]) -> Tensor | None:
    """The array as a tensor, where the device can write it by itself."""
    if not array.size or not array.flags.c_contiguous:
        return None
    place = torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)  # as in STORED
    return place if place.is_pinned() else None


def picture_stream(
    outputs: Sequence[Output], values: Sequence[Tensor], picture: NDArray[np.uint8] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The image data of a PNG of rgb, made by the current stream, and the pinned memory that it is for; nothing where there is no such
    output, nowhere to put it, or too little of the device's memory. values: of the outputs, in their stored types, on a CUDA device.
    """
    index, place = _picture_of(outputs, picture)
    if place is None:
        return [], []
    value = values[index]
    try:
        with span("picture", value.device):
            stream = torch.empty(place.shape, dtype=torch.uint8, device=value.device)
            png_stream(value, stream)
    except torch.OutOfMemoryError:
        return [], []
    return [stream], [place]


def _picture_of(outputs: Sequence[Output], picture: NDArray[np.uint8] | None) -> tuple[int, Tensor | None]:
    """Which output a PNG is made of, and the pinned memory for its image data; None: none is."""
    found = [index for index, output in enumerate(outputs) if (output.name, output.dtype, output.channels) == ("rgb", "uint8", 3)]
    place = pinned_place(picture) if picture is not None and found else None
    return (found[0], place) if place is not None else (-1, None)


def _planes(rendered: Mapping[str, Tensor], output: Output) -> list[Tensor]:
    return [rendered[output.name], rendered["alpha"]] if output.channels == 4 else [rendered[output.name]]


def _shape(planes: Sequence[Tensor]) -> tuple[int, ...]:
    """Of these planes joined."""
    return tuple(planes[0].shape) if len(planes) == 1 else (*planes[0].shape[:2], 4)


def _wrong(planes: Sequence[Tensor], output: Output) -> Tensor:
    """Whether a value of these planes cannot be stored: bool, on the device."""
    largest = torch.stack([plane.abs().amax() if plane.numel() else plane.new_zeros(()) for plane in planes]).amax()  # NaN stays NaN
    return ~(largest <= _largest(output))


def _largest(output: Output) -> float:
    return FLOAT16_MAX if output.dtype == "float16" else torch.finfo(torch.float32).max


def converted(planes: Sequence[Tensor], output: Output) -> Tensor:
    """The planes joined, in the output's type or the signed one of its width."""
    values = planes[0] if len(planes) == 1 else torch.cat([planes[0], planes[1][..., None]], dim=-1)
    return rounded(values, STORED[output.dtype])


def _in_bands(planes: Sequence[Tensor], output: Output) -> tuple[Tensor, Tensor]:
    """`_wrong` and `converted` of planes on a CPU, a few pixels at a time: they stay in its cache, and torch does not wake its threads,
    which would spin on after the work and take cores from the next frame's tiles.
    """
    flat = [plane.flatten(0, 1) for plane in planes]
    values = torch.empty(_shape(planes), dtype=STORED[output.dtype])
    rows = values.flatten(0, 1)
    wrong = torch.zeros((), dtype=torch.bool)
    step = BAND // 4
    for start in range(0, rows.shape[0], step):
        band = [plane[start : start + step] for plane in flat]
        wrong |= _wrong(band, output)
        rows[start : start + step] = converted(band, output)
    return wrong, values


def _refuse(parts: Parts, frame: int) -> None:
    """Raise what is wrong with these planes, if anything is."""
    for output, planes in parts:
        for name, plane in zip((output.name, "alpha"), planes, strict=False):
            wrong = ~torch.isfinite(plane)
            if bool(wrong.any()):
                first = tuple(int(i) for i in wrong.nonzero()[0])
                raise PixelError(
                    f"frame {frame}: {name} holds {int(wrong.sum())} values that are NaN or infinite, the first at {first}",
                    remedy="nothing of this chunk was written; look at the checkpoint and at near and far",
                )
        largest = max((float(plane.abs().amax()) for plane in planes if plane.numel()), default=0.0)
        if output.dtype == "float16" and largest > FLOAT16_MAX:
            raise PixelError(
                f"frame {frame}: {output.name} reaches {largest:g}, past float16", remedy=f"set output.{output.name} = 'float32'"
            )
