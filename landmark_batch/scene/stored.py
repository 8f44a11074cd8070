"""What stands in a torch file, without torch and without numpy's pickles: inert stand-ins that remember and execute nothing."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from landmark_batch.errors import CheckpointError


@runtime_checkable
class TensorLike(Protocol):
    """A tensor of torch's, or one that is still in its file."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def numel(self) -> int: ...
    def numpy(self) -> npt.NDArray[Any]: ...
    def tolist(self) -> Any: ...


@dataclass(frozen=True)
class StoredStorage:
    """Numbers of a torch archive: the file, the record's name in it, their type and how many."""

    file: Path
    record: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that was not read: its place among the numbers of a storage. stride and offset: in numbers."""

    storage: StoredStorage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def numel(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def numpy(self) -> npt.NDArray[Any]:
        """Its numbers, read now. Raises CheckpointError where they cannot be."""
        if not self.numel():
            return np.zeros(self.shape, self.storage.dtype)
        try:
            with zipfile.ZipFile(self.storage.file) as archive:
                numbers = np.frombuffer(archive.read(self.storage.record), self.storage.dtype, self.storage.count)
        except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{self.storage.file}: truncated or damaged: {self.storage.record}: {error}", remedy="copy the checkpoint again"
            ) from error
        steps = tuple(step * numbers.itemsize for step in self.stride)
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps, writeable=False).copy()

    def tolist(self) -> Any:
        """As nested lists of numbers; a number where it has no axis. Raises as `numpy`."""
        return self.numpy().tolist()


@dataclass(frozen=True)
class StoredDevice:
    """Stand-in of torch.device: its name."""

    name: str

    def __str__(self) -> str:
        return self.name


def is_device(value: object) -> bool:
    """Whether this is a device, torch's or a stand-in."""
    return isinstance(value, StoredDevice) or (type(value).__module__, type(value).__qualname__) == ("torch", "device")


class StoredDtype:
    """Stand-in of numpy.dtype: remembers its code and byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order: object = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def as_numpy(self) -> np.dtype[Any]:
        """The numpy dtype; ValueError unless it is a plain number or bool."""
        if not isinstance(self.code, str) or not isinstance(self.order, str) or self.code[:1] not in set("biuf"):
            raise ValueError(f"numpy dtype {self.code!r} is not a number")
        return np.dtype(self.code) if self.order == "|" else np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class StoredArray:
    """Stand-in of numpy.ndarray: remembers shape, dtype and bytes."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    shape: object
    dtype: object
    fortran: object
    data: object

    def __new__(cls, *_: object) -> StoredArray:
        self = super().__new__(cls)
        self.shape, self.dtype, self.fortran, self.data = (0,), None, False, b""
        return self

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def as_numpy(self) -> npt.NDArray[Any]:
        """The array, read-only. ValueError when bytes, dtype and shape do not fit together."""
        if not isinstance(self.dtype, StoredDtype) or not isinstance(self.data, bytes | bytearray) or not isinstance(self.shape, tuple):
            raise ValueError("not an array of numbers")
        flat = np.frombuffer(self.data, dtype=self.dtype.as_numpy())
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


class StoredConfig:
    """Stand-in of LandMark's config objects: a bag of values."""

    __slots__ = ("values",)
    values: dict[object, object]

    def __new__(cls, *_: object) -> StoredConfig:  # a pickle may make it without calling __init__
        self = super().__new__(cls)
        self.values = {}
        return self

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.values.update(part)


def _stored_array(*_: object) -> StoredArray:
    """Stand-in of numpy's _reconstruct."""
    return StoredArray()


def _stored_scalar(dtype: StoredDtype, data: object = b"") -> object:
    """Stand-in of numpy's scalar: a Python number."""
    if not isinstance(data, bytes):
        raise ValueError("not a number")
    return np.frombuffer(data, dtype=dtype.as_numpy())[0].item()


def _allow_list() -> dict[str, Callable[..., Any]]:
    allowed: dict[str, Callable[..., Any]] = {"numpy.ndarray": StoredArray, "numpy.dtype": StoredDtype}
    for core in ("numpy.core", "numpy._core"):  # renamed in numpy 2
        allowed[f"{core}.multiarray._reconstruct"] = _stored_array
        allowed[f"{core}.multiarray.scalar"] = _stored_scalar
    for module in ("app.tools.configs", "tools.configs"):
        allowed[f"{module}.PrintableConfig"] = StoredConfig
        allowed[f"{module}.ArgsConfig"] = StoredConfig
    for module in ("argparse", "configargparse"):
        allowed[f"{module}.Namespace"] = StoredConfig
    return allowed


ALLOWED: dict[str, Callable[..., Any]] = _allow_list()
