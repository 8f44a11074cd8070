"""Images out of a store: right pixels, right labels, only what changed, nothing half-written."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from PIL import Image, ImageCms

from landmark_batch.errors import ConfigError
from landmark_batch.frames.export_images import ImageExporter
from landmark_batch.frames.image_files import DIGEST, KEY, read_label
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.picture import linear
from landmark_batch.frames.records import pixel_digest
from landmark_batch.frames.store_source import open_source

from .export_sources import MemorySource, commit, depths, photographs, pictures, write_store
from .test_png import decode


def srgb_to_linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else math.pow((value + 0.055) / 1.055, 2.4)


def load(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def exr(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with OpenEXR.File(str(path), separate_channels=True) as file:
        return dict(file.header()), {name: np.array(channel.pixels) for name, channel in file.channels().items()}


def test_photographs_leave_a_real_store_bit_for_bit(tmp_path: Path, reference_dir: Path) -> None:
    shots = np.stack(photographs(reference_dir, 4, (480, 270)))
    store = write_store(tmp_path / "city.zarr", {"rgb": shots})
    report = ImageExporter(open_source(store.path), tmp_path / "rgb", workers=2).export()
    assert report.written == (0, 1, 2, 3) and report.unchanged == () and report.first == tmp_path / "rgb" / "city.00000.png"
    files = sorted((tmp_path / "rgb").iterdir())
    assert [path.name for path in files] == [f"city.{frame:05d}.png" for frame in range(4)]
    assert report.bytes == sum(path.stat().st_size for path in files)
    for frame, path in enumerate(files):
        assert np.array_equal(load(path), shots[frame])
        label = read_label(path, "png")
        assert label[DIGEST] == store.finished()[frame].digests["rgb"] and label["Title"] == f"city frame {frame}"


def test_an_export_that_is_stopped_tells_what_it_wrote(tmp_path: Path) -> None:
    source, told = MemorySource({"rgb": pictures(12)}), []
    exporter = ImageExporter(source, tmp_path, workers=1)
    report = exporter.export(progress=lambda done, _: told.append(done), stop=lambda: len(told) >= 3)
    assert 3 <= len(report.written) <= 5 and report.unchanged == ()  # two frames a thread are in hand
    assert sorted(tmp_path.iterdir()) == [exporter.path(frame) for frame in report.written]
    rest = exporter.export()
    assert rest.unchanged == report.written and len(rest.written) == 12 - len(report.written)


def test_only_what_changed_is_written_again(tmp_path: Path) -> None:
    shots = pictures(6)
    store = write_store(tmp_path / "a.zarr", {"rgb": shots})
    source = open_source(store.path)
    folder = tmp_path / "rgb"
    ImageExporter(source, folder).export()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    again = ImageExporter(source, folder).export()
    assert again.written == () and again.unchanged == tuple(range(6))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    shots[3] = 255 - shots[3]
    store.discard([3], "test")
    commit(store, {"rgb": shots}, [3])
    (folder / "a.00005.png").write_bytes((folder / "a.00005.png").read_bytes()[:-40])  # cut off
    (folder / "a.00001.png").unlink()
    third = ImageExporter(source, folder).export()
    assert third.written == (1, 3, 5)
    assert np.array_equal(load(folder / "a.00003.png"), shots[3]) and np.array_equal(load(folder / "a.00005.png"), shots[5])
    assert ImageExporter(source, folder).export(force=True).written == tuple(range(6))


@pytest.mark.parametrize(
    ("format", "change"),
    [("png", {"bit_depth": 16}), ("jpeg", {"quality": 60}), ("exr", {"exr_type": "float32"}), ("exr", {"exr_compression": "zip"})],
)
def test_other_settings_write_all_again_the_same_ones_none(tmp_path: Path, format: str, change: dict[str, Any]) -> None:
    source = MemorySource({"rgb": pictures(3, dtype="uint16")})
    first, second = ImageSettings(format=format), ImageSettings(format=format, **change)
    assert ImageExporter(source, tmp_path, first).export().written == (0, 1, 2)
    assert ImageExporter(source, tmp_path, first).export().written == ()
    source.reads.clear()
    assert ImageExporter(source, tmp_path, second).export().written == (0, 1, 2)
    assert ImageExporter(source, tmp_path, second).export([0, 2]).unchanged == (0, 2)
    assert len(source.reads) == 3  # what is up to date is not even read


class CountingFile:
    """A file that counts what is read from it."""

    count = 0

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> CountingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.file.read(size)
        CountingFile.count += len(data)
        return data


@pytest.mark.parametrize("format", ["png", "jpeg", "exr"])
def test_reading_a_label_is_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    source = MemorySource({"rgb": pictures(1, 600, 800, dtype="float32")})
    path = ImageExporter(source, tmp_path, ImageSettings(format=format)).export().first
    assert path is not None
    real = Path.open
    CountingFile.count = 0
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *args, **rest: CountingFile(real(self, *args, **rest)))
        label = read_label(path, format)
    assert label[DIGEST] == source.finished()[0]["rgb"]
    assert 0 < CountingFile.count < path.stat().st_size / 3


@pytest.mark.parametrize("compression", ["piz", "zip", "zips", "rle", "none"])
def test_every_exr_compression_is_lossless_and_knows_when_it_is_whole(tmp_path: Path, compression: str) -> None:
    source = MemorySource({"rgb": pictures(1, 37, 41, dtype="float32")})
    settings = ImageSettings(format="exr", exr_type="float32", exr_compression=compression)
    path = ImageExporter(source, tmp_path, settings).export().first
    assert path is not None
    assert np.array_equal(exr(path)[1]["G"], linear(source.pixels["rgb"][0])[..., 1])
    assert read_label(path, "exr")[DIGEST] == source.finished()[0]["rgb"]
    path.write_bytes(path.read_bytes()[:-3])
    assert read_label(path, "exr") == {}


@pytest.mark.parametrize("format", ["png", "jpeg", "exr"])
def test_a_cut_file_is_not_up_to_date(tmp_path: Path, format: str) -> None:
    exporter = ImageExporter(MemorySource({"rgb": pictures(1, 64, 64)}), tmp_path, ImageSettings(format=format))
    path = exporter.export().first
    assert path is not None
    data = path.read_bytes()
    for length in (0, 3, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert read_label(path, format) == {}, length
        assert exporter.export().written == (0,)
        assert path.read_bytes() == data  # and the same frame gives the same file


def test_16_bit_png_holds_all_16_bits(tmp_path: Path) -> None:
    shots = pictures(2, dtype="uint16")
    ImageExporter(MemorySource({"rgb": shots}), tmp_path, ImageSettings(bit_depth=16)).export()
    for frame in range(2):
        assert np.array_equal(decode((tmp_path / f"city.{frame:05d}.png").read_bytes()), shots[frame])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_floats_round_as_the_store_does(tmp_path: Path, dtype: str) -> None:
    shots = pictures(1, dtype=dtype)
    ImageExporter(MemorySource({"rgb": shots}), tmp_path / "8").export()
    ImageExporter(MemorySource({"rgb": shots}), tmp_path / "16", ImageSettings(bit_depth=16)).export()
    values = shots[0].astype(np.float64)
    assert np.abs(load(tmp_path / "8" / "city.00000.png") - values * 255).max() <= 0.5001
    assert np.abs(decode((tmp_path / "16" / "city.00000.png").read_bytes()) - values * 65535).max() <= 0.51


def test_uint16_to_8_bits_rounds_to_nearest(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    ImageExporter(MemorySource({"alpha": levels}), tmp_path, ImageSettings(output="alpha")).export()
    assert np.array_equal(load(tmp_path / "city.00000.png"), np.rint(levels[0] / 257).astype(np.uint8))


def test_jpeg_is_close_and_carries_profile_and_label(tmp_path: Path, reference_dir: Path) -> None:
    shot = photographs(reference_dir, 1)[0]
    exporter = ImageExporter(MemorySource({"rgb": shot[None]}), tmp_path, ImageSettings(format="jpeg", quality=95))
    report = exporter.export()
    assert report.first == tmp_path / "city.00000.jpg"
    with Image.open(tmp_path / "city.00000.jpg") as image:
        error = np.mean((np.asarray(image, float) - shot) ** 2)
        assert 10 * math.log10(255**2 / error) > 38
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)
        assert image.layer[0][1:3] == image.layer[1][1:3]  # type: ignore[attr-defined]  # 4:4:4
    label = read_label(tmp_path / "city.00000.jpg", "jpeg")
    assert label[DIGEST] == pixel_digest(shot) and KEY in label and label["Software"].startswith("landmark-batch ")
    smaller = ImageExporter(MemorySource({"rgb": shot[None]}), tmp_path / "q60", ImageSettings(format="jpeg", quality=60)).export()
    assert smaller.bytes < report.bytes / 2


@pytest.mark.parametrize(("dtype", "exr_type", "bound"), [("uint8", "float32", 1e-6), ("uint16", "float16", 6e-4), ("float32", None, 6e-4)])
def test_exr_is_linear(tmp_path: Path, dtype: str, exr_type: str | None, bound: float) -> None:
    shots = pictures(1, 9, 11, dtype=dtype)
    ImageExporter(MemorySource({"rgb": shots}), tmp_path, ImageSettings(format="exr", exr_type=exr_type)).export()
    header, channels = exr(tmp_path / "city.00000.exr")
    top = float(np.iinfo(dtype).max) if dtype.startswith("uint") else 1.0
    expected = np.vectorize(srgb_to_linear)(shots[0].astype(np.float64) / top)
    got = np.stack([channels[name] for name in "RGB"], axis=-1)
    assert got.dtype == (exr_type or "float16")
    assert np.abs(got - expected).max() < bound
    assert np.allclose(header["chromaticities"], (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290))
    assert header["imageName"] == "city frame 0" and header[DIGEST] == pixel_digest(shots[0])


def test_exr_carries_the_camera(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(3)})
    ImageExporter(source, tmp_path, ImageSettings(format="exr")).export([2])
    header, _ = exr(tmp_path / "city.00002.exr")
    point = np.array([5.0, 6.0, 7.0, 1.0]) @ header["worldToCamera"]  # row vectors
    assert np.allclose(point, [5 - 2, 6 - 2, 7 - 3, 1])


def test_transparent_is_straight_in_png_and_premultiplied_in_exr(tmp_path: Path) -> None:
    alpha = np.linspace(0, 1, 32, dtype=np.float32) * np.ones((24, 1), np.float32)
    colour = np.float32([0.2, 0.5, 0.9])
    rgba = np.concatenate([colour * alpha[..., None], alpha[..., None]], axis=-1)[None]
    source = MemorySource({"rgb": rgba}, background="transparent")
    ImageExporter(source, tmp_path, ImageSettings(bit_depth=16)).export()
    ImageExporter(source, tmp_path, ImageSettings(format="exr", exr_type="float32")).export()
    ImageExporter(source, tmp_path, ImageSettings(format="jpeg", matte="black", quality=100)).export()

    png = decode((tmp_path / "city.00000.png").read_bytes()) / 65535
    assert np.abs(png[:, 1:, :3] - colour).max() < 1e-4 and np.array_equal(png[:, 0], np.zeros((24, 4)))
    assert np.abs(png[..., 3] - alpha).max() < 1e-5
    _, channels = exr(tmp_path / "city.00000.exr")
    for name, value in zip("RGB", colour, strict=True):
        assert np.abs(channels[name] - srgb_to_linear(float(value)) * alpha).max() < 1e-5
    assert np.abs(channels["A"] - alpha).max() < 1e-6
    assert np.abs(load(tmp_path / "city.00000.jpg") / 255 - colour * alpha[..., None]).max() < 0.02  # over black


def test_alpha_is_grey_data(tmp_path: Path) -> None:
    alpha = pictures(1, 16, 20, 1, "float32")[..., 0]
    source = MemorySource({"alpha": alpha})
    ImageExporter(source, tmp_path, ImageSettings(output="alpha", bit_depth=16)).export()
    ImageExporter(source, tmp_path, ImageSettings(output="alpha", format="exr", exr_type="float32")).export()
    with Image.open(tmp_path / "city.00000.png") as image:
        assert image.mode == "I;16" and "srgb" not in image.info
        assert np.abs(np.asarray(image) / 65535 - alpha[0]).max() < 1e-5
    assert np.array_equal(exr(tmp_path / "city.00000.exr")[1]["A"], alpha[0])


def test_depth_exr_is_in_metres_when_they_are_known(tmp_path: Path) -> None:
    depth = depths(1)
    ImageExporter(MemorySource({"depth": depth}, metres_per_unit=23.06), tmp_path / "m", ImageSettings("depth", "exr")).export()
    ImageExporter(MemorySource({"depth": depth}), tmp_path / "u", ImageSettings("depth", "exr")).export()
    header, channels = exr(tmp_path / "m" / "city.00000.exr")
    assert channels["Z"].dtype == np.float32 and np.allclose(channels["Z"], depth[0] * 23.06, rtol=1e-6)
    assert header["depthUnit"] == "metres" and np.isclose(header["metresPerUnit"], 23.06)
    header, channels = exr(tmp_path / "u" / "city.00000.exr")
    assert np.array_equal(channels["Z"], depth[0]) and header["depthUnit"] == "scene units" and "metresPerUnit" not in header


def test_depth_is_mapped_over_percentiles_of_the_chosen_frames(tmp_path: Path) -> None:
    depth = depths(4)
    source = MemorySource({"depth": depth})
    report = ImageExporter(source, tmp_path, ImageSettings("depth", colormap="gray", bit_depth=16)).export([1, 2])
    hit = depth[1:3][depth[1:3] > 0]
    assert report.near == pytest.approx(np.percentile(hit, 1)) and report.far == pytest.approx(np.percentile(hit, 99))
    near, far = report.near, report.far
    got = load(tmp_path / "city.00001.png")
    assert np.abs(got / 65535 - np.clip((depth[1] - near) / (far - near), 0, 1)).max() < 1e-4
    other = ImageExporter(source, tmp_path, ImageSettings("depth", colormap="gray", bit_depth=16, near=0.5, far=4.0)).export([1, 2])
    assert (other.near, other.far) == (0.5, 4.0) and other.written == (1, 2)
    assert read_label(tmp_path / "city.00001.png", "png")["Description"] == "depth 0.5 to 4 scene units, gray"


@pytest.mark.parametrize("name", ["turbo", "viridis"])
def test_colour_maps_are_the_published_ones(tmp_path: Path, name: str) -> None:
    palettes = pytest.importorskip("bokeh.palettes")
    published = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in getattr(palettes, f"{name.title()}256")])
    ramp = np.linspace(1, 2, 256, dtype=np.float32).reshape(1, 1, 256)
    ImageExporter(MemorySource({"depth": ramp}), tmp_path, ImageSettings("depth", colormap=name, near=1, far=2)).export()
    assert np.abs(load(tmp_path / "city.00000.png")[0].astype(int) - published).max() <= 2


def test_pattern_and_start_number(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(3)})
    settings = ImageSettings(pattern="{output}/{name}_{frame:03d}.v1.{ext}", start_number=1001, format="jpeg")
    assert ImageExporter(source, tmp_path, settings).export([0, 2]).written == (0, 2)
    assert sorted(path.name for path in (tmp_path / "rgb").iterdir()) == ["city_1001.v1.jpg", "city_1003.v1.jpg"]


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    ImageExporter(MemorySource({"rgb": pictures(9)}), tmp_path, workers=2).export(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 9) for done in range(1, 10)]


def test_names_outside_latin_1(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(1)}, name="高度 flüg")
    for format in ("png", "jpeg", "exr"):
        exporter = ImageExporter(source, tmp_path, ImageSettings(format=format))
        assert exporter.export().written == (0,) and exporter.export().written == ()
    assert read_label(tmp_path / "高度 flüg.00000.png", "png")["Title"] == "高度 flüg frame 0"


def test_uncompressed_pngs_show_the_same(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(2, dtype="uint16") & np.uint16(0xE000)})  # 16 bits of noise would not be compressed anyway
    small = ImageExporter(source, tmp_path, ImageSettings(bit_depth=16)).export()
    large = ImageExporter(source, tmp_path, ImageSettings(bit_depth=16, png_compression="none")).export()
    assert small.written == large.written == (0, 1) and large.bytes > small.bytes
    assert np.array_equal(decode((tmp_path / "city.00001.png").read_bytes()), source.pixels["rgb"][1])
    assert ImageExporter(source, tmp_path, ImageSettings(bit_depth=16, png_compression="none")).export().written == ()
    with pytest.raises(ConfigError, match="PNG compression 'zip'"):
        ImageSettings(png_compression="zip")


@pytest.mark.parametrize("place", ["", "rgb", "new/deep"])
def test_images_have_no_place_in_a_store(tmp_path: Path, place: str) -> None:
    store = write_store(tmp_path / "city.zarr", {"rgb": pictures(1)})
    with pytest.raises(ConfigError, match=r"no place in a frame store .*\n  name another folder"):
        ImageExporter(open_source(store.path), store.path / place)
    assert not (store.path / "new").exists()
