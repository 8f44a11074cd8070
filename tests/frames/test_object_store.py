"""A frame store in an object store: what a folder does by rename, fsync and locks, done by conditional writes on a real S3 server."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from landmark_batch.errors import FramesDifferError, StaleWriterError, StoreBusyError, StoreError
from landmark_batch.frames import entries, object_lock, owner
from landmark_batch.frames.fence import Fence, change_fence_locked, read_fence
from landmark_batch.frames.fingerprint import flight_fingerprints
from landmark_batch.frames.layout import layout_of
from landmark_batch.frames.ledger import LedgerIndex, LedgerLog
from landmark_batch.frames.locks import store_mutex
from landmark_batch.frames.owner import StoreOwner, store_owners
from landmark_batch.frames.process import writer_tag
from landmark_batch.frames.sealed import seal
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store
from landmark_batch.object_path import ObjectPath, as_store_path
from tests.object_server import environment, every_service

from .processes import run
from .store_kit import assert_is, commit, make_flight, make_settings, make_spec, pixels_of, render

pytestmark = every_service
FLIGHT, SETTINGS = make_flight(4), make_settings()


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/flights/city.zarr"


def place(url: str) -> ObjectPath:
    found = as_store_path(url)
    assert isinstance(found, ObjectPath)
    return found


def chunks(root: Any) -> dict[str, bytes]:
    return {f"{name}/{file.name}": file.read_bytes() for name in ("rgb", "depth") for file in (root / name).glob("c.*")}


# -- what is in it


@pytest.mark.parametrize("shard", [1, 2])
def test_the_same_objects_as_files_in_a_folder(url: str, tmp_path: Path, shard: int) -> None:
    spec = make_spec(len(FLIGHT), frames_per_shard=shard)
    for path in (tmp_path / "city.zarr", url):
        assert render(path, FLIGHT, SETTINGS, spec=spec, workers=2) == [0, 1, 2, 3]  # type: ignore[arg-type]
    assert chunks(place(url)) == chunks(tmp_path / "city.zarr")
    names = {path.below(place(url)) for path in place(url).tree()}
    files = {str(path.relative_to(tmp_path / "city.zarr")) for path in (tmp_path / "city.zarr").rglob("*") if path.is_file()}
    logs = {name for name in names | files if name.startswith("done/.landmark/ledger/")}
    assert names ^ files <= logs | {"done/.landmark/owners/clock"}
    assert_is(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
    assert render(url, FLIGHT, SETTINGS, spec=spec) == []  # type: ignore[arg-type]
    report = verify_store(url)
    assert (report.checked, report.ok, report.notes) == (4, True, ())


def test_any_zarr_reader_reads_it(url: str) -> None:
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    render(url, FLIGHT, SETTINGS, only=(0, 2))  # type: ignore[arg-type]
    group = zarr.open_group(ObjectStore(from_url(url, client_options={"allow_http": True}), read_only=True), mode="r")
    assert np.asarray(group["done"]).tolist() == [True, False, True, False]
    store = FrameStore.open(url)
    np.testing.assert_array_equal(np.asarray(group["rgb"])[2], store.read("rgb", 2))
    with pytest.raises(StoreError, match="rgb of frame 1 is not there"):
        store.read("rgb", 1)


def test_damage_is_found_given_up_and_mended(url: str) -> None:
    render(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
    root = place(url)
    file = root / "rgb/c.1.0.0.0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    (root / "depth/c.2.0.0").unlink()
    (root / "pose/zarr.json").write_text("{}")
    report = verify_store(url)
    assert report.frames == (1, 2)
    assert [line for line in report.other if "pose/zarr.json" in line]
    assert render(url, FLIGHT, SETTINGS) == [1, 2]  # type: ignore[arg-type]
    assert verify_store(url).ok
    assert_is(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]


def test_other_settings_are_refused_and_nothing_is_changed(url: str) -> None:
    render(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
    before = chunks(place(url))
    with pytest.raises(FramesDifferError, match="4 of 4 finished frames differ"):
        render(url, FLIGHT, make_settings(128))  # type: ignore[arg-type]
    assert chunks(place(url)) == before
    assert render(url, FLIGHT, make_settings(128), update=True) == [0, 1, 2, 3]  # type: ignore[arg-type]
    assert_is(url, FLIGHT, make_settings(128))  # type: ignore[arg-type]


# -- several at once


def test_a_write_that_comes_late_is_refused_by_the_store_itself(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer is held up between its last look at the fence and its PUT; meanwhile its time ends and another writes the frame."""
    store = FrameStore.create(url, make_spec(4), FLIGHT, SETTINGS)
    old, new = flight_fingerprints(SETTINGS, FLIGHT), flight_fingerprints(make_settings(128), FLIGHT)
    plain = ObjectPath.put
    held: list[int] = []

    def late(self: ObjectPath, data: bytes, *, over: Any) -> Any:
        if self.name.startswith("c.0.") and not held:
            held.append(1)
            store.fence(1)
            with store.writer("after", epoch=1) as writer:
                pixels = {name: picture[None] for name, picture in pixels_of(store.spec, new[0]).items()}
                writer.commit([0], pixels, [new[0]], seconds=0.1)
        return plain(self, data, over=over)

    monkeypatch.setattr(ObjectPath, "put", late)
    with store.writer("before", epoch=0) as writer, pytest.raises(StaleWriterError, match="epoch 0 has ended"):
        writer.commit([0], {name: picture[None] for name, picture in pixels_of(store.spec, old[0]).items()}, [old[0]], seconds=0.1)
    assert held
    assert store.finished()[0].worker == "after"
    np.testing.assert_array_equal(store.read("rgb", 0), pixels_of(store.spec, new[0])["rgb"])
    assert verify_store(url).ok


def test_two_writers_of_one_frame_end_with_its_picture(url: str) -> None:
    store = FrameStore.create(url, make_spec(4), FLIGHT, SETTINGS)
    prints = flight_fingerprints(SETTINGS, FLIGHT)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: commit(FrameStore.open(url), [0, 1], prints, worker=f"w{number}"), range(4)))
    assert sorted(store.finished()) == [0, 1]
    assert verify_store(url).ok


def test_the_mutex_lets_one_in_at_a_time(url: str) -> None:
    layout = layout_of(url)
    inside, most = [0], [0]

    def enter(_: int) -> None:
        with store_mutex(layout):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(enter, range(12)))
    assert most[0] == 1


def _die_in_the_mutex(url: str, settings: dict[str, str]) -> None:
    os.environ.update(settings)
    with store_mutex(layout_of(url)):
        os.kill(os.getpid(), 9)


def test_a_mutex_of_the_dead_is_free_and_a_silent_one_after_a_while(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(url)
    assert run(_die_in_the_mutex, url, environment()) == -9
    with store_mutex(layout, timeout=5):
        pass
    elsewhere = writer_tag("lock").replace("@" + writer_tag("x").split("@")[4], "@0123456789abcdef").encode()
    lock = layout.lock
    assert isinstance(lock, ObjectPath)
    lock.write_bytes(elsewhere)
    with pytest.raises(StoreBusyError, match="has held this lock"), store_mutex(layout, timeout=0.3):
        pass
    monkeypatch.setattr(object_lock, "_STALE_SECONDS", 0.2)
    with store_mutex(layout, timeout=5):
        assert lock.read_bytes() != elsewhere


def test_a_fence_is_never_lowered_by_one_who_was_held_up(url: str) -> None:
    """Its mutex was taken over while it was between reading the fence and writing it."""
    store = FrameStore.create(url, make_spec(4), FLIGHT, SETTINGS)
    seen: list[int] = []

    def slow(fence: Fence) -> Fence:
        seen.append(fence.generation)
        if len(seen) == 1:
            change_fence_locked(store.layout, lambda found: replace(found, generation=found.generation + 10))
        return replace(fence, generation=fence.generation + 1)

    assert change_fence_locked(store.layout, slow).generation == seen[0] + 11
    assert read_fence(store.layout).generation == seen[0] + 11


def test_one_owner_at_a_time(url: str) -> None:
    FrameStore.create(url, make_spec(4), FLIGHT, SETTINGS)
    with StoreOwner.acquire(url) as first:
        with pytest.raises(StoreBusyError, match=f"written by another job: host .* process {os.getpid()}, started"):
            StoreOwner.acquire(url)
        with StoreOwner.acquire(url, join=True) as second:
            assert first.sole and not second.sole
            assert second.generation > first.generation
            assert sorted(first.claim([0, 1])) == [0, 1]
            assert second.claim([0, 1, 2, 3]) == [2, 3]
            first.release([1])
            assert second.claim([1]) == [1]
    assert store_owners(url) == []
    assert [path.name for path in layout_of(url).claims.iterdir()] == []


def _take_and_die(url: str, settings: dict[str, str]) -> None:
    os.environ.update(settings)
    StoreOwner.acquire(url).claim([0])
    os.kill(os.getpid(), 9)


def test_a_dead_owner_is_known_at_once_and_a_silent_one_of_another_host_after_a_while(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FrameStore.create(url, make_spec(4), FLIGHT, SETTINGS)
    assert run(_take_and_die, url, environment()) == -9
    with StoreOwner.acquire(url) as found:
        assert found.sole
        assert found.claim([0]) == [0]
    entry = layout_of(url).owners / "77-abc.json"
    identity = {"host": "elsewhere", "pid": 77, "start": "1", "boot": "0123456789abcdef", "namespace": "1"}
    entry.write_bytes(seal({"id": "77-abc", "started": 1.0, **identity}))
    with pytest.raises(StoreBusyError, match="host elsewhere, process 77"):
        StoreOwner.acquire(url)
    monkeypatch.setattr(entries, "STALE_SECONDS", -5.0)
    with StoreOwner.acquire(url) as found:
        assert found.sole
        assert not entry.exists()


def test_an_owner_that_was_taken_for_dead_learns_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT_SECONDS", 0.05)
    store = FrameStore.create(url, make_spec(4), FLIGHT, SETTINGS)
    held = StoreOwner.acquire(url)
    (layout_of(url).owners / f"{held.id}.json").unlink()
    deadline = time.monotonic() + 20
    while True:
        try:
            held.require_held()
        except StoreBusyError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    assert not (layout_of(url).owners / f"{held.id}.json").exists()  # no heartbeat makes it anew
    with StoreOwner.acquire(url) as after, store.writer("late", generation=held.generation) as writer:
        assert after.sole
        pixels = {name: picture[None] for name, picture in pixels_of(store.spec, "0" * 32).items()}
        with pytest.raises(StaleWriterError, match="has ended"):
            writer.commit([0], pixels, ["0" * 32], seconds=0.1)
    held.close()
    assert store.finished() == {}
    assert not list((place(url) / "rgb").glob("c.*"))


# -- the ledger


def test_a_log_grows_line_by_line_and_is_followed_by_another(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark_batch.frames.ledger._OBJECT_BYTES", 300)
    directory = place(f"{bucket}/ledger")
    log, index = LedgerLog(directory, "w"), LedgerIndex(directory)
    for frame in range(6):
        log.append({"kind": "discard", "generation": 1, "reason": "x", "at": 0.0, "frames": [frame]})
        assert len(index.refresh()._latest) == frame + 1
    assert len(directory.sizes()) > 1
    assert len(LedgerIndex(directory).refresh()._latest) == 6
    assert index.damaged() == []
    current = log.path
    assert isinstance(current, ObjectPath)
    current.unlink()  # by whoever mends the store alone
    log.append({"kind": "discard", "generation": 1, "reason": "x", "at": 0.0, "frames": [9]})
    assert 9 in LedgerIndex(directory).refresh()._latest
