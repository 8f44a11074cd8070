"""nerfstudio camera_path.json and the way back from its normalised space."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.cameras.formats import load_flight
from landmark_batch.errors import CameraError
from tests.cameras.conftest import Pose, camera_path, nadir, poses, rotations

Save = Callable[..., Path]
SWAP = np.array([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]])  # ns-process-data's applied_transform


def normalised(c2w: Pose, transform: Pose, scale: float) -> Pose:
    """What nerfstudio's dataparser does to poses [F, 3, 4] of transforms.json."""
    full = np.concatenate([c2w, np.tile([[[0.0, 0.0, 0.0, 1.0]]], (len(c2w), 1, 1))], axis=1)
    out = transform @ full
    out[:, :, 3] *= scale
    return np.asarray(out)


def as_path(c2w: Pose, fov: float = 50.0) -> dict[str, Any]:
    cameras = [{"camera_to_world": [*m.ravel().tolist(), 0.0, 0.0, 0.0, 1.0], "fov": fov, "aspect": 16 / 9} for m in c2w]
    return camera_path(camera_path=cameras, seconds=len(c2w) / 30)


def test_fields(save: Save) -> None:
    flight = load_flight(save(camera_path()))
    assert (flight.width, flight.height, flight.fps, flight.dialect) == (96, 54, 30, "nerfstudio camera_path.json")
    assert flight.names == ("frame_00000", "frame_00001", "frame_00002")
    assert flight.c2w.tolist() == [nadir(0.1 * i)[:3] for i in range(3)]
    focal = 27 / math.tan(math.radians(25))  # fov is vertical
    assert flight.intrinsics.tolist() == [[pytest.approx(focal), pytest.approx(focal), 48, 27]] * 3
    assert flight.time.tolist() == [0, 1 / 30, 2 / 30]
    assert flight.warnings == ()


def test_fov_a_frame_size_override_and_default_fov(save: Save) -> None:
    raw = camera_path(default_fov=70.0, camera_type="Perspective")
    raw["camera_path"][1]["fov"] = 90.0
    del raw["camera_path"][2]["fov"]
    flight = load_flight(save(raw), width=192)
    assert (flight.width, flight.height) == (192, 108)
    assert flight.intrinsics[:, 0].tolist() == pytest.approx([54 / math.tan(math.radians(a / 2)) for a in (50, 90, 70)])


def test_fps_from_seconds_and_what_is_not_used_is_said(save: Save) -> None:
    assert load_flight(save(camera_path(fps=None, seconds=1.5))).fps == pytest.approx(2.0)
    flight = load_flight(save(camera_path(fps=None, seconds=None)), default_fps=12)
    assert flight.fps is None and flight.time[1] == 1 / 12
    flight = load_flight(save(camera_path(seconds=60, crop={"crop_center": [0, 0, 0]})))
    assert flight.fps == 30
    assert any("seconds = 60 is not used" in text for text in flight.warnings)
    assert any("crop box is not applied" in text for text in flight.warnings)


@settings(max_examples=50, deadline=None)
@given(
    poses(),
    rotations(),
    st.lists(st.floats(-50, 50), min_size=3, max_size=3),
    st.floats(0.01, 20),
    st.booleans(),
    st.sampled_from([1.0, 0.3]),
)
def test_normalised_space_round_trip(
    c2w: Pose, rotation: Pose, shift: list[float], scale: float, applied: bool, applied_scale: float
) -> None:
    """Scene poses → nerfstudio's normalised poses and its saved transform (with applied_transform multiplied in) → scene poses."""
    transform = np.column_stack([rotation, shift])
    saved = np.vstack([transform, [0, 0, 0, 1]]) @ np.vstack([SWAP, [0, 0, 0, 1]]) if applied else np.vstack([transform, [0, 0, 0, 1]])
    dataset: dict[str, Any] = {"frames": []}
    if applied:
        dataset |= {"applied_transform": SWAP.tolist(), "applied_scale": applied_scale}
    with tempfile.TemporaryDirectory() as folder:
        files = {"path.json": as_path(normalised(c2w, transform, scale)), "transforms.json": dataset}
        files["dataparser_transforms.json"] = {"transform": saved[:3].tolist(), "scale": scale * (applied_scale if applied else 1.0)}
        for name, raw in files.items():
            (Path(folder) / name).write_text(json.dumps(raw))
        names = [Path(folder) / name for name in files]
        back = load_flight(names[0], transform=names[2], dataset=names[1])
        original = load_flight(names[0], transform=names[2])
    assert back.warnings == ()
    size = np.abs(c2w[:, :, 3]).max() + np.abs(shift).max() + 1
    assert np.allclose(back.c2w[:, :, :3], c2w[:, :, :3], rtol=0, atol=1e-12)
    assert np.allclose(back.c2w[:, :, 3], c2w[:, :, 3], rtol=0, atol=1e-11 * size * max(1.0, 1 / scale))
    if not applied:  # nothing stands between the file and the original coordinates
        assert np.array_equal(original.c2w, back.c2w)
    assert any("cameras.dataset" in text for text in original.warnings)


def test_legacy_colmap_folder_means_the_old_applied_transform(save: Save, tmp_path: Path) -> None:
    path, transform = save(camera_path()), save({"transform": SWAP.tolist(), "scale": 1.0}, "dataparser_transforms.json")
    dataset = save({"frames": []}, "transforms.json")
    assert np.array_equal(load_flight(path, transform=transform, dataset=dataset).c2w[0, :, 2], [0, 0, -1])
    (tmp_path / "colmap" / "sparse" / "0").mkdir(parents=True)
    assert np.array_equal(load_flight(path, transform=transform, dataset=dataset).c2w[0, :, 2], [0, 0, 1])


def frame_with(**keys: Any) -> dict[str, Any]:
    raw = camera_path()
    raw["camera_path"][1] |= keys
    return raw


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (camera_path(camera_path=[]), ("nerfstudio camera_path.json", "camera_path is empty")),
        (camera_path(camera_path=[], keyframes=[{}, {}]), ("2 keyframes, but no frames",)),
        (camera_path(camera_path={}), ("no list",)),
        (camera_path(camera_type="equirectangular"), ('camera_type = "equirectangular"', "perspective")),
        (camera_path(camera_type="fisheye"), ("fisheye",)),
        (camera_path(render_width=None), ("no render_width",)),
        (camera_path(render_height=-4), ("render_height = -4",)),
        (camera_path(fps=-1), ("fps = -1",)),
        (camera_path(camera_path=[7]), ("frame 0", "no camera_to_world")),
        (frame_with(fov=0), ("frame 1 (frame_00001)", "fov = 0")),
        (frame_with(fov=None), ("frame 1", "fov = None")),
        (frame_with(fov=180), ("frame 1", "fov = 180")),
        (frame_with(camera_to_world=[1.0] * 15), ("frame 1", "camera_to_world is 15, not 4x4")),
        (frame_with(camera_to_world=np.array(nadir(1, 1)).T.ravel().tolist()), ("frame 1", "transposed")),
        (frame_with(camera_to_world=[0.0] * 15 + [1.0]), ("frame 1", "singular")),
    ],
)
def test_bad_paths_name_the_place(save: Save, raw: Any, words: tuple[str, ...]) -> None:
    path = save(raw)
    with pytest.raises(CameraError) as caught:
        load_flight(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ({"frames": []}, "no keys transform and scale"),
        ({"transform": nadir()[:3], "scale": 0}, "scale = 0"),
        ({"transform": nadir()[:3], "scale": None}, "scale = null"),
        ({"transform": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]], "scale": 1}, "no rotation and shift"),
        ({"transform": [[1, 0], [0, 1]], "scale": 1}, "2x2"),
        ("{", "broken JSON"),
    ],
)
def test_bad_transform_files(save: Save, raw: Any, word: str) -> None:
    with pytest.raises(CameraError, match=word):
        load_flight(save(camera_path()), transform=save(raw, "dataparser_transforms.json"))


def test_bad_dataset(save: Save) -> None:
    transform = save({"transform": nadir()[:3], "scale": 1.0}, "dataparser_transforms.json")
    with pytest.raises(CameraError, match="it has no frames"):
        load_flight(save(camera_path()), transform=transform, dataset=transform)
