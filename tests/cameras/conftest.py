"""Camera files made in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.lenses import frame_times

BOX = ((-2.8, -2.8, -0.2), (2.8, 2.8, 0.6))
Pose = NDArray[np.float64]


def nadir(x: float = 0.0, y: float = 0.0, z: float = 1.5) -> list[list[float]]:
    """A 4x4 pose that looks straight down, image up along +y."""
    return [[1.0, 0.0, 0.0, x], [0.0, 1.0, 0.0, y], [0.0, 0.0, 1.0, z], [0.0, 0.0, 0.0, 1.0]]


def transforms(count: int = 3, **top: Any) -> dict[str, Any]:
    """A LandMark transforms.json of `count` nadir cameras at 96x54; `top` adds to it or, where None, takes from it."""
    raw = {
        "fl_x": 57.25,
        "w": 96,
        "h": 54,
        "frames": [{"file_path": f"./images/{i}.jpg", "transform_matrix": nadir(0.1 * i)} for i in range(count)],
    } | top
    return {key: value for key, value in raw.items() if value is not None}


def camera_path(count: int = 3, **top: Any) -> dict[str, Any]:
    """A nerfstudio camera_path.json of `count` nadir cameras."""
    cameras = [{"camera_to_world": np.array(nadir(0.1 * i)).ravel().tolist(), "fov": 50.0, "aspect": 1.0} for i in range(count)]
    raw = {
        "camera_type": "perspective",
        "render_height": 54,
        "render_width": 96,
        "fps": 30,
        "seconds": count / 30,
        "keyframes": [],
        "camera_path": cameras,
    } | top
    return {key: value for key, value in raw.items() if value is not None}


def make_flight(c2w: Pose, *, focal: float = 50.0, width: int = 96, height: int = 54, fps: float | None = None) -> Flight:
    count = len(c2w)
    lens = np.tile([focal, focal, width / 2, height / 2], (count, 1))
    return Flight(c2w, lens, width, height, frame_times(count, fps or 24.0), tuple(f"f{i}" for i in range(count)), fps, "test")


@st.composite
def rotations(draw: st.DrawFn) -> Pose:
    quaternion = draw(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(x * x for x in q) > 0.01))
    matrix: Pose = Rotation.from_quat(quaternion).as_matrix()
    return matrix


@st.composite
def poses(draw: st.DrawFn, least: int = 1, most: int = 6) -> Pose:
    """[F, 3, 4] random poses."""
    turned = draw(st.lists(rotations(), min_size=least, max_size=most))
    place = st.lists(st.floats(-100, 100), min_size=3, max_size=3)
    return np.stack([np.column_stack([rotation, draw(place)]) for rotation in turned])


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write an object as JSON (or a text as it stands) into the test's folder."""

    def write(raw: Any, name: str = "cameras.json") -> Path:
        path = tmp_path / name
        path.write_text(raw if isinstance(raw, str) else json.dumps(raw), encoding="utf-8")
        return path

    return write
