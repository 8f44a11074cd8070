"""Exports by path and beside a running render."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.events import ChunkDone, JobStarted
from landmark_batch.frames.export_images import ImageExporter
from landmark_batch.frames.export_video import VideoExporter, VideoSettings
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.jpeg import read_jpeg_text
from landmark_batch.frames.png import encode_png, read_png_text
from landmark_batch.frames.store_source import open_source
from landmark_batch.job import RenderJob, job_from_dict
from landmark_batch.kernels.png import packer
from landmark_batch.model.runtime import KernelSource
from landmark_batch.workflows import export_session
from landmark_batch.workflows.export import check_exports, default_images_folder, default_video_file, export_images, export_video
from landmark_batch.workflows.export_session import ExportResult, ExportSession
from tests.frames.export_sources import MemorySource, commit, depths, flight, pictures, write_store


def done(*frames: int) -> ChunkDone:
    return ChunkDone("chunk", frames, "worker", 0, 1.0, {}, {})


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def film(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def job(folder: Path, **values: Any) -> RenderJob:
    return job_from_dict({"name": "city", "output": {"store": folder / "city.zarr", **values.pop("output", {})}, **values})


def test_usual_names(tmp_path: Path) -> None:
    store = write_store(tmp_path / "city.v2.zarr", {"rgb": pictures(3), "depth": depths(3)}, fps=25.0)
    assert default_images_folder(Path("city"), "rgb") == Path("city.images/rgb")
    assert export_images(store.path).folder == tmp_path / "city.v2" / "rgb"
    assert export_images(store.path, settings=ImageSettings("depth", "exr")).first == tmp_path / "city.v2" / "depth" / "city.v2.00000.exr"
    report = export_video(store.path)
    assert (report.path, report.fps, report.fps_source) == (tmp_path / "city.v2.mp4", 25, "camera file")
    assert default_video_file(store.path, "ffv1") == tmp_path / "city.v2.mkv"
    assert default_video_file(store.path, "dnxhr") == tmp_path / "city.v2.mov"
    assert export_video(store.path, settings=VideoSettings(codec="ffv1"), job_fps=12.5).fps_source == "job"
    assert report.as_dict()["fps"] == "25" and export_images(store.path).as_dict()["unchanged"] == (0, 1, 2)


def test_a_store_tells_whose_fps_it_has(tmp_path: Path) -> None:
    for name, values, expected in (("a", {"fps": 25.0, "job_fps": 29.97}, ("30000/1001", "job")), ("b", {}, ("24", "default"))):
        store = write_store(tmp_path / f"{name}.zarr", {"rgb": pictures(1)}, **values)  # type: ignore[arg-type]
        report = export_video(store.path)
        assert (str(report.fps), report.fps_source) == expected


def test_frames_as_text(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", {"rgb": pictures(10)}, frames=[0, 2, 4, 6, 8])
    assert export_images(store.path, tmp_path / "out", frames="0-8x4,2").written == (0, 2, 4, 8)
    assert export_video(store.path, tmp_path / "a.mkv", VideoSettings(codec="ffv1"), frames="0-8x2").frames == (0, 2, 4, 6, 8)
    with pytest.raises(StoreError, match="1 of the 3 frames wanted are not finished: 1"):
        export_video(store.path, frames="0-2")
    with pytest.raises(ConfigError, match="frame 10 is outside"):
        export_images(store.path, frames="0-10")
    with pytest.raises(StoreError):
        export_images(tmp_path / "nothing.zarr")


def segments(path: Path) -> list[int]:
    """First frames of the segments of a film that stand beside it."""
    return sorted(int(file.name.split(".")[0]) for file in path.with_name(f"{path.name}.segments").glob("*.segment"))


def filming(store: Path, path: Path, *, frames: int, pending: Iterable[int]) -> ExportSession:
    video = VideoExporter(open_source(store), path, VideoSettings(codec="ffv1", segment_frames=2))
    return ExportSession(open_source(store), frames=range(frames), pending=pending, video=video)


def test_session_exports_while_frames_arrive(tmp_path: Path) -> None:
    shots = pictures(12, 32, 48)
    store = write_store(tmp_path / "city.zarr", {"rgb": shots}, frames=[0, 1])
    settings = job(tmp_path, video={"codec": "ffv1", "file": tmp_path / "city.mkv"}, images={"start_number": 1})
    session = ExportSession.of_job(settings, frames=range(12), pending=range(2, 12), images=True, video=True)
    folder = tmp_path / "city" / "rgb"
    until(lambda: len(list(folder.glob("city.*.png"))) == 2)  # those that were there already

    session(JobStarted("city", "city.zarr", 12, 10, 3, 1, "torch", None))
    commit(store, {"rgb": shots}, range(6, 10))
    session(done(6, 7, 8, 9))
    until(lambda: len(list(folder.glob("city.*.png"))) == 6)
    commit(store, {"rgb": shots}, range(2, 6))
    session(done(2, 3, 4, 5))
    assert not (tmp_path / "city.mkv").exists()
    commit(store, {"rgb": shots}, [10, 11])
    session(done(10, 11))
    result = session.finish()

    assert result.video is not None and result.video.frames == tuple(range(12)) and result.notes == ()
    assert result.video.reused == 0, "what this session encoded was not there before"
    assert all(np.array_equal(a, b) for a, b in zip(film(tmp_path / "city.mkv"), shots, strict=True))
    (report,) = result.images
    assert report.written == tuple(range(12)) and report.bytes == sum(path.stat().st_size for path in folder.iterdir())
    for frame in range(12):
        with Image.open(folder / f"city.{frame + 1:05d}.png") as image:
            assert np.array_equal(np.asarray(image), shots[frame])
    again = ExportSession.of_job(settings, frames=range(12), images=True).finish()
    assert again.images[0].written == () and again.images[0].unchanged == tuple(range(12)) and again.video is None


def test_segments_are_encoded_as_their_frames_stand_in_any_order(tmp_path: Path) -> None:
    shots = pictures(8)
    store = write_store(tmp_path / "city.zarr", {"rgb": shots}, frames=[0])
    path = tmp_path / "city.mkv"
    session = filming(store.path, path, frames=8, pending=range(1, 8))
    for frames, stand in (([6, 7], [6]), ([3, 4], [6]), ([1, 2], [0, 2, 6])):
        commit(store, {"rgb": shots}, frames)
        session(done(*frames))
        until(lambda stand=stand: segments(path) == stand)  # type: ignore[misc]
    session.abort()
    assert segments(path) == [0, 2, 6] and not path.exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("export")]

    later = filming(store.path, path, frames=8, pending=[5])
    result = later.finish(complete=False)
    assert result.video is None and result.notes == ("no film: 1 of 8 frames are missing: 5",)
    commit(store, {"rgb": shots}, [5])
    last = filming(store.path, path, frames=8, pending=[]).finish()
    assert last.video is not None and (last.video.segments, last.video.reused) == (4, 6)
    assert all(np.array_equal(a, b) for a, b in zip(film(path), shots, strict=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["city.mkv", "city.zarr"]


def test_old_pixels_of_frames_to_be_rendered_again_stay_out(tmp_path: Path) -> None:
    old, new = pictures(6), pictures(6, seed=9)
    store = write_store(tmp_path / "city.zarr", {"rgb": old})
    path = tmp_path / "city.mkv"
    session = filming(store.path, path, frames=6, pending=[2, 3])
    until(lambda: segments(path) == [0, 4])
    commit(store, {"rgb": new}, [2, 3, 4])  # 4 by another process, after its segment was made
    session(done(2, 3))
    result = session.finish()
    assert result.video is not None
    expected = [old[0], old[1], new[2], new[3], new[4], old[5]]
    assert all(np.array_equal(a, b) for a, b in zip(film(path), expected, strict=True))


def test_an_incomplete_job_gets_images_and_no_film(tmp_path: Path) -> None:
    shots = pictures(6)
    write_store(tmp_path / "city.zarr", {"rgb": shots}, frames=[0, 1, 4])
    session = ExportSession.of_job(job(tmp_path), frames=range(6), pending=[2, 3, 5], images=True, video=True)
    result = session.finish(complete=False)
    assert result.images[0].written == (0, 1, 4) and result.video is None
    assert result.notes == ("no film: 3 of 6 frames are missing: 2-3,5",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["city", "city.zarr"]


def test_frames_of_other_processes_count_at_the_end(tmp_path: Path) -> None:
    shots = pictures(4)
    store = write_store(tmp_path / "city.zarr", {"rgb": shots}, frames=[0])
    session = ExportSession.of_job(job(tmp_path), frames=range(4), pending=[1, 2, 3], images=True, video=True)
    commit(store, {"rgb": shots}, [1, 2, 3])
    result = session.finish()
    assert result.images[0].written == (0, 1, 2, 3) and result.video is not None


def test_batches_make_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_session, "_BATCH", 2)
    write_store(tmp_path / "city.zarr", {"rgb": pictures(7)})
    (first,) = ExportSession.of_job(job(tmp_path), frames=range(7), images=True, workers=1).finish().images
    files = sorted((tmp_path / "city" / "rgb").iterdir())
    assert (first.written, first.unchanged, first.first) == (tuple(range(7)), (), files[0])
    assert first.bytes == sum(path.stat().st_size for path in files)
    files[3].unlink()
    (again,) = ExportSession.of_job(job(tmp_path), frames=range(7), images=True, workers=1).finish().images
    assert (again.written, again.unchanged, again.bytes) == ((3,), (0, 1, 2, 4, 5, 6), files[3].stat().st_size)


def test_a_session_takes_the_compiled_code_that_it_is_given(tmp_path: Path, png_library: Path) -> None:
    shots = pictures(2, 32, 48)
    write_store(tmp_path / "city.zarr", {"rgb": shots})
    kernels = KernelSource(prebuilt=png_library.parent)
    (report,) = ExportSession.of_job(job(tmp_path), frames=range(2), images=True, kernels=kernels).finish().images
    assert report.written == (0, 1)
    for frame, path in enumerate(sorted((tmp_path / "city" / "rgb").iterdir())):
        assert path.read_bytes() == encode_png(shots[frame], read_png_text(path), packer=packer(png_library))


def test_abort_ends_a_batch_after_the_frames_in_hand(tmp_path: Path) -> None:
    class Slow(MemorySource):
        def read(self, output: str, frame: int) -> Any:
            begun.set()
            assert go_on.wait(60)
            return super().read(output, frame)

    begun, go_on = threading.Event(), threading.Event()
    source = Slow({"rgb": pictures(9)})
    session = ExportSession(source, frames=range(9), images=[ImageExporter(source, tmp_path, workers=1)])
    assert begun.wait(60)
    aborting = threading.Thread(target=session.abort)
    aborting.start()
    assert session._stop.wait(60)
    go_on.set()
    aborting.join(60)
    assert not aborting.is_alive() and len(list(tmp_path.iterdir())) <= 2, "one that was read, one behind it"


def test_abort_leaves_images_and_no_film(tmp_path: Path) -> None:
    write_store(tmp_path / "city.zarr", {"rgb": pictures(6)}, frames=[0, 1, 2])
    session = ExportSession.of_job(job(tmp_path), frames=range(6), pending=[3, 4, 5], images=True, video=True)
    until(lambda: len(list((tmp_path / "city" / "rgb").glob("*.png"))) == 3)
    session.abort()
    session.abort()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["city", "city.zarr"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("export")]


def test_the_newest_frame_is_always_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shots = pictures(6, 48, 64)
    store = write_store(tmp_path / "city.zarr", {"rgb": shots}, frames=[0])
    session = ExportSession.of_job(job(tmp_path), frames=range(6), pending=range(1, 6))
    picture = tmp_path / "city.latest.jpg"
    assert not picture.exists(), "nothing is rendered yet"
    for frame in (3, 1, 5):  # as chunks come, not as frames are counted
        commit(store, {"rgb": shots}, [frame])
        session(done(frame))
        until(picture.exists)
    result = session.finish(complete=False)
    assert result == ExportResult((), None)
    with Image.open(picture) as image:
        near = [np.abs(np.asarray(image).astype(int) - shot).mean() for shot in shots]
    assert near[5] < 8 and min(near[:5]) > 10
    assert read_jpeg_text(picture)["Title"] == "city frame 5"

    picture.unlink()
    without = ExportSession.of_job(job(tmp_path), frames=range(6), pending=[2], latest=False)
    commit(store, {"rgb": shots}, [2])
    without(done(2))
    assert without.finish(complete=False) == ExportResult((), None) and not picture.exists()

    blocked = ExportSession.of_job(job(tmp_path), frames=range(6), pending=[2, 4])
    picture.mkdir()
    commit(store, {"rgb": shots}, [2, 4])
    blocked(done(2, 4))
    assert blocked.finish().images == ()
    assert "no picture of the newest frame" in caplog.text


def test_depth_waits_for_all_frames(tmp_path: Path) -> None:
    source = MemorySource({"rgb": pictures(4), "depth": depths(4)}, done=[0, 1])
    exporters = [ImageExporter(source, tmp_path / name, ImageSettings(name)) for name in ("rgb", "depth")]
    session = ExportSession(source, frames=range(4), pending=[2, 3], images=exporters)
    until(lambda: len(list((tmp_path / "rgb").glob("*.png"))) == 2)
    assert not (tmp_path / "depth").exists()
    source.done.update((2, 3))
    session(done(2, 3))
    rgb, depth = session.finish().images
    hit = source.pixels["depth"][source.pixels["depth"] > 0]
    assert rgb.written == depth.written == (0, 1, 2, 3)
    assert depth.near == pytest.approx(np.percentile(hit, 1), rel=1e-3)


def test_an_export_that_fails_waits_for_the_end(tmp_path: Path) -> None:
    shots = pictures(4)
    store = write_store(tmp_path / "city.zarr", {"rgb": shots}, frames=[0, 1])
    store.chunk_file("rgb", 1).write_bytes(b"rubbish")
    session = ExportSession.of_job(job(tmp_path), frames=range(4), pending=[2, 3], images=True, video=True)
    commit(store, {"rgb": shots}, [2, 3])
    session(done(2, 3))
    with pytest.raises(StoreError, match="rgb of frame 1 is damaged"):
        session.finish()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]
    assert not (tmp_path / "city.mp4").exists()


def test_exports_are_checked_before_there_is_a_store(tmp_path: Path) -> None:
    camera = flight(5, 33, 25)
    assert check_exports(job(tmp_path), camera, images=True, video=True) == ["yuv420p needs even sizes: 1 column and 1 row repeated, 34×26"]
    for values, said in (
        ({"video": {"codec": "libfoo"}}, "libfoo"),
        ({"video": {"pix_fmt": "yuv420p10le"}}, "--allow-8bit"),
        ({"images": {"bit_depth": 16}}, "--allow-8bit"),
        ({"images": {"pattern": "../{frame}.png"}}, "leads out"),
        ({"output": {"rgb": False, "alpha": "uint8"}}, "a film needs rgb"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_exports(job(tmp_path, **values), camera, images=True, video=True)
        if "alpha" in values.get("output", {}):
            assert check_exports(job(tmp_path, **values), camera, images=True) == []
    deep = job(
        tmp_path, output={"rgb": "uint16", "depth": "float32", "alpha": "uint8"}, images={"bit_depth": 16}, video={"pix_fmt": "yuv420p10le"}
    )
    assert len(check_exports(deep, camera, images=True, video=True)) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_render_with_every_output_exports_every_output(tmp_path: Path) -> None:
    pixels = {"rgb": pictures(2, dtype="uint16"), "depth": depths(2), "alpha": pictures(2)[..., 0]}
    write_store(tmp_path / "city.zarr", pixels, metres_per_unit=2.0)
    settings = job(tmp_path, output={"rgb": "uint16", "depth": "float32", "alpha": "uint8"}, images={"bit_depth": 16})
    result = ExportSession.of_job(settings, frames=range(2), images=True).finish()
    assert [report.output for report in result.images] == ["rgb", "depth", "alpha"]
    assert sorted(str(path.relative_to(tmp_path / "city")) for path in (tmp_path / "city").rglob("*.png")) == [
        f"{name}/city.{frame:05d}.png" for name in ("alpha", "depth", "rgb") for frame in range(2)
    ]
    assert VideoExporter(MemorySource(pixels), tmp_path / "x.mkv", VideoSettings(codec="ffv1")).plan.pix_fmt == "rgb48le"
