"""Blocks of a whole flight: the same in any number of processes, kept in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import ConfigError
from landmark_batch.fetching import flight_blocks as module
from landmark_batch.fetching.flight_blocks import FlightBlocks, flight_blocks
from landmark_batch.fetching.visibility import FrustumBlocks
from tests.factories import make_scene
from tests.model.conftest import settings_for
from tests.model.oracle import look_at

SCENE = make_scene(division=(4, 3), mask=0.05, mask_size=(40, 30, 10))
SETTINGS = settings_for(SCENE.config, mode="hull", samples=32, alpha_mask_threshold=0.5)


def make_flight(frames: int) -> Flight:
    """Back and forth over the scene: every pose but two occurs twice."""
    along = np.abs(np.linspace(-1.0, 1.0, frames))
    c2w = np.stack([look_at((2.0 * s - 1.0, 0.1 - 0.3 * s, 0.7), (2.0 * s - 0.9, 0.2, 0.0)) for s in along])
    intrinsics = np.tile([30.0, 30.0, 16.0, 9.0], (frames, 1))
    return Flight(c2w, intrinsics, 32, 18, np.arange(float(frames)), tuple(map(str, range(frames))), None, "test")


def test_every_frame_has_its_own_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    flight = make_flight(20)
    asked = []
    original = FrustumBlocks.blocks
    monkeypatch.setattr(FrustumBlocks, "blocks", lambda self, *camera: asked.append(1) or original(self, *camera))
    found = flight_blocks(SCENE.config, SETTINGS, SCENE.mask, (4, 3), flight)
    assert len(asked) == 10  # a pose that occurs twice is computed once
    visible = FrustumBlocks(SCENE.config, SETTINGS, SCENE.mask, (4, 3))
    for frame in range(20):
        camera = flight.c2w[frame], flight.intrinsics[frame], 32, 18
        assert found.of(frame).tolist() == visible.blocks(*camera).tolist()
        assert found.samples[frame] == visible.samples(*camera)
    assert found.offsets.dtype == found.samples.dtype == np.int64 and found.ids.dtype == np.int32
    assert len(found) == 20 and found.offsets[-1] == len(found.ids) > 20
    assert len({tuple(found.of(frame).tolist()) for frame in range(20)}) > 2


def test_a_choice_of_frames_keeps_their_numbers() -> None:
    flight = make_flight(12)
    whole = flight_blocks(SCENE.config, SETTINGS, SCENE.mask, (4, 3), flight)
    some = flight_blocks(SCENE.config, SETTINGS, SCENE.mask, (4, 3), flight, frames=[9, 2, 5])
    assert some.frames.tolist() == [2, 5, 9] and len(some) == 3
    for frame in (2, 5, 9):
        assert some.of(frame).tolist() == whole.of(frame).tolist()
    for absent in (3, 11):
        with pytest.raises(KeyError):
            some.of(absent)
    assert len(flight_blocks(SCENE.config, SETTINGS, SCENE.mask, (4, 3), flight, frames=[])) == 0
    with pytest.raises(ConfigError, match="12"):
        flight_blocks(SCENE.config, SETTINGS, SCENE.mask, (4, 3), flight, frames=[4, 12])


def test_processes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_A_PROCESS", 8)
    monkeypatch.setattr(module, "BATCH", 3)
    flight = make_flight(33)
    one = flight_blocks(SCENE.config, SETTINGS, SCENE.mask, (4, 3), flight)
    two = flight_blocks(SCENE.config, SETTINGS, SCENE.mask, (4, 3), flight, processes=2)
    for name in ("offsets", "ids", "samples", "frames"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_kept_in_a_file(tmp_path: Path) -> None:
    found = flight_blocks(SCENE.config, SETTINGS, SCENE.mask, (4, 3), make_flight(5))
    found.save(tmp_path / "blocks.npz")
    again = FlightBlocks.load(tmp_path / "blocks.npz")
    assert [again.of(frame).tolist() for frame in range(5)] == [found.of(frame).tolist() for frame in range(5)]
    assert again.samples.tolist() == found.samples.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["blocks.npz"]
    for damage in (b"", b"PK\x03\x04 not a table", (tmp_path / "blocks.npz").read_bytes()[:-90]):
        (tmp_path / "damaged.npz").write_bytes(damage)
        with pytest.raises(ConfigError, match=r"damaged\.npz"):
            FlightBlocks.load(tmp_path / "damaged.npz")
