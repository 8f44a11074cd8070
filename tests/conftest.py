"""Fixtures of every room: the reference data where it is present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def _reference() -> Path | None:
    root = Path(__file__).resolve().parent.parent
    for candidate in (os.environ.get("LANDMARK_BATCH_REFERENCE"), root / "shared" / "reference", root.parent / "shared" / "reference"):
        if candidate and (Path(candidate) / "ckpt").is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Real checkpoints trained by LandMark and frames its own code rendered; skips where they are not."""
    path = _reference()
    if path is None:
        pytest.skip("no reference checkpoints and frames: put them in shared/reference, or name their folder in LANDMARK_BATCH_REFERENCE")
    return path
