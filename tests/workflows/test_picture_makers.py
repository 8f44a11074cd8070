"""Who makes the PNG of a frame: the host while it has time left, else the device, else the export."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from landmark_batch.frames import staged_frames
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.pictures import HEAD, PictureOrder, Streams, order_pictures, withdraw
from landmark_batch.frames.staged_frames import WritingThreads
from landmark_batch.kernels.png import PngLibrary
from landmark_batch.workflows.picture_makers import LEISURE, PictureMakers, picture_makers
from tests.workflows.processes import until

ORDER = PictureOrder("/", "m", "city", "{frame}", 0)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritingThreads]:
    """Four, of this process."""
    monkeypatch.setattr(staged_frames, "encoding_threads", lambda: 4)
    monkeypatch.setattr(staged_frames, "_pools", {})
    made = staged_frames.writing_threads()
    yield made
    made._pool.shutdown()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark_batch.kernels.picture.makes_pictures", lambda height, width: (height, width) == (18, 32))


def heads(streams: Streams) -> list[tuple[int, ...]]:
    return [HEAD.unpack(stream[: HEAD.size].tobytes()) for stream in streams.arrays]


def found(makers: PictureMakers, count: int = 3) -> Streams:
    """Streams of a chunk, once the library is there."""
    makers.prepare()
    until(lambda: makers.streams(np.full((1, 64), 9, np.uint8)).compiled is not None)
    return makers.streams(np.full((count, 64), 9, np.uint8))


@pytest.mark.usefixtures("device")
def test_the_host_makes_pngs_while_it_has_time_left(threads: WritingThreads, png_library: Path) -> None:
    makers = PictureMakers(ORDER, (18, 32), PngLibrary(prebuilt=png_library.parent))
    before = makers.streams(np.full((1, 64), 9, np.uint8))
    assert before.compiled is None and makers.ask(before, 0) is not None, "nothing is looked for yet"
    streams = found(makers)
    assert streams.order == ORDER and streams.compiled == png_library
    assert makers.ask(streams, 0) is None
    go = threading.Event()
    jobs = [threads.submit(lambda name, position: go.wait(60.0), "rgb", i) for i in range(int(LEISURE * threads.size))]
    asked = makers.ask(streams, 1)
    assert asked is not None and asked.base is streams.arrays
    waiting = threads.submit(lambda name, position: True, "rgb", 9)
    go.set()
    assert waiting.result() and all(job.result() for job in jobs)
    until(lambda: threads.given == 0)
    assert makers.ask(streams, 2) is None
    assert heads(streams) == [(0, 0, 0, 1), (0, 0, 0, 0), (0, 0, 0, 1)]
    makers.close()


def test_nothing_is_made_where_nobody_asks_or_the_folder_is_not_seen(tmp_path: Path) -> None:
    order = order_pictures(tmp_path / "png", "city", ImageSettings())
    assert order is not None
    assert isinstance(picture_makers(order.as_dict(), (18, 32), None), PictureMakers)
    assert picture_makers(None, (18, 32), None) is None
    withdraw(order)
    assert picture_makers(order.as_dict(), (18, 32), None) is None


@pytest.mark.usefixtures("threads")
def test_a_host_makes_pngs_of_a_device_that_makes_none(png_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark_batch.kernels.picture.makes_pictures", lambda height, width: False)
    makers = PictureMakers(ORDER, (18, 32), PngLibrary(prebuilt=png_library.parent))
    streams = makers.streams(np.full((1, 64), 9, np.uint8))
    assert makers.ask(streams, 0) is None and heads(streams) == [(0, 0, 0, 0)], "left to the export"
    streams = found(makers, 1)
    assert makers.ask(streams, 0) is None and heads(streams) == [(0, 0, 0, 1)]
    makers.close()


def test_work_that_is_given_up_is_no_work(threads: WritingThreads) -> None:
    go = threading.Event()
    jobs = [threads.submit(lambda name, position: go.wait(60.0), "rgb", i) for i in range(6)]
    assert threads.given == 6
    assert jobs[5].cancel() and threads.given == 5
    go.set()
    until(lambda: threads.given == 0)


@pytest.mark.usefixtures("device")
def test_the_library_is_built_and_a_build_that_is_not_over_is_given_up(threads: WritingThreads, tmp_path: Path, png_library: Path) -> None:
    makers = PictureMakers(ORDER, (18, 32), PngLibrary(tmp_path / "cache"))
    assert found(makers).compiled is not None
    makers.close()
    other = PictureMakers(ORDER, (18, 32), PngLibrary(tmp_path / "other"))
    other.prepare()
    other.close()
    until(lambda: not any(thread.name == "png library" for thread in threading.enumerate()))
    assert other.streams(np.full((1, 64), 9, np.uint8)).compiled is None
    assert not [path for path in (tmp_path / "other").rglob("*") if path.suffix == ".so"]
