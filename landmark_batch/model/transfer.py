"""From a CUDA device to host memory, beside the device's main stream: a side stream, pinned buffers, pinned arrays."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

ALIGN = 16  # bytes: where a tensor begins in a buffer
SPARE = 3  # buffers that are kept: of the frames that are on their way at once


@lru_cache(maxsize=16)
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which finished frames leave this device. Its few small kernels go before those of the next frame."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


def pinned_array(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """A new array that a device copies into by itself. Raises RuntimeError where no memory can be pinned."""
    kind = np.dtype(dtype)
    memory = torch.empty(max(1, math.prod(shape) * kind.itemsize), dtype=torch.uint8, pin_memory=True)
    values: NDArray[Any] = memory.numpy()[: math.prod(shape) * kind.itemsize].view(kind)
    return values.reshape(shape)


def pin_memory(address: int, size: int) -> None:
    """Have devices copy into memory of this process by themselves, until `unpin_memory`. Raises RuntimeError where it cannot be pinned."""
    if not torch.cuda.is_available():
        raise RuntimeError("no memory can be pinned: no CUDA device")
    device = torch.cuda.current_device()
    errors = list[int]()

    def register() -> None:
        torch.cuda.set_device(device)
        errors.append(int(torch.cuda.cudart().cudaHostRegister(address, size, 0)))  # type: ignore[no-untyped-call]

    thread = threading.Thread(target=register, name="pin-memory")  # CUDA tells a thread's last error to its next kernel
    thread.start()
    thread.join()
    if errors != [0]:
        raise RuntimeError(f"no memory can be pinned: cudaHostRegister: {errors[0] if errors else 'it failed'}")


def unpin_memory(address: int) -> None:
    """Before that memory goes."""
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


class Fetch:
    """Tensors of one device on their way to the host, on the stream that is current when it is made.

    places: for each tensor, pinned host memory of its size that takes the values, or None for those that go, in one copy, through a
    pinned buffer. over: the event after the last of it.
    """

    def __init__(self, tensors: Sequence[Tensor], places: Sequence[Tensor | None], device: torch.device) -> None:
        starts, size = [], 0
        for tensor, place in zip(tensors, places, strict=True):
            starts.append(size)
            size += -(-tensor.nbytes // ALIGN) * ALIGN if place is None else 0
        self._buffer = _BUFFERS.take(size)
        one = sum(place is None for place in places) < 2  # nothing to join
        packed = None if one else torch.empty(size, dtype=torch.uint8, device=device)
        self._host = []
        for start, tensor, place in zip(starts, tensors, places, strict=True):
            if place is not None:
                self._host.append(place.copy_(tensor, non_blocking=True))
                continue
            self._host.append(_part(self._buffer, start, tensor))
            if packed is None:
                self._host[-1].copy_(tensor, non_blocking=True)
            else:
                _part(packed, start, tensor).copy_(tensor)
        if packed is not None:
            self._buffer[:size].copy_(packed, non_blocking=True)
        self.over = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.over.record(torch.cuda.current_stream(device))

    def wait(self) -> list[Tensor]:
        """The tensors on the host, once they are there. Those without a place of their own hold until `release`."""
        self.over.synchronize()
        return self._host

    def release(self) -> None:
        """Give the buffer back, once, after `wait`."""
        self._host = []
        _BUFFERS.give(self._buffer)


class Landing:
    """Pinned host memory that a device copies into by itself: `places`, where there are such, and parts of a buffer for the others.

    kinds: (shape, dtype) of each. tensors: in the same order; those without a place of their own hold until `release`.
    """

    def __init__(self, kinds: Sequence[tuple[Sequence[int], torch.dtype]], places: Sequence[Tensor | None]) -> None:
        starts, size = [], 0
        for (shape, dtype), place in zip(kinds, places, strict=True):
            starts.append(size)
            size += -(-math.prod(shape) * dtype.itemsize // ALIGN) * ALIGN if place is None else 0
        self._buffer = _BUFFERS.take(size)
        self.tensors = [
            self._buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(*shape) if place is None else place
            for start, (shape, dtype), place in zip(starts, kinds, places, strict=True)
        ]

    def release(self) -> None:
        """Give the buffer back, once, when nothing is written into it any more."""
        self.tensors = []
        _BUFFERS.give(self._buffer)


class HostWord:
    """A few integers of a device on their way to the host. over: on a CUDA device, the event after all that its current stream was told
    before they were asked for; None on a CPU.
    """

    def __init__(self, values: Tensor) -> None:
        self._values: Tensor | None = values
        self._fetch: Fetch | None = None
        self.over: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values, self._fetch = None, Fetch([values], [None], values.device)
            self.over = self._fetch.over

    def read(self) -> list[int]:
        """Wait for them. Once."""
        if self._fetch is None:
            assert self._values is not None
            return [int(value) for value in self._values.tolist()]
        found = [int(value) for value in self._fetch.wait()[0].tolist()]
        self._fetch.release()
        return found


def _part(packed: Tensor, start: int, like: Tensor) -> Tensor:
    return packed[start : start + like.nbytes].view(like.dtype).view(like.shape)


class _Buffers:
    """Pinned buffers that are used again for every frame, by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        with self._lock:
            fitting = [buffer for buffer in self._free if buffer.numel() >= size]
            if fitting:
                best = min(fitting, key=Tensor.numel)
                self._free = [buffer for buffer in self._free if buffer is not best]
                return best
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def give(self, buffer: Tensor) -> None:
        with self._lock:
            self._free = sorted([*self._free, buffer], key=Tensor.numel)[-SPARE:]


_BUFFERS = _Buffers()
