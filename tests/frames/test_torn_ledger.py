"""Damage to the ledger and what it can hide: frames are only read again where a line that made frames missing may be lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from landmark_batch.frames import durable, inventory
from landmark_batch.frames.fence import read_fence
from landmark_batch.frames.fingerprint import flight_fingerprints
from landmark_batch.frames.layout import StoreLayout
from landmark_batch.frames.ledger import LedgerIndex
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.resume import compare
from landmark_batch.frames.sealed import seal
from landmark_batch.frames.store import FrameStore

from .store_kit import assert_is, commit, make_flight, make_settings, make_spec, render

FRAMES = 4
FLIGHT, SETTINGS, OTHERS = make_flight(FRAMES), make_settings(), make_settings(128)
SPEC = make_spec(FRAMES, compressor="none")  # all files of one size: only digests can tell


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def path(fast_path: Path) -> Path:
    return fast_path / "a.zarr"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames whose pixels were read by `compare`."""
    frames: list[int] = []
    plain = inventory.check_frame

    def check(store: FrameStore, record: object, output: str) -> str | None:
        frames.append(record.frame)  # type: ignore[attr-defined]
        return plain(store, record, output)  # type: ignore[arg-type]

    monkeypatch.setattr("landmark_batch.frames.resume.check_frame", check)
    return frames


def newest_log(path: Path, kind: bytes) -> Path:
    """The log whose last line is of that kind and of the greatest generation."""
    logs = [log for log in StoreLayout(path).ledger.glob("*.log") if log.read_bytes().splitlines()[-1].startswith(b'{"kind":"' + kind)]
    return max(logs, key=lambda log: log.stat().st_mtime_ns)


def die_within_a_line(monkeypatch: pytest.MonkeyPatch, size: int, work: Callable[[], object]) -> None:
    """Do some work and be killed when `size` bytes of its next ledger line are written, or all but the last."""
    plain = durable.write_all

    def write(descriptor: int, data: bytes) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".log":
            plain(descriptor, data[: min(size, len(data) - 1)])
            raise Killed
        plain(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_all", write)
        with pytest.raises(Killed):
            work()


def test_a_commit_cut_at_every_byte_makes_no_frame_suspect(path: Path, read: list[int]) -> None:
    render(path, FLIGHT, SETTINGS, spec=SPEC)
    log = newest_log(path, b"frames")
    whole = log.read_bytes()
    for size in range(whole.index(b"\n") + 2, len(whole)):
        log.write_bytes(whole[:size])
        store = FrameStore.open(path)
        plan = compare(store, FLIGHT, SETTINGS)
        assert store.index.damaged() and (plan.done, plan.missing, plan.damaged) == ((0, 1), (2, 3), ())
    assert read == []
    assert render(path, FLIGHT, SETTINGS) == [2, 3]
    assert_is(path, FLIGHT, SETTINGS)
    assert LedgerIndex(StoreLayout(path).ledger).refresh().damaged() == []


@pytest.mark.parametrize("made", [False, True])
def test_killed_within_a_line_of_a_commit_that_replaces(
    path: Path, fast_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """Files with the new pixels lie there, unrecorded; the old record was discarded before. made: the log has lines already."""
    for size in (*range(0, 640, 91), 10**6):
        place = fast_path / f"{size}.zarr"
        render(place, FLIGHT, SETTINGS, spec=SPEC)
        prints = flight_fingerprints(OTHERS, FLIGHT)
        render(place, FLIGHT, OTHERS, update=True, only=[])
        store = FrameStore.open(place)
        with StoreOwner.acquire(place) as owner:
            if made:
                commit(store, [0], prints, worker="k", generation=owner.generation)
            die_within_a_line(monkeypatch, size, lambda: commit(store, [2, 3], prints, worker="k", generation=owner.generation))  # noqa: B023
        assert compare(FrameStore.open(place), FLIGHT, OTHERS).done == ((0,) if made else ())
        assert compare(FrameStore.open(place), FLIGHT, SETTINGS).done == (), "the old records are void, whatever was cut"
        assert read == []
        render(place, FLIGHT, SETTINGS, update=True)
        assert_is(place, FLIGHT, SETTINGS)


def test_killed_within_a_discard(path: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It did not happen, or it did: no frame is ever taken for another."""
    for size in (*range(0, 120, 23), 10**6):
        place = fast_path / f"{size}.zarr"
        render(place, FLIGHT, SETTINGS, spec=SPEC)
        die_within_a_line(monkeypatch, size, lambda: render(place, FLIGHT, OTHERS, update=True))  # noqa: B023
        assert compare(FrameStore.open(place), FLIGHT, SETTINGS).done == tuple(range(FRAMES))
        assert render(place, FLIGHT, SETTINGS) == []
        assert render(place, FLIGHT, OTHERS, update=True, only=[0]) == [0]
        log = newest_log(place, b"frames")
        log.write_bytes(log.read_bytes()[:-9])
        assert render(place, FLIGHT, OTHERS, update=True) == list(range(FRAMES))
        assert_is(place, FLIGHT, OTHERS)


def test_a_lost_discard_makes_every_frame_suspect(path: Path, read: list[int]) -> None:
    """Rendered anew up to frame 1, of which the records are lost too: the files of 0 and 1 no longer fit the records that are left."""
    render(path, FLIGHT, SETTINGS, spec=SPEC)
    assert render(path, FLIGHT, OTHERS, update=True, only=[0, 1]) == [0, 1]
    for kind in (b"frames", b"discard"):
        log = newest_log(path, kind)
        *before, last = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(before) + last[: len(last) // 2])
    layout = StoreLayout(path)
    assert LedgerIndex(layout.ledger).refresh().discards != read_fence(layout).discards
    plan = compare(FrameStore.open(path), FLIGHT, SETTINGS)
    assert set(read) == set(range(FRAMES))
    assert (plan.done, plan.damaged, plan.missing) == ((2, 3), (0, 1), (0, 1))
    assert render(path, FLIGHT, SETTINGS) == [0, 1]
    assert_is(path, FLIGHT, SETTINGS)


def test_what_was_looked_through_once_is_not_suspect_again(path: Path, read: list[int]) -> None:
    """A store of an earlier version, whose fence counts no discards: the first damage costs a look at every frame, the next none."""
    render(path, FLIGHT, SETTINGS, spec=SPEC)
    layout = StoreLayout(path)
    fence = read_fence(layout)
    layout.fence.write_bytes(seal({"generation": fence.generation, "min_generation": fence.min_generation, "epochs": {}}))
    log = newest_log(path, b"frames")
    log.write_bytes(log.read_bytes()[:-2])
    lost = render(path, FLIGHT, SETTINGS)
    assert lost and set(read) == set(range(FRAMES)) - set(lost)
    read.clear()
    log = newest_log(path, b"frames")
    log.write_bytes(log.read_bytes()[:-2])
    assert render(path, FLIGHT, SETTINGS) and read == []
    assert_is(path, FLIGHT, SETTINGS)
