"""A frame's own encoder writes what Zarr's pipeline writes, several frames at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, ZstdCodec
from zarr.storage import LocalStore

from landmark_batch.errors import StoreError
from landmark_batch.frames import writer as writer_module
from landmark_batch.frames.arrays import create_outputs, open_array
from landmark_batch.frames.encode import encoding_threads, frame_decoder, frame_encoder
from landmark_batch.frames.fingerprint import flight_fingerprints
from landmark_batch.frames.spec import OutputSpec, StoreSpec
from landmark_batch.frames.staging import StagedStore
from landmark_batch.frames.store import FrameStore

from .export_sources import pictures
from .store_kit import EVERY_COMPRESSOR, commit, make_flight, make_settings, make_spec

OUTPUTS = (OutputSpec("rgb", "uint8", 3), OutputSpec("depth", "float32"), OutputSpec("alpha", "float16"))


def opened(path: Path, **more: Any) -> dict[str, Any]:
    spec = StoreSpec(**{"frames": 4, "height": 40, "width": 56, "outputs": OUTPUTS, **more})
    create_outputs(LocalStore(path), spec, {name: {} for name in spec.names})
    return {name: open_array(StagedStore(path), name) for name in spec.names}


@pytest.mark.parametrize("compressor", EVERY_COMPRESSOR)
def test_the_bytes_are_those_of_zarr(tmp_path: Path, compressor: str) -> None:
    for name, array in opened(tmp_path, compressor=compressor).items():
        dtype, channels = str(array.dtype), 3 if name == "rgb" else 1
        frames = pictures(2, 40, 56, channels, dtype)
        frames = frames if name == "rgb" else np.ascontiguousarray(frames[..., 0])
        frames[1] = 0  # a black frame too
        place = zarr.storage.StorePath(LocalStore(tmp_path), name)
        plain: Any = zarr.Array(zarr.AsyncArray(array.metadata, place, config=array._async_array.config))
        plain[:2] = frames
        encoder = frame_encoder(array)
        assert encoder is not None
        for index, frame in enumerate(frames):
            expected = (tmp_path / name / f"c.{index}.0.0{'.0' if name == 'rgb' else ''}").read_bytes()
            assert b"".join(encoder(frame)) == expected
            assert b"".join(encoder(np.repeat(frame, 2, axis=0)[::2])) == expected, "strided frames too"


@pytest.mark.parametrize("compressor", EVERY_COMPRESSOR)
def test_the_pixels_are_those_that_zarr_wrote(tmp_path: Path, compressor: str) -> None:
    for name, array in opened(tmp_path, compressor=compressor).items():
        frames = pictures(4, 40, 56, 3 if name == "rgb" else 1, str(array.dtype))
        frames = frames if name == "rgb" else np.ascontiguousarray(frames[..., 0])
        frames[1] = 0  # a black frame too: its file is the shortest
        place = zarr.storage.StorePath(LocalStore(tmp_path), name)
        plain: Any = zarr.Array(zarr.AsyncArray(array.metadata, place, config=array._async_array.config))
        plain[:] = frames
        decode = frame_decoder(array)
        assert decode is not None
        files = [tmp_path / name / f"c.{index}.0.0{'.0' if name == 'rgb' else ''}" for index in (0, 1, 2, 3)]
        for kept in (None, np.ones_like(frames[0]), np.ones((2, 2), array.dtype), np.ones(frames[0].shape, np.float64)):
            for file, frame in zip(files, frames, strict=True):
                one = decode(file, kept)
                assert one.dtype == array.dtype and np.array_equal(one, frame)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("texture", ["noise", "smooth", "black"])
def test_bits_are_shuffled_where_that_saves(tmp_path: Path, texture: str, dtype: str) -> None:
    """Frames of more than a megabyte: flat and noisy rows in turns, for which the shuffle saves nothing, and a slope, for which it does."""
    array = opened(tmp_path, outputs=(OutputSpec("rgb", dtype, 3),), height=480, width=768, compressor="lz4")["rgb"]
    random, top = np.random.default_rng(4), np.iinfo(dtype).max
    frame = np.zeros((480, 768, 3), dtype)
    if texture == "noise":
        frame[::2] = random.integers(0, top, (240, 768, 3), dtype=dtype, endpoint=True)
    elif texture == "smooth":
        frame[:] = (np.linspace(0, top // 2, 768)[:, None] + random.integers(0, 4, (480, 768, 3))).astype(dtype)
    encode, decode = frame_encoder(array), frame_decoder(array)
    assert encode is not None and decode is not None
    path, data = tmp_path / "rgb" / "c.0.0.0.0", b"".join(encode(frame))
    path.write_bytes(data)
    assert bool(data[2] & 4) == (texture == "smooth"), "the third byte of Blosc's header: whether bits are shuffled"
    assert np.array_equal(decode(path, None), frame) and np.array_equal(array[0], frame), "by ourselves and by Zarr"
    assert b"".join(encode(frame.copy())) == data
    with_bits = numcodecs.Blosc("lz4", 1, numcodecs.Blosc.BITSHUFFLE).encode(frame.reshape(-1))
    assert len(data) <= 1.03 * len(with_bits) + 64


@pytest.mark.parametrize("compressor", EVERY_COMPRESSOR)
def test_a_damaged_file_is_refused(tmp_path: Path, compressor: str) -> None:
    array = opened(tmp_path, compressor=compressor)["rgb"]
    encode, decode = frame_encoder(array), frame_decoder(array)
    assert encode is not None and decode is not None
    whole = b"".join(encode(pictures(1, 40, 56)[0]))
    smaller = b"".join(encode(pictures(1, 20, 56)[0]))
    path = tmp_path / "frame"
    flipped = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
    for broken in (b"", whole[:3], whole[:-1], whole[:-4], flipped, whole + b"\0", smaller, _summed(b""), _summed(b"abc")):
        path.write_bytes(broken)
        with pytest.raises((ValueError, RuntimeError)):
            decode(path, None)
    path.write_bytes(whole)
    assert np.array_equal(decode(path, None), pictures(1, 40, 56)[0])
    path.unlink()
    with pytest.raises(FileNotFoundError):
        decode(path, None)


def _summed(payload: bytes) -> bytes:
    return payload + google_crc32c.value(payload).to_bytes(4, "little")


def test_other_layouts_are_left_to_zarr(tmp_path: Path) -> None:
    assert all(
        frame_encoder(array) is None and frame_decoder(array) is None for array in opened(tmp_path / "a", frames_per_shard=2).values()
    )
    for number, (chunks, codecs) in enumerate((((2, 8, 8), "auto"), ((1, 8, 8), ZstdCodec()), ((1, 8, 8), None))):
        foreign = zarr.create_array(
            LocalStore(tmp_path / f"b{number}"), shape=(4, 8, 8), chunks=chunks, dtype="uint8", compressors=codecs, serializer=BytesCodec()
        )
        assert frame_encoder(foreign) is None and frame_decoder(foreign) is None


def test_frames_of_a_commit_are_encoded_side_by_side(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames meet at a barrier inside their encoders: one after the other they would never get there."""
    flight, settings = make_flight(6), make_settings()
    store = FrameStore.create(fast_path / "a.zarr", make_spec(6), flight, settings)
    meeting = threading.Barrier(2)
    assert encoding_threads() >= 2

    def meet(array: Any) -> Any:
        encode = frame_encoder(array)
        assert encode is not None

        def both(frame: NDArray[Any]) -> Any:
            meeting.wait(timeout=30)
            return encode(frame)

        return both

    monkeypatch.setattr(writer_module, "frame_encoder", meet)
    commit(store, [0, 1, 2, 3], flight_fingerprints(settings, flight))
    assert sorted(store.finished()) == [0, 1, 2, 3]


def test_the_first_error_stops_the_rest(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flight, settings = make_flight(60), make_settings()
    store = FrameStore.create(fast_path / "a.zarr", make_spec(60), flight, settings)
    begun: list[int] = []

    def broken(array: Any) -> Any:
        def fail(frame: NDArray[Any]) -> Any:
            begun.append(1)
            raise OSError(5, "Input/output error")

        return fail

    monkeypatch.setattr(writer_module, "frame_encoder", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        commit(store, range(60), flight_fingerprints(settings, flight))
    assert len(begun) <= encoding_threads() and store.finished() == {} and not list(store.path.rglob("*.partial"))
    monkeypatch.undo()
    commit(store, range(60), flight_fingerprints(settings, flight))
    assert len(store.finished()) == 60
