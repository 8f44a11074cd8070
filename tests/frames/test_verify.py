"""Damage in any file: verify finds it, the next render mends exactly those frames."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.errors import StoreBusyError, StoreError, UnreadableError
from landmark_batch.frames.fingerprint import flight_fingerprints
from landmark_batch.frames.inventory import check_frame
from landmark_batch.frames.layout import StoreLayout, chunk_index
from landmark_batch.frames.ledger import LedgerIndex
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.records import line_records
from landmark_batch.frames.resume import compare
from landmark_batch.frames.sealed import DamagedError, unseal
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store

from .store_kit import assert_is, commit, make_flight, make_settings, make_spec, render

FLIGHT, SETTINGS, FRAMES = make_flight(4), make_settings(), 4
HIDDEN = "done/.landmark"
FILES = [
    "zarr.json",
    *(f"{name}/zarr.json" for name in ("rgb", "depth", "frame", "time", "pose", "focal", "intrinsics", "done")),
    *(f"{name}/c.0" for name in ("frame", "time", "focal", "done")),
    *("pose/c.0.0.0", "intrinsics/c.0.0"),
    *(f"rgb/c.{i}.0.0.0" for i in range(FRAMES)),
    *(f"depth/c.{i}.0.0" for i in range(FRAMES)),
    *(f"{HIDDEN}/{name}" for name in ("store.json", "flight.json", "fence.json", "settings/*.json", "ledger/w0@*", "ledger/w1@*")),
]


def truncate(data: bytearray) -> bytearray:
    return data[: len(data) // 2]


def empty(data: bytearray) -> bytearray:
    return bytearray()


def zero(data: bytearray) -> bytearray:
    return bytearray(len(data))


def zero_tail(data: bytearray) -> bytearray:
    return data[: len(data) * 2 // 3] + bytes(len(data) - len(data) * 2 // 3)


def flip(data: bytearray) -> bytearray:
    data[len(data) * 3 // 5] ^= 1 << 4
    return data


@pytest.fixture(scope="module")
def whole() -> Iterator[Path]:
    """A finished store of two workers, and that none of its files is missing from FILES."""
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None, prefix="landmark-batch-"))
    path = root / "whole.zarr"
    render(path, FLIGHT, SETTINGS, workers=2)
    matched = [file for pattern in FILES for file in path.glob(pattern)]
    found = {file for file in path.rglob("*") if file.is_file() and file.stat().st_size}
    assert set(matched) == found and len(matched) == len(found)
    assert verify_store(path).ok
    yield path
    shutil.rmtree(root, ignore_errors=True)


def _expected(path: Path, file: Path, original: bytes) -> list[int]:
    """Frames that are lost with this file."""
    if file.suffix == ".log":
        kept = set()
        for line in file.read_bytes().split(b"\n"):
            try:
                kept |= {record.frame for record in line_records(unseal(line))}
            except DamagedError:
                continue
        return [record.frame for line in original.splitlines() for record in line_records(unseal(line)) if record.frame not in kept]
    index = chunk_index(file.name) if file.parent.name in ("rgb", "depth") else None
    return [] if index is None else [index]


CASES = [(pattern, damage) for pattern in FILES for damage in (truncate, zero, flip)]
CASES += [
    (pattern, damage) for pattern in ("rgb/c.2.0.0.0", f"{HIDDEN}/store.json", f"{HIDDEN}/ledger/w1@*") for damage in (empty, zero_tail)
]


@pytest.mark.parametrize(("pattern", "damage"), CASES)
def test_every_file(whole: Path, fast_path: Path, pattern: str, damage: Callable[[bytearray], bytearray]) -> None:
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    (file,) = path.glob(pattern)
    original = file.read_bytes()
    file.write_bytes(damage(bytearray(original)))
    before = FrameStore.open(whole).finished()
    lost = _expected(path, file, original)

    report = verify_store(path)
    assert not report.ok
    if chunk_index(file.name) is not None and file.parent.name in ("rgb", "depth"):
        assert [(item.frame, item.output, item.path) for item in report.damaged] == [(lost[0], file.parent.name, str(file))]
        assert report.damaged[0].reason and not report.other
    else:
        assert not report.damaged and any(file.name in text for text in report.other)

    assert render(path, FLIGHT, SETTINGS) == lost
    assert_is(path, FLIGHT, SETTINGS)
    again = verify_store(path)
    assert again.ok and not again.notes, again
    after = FrameStore.open(path).finished()
    assert [frame for frame in after if after[frame] != before[frame]] == lost, "only what was lost was recorded again"
    assert render(path, FLIGHT, SETTINGS) == []


LOSSES = [("rgb", [0, 1, 2, 3]), ("pose", []), (HIDDEN, [0, 1, 2, 3]), ("done", [0, 1, 2, 3]), (f"{HIDDEN}/settings", [])]


@pytest.mark.parametrize(("folder", "lost"), LOSSES)
def test_a_whole_folder_is_lost(whole: Path, fast_path: Path, folder: str, lost: list[int]) -> None:
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    shutil.rmtree(path / folder)
    assert not verify_store(path).ok
    assert render(path, FLIGHT, SETTINGS) == lost
    assert_is(path, FLIGHT, SETTINGS)
    assert verify_store(path).ok


def test_both_descriptions_lost(whole: Path, fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    for name in ("zarr.json", f"{HIDDEN}/store.json"):
        (path / name).write_bytes(truncate(bytearray((path / name).read_bytes())))
    for call in (FrameStore.open, verify_store, StoreOwner.acquire):
        with pytest.raises(StoreError, match=r"both descriptions of this store are damaged: .*store\.json .* and .*zarr\.json"):
            call(path)
    with pytest.raises(StoreError, match="both descriptions"):
        render(path, FLIGHT, SETTINGS)


def test_newer_version_is_refused(whole: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    monkeypatch.setattr("landmark_batch.frames.definition.VERSION", 0)
    with pytest.raises(StoreError, match="store version 1, this program knows version 0"):
        FrameStore.open(path)


@pytest.mark.parametrize("name", ["open", "stat", "is_file"])
@pytest.mark.parametrize("discard", [False, True])
def test_what_may_not_be_read_is_not_damaged(
    whole: Path, fast_path: Path, name: str, discard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither noted nor discarded: the next render would replace good frames."""
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    store = FrameStore.open(path)
    file, real = store.chunk_file("rgb", 1), getattr(Path, name)

    def refuse(self: Path, *words: Any, **named: Any) -> Any:  # also for root
        if self == file:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *words, **named)

    with monkeypatch.context() as locked:
        locked.setattr(Path, name, refuse)
        with pytest.raises(UnreadableError, match=r"c\.1\.0\.0\.0 cannot be read: Permission denied"):
            verify_store(path, discard_damaged=discard)
    assert sorted(FrameStore.open(path).finished()) == [0, 1, 2, 3]
    assert not store.layout.damaged.exists() and verify_store(path).ok


def test_discard_makes_damaged_frames_missing(whole: Path, fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    store = FrameStore.open(path)
    file = store.chunk_file("depth", 2)
    file.write_bytes(flip(bytearray(file.read_bytes())))
    seen: list[tuple[int, int]] = []
    report = verify_store(path, discard_damaged=True, progress=lambda done, total: seen.append((done, total)))
    assert report.frames == (2,) and report.discarded and seen[-1] == (4, 4) and report.checked == 4
    assert report.as_dict()["frames"] == [2] and json.dumps(report.as_dict())
    assert sorted(store.finished()) == [0, 1, 3]
    assert not store.done()[2]
    report = verify_store(path)
    assert report.ok and report.notes == ("frames 2 have files but no record: they will be rendered",)
    assert render(path, FLIGHT, SETTINGS) == [2]
    assert_is(path, FLIGHT, SETTINGS)


def test_discard_needs_the_store_for_itself(whole: Path, fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    with StoreOwner.acquire(path):
        assert verify_store(path).ok
        with pytest.raises(StoreBusyError):
            verify_store(path, discard_damaged=True)


def test_same_size_other_pixels_is_damage(whole: Path, fast_path: Path) -> None:
    """A chunk file of another frame decodes well and is still wrong; the note is forgotten when the file is put right."""
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    store = FrameStore.open(path)
    original = store.chunk_file("depth", 1).read_bytes()
    store.chunk_file("depth", 1).write_bytes(store.chunk_file("depth", 0).read_bytes())
    report = verify_store(path)
    assert [item.frame for item in report.damaged] == [1]
    assert compare(store, FLIGHT, SETTINGS).damaged == (1,)
    store.chunk_file("depth", 1).write_bytes(original)
    assert compare(store, FLIGHT, SETTINGS).damaged == ()
    assert render(path, FLIGHT, SETTINGS) == []
    assert not StoreLayout(path).damaged.exists()


def test_a_damaged_note_makes_every_frame_suspect(whole: Path, fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    store = FrameStore.open(path)
    file = store.chunk_file("rgb", 3)
    file.write_bytes(store.chunk_file("rgb", 2).read_bytes().ljust(file.stat().st_size, b"x")[: file.stat().st_size])
    assert verify_store(path).frames == (3,)
    store.layout.damaged.write_bytes(b"{}")
    assert any("damaged.json" in text for text in verify_store(path, threads=1).other)
    store.layout.damaged.write_bytes(b"{}")
    assert render(path, FLIGHT, SETTINGS) == [3]
    assert verify_store(path).ok


def test_an_old_record_that_comes_to_light_again_is_not_believed(fast_path: Path) -> None:
    """The ledger loses the lines that replaced a record; the old one fits the job again, the pixels do not."""
    path = fast_path / "a.zarr"
    spec_none = {"compressor": "none"}  # all files of one size: only digests can tell
    render(path, FLIGHT, SETTINGS, spec=make_spec(4, **spec_none))
    render(path, FLIGHT, make_settings(128), update=True)
    layout = StoreLayout(path)
    newest = LedgerIndex(layout.ledger).refresh()
    for log in layout.ledger.glob("*.log"):
        lines = [line for line in log.read_bytes().splitlines(keepends=True) if unseal(line.strip())["generation"] == 2]
        if lines:
            log.write_bytes(b"".join(lines) + b'{"kind"')
        else:
            log.write_bytes(b"")
    assert newest.generation > 2
    assert set(FrameStore.open(path).finished()) == {0, 1, 2, 3}
    assert render(path, FLIGHT, SETTINGS) == [0, 1, 2, 3]
    assert_is(path, FLIGHT, SETTINGS)


def test_verify_of_a_store_that_is_written_meanwhile(whole: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that a job replaces while it is looked at is not damaged."""
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    store = FrameStore.open(path)
    other = flight_fingerprints(make_settings(64), FLIGHT)
    looked: list[int] = []

    def progress(done: int, total: int) -> None:
        looked.append(done)

    plain = check_frame

    def slow(*args: object) -> str | None:
        if not looked:
            looked.append(0)
            commit(store, [0, 1], other)
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("landmark_batch.frames.verify.check_frame", slow)
    assert verify_store(path, threads=1, progress=progress).ok


def test_repair_mends_everything_but_pixels(whole: Path, fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    shutil.copytree(whole, path)
    names = ("rgb/zarr.json", "pose/c.0.0.0", "done/c.0", f"{HIDDEN}/flight.json", "zarr.json")
    for name in names:
        (path / name).write_bytes(b"\0")
    store = FrameStore.open(path)
    with pytest.raises(StoreError, match="coordinates are damaged"):
        store.flight()
    with pytest.raises(StoreError, match="holds another flight"):
        store.repair(make_flight(4, seed=5), SETTINGS)
    problems = store.repair(FLIGHT, SETTINGS)
    assert len(problems) == len(names) and all(any(name in problem for problem in problems) for name in names)
    assert store.repair(FLIGHT, SETTINGS) == []
    assert verify_store(path).ok
    assert_is(path, FLIGHT, SETTINGS)
