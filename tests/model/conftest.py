"""Settings and cameras shared by the tests of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.job import job_from_dict
from landmark_batch.model.settings import RenderSettings, resolve_settings
from landmark_batch.scene.weights import SceneConfig
from tests.factories import RUNTIME
from tests.model.oracle import look_at

POSES: dict[str, NDArray[np.float64]] = {
    "above": look_at((0.1, 0.0, 1.5), (0.1001, 0.02, 0.0)),
    "oblique": look_at((-1.6, -1.2, 1.0), (0.1, 0.1, 0.1)),
    "inside": look_at((0.05, -0.3, 0.3), (0.6, 0.5, 0.35)),
    "below": look_at((0.0, 0.0, -0.5), (0.2, 0.1, 0.5)),
}


def settings_for(config: SceneConfig, **changes: Any) -> RenderSettings:
    """Settings of a job with only the given keys set: sampling keys by name, others as 'section.key' with '.' as '__'."""
    raw: dict[str, dict[str, Any]] = {"model": {"runtime": RUNTIME}}
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        raw.setdefault(section or "sampling", {})[name] = value
    return resolve_settings(job_from_dict(raw), config)
