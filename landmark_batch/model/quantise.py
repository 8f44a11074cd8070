"""Rendered floats to the store's dtypes on their own device: the same bits as frames.pixels.quantise makes on the host.

What leaves a GPU is then a quarter of the floats, in one copy through a pinned buffer that is used again for every frame.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.errors import PixelError
from landmark_batch.model.profile import span

FLOAT16_MAX = 65504.0
BAND = 2**15 - 1  # values converted at once on a CPU: one more, and torch would share them out to its threads
ALIGN = 16  # bytes: where an output begins in the buffer
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


def quantise(
    rendered: Mapping[str, Tensor], outputs: Sequence[Output], *, frame: int, into: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, NDArray[Any]]:
    """One frame in the store's dtypes, as host arrays.

    rendered: 'rgb' [H, W, 3], 'depth' [H, W], 'alpha' [H, W], float32, on one device. Integers: floor(x · max + 0.5) after clamping
    to 0..1, in float32. into: contiguous arrays of the outputs' shapes and dtypes that get the values, by name; default new ones.
    Raises PixelError naming frame and output for NaN, infinity, or a value past float16's range (`into` is then as it was); KeyError
    if an output was not rendered.
    """
    parts = [(output, _planes(rendered, output)) for output in outputs]
    if not parts:
        return {}
    device = parts[0][1][0].device
    with span("quantise", device), torch.inference_mode():
        if device.type == "cpu":
            checked, done = zip(*[_in_bands(planes, output) for output, planes in parts], strict=True)
            wrong, values = torch.stack(checked), list(done)
        else:
            wrong = torch.stack([_wrong(planes, output) for output, planes in parts])
            values = [converted(planes, output) for output, planes in parts]
    if device.type == "cuda":
        wrong, *values = _fetch([wrong, *values], device)
    if bool(wrong.any()):
        for output, planes in parts:
            _refuse(planes, output, frame)
    found = {}
    with span("unpack"):
        for (output, _), value in zip(parts, values, strict=True):
            array = value.numpy().view(np.dtype(output.dtype))
            if into is not None:
                np.copyto(into[output.name], array, casting="no")
                array = into[output.name]
            elif device.type == "cuda":
                array = array.copy()
            found[output.name] = array
    return found


def _planes(rendered: Mapping[str, Tensor], output: Output) -> list[Tensor]:
    return [rendered[output.name], rendered["alpha"]] if output.channels == 4 else [rendered[output.name]]


def _wrong(planes: Sequence[Tensor], output: Output) -> Tensor:
    """Whether a value of these planes cannot be stored: bool, on the device."""
    largest = torch.stack([plane.abs().amax() if plane.numel() else plane.new_zeros(()) for plane in planes]).amax()  # NaN stays NaN
    return ~(largest <= (FLOAT16_MAX if output.dtype == "float16" else torch.finfo(torch.float32).max))


def converted(planes: Sequence[Tensor], output: Output) -> Tensor:
    """The planes joined, in the output's type or the signed one of its width."""
    values = planes[0] if len(planes) == 1 else torch.cat([planes[0], planes[1][..., None]], dim=-1)
    dtype = STORED[output.dtype]
    if dtype.is_floating_point:
        return values.to(dtype)
    top = float(np.iinfo(output.dtype).max)
    levels = values.clamp(0.0, 1.0).mul_(top).add_(0.5)  # casting cuts off: floor
    return levels.to(dtype) if dtype == torch.uint8 else levels.to(torch.int32).to(dtype)


def _in_bands(planes: Sequence[Tensor], output: Output) -> tuple[Tensor, Tensor]:
    """`_wrong` and `converted` of planes on a CPU, a few pixels at a time: they stay in its cache, and torch does not wake its threads,
    which would spin on after the work and take cores from the next frame's tiles.
    """
    flat = [plane.flatten(0, 1) for plane in planes]
    shape = planes[0].shape if len(planes) == 1 else (*planes[0].shape[:2], 4)
    values = torch.empty(shape, dtype=STORED[output.dtype])
    rows = values.flatten(0, 1)
    wrong = torch.zeros((), dtype=torch.bool)
    step = BAND // 4
    for start in range(0, rows.shape[0], step):
        band = [plane[start : start + step] for plane in flat]
        wrong |= _wrong(band, output)
        rows[start : start + step] = converted(band, output)
    return wrong, values


def _refuse(planes: Sequence[Tensor], output: Output, frame: int) -> None:
    """Raise what is wrong with these planes, if anything is."""
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
        raise PixelError(f"frame {frame}: {output.name} reaches {largest:g}, past float16", remedy=f"set output.{output.name} = 'float32'")


def _fetch(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on the host, in one copy. They lie in this thread's pinned buffer, until its next fetch."""
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += -(-tensor.nbytes // ALIGN) * ALIGN
    with span("copy", device), torch.inference_mode():
        packed = torch.empty(size, dtype=torch.uint8, device=device)
        for start, tensor in zip(starts, tensors, strict=True):
            _part(packed, start, tensor).copy_(tensor)
        pinned = _BUFFER.of(size)
        pinned.copy_(packed, non_blocking=True)
        torch.cuda.current_stream(device).synchronize()
        return [_part(pinned, start, tensor) for start, tensor in zip(starts, tensors, strict=True)]


def _part(packed: Tensor, start: int, like: Tensor) -> Tensor:
    return packed[start : start + like.nbytes].view(like.dtype).view(like.shape)


class _Pinned(threading.local):
    """One buffer a thread, as large as its largest frame."""

    def __init__(self) -> None:
        self._bytes: Tensor | None = None

    def of(self, size: int) -> Tensor:
        if self._bytes is None or self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._bytes[:size]


_BUFFER = _Pinned()
