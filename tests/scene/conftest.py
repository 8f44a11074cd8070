"""Checkpoints as LandMark writes them, made small, and ways to spoil them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.scene.weights import AlphaMask, SceneWeights
from tests.factories import make_scene

Spoil = Callable[[dict[str, Any]], object]


def read_raw(path: Path) -> dict[str, Any]:
    """A file that these tests wrote themselves, as plain torch reads it."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return content


def rewrite(path: Path, spoil: Spoil) -> Path:
    """Change the content of a checkpoint in place."""
    content = read_raw(path)
    spoil(content)
    torch.save(content, path)
    return path


def assert_same_weights(left: SceneWeights, right: SceneWeights) -> None:
    """Every tensor bit for bit; config, warnings and shard are left to the caller."""
    for item in fields(SceneWeights):
        ours, theirs = getattr(left, item.name), getattr(right, item.name)
        if item.name in ("config", "warnings", "shard"):
            continue
        if isinstance(ours, AlphaMask):
            assert isinstance(theirs, AlphaMask)
            assert torch.equal(ours.volume, theirs.volume)
            assert ours.aabb == theirs.aabb
            continue
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
        for number, (a, b) in enumerate(pairs):
            assert (a is None) == (b is None), f"{item.name}[{number}]"
            assert a is None or (torch.equal(a, b) and a.dtype == b.dtype), f"{item.name}[{number}]"


@pytest.fixture
def sequential(tmp_path: Path) -> Path:
    """A small sequential checkpoint with mask, embedding and bias."""
    path = tmp_path / "park.th"
    save_landmark_checkpoint(make_scene(mask=0.4, embedding_rows=3), path)
    return path


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A small 2x3 merged checkpoint with mask and companions."""
    path = tmp_path / "town-merged-stack.th"
    save_landmark_checkpoint(make_scene(division=(2, 3), mask=0.4), path, companions=True)
    return path
