"""Sizes and focals: overrides, inline cameras, the flight of a job."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark_batch.cameras.formats import flight_of_job, inline_flight, load_flight
from landmark_batch.cameras.lenses import CameraTable, fit_lenses, make_lens
from landmark_batch.errors import CameraError, ConfigError
from landmark_batch.job import InlineFrame, job_from_dict
from tests.cameras.conftest import nadir, transforms

Save = Callable[..., Path]
sizes = st.integers(1, 8192)


def table(lens: list[float], *extents: tuple[int, int]) -> CameraTable:
    count = len(extents)
    names = tuple(f"n{i}" for i in range(count))
    c2w = np.tile(np.array(nadir())[:3], (count, 1, 1))
    return CameraTable(c2w, np.tile(lens, (count, 1)), np.array(extents), [None] * count, names, None, "f.json", "a dialect")


@given(sizes, sizes, sizes, st.floats(10, 1e4), st.floats(0, 8192), st.floats(0, 8192))
def test_one_given_side_scales_all_and_keeps_the_aspect(w: int, h: int, new: int, fl: float, cx: float, cy: float) -> None:
    lens, width, height = fit_lenses(table([fl, fl * 1.5, cx, cy], (w, h)), new, None, None)
    assert width == new
    assert height == max(1, math.floor(h * new / w + 0.5))
    assert lens[0, :2] == pytest.approx([fl * new / w, fl * 1.5 * new / w], rel=1e-12)
    assert lens[0, 2] - width / 2 == pytest.approx((cx - w / 2) * new / w, abs=1e-6 * new)
    assert lens[0, 3] - height / 2 == pytest.approx((cy - h / 2) * new / w, abs=1e-6 * new)
    tall, width, height = fit_lenses(table([fl, fl, w / 2, h / 2], (w, h)), None, new, None)
    assert (height, width) == (new, max(1, math.floor(w * new / h + 0.5)))
    assert tall[0].tolist() == [pytest.approx(fl * new / h), pytest.approx(fl * new / h), width / 2, height / 2]


@given(sizes, sizes, sizes, sizes, st.floats(10, 1e4))
def test_both_sides_keep_pixels_square_and_the_horizontal_view(w: int, h: int, width: int, height: int, fl: float) -> None:
    lens, *size = fit_lenses(table([fl, fl, w / 2, h / 2], (w, h)), width, height, None)
    assert size == [width, height]
    assert lens[0, 0] == lens[0, 1]
    assert width / lens[0, 0] == pytest.approx(w / fl, rel=1e-12)
    assert lens[0, 2:].tolist() == [width / 2, height / 2]


@given(sizes, sizes, st.floats(0.1, 1e4), st.floats(0, 1e4), st.floats(0, 1e4))
def test_the_files_own_size_keeps_every_bit(w: int, h: int, fl: float, cx: float, cy: float) -> None:
    for width, height in ((None, None), (w, h), (w, None), (None, h)):
        lens, *size = fit_lenses(table([fl, fl, cx, cy], (w, h)), width, height, None)
        assert size == [w, h] and lens.tolist() == [[fl, fl, cx, cy]]


def test_focal_replaces_after_scaling() -> None:
    lens, _, _ = fit_lenses(table([50.0, 60.0, 20.0, 10.0], (40, 20)), 80, None, 1483.6378)
    assert lens.tolist() == [[1483.6378, 1483.6378, 40.0, 20.0]]


def test_frames_of_different_sizes() -> None:
    mixed = table([50.0, 50.0, 48.0, 27.0], (96, 54), (96, 54), (48, 27), (40, 30))
    with pytest.raises(CameraError, match=r"f\.json: frames of different sizes: frame 0 \(n0\) is 96x54, frame 2 \(n2\) is 48x27"):
        fit_lenses(mixed, None, None, None)
    with pytest.raises(CameraError, match=r"frame 3 \(n3\) is 40x30"):  # of another aspect: one side does not settle the other
        fit_lenses(mixed, 192, None, None)
    lens, *size = fit_lenses(mixed, 192, 108, None)
    assert size == [192, 108]
    assert lens[:, 0].tolist() == pytest.approx([100, 100, 200, 240])


@pytest.mark.parametrize(("key", "value"), [("width", 0), ("height", -3), ("focal", 0.0), ("focal", math.nan)])
def test_bad_overrides(save: Save, key: str, value: Any) -> None:
    with pytest.raises(CameraError, match=key):
        load_flight(save(transforms()), **{key: value})


def test_make_lens() -> None:
    assert make_lens(1920, 1080, fov=90).tolist() == [pytest.approx(960), pytest.approx(960), 960, 540]
    assert make_lens(100, 50, focal=70).tolist() == [70, 70, 50, 25]
    for keys in ({"focal": 0}, {"focal": 5, "fov": 50}, {"fov": 180}, {"focal": math.inf}):
        with pytest.raises(ConfigError):
            make_lens(100, 50, **keys)
    with pytest.raises(ConfigError, match="0x50"):
        make_lens(0, 50)


def test_inline_frames() -> None:
    frames = [InlineFrame(c2w=nadir(), focal=80.0, time=1.0, name="start"), InlineFrame(c2w=nadir(1)[:3], time=3.0)]
    flight = inline_flight(frames, 64, 32, focal=40.0)
    assert flight.intrinsics.tolist() == [[80, 80, 32, 16], [40, 40, 32, 16]]
    assert flight.names == ("start", "frame_00001")
    assert flight.time.tolist() == [0, 2]
    assert flight.c2w.tolist() == [nadir()[:3], nadir(1)[:3]]
    with pytest.raises(CameraError, match=r"job file: frame 1 \(frame_00001\): no focal"):
        inline_flight(frames, 64, 32)
    with pytest.raises(CameraError, match="no cameras"):
        inline_flight([], 64, 32)
    with pytest.raises(CameraError, match=r"frame 0 \(frame_00000\): c2w is 2x2"):
        inline_flight([InlineFrame(c2w=[[1, 0], [0, 1]], focal=1.0)], 64, 32)
    with pytest.raises(CameraError, match=r"frame 0 \(bad\): .* focal fl_x = -1|frame 0 \(bad\): focal fl_x = -1"):
        inline_flight([InlineFrame(c2w=nadir(), focal=-1.0, name="bad")], 64, 32)


def test_flight_of_job(save: Save, tmp_path: Path) -> None:
    file = save(transforms())
    flight = flight_of_job(job_from_dict({"cameras": {"file": str(file), "width": 192, "focal": 99}, "video": {"fps": 10}}))
    assert (flight.width, flight.height, flight.source) == (192, 108, str(file))
    assert flight.intrinsics[0].tolist() == [99, 99, 96, 54]
    assert flight.time[1] == 0.1 and flight.fps is None
    inline = {"width": 64, "height": 32, "focal": 50, "frame": [{"c2w": nadir()}]}
    assert flight_of_job(job_from_dict({"cameras": inline})).intrinsics.tolist() == [[50, 50, 32, 16]]
    with pytest.raises(ConfigError, match="no cameras"):
        flight_of_job(job_from_dict({}))
    with pytest.raises(ConfigError, match=r"cameras\.width and cameras\.height"):
        flight_of_job(job_from_dict({"cameras": {"frame": [{"c2w": nadir(), "focal": 5}]}}))


def test_job_names_the_normalisation_and_its_dataset(save: Save, tmp_path: Path) -> None:
    from tests.cameras.conftest import camera_path
    from tests.cameras.test_camera_path import SWAP

    save(camera_path(), "path.json")
    save({"transform": SWAP.tolist(), "scale": 2.0}, "dataparser_transforms.json")
    save({"frames": [], "applied_transform": SWAP.tolist()}, "transforms.json")
    cameras = {
        "file": tmp_path / "path.json",
        "transform": tmp_path / "dataparser_transforms.json",
        "dataset": tmp_path / "transforms.json",
    }
    flight = flight_of_job(job_from_dict({"cameras": {key: str(path) for key, path in cameras.items()}}))
    assert flight.c2w[1].tolist() == [[1, 0, 0, 0.05], [0, 1, 0, 0], [0, 0, 1, 0.75]]
