"""Frames of a commit encoded by processes that see their pixels: the same files, and nothing lost with a process."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from landmark_batch.errors import DiskFullError
from landmark_batch.frames import durable, encoding_processes
from landmark_batch.frames.encode import encoding_threads
from landmark_batch.frames.fingerprint import flight_fingerprints
from landmark_batch.frames.process_pool import ProcessLost, ProcessPool
from landmark_batch.frames.shared_pixels import Place, opened, place, shared_array
from landmark_batch.frames.spec import OutputSpec, StoreSpec
from landmark_batch.frames.store import FrameStore
from tests.frames.store_kit import EVERY_COMPRESSOR, make_flight, make_settings, make_spec, pixels_of

FRAMES = 6
OUTPUTS = (OutputSpec("rgb", "uint8", 3), OutputSpec("depth", "float32"), OutputSpec("alpha", "uint16"))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    made = ProcessPool(2, [encoding_processes.__name__])
    yield made
    made.close()


@pytest.fixture
def own_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessPool]:
    """The encoding processes of this process, for one test."""
    made = ProcessPool(2, [encoding_processes.__name__])
    monkeypatch.setattr(encoding_processes, "_pools", {os.getpid(): made})
    yield made
    made.close()


def render(store: FrameStore, spec: StoreSpec, make: Callable[..., NDArray[Any]]) -> None:
    """All frames in one commit, whose pixels lie in arrays of make(shape, dtype)."""
    prints = flight_fingerprints(make_settings(), make_flight(FRAMES))
    pixels = {name: make((FRAMES, *spec.frame_shape(name)), spec.output(name).dtype) for name in spec.names}
    for frame, fingerprint in enumerate(prints):
        for name, values in pixels_of(spec, fingerprint).items():
            pixels[name][frame] = values
    with store.writer() as writer, writer.begin(range(FRAMES), prints) as commit:
        commit.take(pixels)
        for position in range(FRAMES):
            commit.add(position)
        commit.finish(seconds=1.0)


def files(store: FrameStore) -> dict[str, bytes]:
    return {
        str(path.relative_to(store.path)): path.read_bytes()
        for name in store.spec.names
        for path in (store.path / name).rglob("*")
        if path.is_file()
    }
