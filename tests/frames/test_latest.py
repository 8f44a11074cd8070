"""The picture of the newest frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from landmark_batch.errors import ConfigError
from landmark_batch.frames.jpeg import read_jpeg_text
from landmark_batch.frames.latest import LatestPicture, latest_file

from .export_sources import MemorySource, depths, pictures


def test_its_name() -> None:
    assert latest_file(Path("out/city.v2.zarr")) == Path("out/city.v2.latest.jpg")
    assert latest_file(Path("store")) == Path("store.latest.jpg")


@pytest.mark.parametrize("outputs", [("rgb", "depth"), ("alpha", "depth"), ("depth",)])
def test_it_shows_what_there_is(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    pixels = {"rgb": pictures(3), "alpha": pictures(3)[..., 0], "depth": depths(3)}
    latest = LatestPicture(MemorySource({name: pixels[name] for name in outputs}), tmp_path / "a.latest.jpg")
    assert latest.due() == 0
    for frame in (2, 0):
        latest.show(frame)
        assert latest.due() > 0
        assert read_jpeg_text(latest.path)["Title"] == f"city frame {frame}"
    with Image.open(latest.path) as image:
        shown = np.asarray(image).astype(int)
    if outputs[0] != "depth":
        assert np.abs(shown - pixels[outputs[0]][0]).mean() < 8
    assert shown.shape[:2] == (24, 32) and shown.std() > 10
    assert [file.name for file in tmp_path.iterdir()] == ["a.latest.jpg"]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a.latest.jpg").mkdir()
    latest = LatestPicture(MemorySource({"rgb": pictures(1)}), tmp_path / "a.latest.jpg")
    with pytest.raises(ConfigError, match=r"a\.latest\.jpg: cannot write it"):
        latest.show(0)
    assert [file.name for file in tmp_path.iterdir()] == ["a.latest.jpg"]
