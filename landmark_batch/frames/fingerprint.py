"""What a frame's pixels depend on, as one number; and in words, where two of them differ.

A fingerprint covers the content of the scene, the pose, the lens, and every setting that changes a pixel. It never covers where
files lie, how work is split, how the store is chunked or compressed, or what is exported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Flight

_HEX = frozenset("0123456789abcdef")
_UNSAID = {"parallel.tensor_parallel": 1}  # settings that are left out where they have this value


@dataclass(frozen=True)
class FrameSettings:
    """Everything but pose and lens that changes a pixel: a nested dict, e.g. {'scene': digest, 'sampling': {'samples': 256}, ...}.

    Tuples become lists, so that settings read back equal those written. Raises TypeError or ValueError for what JSON cannot hold (NaN).
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", json.loads(self.canonical()))

    def canonical(self) -> bytes:
        """The same bytes for the same settings: sorted keys, no spaces."""
        return json.dumps(self.values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @property
    def digest(self) -> str:
        """sha256 of the canonical bytes, hex."""
        return hashlib.sha256(self.canonical()).hexdigest()


def _camera_bytes(c2w: Any, intrinsics: Any) -> bytes:
    pose = np.asarray(c2w, dtype="<f8")[:3, :4] + 0.0  # -0.0 and 0.0 are the same camera
    return bytes(np.ascontiguousarray(pose).tobytes() + (np.asarray(intrinsics, dtype="<f8") + 0.0).tobytes())


def frame_fingerprint(settings: FrameSettings, c2w: NDArray[np.float64], intrinsics: Sequence[float] | NDArray[np.float64]) -> str:
    """sha256 over canonical settings and the exact float64 bytes of c2w [3, 4] and intrinsics (fl_x, fl_y, cx, cy). Hex."""
    return hashlib.sha256(settings.canonical() + _camera_bytes(c2w, intrinsics)).hexdigest()


def flight_fingerprints(settings: FrameSettings, flight: Flight) -> list[str]:
    """`frame_fingerprint` of every frame (about 3 µs a frame)."""
    base = hashlib.sha256(settings.canonical())
    poses = np.ascontiguousarray(np.asarray(flight.c2w, dtype="<f8")[:, :3, :4]) + 0.0
    lenses = np.ascontiguousarray(np.asarray(flight.intrinsics, dtype="<f8")) + 0.0
    prints = []
    for pose, lens in zip(poses, lenses, strict=True):
        digest = base.copy()
        digest.update(pose.tobytes() + lens.tobytes())
        prints.append(digest.hexdigest())
    return prints


def flight_digest(flight: Flight) -> str:
    """xxh3_128 over all that the store keeps of a flight: poses, lenses, times, names, size, fps; not its file."""
    digest = xxhash.xxh3_128(json.dumps([flight.width, flight.height, flight.fps, list(flight.names)]).encode())
    for values in (flight.c2w, flight.intrinsics, flight.time):
        digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 32 and _HEX.issuperset(value.lower())


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def settings_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """['sampling.samples 256 → 128', 'scene content changed', ...], sorted by key; empty if nothing differs."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    for key, value in _UNSAID.items():
        if key in before or key in after:
            before.setdefault(key, value)
            after.setdefault(key, value)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            lines.append(f"{key} {_show(before[key])} → not set")
        elif key not in before:
            lines.append(f"{key} not set → {_show(after[key])}")
        elif before[key] != after[key]:
            if _is_digest(before[key]) and _is_digest(after[key]):
                lines.append(f"{key.partition('.')[0]} content changed")
            else:
                lines.append(f"{key} {_show(before[key])} → {_show(after[key])}")
    return list(dict.fromkeys(lines))
