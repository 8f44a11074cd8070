"""Films in segments: each a closed run of the encoder, joined as they are, made again only where something changed."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.frames.export_video import VideoExporter, VideoSettings, export_video
from landmark_batch.frames.film import join_segments
from landmark_batch.frames.sealed import DamagedError
from landmark_batch.frames.store_source import open_source
from landmark_batch.frames.video_segments import read_index, read_packets

from .export_sources import MemorySource, depths, pictures, write_store
from .processes import start

FAST = VideoSettings(preset="ultrafast", segment_frames=4)


def decode(path: Path, format: str) -> tuple[list[NDArray[Any]], list[Fraction]]:
    """Frames as arrays, and their times in seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.video[0]))
        times = [Fraction(frame.pts) * frame.time_base for frame in frames if frame.pts is not None and frame.time_base is not None]
        return [frame.to_ndarray(format=format) for frame in frames], times


def segments_of(film: Path) -> list[Path]:
    return sorted(film.with_name(f"{film.name}.segments").glob("*.segment"))


def numbered(count: int, height: int = 64, width: int = 64, dtype: str = "uint8") -> NDArray[Any]:
    """Pictures of which no two are alike: each frame a level of its own in one half."""
    shots = pictures(count, height, width, dtype=dtype)
    top = np.iinfo(dtype).max if dtype.startswith("u") else 1.0
    for frame in range(count):
        shots[frame, :, : width // 2] = (frame + 1) / (count + 1) * top
    return shots


@pytest.mark.parametrize(
    ("codec", "suffix", "dtype", "format", "more"),
    [
        ("libx264", ".mp4", "uint8", "yuv420p", {}),
        ("libx264", ".mkv", "uint8", "yuv420p", {"preset": "fast"}),
        ("libx265", ".mp4", "uint16", "rgb48le", {"pix_fmt": "yuv420p10le"}),
        ("ffv1", ".mkv", "uint16", "rgb48le", {}),
        ("prores_ks", ".mov", "uint16", "yuv422p10le", {}),
        ("dnxhr", ".mov", "uint8", "yuv422p", {}),
        ("libsvtav1", ".mp4", "uint8", "yuv420p", {"preset": "12"}),
        ("libvpx-vp9", ".webm", "uint8", "yuv420p", {"preset": "8"}),
    ],
)
def test_a_joined_film_is_its_segments(tmp_path: Path, codec: str, suffix: str, dtype: str, format: str, more: dict[str, Any]) -> None:
    """The same decoded bits as films of the segments one by one; each frame there once, at its time; a key frame at each seam."""
    side = {"dnxhr": 256, "libx265": 128}.get(codec, 64)  # x265 at 64×64 is not the same from run to run
    shots = numbered(10, side, side, dtype)
    source, path = MemorySource({"rgb": shots}, fps=30.0), tmp_path / f"a{suffix}"
    settings = VideoSettings(codec=codec, segment_frames=4, **more)
    report = export_video(source, path, settings)
    assert (report.frames, report.segments, report.reused) == (tuple(range(10)), 3, 0)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]
    got, times = decode(path, format)
    assert len(got) == 10
    clock = Fraction(1, 1000) if suffix in (".mkv", ".webm") else Fraction(0)
    assert all(abs(at - Fraction(frame, 30)) <= clock for frame, at in enumerate(times))
    expected: list[NDArray[Any]] = []
    for part in ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9)):
        export_video(source, tmp_path / f"part{suffix}", settings, frames=part)
        expected += decode(tmp_path / f"part{suffix}", format)[0]
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = sorted(packet.pts for packet in packets if packet.is_keyframe)
        order = [packet.pts for packet in packets if packet.pts is not None]
        assert len(packets) == 10 and {sorted(order)[frame] for frame in (0, 4, 8)} <= set(keys)
        decoding = [packet.dts for packet in packets if packet.dts is not None]
        assert decoding == sorted(set(decoding))


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    source, path = MemorySource({"rgb": numbered(12)}), tmp_path / "a.mp4"

    def interrupt(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VideoExporter(source, path, FAST).export(progress=interrupt, workers=1)
    assert len(segments_of(path)) == 2 and not path.exists()
    source.reads.clear()
    seen: list[tuple[int, int]] = []
    report = VideoExporter(source, path, FAST).export(progress=lambda *counts: seen.append(counts), workers=2)
    assert report.reused == 8 and seen[-1] == (12, 12)
    assert sorted(frame for _, frame in source.reads) == [8, 9, 10, 11]
    calm = export_video(source, tmp_path / "b.mp4", FAST)
    assert calm.reused == 0
    assert all(np.array_equal(a, b) for a, b in zip(decode(path, "rgb24")[0], decode(tmp_path / "b.mp4", "rgb24")[0], strict=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def _export(store: Path, film: Path) -> None:
    exporter = VideoExporter(open_source(store), film, VideoSettings(codec="ffv1", segment_frames=2))
    exporter.export(progress=lambda done, total: time.sleep(0.05), workers=1)


def test_a_killed_export_goes_on(tmp_path: Path) -> None:
    shots = numbered(60, 96, 96)
    store = write_store(tmp_path / "a.zarr", {"rgb": shots})
    film = tmp_path / "a.mkv"
    process = start(_export, store.path, film)
    end = time.monotonic() + 90
    while len(segments_of(film)) < 2:
        assert time.monotonic() < end, "no segments appeared"
        time.sleep(0.005)
    process.kill()
    process.join()
    stood = len(segments_of(film))
    report = export_video(open_source(store.path), film, VideoSettings(codec="ffv1", segment_frames=2))
    assert stood >= 2 and report.reused >= min(2 * stood, 60) - 2 and report.segments == 30
    got, _ = decode(film, "rgb24")
    assert all(np.array_equal(a, b) for a, b in zip(got, shots, strict=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mkv", "a.zarr"]


def test_a_changed_frame_changes_its_segment_alone(tmp_path: Path) -> None:
    shots = numbered(12)
    source, path = MemorySource({"rgb": shots}), tmp_path / "a.mkv"
    keep = VideoSettings(codec="ffv1", segment_frames=4, keep_segments=True)
    assert export_video(source, path, keep).reused == 0
    first = segments_of(path)
    (path.with_name("a.mkv.segments") / "mine.txt").write_text("stays")
    source.pixels["rgb"][5, 3:9] = 77
    source.reads.clear()
    assert export_video(source, path, keep).reused == 8
    assert sorted(frame for _, frame in source.reads) == [4, 5, 6, 7]
    second = segments_of(path)
    assert len(second) == 3 and len(set(first) & set(second)) == 2
    assert all(np.array_equal(a, b) for a, b in zip(decode(path, "rgb24")[0], shots, strict=True))
    assert export_video(source, path, VideoSettings(codec="ffv1", segment_frames=4, pix_fmt="yuv444p"), fps=25).reused == 0
    assert [file.name for file in path.with_name("a.mkv.segments").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "index"])
def test_a_damaged_segment_is_made_again(tmp_path: Path, damage: str) -> None:
    shots = numbered(8)
    source, path = MemorySource({"rgb": shots}), tmp_path / "a.mkv"
    keep = VideoSettings(codec="ffv1", segment_frames=4, keep_segments=True)
    export_video(source, path, keep)
    file = segments_of(path)[1]
    data = bytearray(file.read_bytes())
    if damage in ("flipped", "index"):
        data[100 if damage == "flipped" else -40] ^= 1
    file.write_bytes({"cut": data[:-30], "empty": b""}.get(damage, data))
    with pytest.raises(DamagedError):
        list(read_packets(file, read_index(file), first=0, rate=Fraction(24)))
    with pytest.raises(StoreError, match="segment"):
        join_segments(tmp_path / "b.mkv", VideoExporter(source, path, keep).plan, [file], title="", comment="")
    assert not (tmp_path / "b.mkv").exists()
    assert export_video(source, path, keep).reused == 4
    assert all(np.array_equal(a, b) for a, b in zip(decode(path, "rgb24")[0], shots, strict=True))


def test_segments_of_other_settings_are_not_joined(tmp_path: Path) -> None:
    source = MemorySource({"rgb": numbered(4)})
    export_video(source, tmp_path / "a.mp4", VideoSettings(keep_segments=True, preset="ultrafast"))
    plan = VideoExporter(source, tmp_path / "b.mp4", VideoSettings(pix_fmt="yuv444p", preset="ultrafast")).plan
    with pytest.raises(StoreError, match="other settings"):
        join_segments(tmp_path / "b.mp4", plan, segments_of(tmp_path / "a.mp4"), title="", comment="")
    assert not (tmp_path / "b.mp4").exists()


def test_several_segments_at_a_time(tmp_path: Path) -> None:
    source = MemorySource({"depth": depths(9)})
    settings = VideoSettings(codec="ffv1", output="depth", segment_frames=2)
    alone = VideoExporter(source, tmp_path / "a.mkv", settings).export(workers=1)
    beside = VideoExporter(source, tmp_path / "b.mkv", settings).export(workers=3)
    assert alone.segments == beside.segments == 5 and alone.notes == beside.notes
    assert all(np.array_equal(a, b) for a, b in zip(decode(alone.path, "rgb24")[0], decode(beside.path, "rgb24")[0], strict=True))


def test_segment_sizes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="segment of 0 frames"):
        VideoSettings(segment_frames=0)
    report = export_video(MemorySource({"rgb": numbered(5)}), tmp_path / "a.mp4", VideoSettings(segment_frames=1), fps=50)
    assert report.segments == 5 and decode(report.path, "rgb24")[1] == [Fraction(i, 50) for i in range(5)]
