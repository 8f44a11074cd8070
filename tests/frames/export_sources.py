"""Frames to export in tests: a source in memory, and a real store of photographs on disk."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from landmark_batch.cameras.flight import Flight
from landmark_batch.frames.fingerprint import FrameSettings, flight_fingerprints
from landmark_batch.frames.records import pixel_digest
from landmark_batch.frames.spec import OutputSpec, StoreInfo, StoreSpec
from landmark_batch.frames.store import FrameStore

Pixels = NDArray[Any]


class MemorySource:
    """A FrameSource over arrays. pixels: {output: [F, H, W(, C)]}. done: frames that are finished; the rest cannot be read."""

    def __init__(
        self,
        pixels: Mapping[str, Pixels],
        *,
        name: str = "city",
        done: Sequence[int] | None = None,
        fps: float | None = None,
        background: str = "white",
        metres_per_unit: float | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.pixels = dict(pixels)
        first = next(iter(pixels.values()))
        self.frames, self.height, self.width = first.shape[:3]
        self.name, self.path, self.fps, self.fps_origin = name, "memory", fps, "camera file"
        self.background, self.metres_per_unit = background, metres_per_unit
        self.outputs = {
            key: OutputSpec(key, str(value.dtype), value.shape[3] if value.ndim == 4 else None) for key, value in pixels.items()
        }
        self.names = tuple(names or (f"images/{frame:04d}.png" for frame in range(self.frames)))
        self.done = set(range(self.frames) if done is None else done)
        self.reads: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    def finished(self, frames: Iterable[int] | None = None) -> dict[int, dict[str, str]]:
        chosen = self.done if frames is None else self.done.intersection(frames)
        return {frame: {key: pixel_digest(value[frame]) for key, value in self.pixels.items()} for frame in sorted(chosen)}

    def read(self, output: str, frame: int) -> Pixels:
        with self._lock:
            self.reads.append((output, frame))
        assert frame in self.done, f"frame {frame} was read before it was finished"
        return np.asarray(self.pixels[output][frame])

    def pose(self, frame: int) -> NDArray[np.float64] | None:
        pose = np.eye(4)[:3]
        pose[:, 3] = (frame, 2.0, 3.0)
        return pose


def pictures(count: int = 4, height: int = 24, width: int = 32, channels: int = 3, dtype: str = "uint8", seed: int = 0) -> Pixels:
    """[count, height, width, channels]: smooth shapes with noise on them, different in every frame, over the whole range of the dtype."""
    random = np.random.default_rng(seed)
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    values = [0.5 + 0.45 * np.sin(x / 7 + c + frame) * np.cos(y / 5 - frame) + random.normal(0, 0.03, y.shape) for frame in range(count)]
    floats = np.clip(np.stack(values), 0, 1)
    floats[:, 0, 0], floats[:, -1, -1] = 0, 1
    if dtype.startswith("uint"):
        return np.rint(floats * np.iinfo(dtype).max).astype(dtype)
    return floats.astype(dtype)


def depths(count: int = 4, height: int = 24, width: int = 32) -> Pixels:
    """[count, height, width] float32, 1 to 3 scene units, some pixels 0 (nothing hit)."""
    values = 2 + np.sin(np.linspace(0, 6, count * height * width)).reshape(count, height, width).astype(np.float32)
    values[:, :2, :3] = 0
    return values.astype(np.float32)


def photographs(reference_dir: Path, count: int, size: tuple[int, int] | None = None) -> list[Pixels]:
    """Real drone photographs, [H, W, 3] uint8."""
    images = []
    for path in sorted((reference_dir / "brighton" / "images").glob("*.jpg"))[:count]:
        with Image.open(path) as image:
            images.append(np.asarray(image if size is None else image.resize(size, Image.Resampling.BOX)))
    return images


def flight(count: int, width: int, height: int, *, names: Sequence[str] | None = None, fps: float | None = None) -> Flight:
    pose = np.tile(np.eye(4)[:3], (count, 1, 1))
    pose[:, 0, 3] = np.arange(count)
    lens = np.tile([float(width), float(width), width / 2, height / 2], (count, 1))
    named = tuple(names or (f"images/{frame:04d}.png" for frame in range(count)))
    return Flight(pose, lens, width, height, np.arange(count) / (fps or 24.0), named, fps, "test")


def write_store(
    path: Path,
    pixels: Mapping[str, Pixels],
    *,
    frames: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    fps: float | None = None,
    background: str = "white",
    metres_per_unit: float | None = None,
    job_fps: float | None = None,
) -> FrameStore:
    """A store of all the flight's frames at `path`, of which `frames` (None = all) are finished."""
    count, height, width = next(iter(pixels.values())).shape[:3]
    outputs = tuple(OutputSpec(key, str(value.dtype), value.shape[3] if value.ndim == 4 else None) for key, value in pixels.items())
    camera = flight(count, width, height, names=names, fps=fps)
    settings = FrameSettings({"scene": "0" * 64})
    info = StoreInfo(path.stem, job_fps or fps, metres_per_unit, background)
    store = FrameStore.create(path, StoreSpec(count, height, width, outputs), camera, settings, info=info)
    commit(store, pixels, range(count) if frames is None else frames)
    return store


def commit(store: FrameStore, pixels: Mapping[str, Pixels], frames: Sequence[int] | range) -> None:
    """Write these frames of `pixels` ([F, ...] for the whole flight) and record them."""
    if not len(frames):
        return
    settings = FrameSettings({"scene": "0" * 64})
    prints = flight_fingerprints(settings, store.flight())
    with store.writer("test") as writer:
        chosen = list(frames)
        writer.commit(chosen, {key: value[chosen] for key, value in pixels.items()}, [prints[frame] for frame in chosen], seconds=1.0)
