"""What a frame's pixels depend on, as one number; and in words, where two of them differ.

A fingerprint covers the content of the scene, the pose, the lens, and every setting that changes a pixel. It never covers where
files lie, how work is split, how the store is chunked or compressed, or what is exported. Of a scene in blocks it covers those the
frame can see: a replaced block makes other frames of these alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

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
    contents: of a scene in blocks, what each camera of the flight sees of it, by the camera's digest; see `seeing`.
    """

    values: Mapping[str, Any]
    contents: Mapping[bytes, bytes] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", json.loads(self.canonical()))

    def seeing(self, flight: Flight, blocks: Iterable[Sequence[int]], digests: Sequence[str]) -> Self:
        """These settings for the frames of a flight that can see these blocks. digests: of the scene's blocks."""
        contents = {}
        for pose, lens, seen in zip(flight.c2w, flight.intrinsics, blocks, strict=True):
            text = "".join(f"{int(block)} {digests[int(block)]}\n" for block in seen)
            contents[_camera_key(_camera_bytes(pose, lens))] = hashlib.sha256(text.encode()).digest()
        return replace(self, contents=contents)

    def content(self, camera: bytes) -> bytes:
        """What a camera, given by its bytes, sees of the scene's blocks; b"" where that is not known apart."""
        return self.contents.get(_camera_key(camera), b"") if self.contents else b""

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


def _camera_key(camera: bytes) -> bytes:
    return xxhash.xxh3_128(camera).digest()


def frame_fingerprint(settings: FrameSettings, c2w: NDArray[np.float64], intrinsics: Sequence[float] | NDArray[np.float64]) -> str:
    """sha256 over canonical settings, the exact float64 bytes of c2w [3, 4] and intrinsics (fl_x, fl_y, cx, cy), and what that camera
    sees of a scene in blocks. Hex.
    """
    camera = _camera_bytes(c2w, intrinsics)
    return hashlib.sha256(settings.canonical() + camera + settings.content(camera)).hexdigest()


def flight_fingerprints(settings: FrameSettings, flight: Flight) -> list[str]:
    """`frame_fingerprint` of every frame (about 3 µs a frame)."""
    base = hashlib.sha256(settings.canonical())
    poses = np.ascontiguousarray(np.asarray(flight.c2w, dtype="<f8")[:, :3, :4]) + 0.0
    lenses = np.ascontiguousarray(np.asarray(flight.intrinsics, dtype="<f8")) + 0.0
    prints = []
    for pose, lens in zip(poses, lenses, strict=True):
        digest = base.copy()
        camera = pose.tobytes() + lens.tobytes()
        digest.update(camera + settings.content(camera))
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
