"""ChunkArrays: used again, pinned where that is possible, made before anybody waits for them; and who asks for PNGs in them."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from landmark_batch.frames.pictures import HEAD, PictureOrder, stream_bytes
from landmark_batch.frames.spec import OutputSpec, StoreSpec
from landmark_batch.kernels.png import PngLibrary
from landmark_batch.workflows.chunk_arrays import ChunkArrays
from landmark_batch.workflows.picture_makers import PictureMakers
from landmark_batch.workflows.pipeline import FramePipeline
from landmark_batch.workflows.simulated import simulated_job, simulated_request
from tests.workflows.test_pipeline import FRAMES


def test_arrays_are_used_again_and_grow_where_they_must(tmp_path: Path) -> None:
    spec = simulated_request(simulated_job(tmp_path, chunk_frames=4, workers=1), FRAMES, 0.0).spec
    arrays = ChunkArrays(spec, most=2, pinned=False)
    small, out = arrays.take(3)
    assert (out, small["rgb"].shape) == (1, (3, 18, 32, 3))
    large, out = arrays.take(8)
    assert out == 2
    arrays.give(small)
    arrays.give(large)
    assert arrays.take(2)[0] is large
    grown, _ = arrays.take(5)
    assert len(grown["rgb"]) == 5
    taken: list[Any] = []
    waiting = threading.Thread(target=lambda: taken.append(arrays.take(1)[0]))
    waiting.start()
    time.sleep(0.05)
    assert not taken
    arrays.give(grown)
    waiting.join()
    assert taken[0] is grown


def test_arrays_are_made_before_anybody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from landmark_batch.model import transfer

    made, refused = list[tuple[int, ...]](), list[int]()

    def plain(shape: Sequence[int], dtype: Any) -> Any:
        if refused:
            raise MemoryError
        made.append(tuple(shape))
        return np.empty(shape, dtype)

    monkeypatch.setattr(transfer, "pinned_array", plain)
    spec = simulated_request(simulated_job(tmp_path, chunk_frames=4, workers=1), FRAMES, 0.0).spec
    arrays = ChunkArrays(spec, most=3, pinned=True)
    first, _ = arrays.take(2)
    arrays.make(4)
    assert made == [(2, 18, 32, 3), (4, 18, 32, 3), (4, 18, 32, 3)] and arrays.out == 1
    assert len(arrays.take(4)[0]["rgb"]) == len(arrays.take(3)[0]["rgb"]) == 4
    arrays.give(first)
    assert arrays.take(1)[0] is first and len(made) == 3
    refused.append(1)
    short = ChunkArrays(spec, most=1, pinned=True)
    short.make(4)
    refused.clear()
    assert len(short.take(1)[0]["rgb"]) == 1
    closed = ChunkArrays(spec, most=1, pinned=True)
    closed.close()
    closed.make(4)
    assert len(made) == 4


def test_where_nothing_can_be_pinned_arrays_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from landmark_batch.model import transfer

    def refused(*_: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory\nmore of it")

    monkeypatch.setattr(transfer, "pinned_array", refused)
    spec = simulated_request(simulated_job(tmp_path, chunk_frames=4, workers=1), FRAMES, 0.0).spec
    arrays = ChunkArrays(spec, most=2, pinned=True)
    for _ in range(2):
        assert arrays.take(3)[0]["rgb"].shape == (3, 18, 32, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "no memory can be pinned for pixels, they are copied once more: CUDA error: out of memory"
    ]


def test_no_memory_for_streams_takes_none_from_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = StoreSpec(8, 18, 32, (OutputSpec("rgb", "uint8", 3),))
    asked: list[tuple[int, ...]] = []

    def pinned(self: ChunkArrays, shape: tuple[int, ...], dtype: str) -> Any:
        asked.append(shape)
        if len(shape) == 2 and len(asked) > 2:
            raise RuntimeError("CUDA error: out of memory")
        return np.empty(shape, dtype)

    monkeypatch.setattr(ChunkArrays, "_pinned_array", pinned)
    arrays = ChunkArrays(spec, most=2, pinned=True, pictures=True)
    (first, _), (second, _) = arrays.take(4), arrays.take(4)
    assert set(first) == {"rgb", "pictures"} and first["pictures"].shape == (4, stream_bytes(18, 32))
    assert set(second) == {"rgb"}
    assert [len(shape) for shape in asked] == [4, 2, 4, 2], "pixels are still pinned after streams were not"
    assert set(ChunkArrays(spec, most=1, pinned=False, pictures=True).take(1)[0]) == {"rgb"}


class Begun:
    """A frame of a device that makes PNGs of all frames but one. asked: the frames of which one was asked."""

    stage = "copy"
    counters: ClassVar[dict[str, int]] = {}

    def __init__(self, number: int, asked: list[int], refused: int) -> None:
        self.number, self.asked, self.refused = number, asked, refused

    def quantise_begin(self, outputs: Any, *, frame: int, into: Any, picture: Any = None) -> Any:
        into["rgb"][...] = frame
        if picture is not None:
            self.asked.append(frame)
            if frame != self.refused:
                picture[:5] = 7
        return self

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("refused", [-1, 1])
def test_a_device_without_memory_for_pngs_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    monkeypatch.setattr(ChunkArrays, "_pinned_array", lambda self, shape, dtype: np.full(shape, 9, dtype))
    monkeypatch.setattr("landmark_batch.kernels.picture.makes_pictures", lambda height, width: (height, width) == (18, 32))
    spec = StoreSpec(8, 18, 32, (OutputSpec("rgb", "uint8", 3),))
    makers = PictureMakers(PictureOrder("/", "m", "city", "{frame}", 0), (18, 32), PngLibrary(prebuilt=tmp_path))
    pipeline = FramePipeline(spec, overlap=False, pinned=True, files=False, makers=makers)
    asked: list[int] = []
    frames = ((number, Begun(number, asked, refused)) for number in range(4))
    with pipeline.fill(4, frames, defaultdict(float), Counter()) as filled:  # type: ignore[arg-type]
        assert filled.streams is not None
        made = [HEAD.unpack(stream[: HEAD.size].tobytes())[0] for stream in filled.streams.arrays]
        assert [int(pixels[0, 0, 0]) for pixels in filled.pixels["rgb"]] == [0, 1, 2, 3]
    assert asked == ([0, 1, 2, 3] if refused < 0 else [0, 1])
    assert [bool(length) for length in made] == [number in asked and number != refused for number in range(4)]
    pipeline.close()
