"""What the store's tests share: a small flight, pixels that follow from fingerprints, a whole render without a renderer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Flight
from landmark_batch.frames.adopt import adopt
from landmark_batch.frames.fingerprint import FrameSettings, flight_fingerprints
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.resume import compare
from landmark_batch.frames.spec import COMPRESSORS, OutputSpec, StoreSpec
from landmark_batch.frames.store import FrameStore

WIDTH, HEIGHT = 16, 10
SCENE = "ab" * 16
OUTPUTS = (OutputSpec("rgb", "uint8", 3), OutputSpec("depth", "float32"))
with_jpegxl = pytest.mark.skipif(find_spec("imagecodecs") is None, reason="imagecodecs is not installed (landmark-batch[jpegxl])")
EVERY_COMPRESSOR = [pytest.param(name, marks=[with_jpegxl] if name == "jpegxl" else []) for name in COMPRESSORS]


def make_flight(frames: int = 6, *, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Flight:
    poses = np.random.default_rng(seed).normal(size=(frames, 3, 4))
    lens = np.tile([12.0, 12.0, width / 2, height / 2], (frames, 1))
    return Flight(poses, lens, width, height, np.arange(frames) / 24.0, tuple(f"frame_{i:05d}" for i in range(frames)), 24.0, "path.json")


def pick(flight: Flight, order: Sequence[int], other: Flight | None = None) -> Flight:
    """Frames of `flight` in a new order; an index below 0 takes frame -index - 1 of `other`."""
    rows = [(flight, i) if i >= 0 else (other or make_flight(20, seed=99), -i - 1) for i in order]
    return Flight(
        np.stack([source.c2w[i] for source, i in rows]),
        np.stack([source.intrinsics[i] for source, i in rows]),
        flight.width,
        flight.height,
        np.arange(len(rows)) / 24.0,
        tuple(f"frame_{i:05d}" for i in range(len(rows))),
        flight.fps,
        flight.source,
    )


def make_settings(samples: int = 256, **more: Any) -> FrameSettings:
    return FrameSettings({"scene": SCENE, "sampling": {"mode": "hull", "samples": samples}, **more})


def make_spec(frames: int = 6, **more: Any) -> StoreSpec:
    return StoreSpec(**{"frames": frames, "height": HEIGHT, "width": WIDTH, "outputs": OUTPUTS, **more})


def pixels_of(spec: StoreSpec, fingerprint: str) -> dict[str, NDArray[Any]]:
    """The picture of a fingerprint: the same for the same, others for others."""
    rng = np.random.default_rng(int(fingerprint[:15], 16))
    found: dict[str, NDArray[Any]] = {}
    for output in spec.outputs:
        values = rng.random(spec.frame_shape(output.name))
        top = np.iinfo(output.dtype).max if output.dtype.startswith("u") else 1.0
        found[output.name] = (values * top).astype(output.dtype)
    return found


def commit(store: FrameStore, frames: Sequence[int], prints: Sequence[str], *, worker: str = "w0", generation: int | None = None) -> None:
    """Render and commit frames whose fingerprints are prints[frame]."""
    each = [pixels_of(store.spec, prints[frame]) for frame in frames]
    stacked = {name: np.stack([pixels[name] for pixels in each]) for name in store.spec.names}
    with store.writer(worker, generation=generation) as writer:
        writer.commit(list(frames), stacked, [prints[frame] for frame in frames], seconds=0.1 * len(frames))


def render(
    path: Path,
    flight: Flight,
    settings: FrameSettings,
    *,
    spec: StoreSpec | None = None,
    chunk: int = 2,
    only: Sequence[int] | None = None,
    update: bool = False,
    overwrite: bool = False,
    workers: int = 1,
) -> list[int]:
    """What a job does: open or create, take, compare, adopt, commit what is missing. Returns the frames it rendered."""
    store = FrameStore.open_or_create(path, spec or make_spec(len(flight)), flight, settings)
    prints = flight_fingerprints(settings, flight)
    with StoreOwner.acquire(path) as owner:
        todo = adopt(store, owner, compare(store, flight, settings), flight, settings, update=update, overwrite=overwrite)
        todo = tuple(frame for frame in todo if only is None or frame in only)
        step = max(chunk, store.spec.commit_unit)
        groups: dict[int, list[int]] = {}
        for frame in todo:
            groups.setdefault(frame // step, []).append(frame)
        for number, group in enumerate(groups.values()):
            commit(store, group, prints, worker=f"w{number % workers}", generation=owner.generation)
        store.refresh_done()
    return list(todo)


def assert_is(path: Path, flight: Flight, settings: FrameSettings) -> None:
    """Every frame of the store stands and is the picture of its fingerprint; `done` says so."""
    store = FrameStore.open(path)
    prints = flight_fingerprints(settings, flight)
    finished = store.finished()
    assert list(finished) == list(range(len(flight)))
    assert store.done().all()
    np.testing.assert_array_equal(store.flight().c2w, flight.c2w)
    for frame, print_ in enumerate(prints):
        assert finished[frame].fingerprint == print_
        for name, expected in pixels_of(store.spec, print_).items():
            np.testing.assert_array_equal(store.read(name, frame), expected)
