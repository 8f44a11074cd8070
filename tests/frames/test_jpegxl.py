"""Stores of JPEG XL images: every bit comes back, through this program and through plain Zarr, and damage is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from landmark_batch.errors import ConfigError
from landmark_batch.frames import jpegxl
from landmark_batch.frames.jpegxl import NAME, JpegXl
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store

from .store_kit import assert_is, make_flight, make_settings, make_spec, pick, render, with_jpegxl

ROOT = Path(__file__).resolve().parents[2]
FLIGHT, SETTINGS = make_flight(4), make_settings()


def make(path: Path, **more: Any) -> FrameStore:
    render(path, FLIGHT, SETTINGS, spec=make_spec(4, compressor="jpegxl", **more))
    return FrameStore.open(path)


def lossless(**options: Any) -> JpegXl:
    return JpegXl(tuple(sorted({"effort": 1, "lossless": True, **options}.items())))


@with_jpegxl
@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (3, 4), (37, 300)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_any_size_and_every_bit_pattern(dtype: str, size: tuple[int, int]) -> None:
    """Colours that a transparent pixel hides, too."""
    random = np.random.default_rng(1)
    for channels in ((), (3,), (4,)):
        shape = (1, *size, *channels)
        chunk = random.integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8).view(dtype)[..., 0]
        if channels == (4,):
            chunk[..., 3][random.random((1, *size)) < 0.5] = 0
        image = lossless().to_image(chunk)
        assert lossless().to_pixels(np.frombuffer(image, np.uint8), shape, chunk.dtype).tobytes() == chunk.tobytes()


@with_jpegxl
def test_it_takes_one_thread_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import imagecodecs

    asked: list[tuple[str, object]] = []

    class Spy:
        @staticmethod
        def jpegxl_encode(data: Any, **options: Any) -> Any:
            asked.append(("encode", options))
            return imagecodecs.jpegxl_encode(data, **options)

        @staticmethod
        def jpegxl_decode(data: Any, **options: Any) -> Any:
            asked.append(("decode", options))
            return imagecodecs.jpegxl_decode(data, **options)

    monkeypatch.setattr(jpegxl, "library", lambda: Spy)
    picture = np.zeros((8, 8, 3), np.uint8)
    lossless().to_pixels(np.frombuffer(lossless().to_image(picture), np.uint8), picture.shape, picture.dtype)
    assert asked == [("encode", {"effort": 1, "lossless": True, "numthreads": 1}), ("decode", {"numthreads": 1})]


@with_jpegxl
@pytest.mark.parametrize("shard", [1, 2])
def test_render_change_the_flight_verify_and_read(fast_path: Path, shard: int) -> None:
    path = fast_path / "a.zarr"
    make(path, frames_per_shard=shard)
    assert_is(path, FLIGHT, SETTINGS)
    assert render(path, FLIGHT, SETTINGS) == [], "a job with another compressor goes on with the store's"
    place = 2 if shard == 1 else 4  # frames that share a file do not move
    other = pick(FLIGHT, [*range(place), -1, *range(place, 4)])
    assert render(path, other, SETTINGS) == [place]
    assert_is(path, other, SETTINGS)
    assert verify_store(path).ok
    names = {name: json.loads((path / name / "zarr.json").read_text())["codecs"] for name in ("rgb", "depth")}
    inner = {name: codecs if shard == 1 else codecs[0]["configuration"]["codecs"] for name, codecs in names.items()}
    assert [codec["name"] for codec in inner["rgb"]] == [NAME, "crc32c"]
    assert [codec["name"] for codec in inner["depth"]] == ["bytes", "blosc", "crc32c"]
    assert inner["depth"][1]["configuration"]["cname"] == "zstd"


@with_jpegxl
def test_a_flipped_bit_is_found_and_rendered_again(fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    store = make(path)
    for name in store.spec.names:
        file = store.chunk_file(name, 2)
        assert isinstance(file, Path)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    report = verify_store(path)
    assert [(item.frame, item.output, item.reason) for item in report.damaged] == [
        (2, name, "its checksum is another") for name in sorted(store.spec.names)
    ]
    assert render(path, FLIGHT, SETTINGS) == [2]
    assert verify_store(path).ok
    assert_is(path, FLIGHT, SETTINGS)


@with_jpegxl
def test_plain_zarr_reads_it_in_a_process_of_its_own(tmp_path: Path) -> None:
    """By the entry point alone: no line of the reader names this program. And one file by hand, as the docs tell."""
    store = make(tmp_path / "a.zarr")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["zarr.codecs"]
    described = tmp_path / "site" / "landmark_batch_points-1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: landmark-batch-points\nVersion: 1\n")
    (described / "entry_points.txt").write_text("\n".join(["[zarr.codecs]", *(f"{name} = {place}" for name, place in points.items())]))
    program = (
        "import sys, numpy, zarr\n"
        "assert not [name for name in sys.modules if name.startswith('landmark_batch')]\n"
        "group = zarr.open_group(sys.argv[1], mode='r')\n"
        "numpy.savez(sys.argv[2], rgb=group['rgb'][1], depth=group['depth'][1])\n"
        "import imagecodecs, pathlib\n"
        "by_hand = imagecodecs.jpegxl_decode(pathlib.Path(sys.argv[1], 'rgb', 'c.1.0.0.0').read_bytes()[:-4])\n"
        "assert numpy.array_equal(by_hand, group['rgb'][1])\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    command = [sys.executable, "-W", "error", "-c", program, str(store.path), str(tmp_path / "read.npz")]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "read.npz") as read:
        assert all(np.array_equal(read[name], store.read(name, 1)) for name in ("rgb", "depth"))


@with_jpegxl
def test_in_an_object_store_it_is_the_same_bytes(bucket: str, fast_path: Path) -> None:
    url, store = f"{bucket}/a.zarr", make(fast_path / "a.zarr")
    render(url, FLIGHT, SETTINGS, spec=make_spec(4, compressor="jpegxl"))  # type: ignore[arg-type]
    assert_is(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
    there = FrameStore.open(url)
    for name in store.spec.names:
        assert all(there.chunk_file(name, frame).read_bytes() == store.chunk_file(name, frame).read_bytes() for frame in range(4))
    assert verify_store(url).ok


@with_jpegxl
def test_arrays_of_other_programs_keep_their_options(tmp_path: Path) -> None:
    """The name is shared: what others wrote under it, lossy or on several threads, is read and written on as they said."""
    codec = JpegXl((("distance", 1.0), ("effort", 3), ("keeporientation", True), ("lossless", False), ("numthreads", 2)))
    made = zarr.create_array(
        LocalStore(tmp_path / "a"), shape=(2, 32, 48, 3), chunks=(1, 32, 48, 3), dtype="uint8", serializer=codec, compressors=Crc32cCodec()
    )
    smooth = np.broadcast_to(np.arange(48, dtype=np.uint8)[:, None] * 5, (2, 32, 48, 3))
    made[...] = smooth
    again = zarr.open_array(tmp_path / "a", mode="r+")
    assert getattr(again.metadata, "codecs")[0] == codec  # noqa: B009
    read = np.asarray(again[...]).astype(int)
    assert 0 < np.abs(read - smooth).max() < 40
    again[1] = smooth[1]
    assert np.array_equal(np.asarray(again[1]).astype(int), read[1])


def test_without_the_library_it_is_looked_at_but_not_read(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    path = fast_path / "a.zarr"
    store = FrameStore.create(path, make_spec(4, compressor="jpegxl"), FLIGHT, SETTINGS)
    assert store.finished() == {} and not FrameStore.open(path).done().any()
    with pytest.raises(ConfigError, match=r"needs the package imagecodecs\n.*pip install 'landmark-batch\[jpegxl\]'"):
        render(path, FLIGHT, SETTINGS)
    assert FrameStore.open(path).finished() == {} and not list(path.rglob("*.partial"))


@with_jpegxl
def test_without_the_library_no_frame_is_called_damaged(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fast_path / "a.zarr"
    make(path)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ConfigError, match="needs the package imagecodecs"):
        verify_store(path, discard_damaged=True)
    assert len(FrameStore.open(path).finished()) == 4
