"""PNGs that are written beside frames: of streams that a GPU has made (here the reference makes them), or of pixels by who encodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from landmark_batch.errors import ConfigError, StaleWriterError
from landmark_batch.frames import durable, encoding_processes, staged_frames
from landmark_batch.frames import pictures as pictures_module
from landmark_batch.frames.export_images import ImageExporter
from landmark_batch.frames.image_files import DIGEST, read_label
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.pictures import (
    HEAD,
    Picture,
    PictureOrder,
    Streams,
    by_host,
    can_be_ordered,
    discard,
    none_yet,
    order_pictures,
    publish,
    remove_made,
    stream_bytes,
    withdraw,
    write_picture,
)
from landmark_batch.frames.png import encode_png
from landmark_batch.frames.process import writer_tag
from landmark_batch.frames.process_pool import ProcessPool
from landmark_batch.frames.shared_pixels import shared_array
from landmark_batch.frames.spec import OutputSpec, StoreSpec
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.store_source import open_source
from landmark_batch.kernels.reference.deflating import png_stream
from landmark_batch.object_path import as_store_path
from tests.frames.export_sources import pictures, write_store
from tests.workflows.processes import until

FRAMES = 4
RGB = pictures(FRAMES)
HEIGHT, WIDTH = RGB.shape[1:3]


def streams_of(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n, bytes], in memory that other processes see."""
    made = shared_array((len(frames), stream_bytes(HEIGHT, WIDTH)), "uint8")
    for pixels, stream in zip(frames, made, strict=True):
        png_stream(pixels, stream)
        assert HEAD.unpack(stream[: HEAD.size].tobytes())[2] == 0
    return made


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    return write_store(tmp_path / "city.zarr", {"rgb": RGB}, frames=[])


@pytest.fixture
def order(tmp_path: Path) -> Iterator[PictureOrder]:
    made = order_pictures(tmp_path / "png", "city", ImageSettings(pattern="{output}/{name}-{frame:03d}.{ext}", start_number=10))
    assert made is not None and made.is_seen
    yield made
    withdraw(made)
    withdraw(made)
    assert not made.is_seen
    assert not list((tmp_path / "png").rglob("*.partial"))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Frames are encoded by processes, none by threads."""
    made = ProcessPool(2, [encoding_processes.__name__])
    monkeypatch.setattr(encoding_processes, "_pools", {os.getpid(): made})
    monkeypatch.delattr(staged_frames.StagedFrames, "_here")
    until(lambda: made.ready)
    yield
    made.close()


def commit(store: FrameStore, order: PictureOrder, frames: list[int], streams: NDArray[np.uint8], compiled: Path | None = None) -> None:
    prints = [f"{frame:032x}" for frame in frames]
    pixels = shared_array((len(frames), HEIGHT, WIDTH, 3), "uint8")
    pixels[:] = RGB[frames]
    with store.writer("w0") as writer, writer.begin(frames, prints) as commit:
        commit.take({"rgb": pixels}, Streams(order, streams, compiled))
        commit.finish(seconds=1.0)


@pytest.mark.parametrize("way", ["processes", "threads"])
def test_files_stand_with_their_frames_and_are_what_an_export_wants(
    store: FrameStore, order: PictureOrder, way: str, png_library: Path, request: pytest.FixtureRequest
) -> None:
    if way == "processes":
        request.getfixturevalue("pool")
    exporter = ImageExporter(
        open_source(store.path), Path(order.folder), ImageSettings(pattern=order.pattern, start_number=order.start_number)
    )
    exporter.expect([0, 1, 2])
    streams = streams_of(RGB)
    by_host(streams[1])
    none_yet(streams[3])
    commit(store, order, [0, 1, 2, 3], streams, png_library)
    folder = Path(order.folder) / "rgb"
    assert sorted(path.name for path in folder.iterdir()) == ["city-010.png", "city-011.png", "city-012.png"]
    sizes = [path.stat().st_size for path in sorted(folder.iterdir())]
    with exporter:
        report = exporter.export()
    assert (report.written, report.unchanged) == ((0, 1, 2, 3), ()), "those that another made count, the last is made by the export"
    for frame in range(FRAMES):
        np.testing.assert_array_equal(np.asarray(Image.open(exporter.path(frame))), RGB[frame])
    assert [path.stat().st_size for path in sorted(folder.iterdir())][:3] == sizes and report.bytes == sum(
        path.stat().st_size for path in folder.iterdir()
    )
    with ImageExporter(exporter.source, exporter.folder, exporter.settings) as again:
        assert again.export().unchanged == (0, 1, 2, 3)


@pytest.mark.parametrize("compiled", ["gone", "broken"])
def test_a_host_without_compiled_code_makes_pngs_all_the_same(
    store: FrameStore, order: PictureOrder, tmp_path: Path, compiled: str
) -> None:
    """A library that was there, and cannot be loaded any more."""
    if compiled == "broken":
        (tmp_path / compiled).write_text("no library")
    streams = streams_of(RGB[:1])
    by_host(streams[0])
    commit(store, order, [0], streams, tmp_path / compiled)
    text = read_label(order.path(0), "png")
    assert order.path(0).read_bytes() == encode_png(RGB[0], text) and text[DIGEST] == store.finished()[0].digests["rgb"]
    np.testing.assert_array_equal(np.asarray(Image.open(order.path(0))), RGB[0])


def test_old_files_are_not_this_exports(store: FrameStore, order: PictureOrder) -> None:
    commit(store, order, [0, 1], streams_of(RGB[:2]))
    for path in Path(order.folder).rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    settings = ImageSettings(pattern=order.pattern, start_number=order.start_number)
    with ImageExporter(open_source(store.path), Path(order.folder), settings) as exporter:
        exporter.expect([1])
        report = exporter.export([0, 1])
    assert (report.written, report.unchanged) == ((), (0, 1))


def test_what_cannot_be_written_is_left_to_the_export(order: PictureOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    (stream,) = streams_of(RGB[:1])
    picture = Picture(order, 0, None)
    first = write_picture(picture, "d1", stream, RGB[0])
    assert first is not None and not order.path(0).exists() and Path(first.temporary).exists()
    publish(order, [first])
    assert write_picture(picture, "d1", stream, RGB[0]) is None, "it is up to date"
    second = write_picture(picture, "d2", stream, RGB[0])
    assert second is not None, "of other pixels"
    discard([second])
    assert read_label(order.path(0), "png")[DIGEST] == "d1"
    overfull = stream.copy()
    overfull[8] = 1
    assert write_picture(picture, "d3", overfull, RGB[0]) is None
    order.path(1).mkdir()
    assert write_picture(picture._replace(frame=1), "d1", stream, RGB[0]) is None
    os.mkfifo(order.path(2))
    assert write_picture(picture._replace(frame=2), "d1", stream, RGB[0]) is None
    third = write_picture(picture._replace(frame=3), "d1", stream, RGB[0])
    assert third is not None
    order.path(3).mkdir()
    publish(order, [third])
    monkeypatch.setattr(pictures_module, "write_png_stream", lambda *_: 1 / 0)
    assert write_picture(picture, "d4", stream, RGB[0]) is None
    assert [path.name for path in Path(order.folder).rglob("*.partial")] == [order.mark]


def test_no_png_of_a_commit_that_fails_or_comes_too_late(store: FrameStore, order: PictureOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        if name == "published":
            assert len(list(Path(order.folder).rglob("*.partial"))) == 3, "the mark, and what is to be shown"
            raise StaleWriterError("another job has taken over")

    monkeypatch.setattr(durable, "step", fail)
    with pytest.raises(StaleWriterError):
        commit(store, order, [0, 1], streams_of(RGB[:2]))
    monkeypatch.undo()
    assert [path.name for path in Path(order.folder).rglob("*.*") if path.is_file()] == [order.mark]
    monkeypatch.setattr(durable, "step", lambda name: withdraw(order) if name == "published" else None)
    commit(store, order, [0, 1], streams_of(RGB[:2]))
    assert not [path for path in Path(order.folder).rglob("*.*") if path.is_file()]


@pytest.mark.usefixtures("pool")
def test_a_process_that_is_lost_leaves_nothing(store: FrameStore, order: PictureOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # threads may write what is left
    made = ProcessPool(1, [encoding_processes.__name__])
    monkeypatch.setattr(encoding_processes, "_pools", {os.getpid(): made})
    monkeypatch.setattr(encoding_processes, "_alone", set())
    until(lambda: made.ready)
    process = made.run(os.getpid)
    left = Path(order.folder) / "rgb" / f".landmark-{made.run(writer_tag, 'export')}.partial"
    left.parent.mkdir()
    left.write_bytes(b"half a picture")
    os.kill(process, signal.SIGKILL)
    commit(store, order, [0], streams_of(RGB[:1]))
    assert order.path(0).exists() and not left.exists()
    made.close()


def test_an_order_that_cannot_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "file").write_text("no folder")
    assert order_pictures(tmp_path / "file", "city", ImageSettings()) is None
    assert order_pictures(tmp_path / "file" / "deep", "city", ImageSettings()) is None
    with monkeypatch.context() as locked:  # a folder that may not be looked into, also for root
        locked.setattr(Path, "exists", refuse)
        assert order_pictures(tmp_path / "locked" / "deep", "city", ImageSettings()) is None
    order = order_pictures(tmp_path / "new" / "deep", "city", ImageSettings())
    assert order is not None and order.made == 2
    withdraw(order)
    assert (tmp_path / "new" / "deep").is_dir(), "the export may be about to write there"
    remove_made(order)
    assert not (tmp_path / "new").exists() and tmp_path.exists()
    assert write_picture(Picture(order, 0, None), "d", streams_of(RGB[:1])[0], RGB[0]) is None
    assert not (tmp_path / "new").exists(), "nobody wants it any more"
    (tmp_path / "new").write_text("a file in its place")
    withdraw(order)
    remove_made(order)
    assert not order.is_seen


def test_a_file_that_shows_another_output_is_the_exports_to_refuse(store: FrameStore, tmp_path: Path) -> None:
    alpha = write_store(tmp_path / "alpha.zarr", {"alpha": RGB[..., 0]})
    settings = ImageSettings(output="alpha", pattern="x{frame:03d}.png")
    with ImageExporter(open_source(alpha.path), tmp_path / "png", settings) as exporter:
        exporter.export()
    before = exporter.path(0).read_bytes()
    order = order_pictures(tmp_path / "png", exporter.source.name, ImageSettings(pattern=settings.pattern))
    assert order is not None
    commit(store, order, [0], streams_of(RGB[:1]))
    assert exporter.path(0).read_bytes() == before
    withdraw(order)
    with (
        ImageExporter(open_source(store.path), tmp_path / "png", ImageSettings(pattern=settings.pattern)) as colours,
        pytest.raises(ConfigError, match="shows alpha"),
    ):
        colours.export([0])


def test_what_those_who_render_can_make(tmp_path: Path) -> None:
    spec = StoreSpec(4, 8, 8, (OutputSpec("rgb", "uint8", 3), OutputSpec("alpha", "uint8")))
    plain = ImageSettings()
    assert can_be_ordered(tmp_path, spec, plain)
    for settings in (ImageSettings(output="alpha"), ImageSettings(format="jpeg"), ImageSettings(png_compression="none")):
        assert not can_be_ordered(tmp_path, spec, settings)
    assert not can_be_ordered(tmp_path, spec, ImageSettings(bit_depth=16, allow_8bit=True))
    assert not can_be_ordered(as_store_path("s3://bucket/a.zarr"), spec, plain)
    for other in (OutputSpec("rgb", "uint16", 3), OutputSpec("rgb", "uint8", 4)):
        assert not can_be_ordered(tmp_path, StoreSpec(4, 8, 8, (other,)), plain)
    assert not can_be_ordered(tmp_path, StoreSpec(4, 8, 8, (spec.outputs[1],)), plain)
    assert not can_be_ordered(tmp_path, StoreSpec(4, 8, 8, spec.outputs, frames_per_shard=2), plain)
