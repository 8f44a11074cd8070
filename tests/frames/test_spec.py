"""What a store can and cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from landmark_batch.errors import ConfigError
from landmark_batch.frames.layout import chunk_index, chunk_name
from landmark_batch.frames.spec import OutputSpec, StoreSpec

from .store_kit import make_spec


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (("rgb", "uint32", 3), "not a dtype of rgb"),
        (("depth", "uint8", None), "not a dtype of depth"),
        (("normals", "uint8", 3), "a store holds rgb, depth and alpha"),
        (("rgb", "uint8", None), "None channels"),
        (("rgb", "uint8", 5), "5 channels"),
        (("alpha", "uint8", 1), "1 channels"),
    ],
)
def test_outputs_refused(output: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OutputSpec(*output)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frames": 0}, "frames = 0"),
        ({"height": -1}, "height = -1"),
        ({"frames_per_shard": 0}, "frames_per_shard = 0"),
        ({"outputs": ()}, "at least one"),
        ({"outputs": (OutputSpec("alpha", "uint8"), OutputSpec("alpha", "uint16"))}, "each once"),
        ({"compressor": "gzip"}, "output.compressor = 'gzip'"),
    ],
)
def test_specs_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_spec(**values)


def test_spec_survives_json() -> None:
    spec = make_spec(7, frames_per_shard=3, compressor="zstd")
    assert StoreSpec.from_dict(spec.as_dict()) == spec
    assert [list(spec.shard_of(frame)) for frame in (0, 2, 5, 6)] == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [6]]
    assert spec.frame_shape("rgb") == (10, 16, 3) and spec.frame_shape("depth") == (10, 16)


def test_disk_bytes_of_1080p() -> None:
    """6.2 MB a frame uncompressed, with less than 1 % for blocks, entries and ledger."""
    spec = make_spec(1200, width=1920, height=1080, outputs=(OutputSpec("rgb", "uint8", 3),))
    assert 1200 * 6_220_800 < spec.disk_bytes() < 1200 * 6_220_800 * 1.01
    assert spec.disk_bytes(0) < 300_000


def test_chunk_names() -> None:
    assert [chunk_index(chunk_name(name, 12)) for name in ("rgb", "depth")] == [12, 12]
    assert [chunk_index(name) for name in ("zarr.json", "c.12.0.0.0.w@h.partial", "c.x.0.0", "c.3.0.0.moving", "12")] == [None] * 5
