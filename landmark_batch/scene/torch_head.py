"""A torch archive without its tensors, and without torch, whose import takes longer than all that is read here.

The archive's pickle is followed opcode by opcode: no Python pickle machine runs, nothing that it names is looked up or called. This reader
knows what LandMark's files are made of. For all else (the format from before torch 1.6, other byte orders, names that are refused,
damage) torch's own reader has the word, so that there is one place that decides what a file may hold and what is wrong with it.
"""

from __future__ import annotations

import logging
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from landmark_batch.scene.stored import ALLOWED, StoredArray, StoredConfig, StoredDevice, StoredDtype, StoredStorage, StoredTensor

T = TypeVar("T")

logger = logging.getLogger(__name__)

_DTYPES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_DICT, _ENCODE, _SIZE, _DEVICE = "collections.OrderedDict", "_codecs.encode", "torch.Size", "torch.device"
_NAMES = {*ALLOWED, *_DTYPES, _TENSOR, _PARAMETER, _DICT, _ENCODE, _SIZE, _DEVICE}
_PUT, _GET = ("BINPUT", "LONG_BINPUT", "PUT"), ("BINGET", "LONG_BINGET", "GET")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Unknown(Exception):
    """Something that this reader does not know."""


@dataclass(frozen=True)
class _Name:
    """What a pickle asks for by name."""

    name: str


_MARK = object()


def read_torch_head(path: Path) -> dict[Any, Any]:
    """What `unpickle.read_torch_file` gives, tensors of a LandMark file as `StoredTensor`. Raises as that."""
    try:
        if not path.is_file():  # to open a pipe would be to wait
            raise _Unknown("no file")
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).read()
    except Exception as error:  # noqa: BLE001  whatever is unexpected here, the other reader names
        logger.debug("%s is left to torch: %s: %s", path, type(error).__name__, error)
    from landmark_batch.scene.unpickle import read_torch_file

    return read_torch_file(path)


class _Reader:
    """One archive. Every method raises _Unknown, or what damaged input makes Python raise."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.archive = archive
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise _Unknown("no archive of one pickle")
        self.root = pickles[0].removesuffix("/data.pkl")
        order = f"{self.root}/byteorder"
        if order not in archive.namelist() or archive.read(order) != b"little":
            raise _Unknown("byte order")
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> dict[Any, Any]:
        stack = self.stack
        for opcode, argument, _ in pickletools.genops(self.archive.read(f"{self.root}/data.pkl")):
            name = opcode.name
            if name in _PUT:
                self.memo[_a(int, argument)] = stack[-1]
            elif name in _GET:
                stack.append(self.memo[_a(int, argument)])
            elif name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in _TUPLES:
                self._replace(_TUPLES[name], tuple(stack[-_TUPLES[name] :]))
            elif name == "STOP":
                break
            else:
                self._step(name, argument)
        if len(stack) != 1 or not isinstance(stack[0], dict):
            raise _Unknown("content")
        return stack[0]

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name == "GLOBAL":
            asked = str(argument).replace(" ", ".")
            if asked not in _NAMES:
                raise _Unknown(asked)
            stack.append(_Name(asked))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("SETITEMS", "SETITEM"):
            items = self._since_mark() if name == "SETITEMS" else self._take(2)
            _a(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPENDS", "APPEND"):
            items = self._since_mark() if name == "APPENDS" else self._take(1)
            _a(list, stack[-1]).extend(items)
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            what, arguments = self._take(2)
            stack.append(_made(_a(_Name, what).name, _a(tuple, arguments)))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], StoredArray | StoredDtype | StoredConfig):
                stack[-1].__setstate__(state)
            elif not isinstance(stack[-1], dict):  # of a dict: attributes that modules leave on it, which say nothing
                raise _Unknown(f"state of a {type(stack[-1]).__name__}")
        elif name != "PROTO":
            raise _Unknown(name)

    def _take(self, count: int) -> list[Any]:
        taken = self.stack[-count:]
        del self.stack[-count:]
        if len(taken) != count or any(item is _MARK for item in taken):
            raise _Unknown("stack")
        return taken

    def _replace(self, count: int, value: tuple[Any, ...]) -> None:
        self._take(count)
        self.stack.append(value)

    def _since_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise _Unknown("no mark")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _storage(self, place: Any) -> StoredStorage:
        kind, dtype, key, _, count = _a(tuple, place)
        record = f"{self.root}/data/{_a(str, key)}"
        storage = StoredStorage(self.path, record, np.dtype(_DTYPES[_a(_Name, dtype).name]), _a(int, count))
        if kind != "storage" or storage.count < 0 or self.archive.getinfo(record).file_size < storage.count * storage.dtype.itemsize:
            raise _Unknown(f"storage {record}")
        return storage


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a pickle makes by this name; only stand-ins are called."""
    if name == _TENSOR:
        storage, offset, shape, stride = arguments[:4]
        return _tensor(_a(StoredStorage, storage), _a(int, offset), _a(tuple, shape), _a(tuple, stride))
    if name == _PARAMETER:
        return _a(StoredTensor, arguments[0])
    if name == _DICT:
        return dict(*arguments)
    if name == _ENCODE:
        text, code = arguments
        if code != "latin1":
            raise _Unknown(f"encoding {code!r}")
        return _a(str, text).encode("latin1")
    if name == _SIZE:
        (sizes,) = arguments
        return tuple(sizes)
    if name == _DEVICE:
        return StoredDevice(":".join(str(part) for part in arguments))
    if name in ALLOWED:
        return ALLOWED[name](*arguments)
    raise _Unknown(f"a call of {name}")


def _tensor(storage: StoredStorage, offset: int, shape: tuple[Any, ...], stride: tuple[Any, ...]) -> StoredTensor:
    sizes, steps = tuple(_a(int, size) for size in shape), tuple(_a(int, step) for step in stride)
    if len(sizes) != len(steps) or min((offset, *sizes, *steps)) < 0:
        raise _Unknown("shape")
    tensor = StoredTensor(storage, offset, sizes, steps)
    last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if tensor.numel() and last >= storage.count:
        raise _Unknown("a tensor beyond its storage")
    return tensor


def _a(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise _Unknown(f"a {type(value).__name__} for a {kind.__name__}")
    return value
