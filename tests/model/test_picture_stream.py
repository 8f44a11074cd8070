"""Which frames' PNGs a device makes, on a CPU that stands in for it: the reference makes them, any memory counts as pinned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from landmark_batch.frames.pictures import HEAD, stream_bytes
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.model import quantise
from landmark_batch.model.quantise import STORED, picture_stream

HEIGHT, WIDTH = 18, 32
RGB = OutputSpec("rgb", "uint8", 3)


@pytest.fixture(autouse=True)
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "pinned_place", torch.from_numpy)


def stored(output: OutputSpec) -> Tensor:
    shape = (HEIGHT, WIDTH) if output.channels is None else (HEIGHT, WIDTH, output.channels)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 9
    return values.to(STORED[output.dtype])


def room() -> Any:
    return np.zeros(stream_bytes(HEIGHT, WIDTH), np.uint8)


def test_of_colours_alone_and_where_there_is_room() -> None:
    outputs = [OutputSpec("depth", "float32"), RGB]
    place = room()
    (stream,), (there,) = picture_stream(outputs, [stored(output) for output in outputs], place)
    assert there.data_ptr() == place.ctypes.data and stream.shape == there.shape
    length, _, overfull, _ = HEAD.unpack(stream.numpy()[: HEAD.size].tobytes())
    assert length > 100 and not overfull
    assert picture_stream(outputs, [stored(output) for output in outputs], None) == ([], [])
    for other in (OutputSpec("rgb", "uint8", 4), OutputSpec("rgb", "uint16", 3), OutputSpec("alpha", "uint8")):
        assert picture_stream([other], [stored(other)], room()) == ([], [])


def test_a_device_without_memory_for_them_leaves_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("all of it")

    monkeypatch.setattr(quantise, "png_stream", full)
    assert picture_stream([RGB], [stored(RGB)], room()) == ([], [])
