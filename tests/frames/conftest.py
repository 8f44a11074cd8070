"""Fixtures of the frames room."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """An empty folder in memory where there is such a file system (fsync costs nothing there), else on disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="landmark-batch-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
