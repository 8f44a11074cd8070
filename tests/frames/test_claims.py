"""Claims: who renders which frame of a store that several processes share."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from landmark_batch.errors import DiskFullError
from landmark_batch.frames.fingerprint import flight_fingerprints
from landmark_batch.frames.layout import StoreLayout
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.store import FrameStore

from .processes import run, start, wait_for
from .store_kit import commit, make_flight, make_settings, make_spec
from .test_owner import hold

FRAMES = 30
FLIGHT, SETTINGS = make_flight(FRAMES), make_settings()


@pytest.fixture
def path(fast_path: Path) -> Path:
    return FrameStore.create(fast_path / "a.zarr", make_spec(FRAMES), FLIGHT, SETTINGS).path


def _render_claimed(path: Path, go: Path) -> None:
    wait_for(go)
    prints = flight_fingerprints(SETTINGS, FLIGHT)
    store = FrameStore.open(path)
    with StoreOwner.acquire(path, join=True) as held:
        for first in range(0, FRAMES, 3):
            mine = held.claim(range(first, first + 3))
            if mine:
                commit(store, mine, prints, worker=f"p{os.getpid()}", generation=held.generation)
                held.release(mine)


def test_claims(path: Path) -> None:
    with StoreOwner.acquire(path) as first, StoreOwner.acquire(path, join=True) as second:
        assert first.claim([3, 1, 2]) == [1, 2, 3]
        assert second.claim([2, 3, 4]) == [4]
        assert first.claim([1, 2]) == [1, 2], "one's own again"
        first.release([2, 4])
        assert second.claim([2, 3, 4]) == [2, 4]
        commit(FrameStore.open(path), [3], flight_fingerprints(SETTINGS, FLIGHT), generation=first.generation)
        first.release([3])
        assert second.claim([3]) == [], "recorded meanwhile"
        assert (StoreLayout(path).claims / second.id).read_text() == "2-4"
    assert list(StoreLayout(path).claims.iterdir()) == []


def test_claims_of_many_lengths(path: Path) -> None:
    """Processes that cut their work differently never hold a frame both; what stands is nobody's, told or not."""
    with StoreOwner.acquire(path) as first, StoreOwner.acquire(path, join=True) as second:
        assert first.claim(range(8)) == list(range(8))
        assert second.claim(range(5, 12)) == [8, 9, 10, 11]
        assert first.claim(range(6, 14)) == [6, 7, 12, 13]
        commit(FrameStore.open(path), [6, 7], flight_fingerprints(SETTINGS, FLIGHT), generation=first.generation)
        first.release([6, 7], recorded=True)
        assert second.claim([6, 7]) == [], "recorded, though the list of the first still names them"
        first.release([5])
        assert second.claim([4, 5]) == [5]


def test_who_joins_late_sees_what_one_alone_has_claimed(path: Path) -> None:
    with StoreOwner.acquire(path) as first:
        assert first.claim([1, 2]) == [1, 2]
        with StoreOwner.acquire(path, join=True) as second:
            assert second.claim([1, 2, 3]) == [3]
            assert first.claim([2, 3, 4]) == [2, 4]


def test_a_damaged_list_claims_nothing(path: Path) -> None:
    with StoreOwner.acquire(path) as first, StoreOwner.acquire(path, join=True) as second:
        first.claim([5])
        (StoreLayout(path).claims / first.id).write_bytes(b"5,\xff")
        assert second.claim([5]) == [5], "rendered twice, to the same pixels"


def test_claims_of_the_dead_are_removed(path: Path) -> None:
    folder = StoreLayout(path).claims
    for name in ("7", "123-abcdef", "123-abcdef.partial"):  # one file a frame: of an earlier version
        (folder / name).write_text("5")
    with StoreOwner.acquire(path) as held:
        assert list(folder.iterdir()) == []
        assert held.claim([5, 7]) == [5, 7]
        with StoreOwner.acquire(path, join=True):
            assert [file.name for file in folder.iterdir()] == [held.id]


def test_a_full_disk_claims_nothing_and_releases(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreOwner.acquire(path) as first, StoreOwner.acquire(path, join=True) as second:
        first.claim([1, 2])

        def full(self: Path, *_: object, **__: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            with pytest.raises(DiskFullError):
                first.claim([3])
            first.release([1])
            assert second.claim([]) == []
        assert first.claim([2]) == [2]
        assert second.claim([1, 3]) == [3], "1 was given up, but no list could say so"
        first.claim([4])
        assert second.claim([1, 3]) == [1, 3]


def test_two_processes_fill_disjoint_frames(path: Path, fast_path: Path) -> None:
    processes = [start(_render_claimed, path, fast_path / "go") for _ in range(2)]
    (fast_path / "go").touch()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    store = FrameStore.open(path)
    assert sorted(store.finished()) == list(range(FRAMES))
    lines = [json.loads(line) for log in store.layout.ledger.glob("p*.log") for line in log.read_text().splitlines()]
    assert sorted(frame for line in lines for frame in line["frames"]) == list(range(FRAMES)), "no frame was rendered twice"


def test_a_killed_joiner_costs_nothing(path: Path, fast_path: Path) -> None:
    process = start(hold, path, fast_path / "ready")
    wait_for(fast_path / "ready")
    process.kill()
    process.join()
    (fast_path / "go").touch()
    assert run(_render_claimed, path, fast_path / "go") == 0
    assert sorted(FrameStore.open(path).finished()) == list(range(FRAMES))
