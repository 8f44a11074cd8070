"""Arrays that other processes of this host can see, without a copy: anonymous memory behind a file descriptor, gone with its process."""

from __future__ import annotations

import logging
import math
import mmap
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

logger = logging.getLogger(__name__)

MOST_OPEN = 16  # pieces of other processes' memory that this one keeps in sight


class Place(NamedTuple):
    """Where an array lies: in the memory behind a descriptor of a process. number: of that memory, which no other one has."""

    process: int
    descriptor: int
    number: int
    start: int
    shape: tuple[int, ...]
    dtype: str


class _Memory:
    """Its arrays keep it; its pages go with the last of them, whoever else has it open: a look at them then ends that process (SIGBUS)."""

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("landmark-batch-pixels", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.descriptor, size)
            self.map = mmap.mmap(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.number = os.fstat(self.descriptor).st_ino
        self.address = np.frombuffer(self.map, np.uint8).ctypes.data
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (self.address, False)}


_memories: dict[int, tuple[int, int, int]] = {}  # by address: size, descriptor, number


def shared_array(
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    use: Callable[[int, int], None] = lambda address, size: None,
    leave: Callable[[int], None] = lambda address: None,
) -> NDArray[Any]:
    """A new array of zeros whose `place` other processes can open.

    use: gets address and bytes of its memory; leave: its address, before it goes. Raises OSError where the system has no such memory,
    and what `use` raises.
    """
    kind = np.dtype(dtype)
    size = max(1, math.prod(shape) * kind.itemsize)
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no memory behind descriptors")
    memory = _Memory(size)
    try:
        use(memory.address, size)
    except BaseException:
        _end(memory.address, memory.descriptor, lambda address: None)
        raise
    _memories[memory.address] = size, memory.descriptor, memory.number
    weakref.finalize(memory, _end, memory.address, memory.descriptor, leave, memory.map).atexit = False
    values: NDArray[Any] = np.asarray(memory)[: math.prod(shape) * kind.itemsize].view(kind)
    return values.reshape(shape)


def _end(address: int, descriptor: int, leave: Callable[[int], None], kept: mmap.mmap | None = None) -> None:
    """Called by the garbage collector, in any thread, wherever it is: it takes no lock. kept: is not unmapped before."""
    _memories.pop(address, None)
    leave(address)
    os.ftruncate(descriptor, 0)  # other processes may have it open still
    os.close(descriptor)


def place(values: NDArray[Any]) -> Place | None:
    """Where an array lies that is, or is a part of, a `shared_array` and has no gaps; None for others."""
    if not values.flags.c_contiguous:
        return None
    address = values.ctypes.data
    for first, (size, descriptor, number) in tuple(_memories.items()):
        if first <= address and address + values.nbytes <= first + size:
            return Place(os.getpid(), descriptor, number, address - first, values.shape, values.dtype.str)
    return None


_open: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()  # by number; the one used last comes last


def opened(place: Place) -> NDArray[Any]:
    """That array, in another process of the same user, while its owner keeps it. Not for several threads. Raises OSError where it cannot be
    reached.
    """
    whole = _open.get(place.number)
    if whole is None:
        descriptor = os.open(f"/proc/{place.process}/fd/{place.descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if found.st_ino != place.number:
                raise FileNotFoundError(f"process {place.process} has given that memory back")
            whole = _open[place.number] = np.frombuffer(mmap.mmap(descriptor, found.st_size), np.uint8)
        finally:
            os.close(descriptor)
        while len(_open) > MOST_OPEN:
            _open.popitem(last=False)
    _open.move_to_end(place.number)
    kind = np.dtype(place.dtype)
    part = whole[place.start : place.start + math.prod(place.shape) * kind.itemsize]
    return part.view(kind).reshape(place.shape)
