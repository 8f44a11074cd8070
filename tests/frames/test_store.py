"""FrameStore: what it looks like to Zarr readers, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from landmark_batch import __version__
from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.frames import durable
from landmark_batch.frames.process import writer_tag
from landmark_batch.frames.spec import OutputSpec, StoreInfo
from landmark_batch.frames.store import FrameStore

from .store_kit import EVERY_COMPRESSOR, HEIGHT, WIDTH, assert_is, make_flight, make_settings, make_spec, pixels_of, render


@pytest.fixture(params=[(), (1, 4), tuple(range(6))], ids=["empty", "part", "full"])
def filled(request: pytest.FixtureRequest, fast_path: Path) -> tuple[Path, tuple[int, ...]]:
    path = fast_path / "flight.zarr"
    render(path, make_flight(), make_settings(), only=request.param)
    return path, request.param


def test_zarr_reads_it_without_warning(filled: tuple[Path, tuple[int, ...]]) -> None:
    path, frames = filled
    for consolidated in (None, False):
        group = zarr.open_group(path, mode="r", use_consolidated=consolidated)
        members: dict[str, Any] = dict(group.members(max_depth=None))
        assert sorted(members) == ["depth", "done", "focal", "frame", "intrinsics", "pose", "rgb", "time"]
        assert members["rgb"].metadata.dimension_names == ("frame", "y", "x", "channel")
        assert members["depth"].metadata.dimension_names == ("frame", "y", "x")
        assert np.flatnonzero(members["done"][...]).tolist() == list(frames)
        assert members["rgb"].nchunks_initialized == len(frames)
    expected = {"name": "flight", "fps": 24.0, "metres_per_unit": None, "units": "scene units", "background": "white"}
    assert expected.items() <= group.attrs.asdict().items()
    assert group.attrs["colour"] == "display-referred sRGB"
    assert group.attrs["program"] == f"landmark-batch {__version__}"


def test_xarray_reads_it_without_warning(filled: tuple[Path, tuple[int, ...]]) -> None:
    path, frames = filled
    flight = make_flight()
    for consolidated in (None, False):
        data = xarray.open_zarr(path, consolidated=consolidated).load()
        assert set(data.coords) == {"frame", "time", "pose", "focal", "intrinsics", "done"}
        assert set(data.data_vars) == {"rgb", "depth"}
        assert dict(data.sizes) == {"frame": 6, "y": HEIGHT, "x": WIDTH, "channel": 3, "row": 3, "column": 4, "lens": 4}
        assert data.frame.dtype == np.int64 and data.done.dtype == np.bool_ and data.pose.dtype == np.float64
        assert data.time.dtype == np.float64
        np.testing.assert_array_equal(data.pose, flight.c2w)
        np.testing.assert_array_equal(data.focal, flight.intrinsics[:, 0])
        assert "done" in data.rgb.coords
    if frames:
        store = FrameStore.open(path)
        chosen = data.rgb.where(data.done, drop=True)
        assert chosen.sizes["frame"] == len(frames)
        np.testing.assert_array_equal(data.rgb.sel(frame=frames[-1]), store.read("rgb", frames[-1]))


def test_one_frame_of_one_output_is_one_file(filled: tuple[Path, tuple[int, ...]]) -> None:
    path, frames = filled
    assert sorted(file.name for file in (path / "rgb").iterdir()) == sorted(["zarr.json", *(f"c.{i}.0.0.0" for i in frames)])
    assert sorted(file.name for file in (path / "depth").iterdir()) == sorted(["zarr.json", *(f"c.{i}.0.0" for i in frames)])
    codecs = [codec["name"] for codec in json.loads((path / "rgb" / "zarr.json").read_text())["codecs"]]
    assert codecs == ["bytes", "blosc", "crc32c"]


@pytest.mark.parametrize("compressor", EVERY_COMPRESSOR)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_dtypes_and_compressors_keep_every_bit(fast_path: Path, compressor: str, dtype: str) -> None:
    outputs = (OutputSpec("rgb", dtype, 4), OutputSpec("alpha", dtype))
    if compressor == "jpegxl" and dtype.startswith("float"):
        with pytest.raises(
            ConfigError, match=rf"'jpegxl': no output is uint8 or uint16, but rgb {dtype} with alpha channel, alpha {dtype}"
        ):
            make_spec(2, outputs=outputs, compressor=compressor)
        return
    spec = make_spec(2, outputs=outputs, compressor=compressor)
    path = fast_path / "a.zarr"
    render(path, make_flight(2), make_settings(), spec=spec)
    assert_is(path, make_flight(2), make_settings())
    codecs = [codec["name"] for codec in json.loads((path / "rgb" / "zarr.json").read_text())["codecs"]]
    assert codecs[-1] == "crc32c"
    assert ("blosc" in codecs) == (compressor not in ("none", "jpegxl")) and ("imagecodecs_jpegxl" in codecs) == (compressor == "jpegxl")


def test_create_makes_parents_and_says_what_it_is(fast_path: Path) -> None:
    path = fast_path / "a" / "b" / "walk.zarr"
    info = StoreInfo("walk", 25.0, 23.06, "black")
    store = FrameStore.create(path, make_spec(), make_flight(), make_settings(), info=info)
    again = FrameStore.open(path)
    assert again.spec == store.spec == make_spec() and again.info == info and again.name == "walk"
    assert zarr.open_group(path, mode="r")["depth"].attrs["metres_per_unit"] == 23.06
    held, flight = again.flight(), make_flight()
    for name in ("c2w", "intrinsics", "time"):
        np.testing.assert_array_equal(getattr(held, name), getattr(flight, name))
    assert (held.names, held.fps, held.source, held.width, held.height) == (flight.names, 24.0, "path.json", WIDTH, HEIGHT)
    assert again.settings() == make_settings()
    assert again.settings("0" * 64) is None
    assert again.finished() == {} and again.measured_bytes_per_frame() is None


def test_create_refuses_what_is_there_and_touches_nothing(fast_path: Path) -> None:
    made = (make_spec(), make_flight(), make_settings())
    file = fast_path / "file.zarr"
    file.write_bytes(b"mine")
    foreign = fast_path / "foreign.zarr"
    zarr.create_group(foreign)
    (foreign / "notes").write_text("mine")
    for path, message in ((file, "is a file"), (foreign, "foreign directory")):
        for call in (FrameStore.create, FrameStore.open_or_create):
            with pytest.raises(StoreError, match=message):
                call(path, *made)
        with pytest.raises(StoreError, match=message):
            FrameStore.open(path)
    with pytest.raises(StoreError, match="is a file, not a directory"):
        FrameStore.create(file / "below.zarr", *made)
    assert file.read_bytes() == b"mine"
    assert sorted(entry.name for entry in foreign.iterdir()) == ["notes", "zarr.json"]
    assert sorted(entry.name for entry in fast_path.iterdir()) == ["file.zarr", "foreign.zarr"]
    with pytest.raises(StoreError, match="no such store"):
        FrameStore.open(fast_path / "none.zarr")
    (fast_path / "empty.zarr").mkdir()
    store = FrameStore.create(fast_path / "empty.zarr", *made)
    with pytest.raises(StoreError, match="there is a frame store already"):
        FrameStore.create(store.path, *made)


@pytest.mark.parametrize(
    ("number", "message"), [(errno.EACCES, "not writable"), (errno.EROFS, "not writable"), (errno.ENOSPC, "disk is full")]
)
def test_create_says_why_it_cannot_and_leaves_nothing(fast_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    def refuse(root: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, "sync_tree", refuse)
    with pytest.raises(StoreError, match=message):
        FrameStore.create(fast_path / "a.zarr", make_spec(), make_flight(), make_settings())
    assert list(fast_path.iterdir()) == []


def test_create_clears_what_a_killed_creation_left(fast_path: Path) -> None:
    dead = writer_tag("new").split("@")
    dead[2] = "999999999"
    (fast_path / f".a.zarr.{'@'.join(dead)}.creating").mkdir()
    alive = fast_path / f".a.zarr.{writer_tag('new')}.creating"
    alive.mkdir()
    FrameStore.create(fast_path / "a.zarr", make_spec(), make_flight(), make_settings())
    assert sorted(entry.name for entry in fast_path.iterdir()) == sorted([alive.name, "a.zarr"])


def test_flight_and_spec_must_agree(fast_path: Path) -> None:
    with pytest.raises(StoreError, match="6 frames of 16×10 do not fit a store of 5 frames"):
        FrameStore.create(fast_path / "a.zarr", make_spec(5), make_flight(6), make_settings())
    assert list(fast_path.iterdir()) == []


def test_another_size_or_dtype_is_another_store(fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    store = FrameStore.open_or_create(path, make_spec(), make_flight(), make_settings())
    large = make_flight(width=32)
    with pytest.raises(StoreError, match=r"holds frames of 16×10, the job renders 32×10\n.*-o NEW\.zarr"):
        FrameStore.open_or_create(path, make_spec(width=32), large, make_settings())
    with pytest.raises(StoreError, match="holds rgb uint8, depth float32, the job renders rgb uint16"):
        store.require(make_spec(outputs=(OutputSpec("rgb", "uint16", 3),)))
    with pytest.raises(StoreError, match="rgb uint8 with alpha channel"):
        store.require(make_spec(outputs=(OutputSpec("rgb", "uint8", 4), OutputSpec("depth", "float32"))))
    store.require(make_spec(9, compressor="zstd"))


def test_read_refuses(fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    render(path, make_flight(), make_settings(), only=[0])
    store = FrameStore.open(path)
    with pytest.raises(StoreError, match="outside the flight of 6 frames"):
        store.read("rgb", 6)
    with pytest.raises(StoreError, match="rgb of frame 3 is not there"):
        store.read("rgb", 3)
    with pytest.raises(ConfigError, match="no output 'alpha'"):
        store.read("alpha", 0)
    file = store.chunk_file("rgb", 0)
    data = file.read_bytes()
    for size in range(len(data)):
        file.write_bytes(data[:size])
        with pytest.raises(StoreError, match="rgb of frame 0 is damaged"):
            store.read("rgb", 0)
    file.write_bytes(bytes(len(data)))
    with pytest.raises(StoreError, match="damaged"):
        store.read("rgb", 0)


def test_a_copied_store_is_the_same_store(fast_path: Path) -> None:
    render(fast_path / "a.zarr", make_flight(), make_settings())
    shutil.copytree(fast_path / "a.zarr", fast_path / "b.zarr")
    assert render(fast_path / "b.zarr", make_flight(), make_settings()) == []
    assert_is(fast_path / "b.zarr", make_flight(), make_settings())


def test_sizes_for_the_plan(fast_path: Path) -> None:
    spec = make_spec(6)
    assert spec.bytes_per_frame == WIDTH * HEIGHT * (3 + 4)
    path = fast_path / "a.zarr"
    render(path, make_flight(), make_settings(), spec=spec)
    on_disk = sum(file.stat().st_size for name in spec.names for file in (path / name).glob("c.*"))
    store = FrameStore.open(path)
    assert store.measured_bytes_per_frame() == on_disk / 6
    assert spec.disk_bytes() >= on_disk and spec.disk_bytes(1) < spec.disk_bytes(2)
    assert spec.disk_bytes(ratio=2.0) <= spec.disk_bytes()
    first = pixels_of(spec, store.finished()[0].fingerprint)
    assert store.record(0) == store.finished()[0] and store.record(77) is None
    assert set(first) == {"rgb", "depth"}
