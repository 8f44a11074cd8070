"""A frame store in an object store: what a folder does by rename, fsync and locks, done by conditional writes on a real S3 server."""

from __future__ import annotations

import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from landmark_batch.errors import ConfigError, FramesDifferError, StaleWriterError, StoreBusyError, StoreError
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
from tests.object_server import ObjectServer, environment
from tests.ports import free_port

from .processes import count_steps, die_at, run
from .store_kit import assert_is, commit, make_flight, make_settings, make_spec, pick, pixels_of, render

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


# -- killed anywhere


def _render_and_die(url: str, settings: dict[str, str], order: list[int], step: int) -> None:
    os.environ.update(settings)
    die_at(step)
    render(url, pick(FLIGHT, order), SETTINGS, update=True)  # type: ignore[arg-type]


def _steps(bucket: str, order: list[int] | None = None) -> list[str]:
    """Of a first render, or of the change of its flight to `order`."""
    path = f"{bucket}/count.zarr"
    steps = count_steps(lambda: render(path, FLIGHT, SETTINGS))  # type: ignore[arg-type]
    return steps if order is None else count_steps(lambda: render(path, pick(FLIGHT, order), SETTINGS, update=True))  # type: ignore[arg-type]


def _kill_a_first_render(bucket: str, steps: list[str], step: int) -> None:
    url = f"{bucket}/killed-{step}.zarr"
    assert run(_render_and_die, url, environment(), [0, 1, 2, 3], step) == -9
    recorded = steps[: step + 1].count("recorded") * 2
    assert len(FrameStore.open(url).finished()) == recorded
    assert len(render(url, FLIGHT, SETTINGS)) == 4 - recorded  # type: ignore[arg-type]
    assert_is(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
    assert verify_store(url).ok


def test_a_killed_writer_loses_no_frame_that_was_recorded(bucket: str) -> None:
    """Objects without a record; a commit that was recorded, and half of the next one."""
    steps = _steps(bucket)
    for step in (steps.index("renamed") + 1, steps.index("recorded") + 3):
        _kill_a_first_render(bucket, steps, step)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_writer_killed_at_every_step(bucket: str) -> None:
    steps = _steps(bucket)
    for step in range(len(steps)):
        _kill_a_first_render(bucket, steps, step)


ORDER = [3, -1, 0, 1]  # two moves in a chain, one frame is new, one goes


def _kill_a_change(bucket: str, step: int) -> None:
    url, flight = f"{bucket}/killed-{step}.zarr", pick(FLIGHT, ORDER)
    render(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
    assert run(_render_and_die, url, environment(), ORDER, step) == -9
    store = FrameStore.open(url)
    for frame, record in store.finished().items():
        for output, expected in pixels_of(make_spec(), record.fingerprint).items():
            np.testing.assert_array_equal(store.read(output, frame), expected)
    assert render(url, flight, SETTINGS, update=True) in ([1], [])  # type: ignore[arg-type]
    assert_is(url, flight, SETTINGS)  # type: ignore[arg-type]
    assert verify_store(url).ok
    assert not list((place(url) / "done/.landmark/rebuilt").iterdir())


def test_a_change_of_flight_is_finished_by_the_next_job(bucket: str) -> None:
    steps = _steps(bucket, ORDER)
    assert {"journal", "out", "phase", "in", "installed", "described"} <= set(steps)
    for step in (steps.index("out"), steps.index("installed")):
        _kill_a_change(bucket, step)


@pytest.mark.chaos
@pytest.mark.timeout(2400)
def test_a_change_of_flight_killed_at_every_step(bucket: str) -> None:
    for step in range(len(_steps(bucket, ORDER))):
        _kill_a_change(bucket, step)


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


# -- the line and the server


def test_a_lost_answer_is_no_lost_write_and_no_double_one(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every eighth PUT is done, and its connection broken off before the answer."""
    puts, lost = [0], [0]

    def fault(method: str, path: str, headers: dict[str, str]) -> str | None:
        if (method == "PUT" and "if-match" in headers) or "if-none-match" in headers:
            puts[0] += 1
            if puts[0] % 8 == 1:
                lost[0] += 1
                return "lose"
        return None

    monkeypatch.setattr("landmark_batch.object_path._DELAY", 0.001)
    with object_server.relay(monkeypatch, fault) as bucket:
        url = f"{bucket}/city.zarr"
        assert render(url, FLIGHT, SETTINGS) == [0, 1, 2, 3]  # type: ignore[arg-type]
        assert lost[0] > 4
        logs = [line for log in layout_of(url).ledger.glob("*.log") for line in log.read_text().splitlines()]
        assert len(logs) == 2  # of two commits
        assert_is(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
        assert verify_store(url).ok


def test_a_server_that_ignores_conditions_is_refused(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_server.relay(monkeypatch, lambda method, path, headers: "plain") as bucket:
        with pytest.raises(StoreError, match="ignores conditions of writes"):
            FrameStore.create(f"{bucket}/city.zarr", make_spec(4), FLIGHT, SETTINGS)
        assert place(f"{bucket}/city.zarr").tree() == []


def test_refusals_name_the_url_and_what_to_do(object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark_batch.object_client.RETRY_SECONDS", 0.5)
    monkeypatch.setattr("landmark_batch.object_path._DELAY", 0.001)
    nowhere = f"s3://none-{secrets.token_hex(4)}/city.zarr"
    with pytest.raises(StoreError, match=rf"{nowhere}.*there is no bucket"):
        FrameStore.open(nowhere)
    with pytest.raises(StoreError, match="no such store"):
        FrameStore.open(f"{bucket}/city.zarr")
    place(f"{bucket}/other/file").write_text("mine")
    with pytest.raises(StoreError, match="foreign objects"):
        FrameStore.create(f"{bucket}/other", make_spec(4), FLIGHT, SETTINGS)
    with pytest.raises(StoreError, match="is an object"):
        FrameStore.create(f"{bucket}/other/file", make_spec(4), FLIGHT, SETTINGS)
    denied = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    with object_server.relay(monkeypatch, lambda method, path, headers: (403, b"" if method == "HEAD" else denied)) as closed:
        with pytest.raises(StoreError, match=f"{closed}/city.zarr.*access is refused") as refused:
            FrameStore.open(f"{closed}/city.zarr")
        assert "AWS_ACCESS_KEY_ID" in str(refused.value) and refused.value.exit_code == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreError, match="check the connection"):
        FrameStore.open("s3://unreachable/city.zarr")


def test_a_server_that_is_busy_for_a_moment_costs_nothing(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = threading.Lock()
    asked: dict[str, int] = {}

    def fault(method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes] | None:
        with turn:
            asked[f"{method} {path}"] = asked.get(f"{method} {path}", 0) + 1
            busy = method == "PUT" and "/rgb/c." in path and asked[f"{method} {path}"] == 1
        return (503, b"<Error><Code>SlowDown</Code></Error>") if busy else None

    with object_server.relay(monkeypatch, fault) as bucket:
        render(f"{bucket}/city.zarr", FLIGHT, SETTINGS)  # type: ignore[arg-type]
        assert_is(f"{bucket}/city.zarr", FLIGHT, SETTINGS)  # type: ignore[arg-type]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(StoreError, match=r"need the package obstore"):
        FrameStore.open("s3://bucket/city.zarr")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/a//c.zarr/", ObjectPath("s3://b", "a/c.zarr")),
        ("S3://Bucket/c.zarr", ObjectPath("s3://Bucket", "c.zarr")),
        ("gs://b/c.zarr", ObjectPath("gs://b", "c.zarr")),
        ("file:///tmp/a%20b.zarr", Path("/tmp/a b.zarr")),
        ("out/c.zarr", Path("out/c.zarr")),
    ],
)
def test_places(text: str, expected: Any) -> None:
    assert as_store_path(text) == expected


@pytest.mark.parametrize("text", ["ftp://b/c.zarr", "https://host/c.zarr", "s3://b", "s3:///c.zarr", "s3://b/../c.zarr"])
def test_no_places(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written there|no place in a bucket"):
        as_store_path(text)


def test_it_is_never_taken_for_a_file() -> None:
    with pytest.raises(TypeError), suppress(OSError):
        os.stat(ObjectPath("s3://b", "c.zarr"))  # type: ignore[arg-type]  # noqa: PTH116
