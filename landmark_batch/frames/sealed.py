"""JSON that knows whether it is whole: the last member of an object is the checksum of everything before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from landmark_batch.object_path import StorePath

_MARK = b',"check":"'
_TAIL = len(_MARK) + 16 + len(b'"}')


class DamagedError(ValueError):
    """Bytes are not what was written: cut, zeroed, flipped or foreign."""


def seal(values: Mapping[str, Any]) -> bytes:
    """One line of compact JSON (no line break) that ends with `"check"`: xxh3_64 of the bytes before it. `values` must not be empty."""
    head = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return head + _MARK + xxhash.xxh3_64_hexdigest(head).encode() + b'"}'


def unseal(data: bytes) -> dict[str, Any]:
    """The values of `seal`, without `check`. Raises DamagedError."""
    head, tail = data[:-_TAIL], data[-_TAIL:]
    if not tail.startswith(_MARK) or not tail.endswith(b'"}'):
        raise DamagedError("cut off or overwritten" if data else "empty")
    if xxhash.xxh3_64_hexdigest(head).encode() != tail[len(_MARK) : -2]:
        raise DamagedError("checksum does not match")
    values = json.loads(head + b"}")
    if not isinstance(values, dict):
        raise DamagedError("not an object")
    return values


def read_sealed(path: StorePath) -> dict[str, Any]:
    """Values of a sealed file. Raises FileNotFoundError, or DamagedError for anything else that is wrong with it."""
    try:
        return unseal(path.read_bytes())
    except (IsADirectoryError, PermissionError) as error:
        raise DamagedError(str(error)) from None
