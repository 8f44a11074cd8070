"""transforms.json in its dialects."""

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
from PIL import Image

from landmark_batch.cameras.check import check_flight
from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.formats import load_flight
from landmark_batch.errors import CameraError
from tests.cameras.conftest import Pose, nadir, poses, transforms

Save = Callable[..., Path]


def load(raw: dict[str, Any], **keys: Any) -> Flight:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transforms.json"
        path.write_text(json.dumps(raw), encoding="utf-8")
        return load_flight(path, **keys)


@pytest.mark.parametrize(("name", "count"), [("transforms_test", 2), ("transforms_train", 16), ("transforms_all", 18), ("path", 240)])
def test_real_files_are_read_bit_for_bit(reference_dir: Path, name: str, count: int) -> None:
    file = reference_dir / "brighton" / f"{name}.json"
    raw = json.loads(file.read_text())
    flight = load_flight(file)
    assert len(flight) == count
    assert (flight.width, flight.height) == (960, 540)
    assert flight.names == tuple(frame["file_path"] for frame in raw["frames"])
    assert np.array_equal(flight.c2w, np.array([frame["transform_matrix"] for frame in raw["frames"]])[:, :3])
    assert np.array_equal(flight.intrinsics, np.tile([raw["fl_x"], raw["fl_y"], 480.0, 270.0], (count, 1)))
    assert flight.fps is None and flight.warnings == () and flight.dialect == "LandMark transforms.json"
    box = json.loads((reference_dir / "brighton" / "meta.json").read_text())["aabb"]
    assert check_flight(flight, box, (0.7, 4.5)) == []


def test_resized_focal_is_the_one_landmark_rendered_the_reference_frames_with(reference_dir: Path) -> None:
    rendered = np.load(reference_dir / "frames" / "bp0_hull256_400x300.npz")
    flight = load_flight(reference_dir / "brighton" / "transforms_test.json", width=400, height=300)
    assert flight.intrinsics[0].tolist() == [json.loads(str(rendered["meta"]))["focal"]] * 2 + [200.0, 150.0]


@settings(max_examples=40, deadline=None)
@given(poses(), st.floats(1, 5000), st.sampled_from(["global", "frame", "list", "one"]), st.integers(3, 4))
def test_landmark_one_focal_or_one_a_frame(c2w: Pose, focal: float, where: str, rows: int) -> None:
    count = len(c2w)
    focals = [focal + i for i in range(count)] if where in ("frame", "list") else [focal] * count
    bottom = np.tile([[[0.0, 0.0, 0.0, 1.0]]], (count, 1, 1))
    matrices = np.concatenate([c2w, bottom], axis=1)[:, :rows].tolist()
    frames: list[dict[str, Any]] = [{"file_path": f"{i}.png", "transform_matrix": m} for i, m in enumerate(matrices)]
    raw: dict[str, Any] = {"camera_model": "SIMPLE_PINHOLE", "w": 1420, "h": 1065, "frames": frames}
    if where == "frame":
        for frame, value in zip(frames, focals, strict=True):
            frame |= {"fl_x": value, "fl_y": value, "w": 1420, "h": 1065}
    else:
        raw["fl_x"] = {"global": focal, "one": [focal], "list": focals}[where]
    flight = load(raw)
    assert np.array_equal(flight.c2w, c2w)
    assert np.array_equal(flight.intrinsics, [[f, f, 710.0, 532.5] for f in focals])


@settings(max_examples=30, deadline=None)
@given(poses(), st.floats(100, 2000), st.floats(0.5, 2), st.floats(200, 300), st.booleans())
def test_nerfstudio_lens_global_or_per_frame_and_applied_transform_left_alone(
    c2w: Pose, fl_x: float, stretch: float, cx: float, per_frame: bool
) -> None:
    lens = {"fl_x": fl_x, "fl_y": fl_x * stretch, "cx": cx, "cy": 150.25, "w": 512, "h": 300, "k1": 0.0}
    frames: list[dict[str, Any]] = [{"file_path": f"images/{i}.png", "transform_matrix": m.tolist()} for i, m in enumerate(c2w)]
    raw: dict[str, Any] = {"camera_model": "OPENCV", "applied_transform": [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]], "applied_scale": 2.0}
    for record in frames if per_frame else [raw]:
        record |= lens
    flight = load(raw | {"frames": frames})
    assert flight.dialect == "nerfstudio transforms.json"
    assert np.array_equal(flight.c2w, c2w)
    assert np.array_equal(flight.intrinsics, np.tile([fl_x, fl_x * stretch, cx, 150.25], (len(c2w), 1)))


@settings(max_examples=30, deadline=None)
@given(poses(), st.floats(0.05, 3.0), st.sampled_from(["camera_angle_x", "x_fov", "camera_angle_y", "y_fov"]))
def test_instant_ngp_field_of_view_and_its_own_scale_left_alone(c2w: Pose, angle: float, key: str) -> None:
    value = math.degrees(angle) if "fov" in key else angle
    frames = [{"file_path": f"images/{i}", "transform_matrix": m.tolist(), "sharpness": 20.0} for i, m in enumerate(c2w)]
    flight = load({key: value, "w": 640.0, "h": 480.0, "scale": 0.33, "offset": [0.5, 0.5, 0.5], "aabb_scale": 16, "frames": frames})
    assert flight.dialect == "instant-ngp transforms.json"
    assert np.array_equal(flight.c2w, c2w)
    extent = 640 if "x" in key else 480
    assert np.allclose(flight.intrinsics[:, :2], 0.5 * extent / math.tan(angle / 2), rtol=1e-12)


def test_a_frames_own_lens_goes_before_the_files(save: Save) -> None:
    raw = transforms(camera_angle_x=1.0, fl_y=60.0)
    raw["frames"][1]["fl_x"] = 80.0
    raw["frames"][2] |= {"camera_angle_x": 2.0, "cx": 40.0}
    flight = load_flight(save(raw))
    assert flight.intrinsics[:, 0].tolist() == pytest.approx([57.25, 80.0, 48 / math.tan(1.0)])
    assert flight.intrinsics[:, 1].tolist() == pytest.approx([60.0, 80.0, 48 / math.tan(1.0)])
    assert flight.intrinsics[:, 2].tolist() == [48.0, 48.0, 40.0]
    assert any("principal point (40, 27)" in text for text in flight.warnings)
    assert any("fl_y = 60" in text for text in flight.warnings)


def test_size_comes_from_the_photograph_where_the_file_has_none(save: Save, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (120, 80)).save(tmp_path / "images" / "0.jpg")
    flight = load_flight(save(transforms(w=None, h=None)))  # photographs 1 and 2 are not there
    assert (flight.width, flight.height) == (120, 80)
    assert flight.intrinsics.tolist() == [[57.25, 57.25, 60.0, 40.0]] * 3


def test_photograph_named_without_suffix(save: Save, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "r_0.png")
    raw = {"camera_angle_x": 0.7, "frames": [{"file_path": "./r_0", "transform_matrix": nadir()}]}
    flight = load_flight(save(raw))
    assert (flight.width, flight.height, flight.dialect) == (30, 20, "Blender transforms.json")


def test_size_of_the_job_where_nothing_else_says_it_is_taken_without_scaling(save: Save) -> None:
    flight = load_flight(save(transforms(w=None, h=None)), width=64, height=32)
    assert flight.intrinsics[0].tolist() == [57.25, 57.25, 32.0, 16.0]


def test_path_without_lens_takes_the_jobs_focal(save: Save) -> None:
    raw = {"frames": [{"transform_matrix": nadir()}, {"transform_matrix": nadir(1)}]}
    flight = load_flight(save(raw), width=64, height=32, focal=40.0)
    assert flight.names == ("frame_00000", "frame_00001")
    assert flight.intrinsics.tolist() == [[40.0, 40.0, 32.0, 16.0]] * 2


def test_time_and_fps(save: Save) -> None:
    assert load_flight(save(transforms())).time.tolist() == [0, 1 / 24, 2 / 24]
    assert load_flight(save(transforms()), default_fps=10).time.tolist() == [0, 0.1, 0.2]
    flight = load_flight(save(transforms(fps=5)))
    assert flight.fps == 5 and flight.time.tolist() == [0, 0.2, 0.4]
    raw = transforms(fps=5)
    for frame, time in zip(raw["frames"], (7.0, 7.5, 9.0), strict=True):
        frame["time"] = time
    assert load_flight(save(raw)).time.tolist() == [0, 0.5, 2]
    del raw["frames"][1]["time"]
    flight = load_flight(save(raw))
    assert flight.time.tolist() == [0, 0.2, 0.4]
    assert "frame 1 (./images/1.jpg) has no time" in flight.warnings[0]
    for frame, time in zip(raw["frames"], (0.0, 2.0, 1.0), strict=True):
        frame["time"] = time
    assert "time runs backwards" in load_flight(save(raw)).warnings[0]
    raw["frames"][2]["time"] = math.inf
    with pytest.raises(CameraError, match=r"frame 2 \(./images/2.jpg\): time = inf is not finite"):
        load_flight(save(raw))


@pytest.mark.parametrize("change", [{"k1": -0.02}, {"p2": 1e-4}, {"distortion_params": [0, 0, 0.1, 0, 0, 0]}])
def test_distortion_is_warned_of(save: Save, change: dict[str, Any]) -> None:
    warnings = check_flight(load_flight(save(transforms(**change))), None)
    assert len(warnings) == 1 and "undistorted" in warnings[0] and next(iter(change)) in warnings[0]
    assert check_flight(load_flight(save(transforms(k1=0.0, k2=0, p1=0.0))), None) == []


def frame_with(**keys: Any) -> dict[str, Any]:
    raw = transforms()
    raw["frames"][1] |= keys
    return raw


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ('{"frames": [', ("broken JSON at line 1, column 13",)),
        ("", ("is empty",)),
        ("[1, 2]", ("no camera file", "[1, 2]", "camera_path.json")),
        ({}, ("no camera file", "none")),
        ({"transform": [], "scale": 1}, ("dataparser_transforms.json", "cameras.transform")),
        ({"path": [], "time": 0}, ("base_cam.json",)),
        ({"0": {"path": "a", "rot_mat": []}}, ("ContextCapture",)),
        ({"keyframes": []}, ("keyframes without camera_path",)),
        ({"frames": {}}, ("LandMark transforms.json", "no list")),
        ({"frames": [], "aabb_scale": 4}, ("instant-ngp transforms.json", "frames is empty")),
        ({"frames": [3]}, ("frame 0 is 3",)),
        (frame_with(transform_matrix=[[1, 2], [3, 4]]), ("frame 1 (./images/1.jpg)", "2x2, not 4x4")),
        (frame_with(transform_matrix=[[1, 2, 3], [1, 2, 3], [1, 2, 3]]), ("frame 1", "3x3, not 4x4")),
        (frame_with(transform_matrix="x"), ("frame 1", "no matrix of numbers")),
        (frame_with(transform_matrix=[[1, 2, 3, 4], [1, 2]]), ("frame 1", "no matrix of numbers")),
        (frame_with(transform_matrix=np.array(nadir(1, 2)).T.tolist()), ("frame 1", "last row", "transposed")),
        (frame_with(transform_matrix=[*nadir()[:3], [0, 0, 0.1, 1]]), ("frame 1", "last row")),
        (frame_with(transform_matrix=nadir(math.nan)), ("frame 1 (./images/1.jpg)", "pose[0][3] = nan")),
        (frame_with(transform_matrix=(np.array(nadir()) * [[0.01], [0.01], [0.01], [1]]).tolist()), ("frame 1", "scaled", "0.01")),
        (frame_with(fl_x=0), ("frame 1", "fl_x = 0", "above 0")),
        (frame_with(fl_x=-3.0), ("frame 1", "fl_x = -3", "above 0")),
        (frame_with(fl_x=math.inf), ("frame 1", "not finite")),
        (frame_with(fl_x="wide"), ("frame 1", 'fl_x = "wide" is not a number')),
        (frame_with(fl_x=True), ("frame 1", "fl_x = true is not a number")),
        (frame_with(camera_angle_x=3.2), ("frame 1", "camera_angle_x = 3.2 is no field of view")),
        (frame_with(cx=math.nan), ("frame 1", "cx = nan")),
        (frame_with(w=0, h=5), ("frame 1", "w = 0 is no image size")),
        (frame_with(w=12.5, h=5), ("frame 1", "w = 12.5 is no image size")),
        (frame_with(w=12, h=5), ("different sizes", "frame 0 (./images/0.jpg) is 96x54", "frame 1 (./images/1.jpg) is 12x5")),
        (transforms(h=None), ("frame 0", "no image size", "--width")),
        (transforms(fl_x=None), ("frame 0", "no focal length", "fl_x (pixels)")),
        (transforms(fl_x=[1.0, 2.0]), ("fl_x has 2 values for 3 frames",)),
        (transforms(fl_x=10**400), ("fl_x", "too large")),
        (transforms(fps=0), ("fps = 0 must be above 0",)),
        (transforms(camera_model="OPENCV_FISHEYE"), ("OPENCV_FISHEYE", "pinhole")),
        (transforms(is_fisheye=True), ("is_fisheye", "pinhole")),
        ({"w": 9, "h": 9, "fl_x": 9, "frames": [{"file_path": "a"}]}, ("frame 0 (a)", "no transform_matrix")),
        ({"w": 9, "h": 9, "fl_x": 9, "frames": [{"rot_mat": []}]}, ("rot_mat",)),
    ],
)
def test_bad_files_name_the_place(save: Save, raw: Any, words: tuple[str, ...]) -> None:
    path = save(raw)
    with pytest.raises(CameraError) as caught:
        load_flight(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert caught.value.remedy


def test_missing_folder_binary(save: Save, tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no such camera file"):
        load_flight(tmp_path / "nothing.json")
    save(transforms(), "transforms_train.json")
    with pytest.raises(CameraError, match=r"is a directory[^!]*transforms_train\.json"):
        load_flight(tmp_path)
    (tmp_path / "scene.th").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(CameraError, match="not a text file"):
        load_flight(tmp_path / "scene.th")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(CameraError):
        load_flight(tmp_path / "deep.json")


def test_transform_is_for_camera_paths_only(save: Save) -> None:
    with pytest.raises(CameraError, match="poses are scene coordinates"):
        load_flight(save(transforms()), transform=Path("dataparser_transforms.json"))


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["frames", "camera_path", "transform_matrix", "camera_to_world", "w", "h", "fl_x"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused(raw: Any) -> None:
    try:
        flight = load({"frames": raw} if not isinstance(raw, dict) else raw)
    except CameraError as error:
        assert error.remedy
    else:
        assert len(flight) > 0
