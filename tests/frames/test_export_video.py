"""Films out of a store, read back with a decoder: frames, size, timing, colour, tags."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.frames import export_video as module
from landmark_batch.frames.export_video import VideoSettings, export_video
from landmark_batch.frames.read_ahead import read_ahead
from landmark_batch.frames.store_source import open_source
from landmark_batch.frames.video_codec import available_encoders, choose_fps, exact_fps, plan_encoder

from .export_sources import MemorySource, depths, photographs, pictures, write_store


def decode(path: Path, format: str = "rgb24") -> tuple[list[NDArray[Any]], list[Fraction]]:
    """Frames as arrays, and their times in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [Fraction(frame.pts) * frame.time_base for frame in frames if frame.pts is not None and frame.time_base is not None]
        return [frame.to_ndarray(format=format) for frame in frames], times


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_photographs_become_a_film(tmp_path: Path, reference_dir: Path) -> None:
    shots = np.stack(photographs(reference_dir, 6, (384, 216)))
    store = write_store(tmp_path / "city.zarr", {"rgb": shots}, fps=30.0)
    seen: list[tuple[int, int]] = []
    report = export_video(open_source(store.path), tmp_path / "city.mp4", progress=lambda *counts: seen.append(counts))
    assert (report.frames, report.fps, report.fps_source, report.codec) == (tuple(range(6)), 30, "camera file", "libx264")
    assert (report.width, report.height, report.pix_fmt, report.notes) == (384, 216, "yuv420p", ())
    assert report.bytes == (tmp_path / "city.mp4").stat().st_size and report.duration == 0.2
    assert seen == [(done, 6) for done in range(1, 7)]
    frames, times = decode(tmp_path / "city.mp4")
    assert times == [Fraction(i, 30) for i in range(6)]
    assert all(frame.shape == (216, 384, 3) for frame in frames)
    for got, wanted in zip(frames, shots, strict=True):
        assert psnr(got, wanted) > 30
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_tags_and_faststart(tmp_path: Path) -> None:
    export_video(MemorySource({"rgb": pictures(3, 64, 64)}), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_range, context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1, 1)
        assert container.metadata["title"] == "city" and "landmark-batch" in container.metadata["comment"]
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt", "dtype"),
    [
        ("libx264", ".mp4", "yuv420p", "uint8"),
        ("libx264", ".mp4", "yuv420p10le", "uint16"),
        ("libx265", ".mp4", "yuv420p10le", "float32"),
        ("libsvtav1", ".mp4", "yuv420p10le", "float16"),
        ("libvpx-vp9", ".webm", "yuv444p", "uint8"),
        ("prores_ks", ".mov", "yuv422p10le", "uint16"),
        ("dnxhr", ".mov", "yuv422p", "uint8"),
        ("dnxhr", ".mov", "yuv422p10le", "float32"),
        ("ffv1", ".mkv", "yuv444p10le", "uint16"),
    ],
)
def test_plain_colours_come_out_right(tmp_path: Path, codec: str, suffix: str, pix_fmt: str, dtype: str) -> None:
    """Flat patches through RGB to limited-range BT.709 and back by hand: wrong matrix, range or scaling would be off by 2 % and more."""
    colours = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5], [0.9, 0.6, 0.2], [0.2, 0.4, 0.7]])
    top = float(np.iinfo(dtype).max) if dtype.startswith("uint") else 1.0
    side = 64 if codec == "dnxhr" else 48  # it takes no film below 256×120
    patches = np.repeat(np.repeat(colours.reshape(2, 4, 3), side, axis=0), side, axis=1)
    shots = np.stack([(np.rint(patches * top) if top > 1 else patches).astype(dtype)] * 3)
    path = tmp_path / f"a{suffix}"
    report = export_video(
        MemorySource({"rgb": shots}),
        path,
        VideoSettings(codec=codec, pix_fmt=pix_fmt, crf=4 if codec.startswith("lib") else None),
    )
    assert report.pix_fmt == pix_fmt
    with av.open(str(path)) as container:
        frame = next(iter(container.decode(video=0)))
        assert frame.format.name == pix_fmt
        context = container.streams.video[0].codec_context
        assert (context.color_range, context.colorspace) == (1, 1)
        bits = frame.format.components[0].bits
        wide = np.uint8 if bits == 8 else np.uint16
        planes = []
        for plane in frame.planes[:3]:
            values = np.frombuffer(plane, wide).reshape(plane.height, -1)[:, : plane.width]
            planes.append(values[plane.height // 4 :: plane.height // 2, plane.width // 8 :: plane.width // 4].astype(float))
    unit = 2 ** (bits - 8)
    y, cb, cr = (planes[0] / unit - 16) / 219, (planes[1] / unit - 128) / 224, (planes[2] / unit - 128) / 224
    red, blue = y + 1.5748 * cr, y + 1.8556 * cb
    got = np.stack([red, (y - 0.2126 * red - 0.0722 * blue) / 0.7152, blue], axis=-1)
    assert np.abs(got - colours.reshape(2, 4, 3)).max() < (0.012 if bits == 8 else 0.006)
    if bits > 8:
        assert abs(planes[0][0, 0] - 940) <= 1 and abs(planes[0][0, 1] - 64) <= 1


@pytest.mark.parametrize(
    ("codec", "suffix", "dtype", "format", "settings"),
    [
        ("ffv1", ".mkv", "uint8", "rgb24", {}),
        ("ffv1", ".mkv", "uint16", "rgb48le", {}),
        ("libx264rgb", ".mp4", "uint8", "rgb24", {"crf": 0}),
    ],
)
def test_lossless_is_lossless(tmp_path: Path, codec: str, suffix: str, dtype: str, format: str, settings: dict[str, Any]) -> None:
    shots = pictures(4, 50, 62, dtype=dtype)
    path = tmp_path / f"a{suffix}"
    report = export_video(MemorySource({"rgb": shots}), path, VideoSettings(codec=codec, **settings))
    assert (report.width, report.height) == (62, 50)
    frames, _ = decode(path, format)
    assert len(frames) == 4
    for got, wanted in zip(frames, shots, strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("fps", ["24000/1001", "23.976", 29.97, 12.5, Fraction(7, 3), 60])
def test_times_are_exact(tmp_path: Path, fps: Any) -> None:
    report = export_video(
        MemorySource({"rgb": pictures(5, 32, 32)}), tmp_path / "a.mp4", VideoSettings(preset="ultrafast"), fps=fps, job_fps=10
    )
    assert report.fps == exact_fps(fps) and report.fps_source == "argument"
    frames, times = decode(tmp_path / "a.mp4")
    assert len(frames) == 5 and times == [i / report.fps for i in range(5)]
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == report.fps and stream.duration * stream.time_base == 5 / report.fps


def test_where_fps_comes_from() -> None:
    assert choose_fps(25, 30, 50) == (25, "argument") and choose_fps(None, 30.0, 50.0) == (30, "job")
    assert choose_fps(None, None, 29.97) == (Fraction(30000, 1001), "camera file") and choose_fps() == (24, "default")


@pytest.mark.parametrize(
    ("value", "exact"), [(23.976, "24000/1001"), ("59.94", "60000/1001"), (24.0, "24"), (0.5, "1/2"), (240 / 7.3, "2400/73"), ("25", "25")]
)
def test_exact_fps(value: Any, exact: str) -> None:
    assert exact_fps(value) == Fraction(exact)


@pytest.mark.parametrize("value", [0, -1, 1001, "fast", "1/0", float("nan"), float("inf"), ""])
def test_no_fps(value: Any) -> None:
    with pytest.raises(ConfigError, match="fps"):
        exact_fps(value)


def test_odd_sizes_repeat_a_row_and_a_column(tmp_path: Path) -> None:
    shots = pictures(2, 33, 35)
    report = export_video(MemorySource({"rgb": shots}), tmp_path / "a.mp4", VideoSettings(crf=1, pix_fmt="yuv420p"))
    assert (report.width, report.height) == (36, 34) and "1 column and 1 row repeated" in report.notes[0]
    frames, _ = decode(tmp_path / "a.mp4")
    assert frames[0].shape == (34, 36, 3) and psnr(frames[0][:32, :34], shots[0][:32, :34]) > 27
    kept = export_video(MemorySource({"rgb": shots}), tmp_path / "b.mkv", VideoSettings(codec="ffv1"))
    assert (kept.width, kept.height, kept.notes) == (35, 33, ())
    assert np.array_equal(decode(tmp_path / "b.mkv")[0][1], shots[1])


def test_gaps_are_refused_and_named(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(10)}, done=[0, 1, 2, 5, 9])
    with pytest.raises(StoreError, match=r"5 of the 10 frames wanted are not finished: 3-4,6-8"):
        export_video(source, tmp_path / "a.mp4")
    assert source.reads == [] and list(tmp_path.iterdir()) == []
    report = export_video(source, tmp_path / "a.mp4", frames=[9, 0, 5])
    assert report.frames == (0, 5, 9)
    assert decode(tmp_path / "a.mp4")[1] == [0, Fraction(1, 24), Fraction(2, 24)]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("a.mp4", {"codec": "libfoo"}, r"libfoo(.|\n)*it has libx264"),
        ("a.mp4", {"codec": "aac"}, "aac"),
        ("a.mp4", {"pix_fmt": "yuv999p"}, r"yuv999p(.|\n)*it takes yuv420p"),
        ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuva444p10le"}, "it takes yuv422p10le"),
        ("a.mp4", {"preset": "warp"}, "preset=warp"),
        ("a.mp4", {"crf": 52}, "0 to 51"),
        ("a.mkv", {"codec": "ffv1", "crf": 3}, "no constant quality"),
        ("a.mkv", {"codec": "ffv1", "preset": "fast"}, "leave preset out"),
        ("a.mkv", {"codec": "mpeg4", "crf": 3}, "does not know crf"),
        ("a.mp4", {"codec": "prores_ks", "allow_8bit": True}, r"mp4 does not hold prores_ks(.|\n)*\.mov"),
        ("a.gif", {}, r"\.mp4"),
        ("a", {}, r"no film format ''"),
        ("a.mkv", {"codec": "h264_nvenc"}, "NVIDIA GPU"),
    ],
)
def test_what_cannot_be_encoded_is_said_before_anything_is_read(tmp_path: Path, name: str, settings: dict[str, Any], said: str) -> None:
    source = MemorySource({"rgb": pictures(2)})
    if settings.get("codec") == "h264_nvenc" and Path("/dev/nvidiactl").exists():
        pytest.skip("this machine may really have that encoder")
    with pytest.raises(ConfigError, match=said):
        export_video(source, tmp_path / name, VideoSettings(**settings))
    assert source.reads == [] and list(tmp_path.iterdir()) == []


def test_10_bits_from_uint8_are_refused_unless_allowed(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(2, 64, 64)})
    with pytest.raises(ConfigError, match=r"uint8, so 10-bit libx264 yuv420p10le(.|\n)*--allow-8bit"):
        export_video(source, tmp_path / "a.mp4", VideoSettings(pix_fmt="yuv420p10le"))
    with pytest.raises(ConfigError, match="10-bit prores_ks"):
        export_video(source, tmp_path / "a.mov", VideoSettings(codec="prores_ks"))
    report = export_video(source, tmp_path / "a.mp4", VideoSettings(pix_fmt="yuv420p10le", allow_8bit=True))
    assert "the film has 10 bits a component, the picture 8" in report.notes
    assert psnr(decode(tmp_path / "a.mp4")[0][0], source.pixels["rgb"][0]) > 27


@pytest.mark.parametrize(("matte", "level"), [("white", 1.0), ("black", 0.0)])
def test_transparent_frames_are_laid_over_a_colour(tmp_path: Path, matte: str, level: float) -> None:
    rgba = np.zeros((2, 32, 32, 4), np.float32)
    rgba[..., :] = (0.1, 0.2, 0.3, 0.5)
    source = MemorySource({"rgb": rgba}, background="transparent")
    report = export_video(source, tmp_path / "a.mkv", VideoSettings(codec="ffv1", pix_fmt="bgr0", matte=matte))
    assert report.notes == (f"laid over {matte}",)
    expected = (np.array([0.1, 0.2, 0.3]) + 0.5 * level) * 255
    assert np.abs(decode(tmp_path / "a.mkv")[0][0] - expected).max() <= 0.51


def test_depth_and_alpha_films(tmp_path: Path) -> None:
    source = MemorySource({"depth": depths(3), "alpha": pictures(3, 24, 32, 1)[..., 0]})
    report = export_video(source, tmp_path / "d.mkv", VideoSettings(codec="ffv1", output="depth", colormap="gray", near=1.0, far=3.0))
    assert report.notes == ("depth 1 to 3 scene units, gray",)
    expected = np.clip((source.pixels["depth"][1] - 1) / 2, 0, 1) * 255
    assert np.abs(decode(tmp_path / "d.mkv")[0][1] - expected[..., None]).max() <= 0.51
    assert "scene units" in export_video(source, tmp_path / "p.mkv", VideoSettings(codec="ffv1", output="depth")).notes[0]
    export_video(source, tmp_path / "a.mkv", VideoSettings(codec="ffv1", output="alpha"))
    assert np.array_equal(decode(tmp_path / "a.mkv")[0][2][..., 0], source.pixels["alpha"][2])


def test_a_failed_film_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the old film")
    source = MemorySource({"rgb": pictures(2)})
    with pytest.raises(RuntimeError, match="boom"):
        export_video(source, path, progress=lambda *_: (_ for _ in ()).throw(RuntimeError("boom")))
    assert path.read_bytes() == b"the old film" and len(list(tmp_path.iterdir())) == 1


def test_a_damaged_frame_ends_the_film(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", {"rgb": pictures(6)})
    store.chunk_file("rgb", 3).write_bytes(b"rubbish")
    with pytest.raises(StoreError, match="rgb of frame 3 is damaged"):
        export_video(open_source(store.path), tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The file size limit of a process of its own stands for the end of a disk: writes fail with a real error of the system."""
    script = """
import resource, sys
from pathlib import Path
from landmark_batch.errors import DiskFullError
from landmark_batch.frames.export_images import ImageExporter, ImageSettings
from landmark_batch.frames.export_video import VideoSettings, export_video
from tests.frames.export_sources import MemorySource, pictures
folder, source = Path(sys.argv[1]), MemorySource({"rgb": pictures(12, 128, 128)})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for name, run in {
    "mp4": lambda: export_video(source, folder / "a.mp4", VideoSettings(crf=1)),
    "ffv1": lambda: export_video(source, folder / "a.mkv", VideoSettings(codec="ffv1")),
    "png": lambda: ImageExporter(source, folder).export(),
    "exr": lambda: ImageExporter(source, folder, ImageSettings(format="exr")).export(),
}.items():
    try:
        run()
    except DiskFullError as error:
        print(name, "full", "ulimit -f" in error.remedy)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split("\n")[:4] == ["mp4 full True", "ffv1 full True", "png full True", "exr full True"], done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(1)})
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(ConfigError, match="it is a folder"):
        export_video(source, tmp_path / "a.mp4")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file"):
        export_video(source, tmp_path / "file" / "b.mp4")
    assert source.reads == [] or source.reads == [("rgb", 0)]


def test_every_listed_encoder_that_needs_no_device_opens() -> None:
    suffixes = {"ffv1": ".mkv", "prores_ks": ".mov", "dnxhd": ".mov", "libvpx-vp9": ".webm"}
    software = [name for name in available_encoders() if not name.endswith("_nvenc")]
    assert "libx264" in software
    for name in software:
        plan = plan_encoder(Path(f"a{suffixes.get(name, '.mp4')}"), width=297, height=165, rate=Fraction(24), codec=name)
        assert plan.width >= 297 and plan.height >= 165
    assert plan_encoder(Path("a.mp4"), width=8, height=8, rate=Fraction(24), codec="h264").codec == "libx264"


def test_reading_ahead_is_bounded_ordered_and_ends() -> None:
    read: list[int] = []

    def slow(frame: int) -> int:
        read.append(frame)
        return frame * frame

    taken = []
    for frame, value in read_ahead(range(40), slow, depth=3):
        if frame == 0:
            time.sleep(0.2)
            assert len(read) <= 6  # the one in use, three waiting, one in hand
        taken.append((frame, value))
    assert taken == [(frame, frame * frame) for frame in range(40)]
    for frame, _ in read_ahead(range(10**9), slow, depth=2):
        if frame == 5:
            break
    time.sleep(0.3)
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 0], lambda frame: 1 // frame))


def test_module_names() -> None:
    assert set(module.__all__) == {"VideoExporter", "VideoReport", "VideoSettings", "export_video"}
