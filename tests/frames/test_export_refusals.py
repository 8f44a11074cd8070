"""Exports of images that are refused or cut off: what is said, and what lies in the folder then."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landmark_batch.errors import ConfigError, DiskFullError, StoreError
from landmark_batch.frames import export_images, outfile
from landmark_batch.frames.export_images import ImageExporter
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.store_source import open_source

from .export_sources import MemorySource, pictures, write_store
from .test_png import decode


def test_16_bits_from_uint8_are_refused_unless_allowed(tmp_path: Path) -> None:
    shots = pictures(2)
    source = MemorySource({"rgb": shots})
    with pytest.raises(ConfigError, match=r"uint8.*16-bit(.|\n)*--allow-8bit"):
        ImageExporter(source, tmp_path / "new", ImageSettings(bit_depth=16))
    assert source.reads == [] and not (tmp_path / "new").exists()
    report = ImageExporter(source, tmp_path, ImageSettings(bit_depth=16, allow_8bit=True)).export()
    assert np.array_equal(decode((tmp_path / "city.00001.png").read_bytes()), shots[1].astype(np.uint16) * 257)
    assert "8 bits" in report.notes[0]


def test_unfinished_frames_are_refused_and_named(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(8)}, done=[0, 1, 4, 5])
    exporter = ImageExporter(source, tmp_path / "out")
    with pytest.raises(StoreError, match=r"4 of the 8 frames wanted are not finished: 2-3,6-7") as caught:
        exporter.export()
    assert caught.value.exit_code == 2 and source.reads == [] and not (tmp_path / "out").exists()
    assert exporter.export([0, 4]).written == (0, 4)
    report = exporter.export(allow_missing=True)
    assert report.written == (1, 5) and report.unchanged == (0, 4) and report.missing == (2, 3, 6, 7)
    with pytest.raises(StoreError, match="none of the frames wanted is finished: 2-3"):
        exporter.export([2, 3], allow_missing=True)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{name}.{ext}", "without {frame}"),
        ("{frame", "pattern"),
        ("{frame}.{suffix}", r"\{suffix\} is not known"),
        ("{frame.__class__}.png", "is not known"),
        ("{frame:{ext}}.png", "is not known"),
        ("{frame:q}.png", "pattern"),
        ("{frame!r:.1}.png", "both become"),
        ("../{frame}.png", "leads out"),
        ("/tmp/{frame}.png", "leads out"),
        ("a/../../{frame}.png", "leads out"),
        ("{frame}/", "no file name"),
        ("{frame:0300d}.png", "no file name"),
        ("", "without {frame}"),
        ("{frame}.tif", "ends like another format: the files are png"),
        ("{frame}.{ext}/x{frame}.JPEG", "ends like another format"),
    ],
)
def test_bad_patterns(tmp_path: Path, pattern: str, said: str) -> None:
    source = MemorySource({"rgb": pictures(12, 4, 4)})
    with pytest.raises(ConfigError, match=said):
        ImageExporter(source, tmp_path / "out", ImageSettings(pattern=pattern))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": "gif"}, "gif"),
        ({"bit_depth": 12}, "12"),
        ({"format": "jpeg", "bit_depth": 16}, "JPEG"),
        ({"quality": 0}, "quality 0"),
        ({"exr_type": "float64"}, "float64"),
        ({"exr_compression": "lzw"}, "lzw"),
        ({"matte": "pink"}, "pink"),
        ({"colormap": "jet"}, "jet"),
        ({"start_number": -1}, "start number"),
        ({"near": 2.0, "far": 1.0}, "near = 2"),
        ({"near": float("nan")}, "near = nan is not finite"),
        ({"far": float("inf")}, "far = inf is not finite"),
        ({"percentiles": (99.0, 1.0)}, "percentiles"),
        ({"output": "depth", "bit_depth": 16}, "turbo"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ImageSettings(**values)


def test_an_output_or_frame_that_is_not_there(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(3)})
    with pytest.raises(ConfigError, match="holds no 'depth'"):
        ImageExporter(source, tmp_path, ImageSettings("depth"))
    with pytest.raises(ConfigError, match="frame 3 is outside the flight of 3 frames"):
        ImageExporter(source, tmp_path).export([0, 3])
    with pytest.raises(ConfigError, match="no frames chosen"):
        ImageExporter(source, tmp_path).export([])


def test_another_output_is_not_written_over(tmp_path: Path) -> None:
    """Whose folder and pattern make the same names: nothing is lost unless it is asked for."""
    shots = pictures(2)
    source = MemorySource({"rgb": shots, "depth": np.linspace(1, 2, 2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4)})
    ImageExporter(source, tmp_path).export()
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"city\.0000[01]\.png shows rgb: depth would replace it\n.*\{output\} in the pattern"):
        ImageExporter(source, tmp_path, ImageSettings("depth")).export()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    apart = ImageExporter(source, tmp_path, ImageSettings("depth", pattern="{name}.{output}.{frame}.{ext}"))
    assert apart.export().written == (0, 1)
    assert ImageExporter(source, tmp_path, ImageSettings("depth")).export(force=True).written == (0, 1)
    assert (tmp_path / "city.00000.png").read_bytes() != kept["city.00000.png"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file, not a folder"):
        ImageExporter(MemorySource({"rgb": pictures(1)}), tmp_path / "file").export()
    (tmp_path / "city.00000.png").mkdir()
    with pytest.raises(ConfigError, match=r"city.00000.png: cannot write it"):
        ImageExporter(MemorySource({"rgb": pictures(1)}), tmp_path).export()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("format", ["png", "exr"])
def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource({"rgb": pictures(3)})
    exporter = ImageExporter(source, tmp_path, ImageSettings(format=format), workers=1)
    exporter.export([1])
    old = exporter.path(1).read_bytes()
    source.pixels["rgb"] = 255 - source.pixels["rgb"]

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(outfile, "_sync_file", full)
        with pytest.raises(DiskFullError, match="disk is full"):
            exporter.export()
    assert [path.name for path in tmp_path.iterdir()] == [exporter.path(1).name] and exporter.path(1).read_bytes() == old
    assert exporter.export().written == (0, 1, 2)


def test_an_error_in_one_frame_ends_the_export(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", {"rgb": pictures(6)})
    store.chunk_file("rgb", 2).write_bytes(b"rubbish")
    with pytest.raises(StoreError, match=r"c\.2\.0\.0\.0: rgb of frame 2 is damaged"):
        ImageExporter(open_source(store.path), tmp_path / "rgb", workers=2).export()
    assert all(not path.name.startswith(".") for path in (tmp_path / "rgb").iterdir())


def test_a_frame_that_is_not_the_recorded_one_is_refused(tmp_path: Path) -> None:
    shots = pictures(2)
    store = write_store(tmp_path / "a.zarr", {"rgb": shots})
    first, second = store.chunk_file("rgb", 0), store.chunk_file("rgb", 1)
    second.write_bytes(first.read_bytes())  # whole, checksummed, and the wrong frame
    with pytest.raises(StoreError, match="rgb of frame 1 is not the picture that was recorded"):
        ImageExporter(open_source(store.path), tmp_path / "rgb").export()


def test_leftovers_of_a_killed_export_go_away(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom landmark_batch.frames.outfile import output_file\n"
        "with output_file(Path(sys.argv[1])) as path:\n    path.write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "city.00000.png")], check=False, cwd=Path(__file__).parents[2])
    assert len(list(tmp_path.iterdir())) == 1
    mine = outfile.temporary_name(tmp_path / "other.png")
    mine.write_bytes(b"in work")
    ImageExporter(MemorySource({"rgb": pictures(1)}), tmp_path).export()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, "city.00000.png"])


def test_leftovers_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of many images takes long to look through; beside a render it is exported to every few frames."""
    looked: list[Path] = []
    monkeypatch.setattr(export_images, "remove_leftovers", looked.append)
    exporter = ImageExporter(MemorySource({"rgb": pictures(4)}), tmp_path)
    assert [exporter.export([frame]).written for frame in range(4)] == [(0,), (1,), (2,), (3,)]
    assert looked == [tmp_path]
