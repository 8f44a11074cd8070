"""Images made by processes: the files that threads make, the errors that threads raise, and nothing lost or left with a process."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from landmark_batch.errors import DiskFullError, StoreError
from landmark_batch.frames import image_processes, outfile
from landmark_batch.frames.export_images import ImageExporter
from landmark_batch.frames.image_files import ImageLabel
from landmark_batch.frames.image_processes import ImageProcesses
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.png import encode_png, read_png_text
from landmark_batch.frames.process import tag_process
from landmark_batch.frames.process_pool import ProcessPool
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.store_source import StoreSource, open_source
from landmark_batch.kernels.png import PngLibrary, packer
from landmark_batch.object_path import as_store_path

from .export_sources import MemorySource, commit, depths, pictures, write_store
from .test_png import decode

FRAMES = 5


@pytest.fixture(scope="module", autouse=True)
def _at_once() -> Iterator[None]:
    """Processes begin with the first image, and two are enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_processes, "BEGIN_BYTES", 0)
        patch.setattr(image_processes, "LEAST", 2)
        patch.setattr(ProcessPool, "ready", True)  # calls wait for them
        yield


@pytest.fixture(scope="module")
def shared(_at_once: None) -> Iterator[ImageProcesses]:
    made = ImageProcesses(2)
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    return write_store(tmp_path / "a.zarr", {"rgb": pictures(FRAMES, dtype="uint16"), "depth": depths(FRAMES)})


@pytest.fixture
def begun() -> Iterator[Callable[[], list[psutil.Process]]]:
    """Gives the processes that were begun below this one since."""
    before = set(psutil.Process().children(recursive=True))
    yield lambda: [process for process in psutil.Process().children(recursive=True) if process not in before]


def pool_of(processes: ImageProcesses) -> ProcessPool:
    assert processes._pool is not None, "there are no processes"
    return processes._pool


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def all_begun(begun: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """The one that forks, and two that work."""
    end = time.monotonic() + 60
    while len(found := begun()) < 3:
        assert time.monotonic() < end, "they were not begun"
        time.sleep(0.005)
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def read_here(*_: object) -> Any:
    raise AssertionError("this process read a frame")


@pytest.mark.parametrize(
    "settings",
    [
        ImageSettings(),
        ImageSettings(bit_depth=16),
        ImageSettings(format="jpeg"),
        ImageSettings(format="exr"),
        ImageSettings("depth", near=1.0, far=3.0),
    ],
    ids=["png8", "png16", "jpeg", "exr", "depth"],
)
def test_the_same_files(
    tmp_path: Path, store: FrameStore, shared: ImageProcesses, settings: ImageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(store.path)
    here = ImageExporter(source, tmp_path / "here", settings, workers=2, processes=ImageProcesses(1)).export()
    monkeypatch.setattr(StoreSource, "read_recorded", read_here)
    exporter = ImageExporter(source, tmp_path / "there", settings, workers=2, processes=shared)
    there = exporter.export()
    assert there.written == here.written == tuple(range(FRAMES)) and there.bytes == here.bytes
    assert files(tmp_path / "there") == files(tmp_path / "here")
    exporter.path(2).unlink()
    assert exporter.export().written == (2,)


def test_damaged_frames_are_refused(tmp_path: Path, store: FrameStore, shared: ImageProcesses) -> None:
    exporter = ImageExporter(open_source(store.path), tmp_path / "rgb", workers=2, processes=shared)
    store.chunk_file("rgb", 3).write_bytes(store.chunk_file("rgb", 1).read_bytes())  # whole, checksummed, and the wrong frame
    with pytest.raises(StoreError, match=r"rgb of frame 3 is not the picture that was recorded\n.*--discard-damaged"):
        exporter.export([2, 3])
    store.chunk_file("rgb", 4).write_bytes(b"rubbish")
    with pytest.raises(StoreError, match=r"c\.4\.0\.0\.0: rgb of frame 4 is damaged(.|\n)*verify"):
        exporter.export([4])
    assert sorted(files(tmp_path / "rgb")) == ["a.00002.png"]
    store.chunk_file("rgb", 0).unlink()
    with pytest.raises(StoreError, match="rgb of frame 0 is not there"):
        exporter.export([0])


def test_the_ledger_is_not_read_for_what_is_known(tmp_path: Path, store: FrameStore, shared: ImageProcesses) -> None:
    source, path = open_source(store.path), tmp_path / "a.png"
    label = ImageLabel("a", 1, "rgb", source.finished()[1]["rgb"], "key")
    shutil.rmtree(Path(str(store.layout.ledger)))
    assert shared.write(source, path, ImageSettings(), label) == path.stat().st_size
    with pytest.raises(StoreError, match="frame 2 is not finished"):
        shared.write(source, path, ImageSettings(), replace(label, frame=2))


def test_a_frame_that_was_rendered_since(tmp_path: Path, store: FrameStore, shared: ImageProcesses) -> None:
    """Its file shows the new pixels, and is written again once their digest is known."""
    source, path = open_source(store.path), tmp_path / "a.png"
    label = ImageLabel("a", 1, "rgb", source.finished()[1]["rgb"], "key")
    shared.write(source, path, ImageSettings(), label)
    store.discard([1], "test")
    changed = pictures(FRAMES, dtype="uint16", seed=7)
    commit(store, {"rgb": changed, "depth": depths(FRAMES)}, [1])
    assert shared.write(source, path, ImageSettings(bit_depth=16), label) == path.stat().st_size
    assert (decode(path.read_bytes()) == changed[1]).all()


def test_a_full_disk(tmp_path: Path, store: FrameStore, begun: Callable[[], list[psutil.Process]]) -> None:
    """A file cannot pass a limit in the processes; this one has none."""
    with ImageExporter(open_source(store.path), tmp_path / "rgb", workers=2) as exporter:
        exporter.export([0])
        for process in all_begun(begun):
            process.rlimit(psutil.RLIMIT_FSIZE, (1000, process.rlimit(psutil.RLIMIT_FSIZE)[1]))
        with pytest.raises(DiskFullError, match=r"a\.0000[1-4]\.png: a file would be larger than files may be here") as caught:
            exporter.export()
    assert "ulimit -f" in str(caught.value.remedy) and "what is already there stays" in str(caught.value.remedy)
    assert list(files(tmp_path / "rgb")) == ["a.00000.png"]


def test_lost_processes_lose_no_image(
    tmp_path: Path, store: FrameStore, begun: Callable[[], list[psutil.Process]], caplog: pytest.LogCaptureFixture
) -> None:
    source, folder = open_source(store.path), tmp_path / "rgb"
    with ImageExporter(source, folder, workers=2) as exporter:
        exporter.export([0])
        half = pool_of(exporter.processes).run(outfile.temporary_name, exporter.path(1))
        owner = tag_process(half.name.removeprefix(".landmark-").removesuffix(".partial"))
        first, last = (process for process in all_begun(begun) if process.ppid() != os.getpid())
        assert owner is not None and owner.pid in (first.pid, last.pid)
        half.write_bytes(b"half")
        if owner.pid == last.pid:
            first, last = last, first
        first.kill()
        first.wait(60)
        assert exporter.export([1, 2]).written == (1, 2)
        last.kill()
        last.wait(60)
        assert exporter.export().written == (3, 4)
        assert half.exists()
    whole = files(folder)
    (warning,) = warnings(caplog)
    assert "process that makes images is lost" in warning
    ImageExporter(source, tmp_path / "here", processes=ImageProcesses(1)).export()
    assert whole == files(tmp_path / "here")


def test_no_process_is_left(tmp_path: Path, store: FrameStore, begun: Callable[[], list[psutil.Process]]) -> None:
    exporter = ImageExporter(open_source(store.path), tmp_path / "rgb", workers=2)
    exporter.close()
    exporter.export([0])
    assert {process.nice() for process in all_begun(begun)} == {os.nice(0)}
    exporter.close()
    exporter.close()
    assert begun() == []


def test_an_interrupt_waits_for_the_images_in_work(tmp_path: Path, store: FrameStore, begun: Callable[[], list[psutil.Process]]) -> None:
    def interrupt(done: int, count: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "rgb"
    with pytest.raises(KeyboardInterrupt), ImageExporter(open_source(store.path), folder, workers=2) as exporter:
        exporter.export(progress=interrupt)
    assert begun() == []
    assert 1 <= len(files(folder)) < FRAMES and all(decode(data).shape == (24, 32, 3) for data in files(folder).values())


def test_they_end_after_the_image_in_work(
    tmp_path: Path, store: FrameStore, begun: Callable[[], list[psutil.Process]], caplog: pytest.LogCaptureFixture
) -> None:
    """Also if whoever exports does not wait for its threads, as after a second Ctrl-C."""
    exporter = ImageExporter(open_source(store.path), tmp_path / "rgb", workers=2)
    exporter.export([0])
    workers = [process for process in all_begun(begun) if process.ppid() != os.getpid()]
    for process in workers:
        process.suspend()
    exporting, closing = threading.Thread(target=exporter.export, args=([1],)), threading.Thread(target=exporter.close)
    pool = pool_of(exporter.processes)
    exporting.start()
    end = time.monotonic() + 60
    while not pool._working:
        assert time.monotonic() < end, "it was not begun"
        time.sleep(0.005)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive() and not exporter.path(1).exists()
    for process in workers:
        process.resume()
    closing.join(60)
    assert exporter.path(1).exists() and begun() == [] and warnings(caplog) == []
    exporting.join(60)
    assert not exporting.is_alive()


def test_they_begin_when_it_pays(
    tmp_path: Path, store: FrameStore, begun: Callable[[], list[psutil.Process]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a few images, files that are up to date, one worker, or frames that no other process can open."""
    size = 24 * 32 * 3 * 2
    monkeypatch.setattr(image_processes, "BEGIN_BYTES", 2 * size)
    source = open_source(store.path)
    with ImageExporter(source, tmp_path / "rgb", workers=2) as exporter:
        for frames in ([0], [0], [0, 1]):
            exporter.export(frames)
            assert begun() == []
        exporter.export([2])
        assert begun() != []
    monkeypatch.setattr(image_processes, "BEGIN_BYTES", 0)
    with ImageExporter(source, tmp_path / "one", workers=1) as exporter:
        exporter.export()
        assert begun() == []
    with ImageExporter(MemorySource({"rgb": pictures(3)}), tmp_path / "memory", workers=2) as exporter:
        exporter.export()
        assert begun() == []


def test_nobody_waits_for_processes_that_are_not_there_yet(tmp_path: Path, store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    read, here = StoreSource.read_recorded, list[int]()

    def counted(source: StoreSource, output: str, frame: int, recorded: str | None, into: Any) -> Any:
        here.append(frame)
        return read(source, output, frame, recorded, into)

    monkeypatch.setattr(StoreSource, "read_recorded", counted)
    monkeypatch.setattr(ProcessPool, "ready", False)
    with ImageExporter(open_source(store.path), tmp_path / "rgb", workers=2) as exporter:
        exporter.processes.begin()
        exporter.export([0, 1])
        assert sorted(here) == [0, 1]
        monkeypatch.setattr(ProcessPool, "ready", True)
        exporter.export()
        assert sorted(here) == [0, 1]


def test_frames_of_an_object_store(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path: Any = as_store_path(f"{bucket}/a.zarr")
    source = open_source(write_store(path, {"rgb": pictures(FRAMES)}).path)
    ImageExporter(source, tmp_path / "here", processes=ImageProcesses(1)).export()
    monkeypatch.setattr(StoreSource, "read_recorded", read_here)
    with ImageExporter(source, tmp_path / "there", workers=2) as exporter:  # processes of its own: begun when the server's address is known
        exporter.export()
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_the_compiled_code_is_built_after_many_images_and_used(tmp_path: Path, store: FrameStore, png_library: Path) -> None:
    """By threads and processes alike; `png_library`: there is a compiler."""
    library = PngLibrary(tmp_path / "cache")
    with ImageExporter(open_source(store.path), tmp_path / "rgb", ImageSettings(bit_depth=16), workers=2, library=library) as exporter:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_processes, "BUILD_BYTES", 1 << 40)
            exporter.export()
            library.wait()
            assert library.path is None, "nothing is built for a few images"
        before = files(tmp_path / "rgb")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_processes, "BUILD_BYTES", 1)
            exporter.export([0], force=True)
        library.wait()
        exporter.export(force=True)
        after = files(tmp_path / "rgb")
        pool_of(exporter.processes)
    assert library.path is not None
    text = {name: read_png_text(tmp_path / "rgb" / name) for name in before}
    compiled = {name: encode_png(decode(data), text[name], packer=packer(library.path)) for name, data in before.items()}
    assert after == compiled and all(after[name] != before[name] for name in before)
    here = ImageExporter(
        open_source(store.path), tmp_path / "here", ImageSettings(bit_depth=16), processes=ImageProcesses(1, library=library)
    )
    here.export()
    assert files(tmp_path / "here") == after
