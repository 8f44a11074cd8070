"""bench export runs once, tiny: that it runs and adds up, not how fast it is."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from landmark_batch.errors import ConfigError
from landmark_batch.frames.store_source import open_source
from landmark_batch.workflows.bench_export import HEAD, ExportRow, bench_export, scenery


def test_images_and_films_in_one_table(tmp_path: Path) -> None:
    lines: list[str] = []
    report = bench_export(tmp_path / "bench", width=64, height=48, frames=3, threads=2, codecs=("libx264", "prores_ks"), tell=lines.append)
    kinds = [(row.what, row.bits) for row in report.rows]
    stores = ("lz4", "zstd", *(("JPEG XL",) if find_spec("imagecodecs") else ()))
    assert len(set(kinds)) == len(kinds) == 10 + 4 * len(stores)
    for bits in (8, 16):
        assert {what for what, each in kinds if each == bits} >= {"PNG, encoding", "PNG, store to files"}
        for name in stores:
            assert {(f"into the store, {name}", bits), (f"out of the store, {name}, one thread", bits)} <= set(kinds)
    assert [what for what, _ in kinds][-2:] == ["film, libx264 yuv420p, store to file", "film, prores_ks yuv422p10le, store to file"]
    assert kinds[-1][1] == 16
    assert all(row.wall > 0 and row.cpu > 0 and row.copies > 0 for row in report.rows)
    assert all(len(row.cells()) == len(HEAD) for row in report.rows)
    assert len(lines) == 5 + 2 * len(stores)
    told = json.loads(report.save(tmp_path / "bench.json").read_text())
    assert [row["copies"] for row in told["rows"]] == [row.copies for row in report.rows]
    assert told["width"] == 64 and all(row["reckoned_of_4_cores"] > 0 for row in told["rows"])
    assert told["machine"]["cores"] >= 1
    with pytest.raises(ConfigError, match="cannot write"):
        report.save(tmp_path)
    again = bench_export(tmp_path / "bench", width=64, height=48, frames=2, threads=1, codecs=("ffv1",))  # the same folder once more
    assert again.frames == 2
    source = open_source(tmp_path / "bench" / "bench16-lz4.zarr")
    assert not np.array_equal(source.read("rgb", 0), source.read("rgb", 1)), "the picture moves"


def test_a_row_tells_clock_and_cores_apart() -> None:
    row = ExportRow("PNG", 8, frames=10, wall=2.0, cpu=4.0, bytes=5e6, copy=0.01)
    assert row.copies == pytest.approx(40)
    assert row.reckoned == pytest.approx(10)
    assert row.cells() == ("PNG", "8", "5.00", "5.00", "400", "2.50", "10.0", "40.0")


def test_a_codec_that_cannot_run_is_refused_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="libfoo"):
        bench_export(tmp_path, width=64, height=48, frames=2, codecs=("libfoo",))
    monkeypatch.setattr("landmark_batch.workflows.bench_export.CODECS", ("dnxhr", "ffv1"))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    report = bench_export(tmp_path, width=64, height=48, frames=2)
    assert [note.startswith("dnxhr was left out") for note in report.notes] == [False, True], "it takes no film as small as that"
    assert "needs the package imagecodecs" in report.notes[0] and not any("JPEG XL" in row.what for row in report.rows)
    assert [row.what for row in report.rows if row.what.startswith("film")] == ["film, ffv1 bgr0, store to file"]


def test_pictures_have_sky_ground_and_detail() -> None:
    picture = scenery(160, 90)
    assert picture.shape == (90, 160, 3)
    assert picture.dtype == np.float32
    assert 0 <= picture.min() < picture.max() <= 1
    assert np.array_equal(picture, scenery(160, 90))
    assert picture[60:].std() > 0.03
