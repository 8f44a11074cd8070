"""pytest plugin: loads the compiled CPU kernels before any test, so that all ops of the process are the compiled ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from landmark_batch.kernels import build


def pytest_configure(config: pytest.Config) -> None:
    found = build.load("cpu", prebuilt=Path(os.environ["LANDMARK_TEST_KERNELS"]))
    if not found.loaded:
        raise pytest.UsageError(found.reason)
