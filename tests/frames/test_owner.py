"""Who may write: one job at a time, dead ones taken over, several by consent."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from landmark_batch.errors import StoreBusyError, StoreError
from landmark_batch.frames import durable, owner
from landmark_batch.frames.fence import read_fence
from landmark_batch.frames.layout import StoreLayout
from landmark_batch.frames.locks import store_mutex
from landmark_batch.frames.owner import StoreOwner, store_owners
from landmark_batch.frames.process import ProcessIdentity, tag_process, this_process, writer_tag
from landmark_batch.frames.sealed import seal
from landmark_batch.frames.store import FrameStore

from .processes import start, wait_for
from .store_kit import make_flight, make_settings, make_spec, pick, render

FRAMES = 30
FLIGHT, SETTINGS = make_flight(FRAMES), make_settings()


@pytest.fixture
def path(fast_path: Path) -> Path:
    return FrameStore.create(fast_path / "a.zarr", make_spec(FRAMES), FLIGHT, SETTINGS).path


def hold(path: Path, ready: Path, join: bool = False) -> None:
    held = StoreOwner.acquire(path, join=join)
    held.claim([0, 1])
    ready.write_text(str(os.getpid()))
    time.sleep(60)


def _hold_in_a_forked_child_too(path: Path, ready: Path) -> None:
    held = StoreOwner.acquire(path)
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    ready.write_text(held.id)
    time.sleep(60)


def test_second_job_is_told_who_holds_the_store(path: Path) -> None:
    me = this_process()
    with StoreOwner.acquire(path) as first:
        with pytest.raises(StoreBusyError) as error:
            StoreOwner.acquire(path)
        assert f"host {me.host}, process {me.pid}, started 20" in error.value.message
        assert "--join" in str(error.value.remedy)
        first.require_held()
        assert first.others() == []
        assert [entry.id for entry in store_owners(path)] == [first.id]
    with pytest.raises(StoreBusyError, match="given the store back"):
        first.require_held()
    first.close()
    assert store_owners(path) == []
    with StoreOwner.acquire(path) as again:
        assert again.generation > first.generation and again.sole


def test_another_process_is_named_and_taken_over_when_it_dies(path: Path, fast_path: Path) -> None:
    process = start(hold, path, fast_path / "ready")
    wait_for(fast_path / "ready")
    with pytest.raises(StoreBusyError, match=f"process {process.pid}, started"):
        StoreOwner.acquire(path)
    with StoreOwner.acquire(path, join=True) as second:
        assert not second.sole and [entry.process.pid for entry in second.others() if entry.process] == [process.pid]
        assert second.claim([0, 1, 2]) == [2]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(StoreBusyError):
            StoreOwner.acquire(path)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert second.claim([0, 1, 2]) == [0, 1, 2], "claims of the dead are free"
    started = time.monotonic()
    with StoreOwner.acquire(path) as third:
        assert third.sole and time.monotonic() - started < 30
        assert third.claim([0, 1, 2]) == [0, 1, 2]


def test_a_forked_child_does_not_keep_the_store(path: Path, fast_path: Path) -> None:
    process = start(_hold_in_a_forked_child_too, path, fast_path / "ready")
    wait_for(fast_path / "ready")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with StoreOwner.acquire(path) as held:
        assert held.sole


def _foreign_entry(layout: StoreLayout, **changes: object) -> Path:
    values = {**this_process().as_dict(), "host": "elsewhere", "pid": 4242, "boot": "b" * 16, **changes}
    file = layout.owners / "4242-aa.json"
    file.write_bytes(seal({"id": "4242-aa", "started": 1.8e9, **values}))
    return file


def test_an_owner_on_another_host_lives_by_its_heartbeat(path: Path) -> None:
    file = _foreign_entry(StoreLayout(path))
    with pytest.raises(StoreBusyError, match="host elsewhere, process 4242, started 2027-01-1"):
        StoreOwner.acquire(path)
    assert file.exists() and len(list(StoreLayout(path).owners.iterdir())) == 1
    assert [entry.process.host for entry in store_owners(path) if entry.process] == ["elsewhere"]
    os.utime(file, (time.time() - 61, time.time() - 61))
    assert store_owners(path) == [] and file.exists(), "looking changes nothing"
    with StoreOwner.acquire(path) as held:
        assert held.sole and not file.exists()


@pytest.mark.parametrize("changes", [{"start": "1"}, {"pid": 999_999_999}])
def test_a_used_pid_is_not_the_owner(path: Path, changes: dict[str, object]) -> None:
    mine = this_process()
    _foreign_entry(StoreLayout(path), host=mine.host, boot=mine.boot, **{"pid": mine.pid, **changes})
    with StoreOwner.acquire(path) as held:
        assert held.sole


def test_an_unreadable_entry_is_dead_when_no_one_holds_its_lock(path: Path) -> None:
    layout = StoreLayout(path)
    (layout.owners / "7-ab.json").write_bytes(b"\0\0\0")
    with StoreOwner.acquire(path) as held:
        entry = layout.owners / f"{held.id}.json"
        entry.write_bytes(b"\0\0\0")
        with pytest.raises(StoreBusyError, match="cannot be read"):
            StoreOwner.acquire(path)


def test_heartbeat_and_loss(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT_SECONDS", 0.02)
    with StoreOwner.acquire(path) as held:
        file = StoreLayout(path).owners / f"{held.id}.json"
        os.utime(file, (1, 1))
        end = time.monotonic() + 10
        while file.stat().st_mtime < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        file.unlink()
        with pytest.raises(StoreBusyError, match="took the store over"):
            held.claim([0])
        held._beat.join(10)
        assert not held._beat.is_alive()


def test_acquire_says_why_it_cannot(fast_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="no such store"):
        StoreOwner.acquire(fast_path / "none.zarr")
    (fast_path / "foreign").mkdir()
    with pytest.raises(StoreError, match="foreign directory"):
        StoreOwner.acquire(fast_path / "foreign")
    assert list((fast_path / "foreign").iterdir()) == []

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(durable, "write_all", refuse)
    with pytest.raises(StoreError, match="not writable"):
        StoreOwner.acquire(path)
    monkeypatch.undo()
    with StoreOwner.acquire(path):
        pass


def test_joining_waits_while_the_flight_changes(path: Path) -> None:
    with StoreOwner.acquire(path) as first:
        with first.restructuring(), pytest.raises(StoreBusyError, match="changing its flight"):
            StoreOwner.acquire(path, join=True, wait=0.3)
        with StoreOwner.acquire(path, join=True, wait=0.3) as second:
            for one in (first, second):
                with pytest.raises(StoreBusyError, match="is shared with another job"), one.restructuring():
                    raise AssertionError("entered")


def test_no_one_joins_before_the_store_is_cleared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two that come at once removes temporary files only while the second cannot have any."""
    cleared: list[bool] = []

    def clear(layout: StoreLayout, *, sole: bool) -> int:
        with pytest.raises(StoreBusyError, match="held its lock"), store_mutex(layout, timeout=0):
            raise AssertionError("the mutex is free")
        cleared.append(sole)
        return 0

    monkeypatch.setattr(owner, "remove_leftovers", clear)
    with StoreOwner.acquire(path), StoreOwner.acquire(path, join=True):
        assert cleared == [True, False]


def test_no_one_joins_while_a_cut_short_change_is_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render(path, FLIGHT, SETTINGS, only=[0, 5])
    longer = pick(FLIGHT, [-1, *range(FRAMES)])
    monkeypatch.setattr(durable, "step", _die_after_journal)
    with pytest.raises(InterruptedError):
        render(path, longer, SETTINGS, only=[])
    monkeypatch.undo()
    assert StoreLayout(path).journal.exists()
    seen: list[str] = []

    def look(name: str) -> None:
        if name == "out":
            seen.append(name)
            with pytest.raises(StoreBusyError, match="changing its flight"):
                StoreOwner.acquire(path, join=True, wait=0)

    monkeypatch.setattr(durable, "step", look)
    with StoreOwner.acquire(path, join=True) as held:
        assert seen and held.sole and held.others() == []
    assert sorted(FrameStore.open(path).finished()) == [1, 6]


def _die_after_journal(name: str) -> None:
    if name == "journal":
        raise InterruptedError


def test_generations_and_fences(path: Path) -> None:
    with StoreOwner.acquire(path) as first:
        fence = read_fence(StoreLayout(path))
        assert fence.min_generation == fence.generation == first.generation
        with StoreOwner.acquire(path, join=True) as second:
            fence = read_fence(StoreLayout(path))
            assert (fence.min_generation, fence.generation) == (first.generation, second.generation)
            assert second.generation > first.generation


def test_leftovers(path: Path) -> None:
    """Temporary files: of the dead always, of others only when the store is held alone."""
    render(path, FLIGHT, SETTINGS, only=[0])
    dead = writer_tag("w.7").split("@")
    dead[2] = "999999999"
    places = [path / "rgb" / "c.1.0.0.0", StoreLayout(path).fence, StoreLayout(path).ledger / "x.log"]
    names = {
        who: [file.with_name(f"{file.name}.{tag}.3.partial") for file in places]
        for who, tag in (("dead", "@".join(dead)), ("live", writer_tag("w")))
    }
    with StoreOwner.acquire(path):
        for file in (*names["dead"], *names["live"]):
            file.write_bytes(b"x")
        with StoreOwner.acquire(path, join=True):
            assert not any(file.exists() for file in names["dead"]) and all(file.exists() for file in names["live"])
    with StoreOwner.acquire(path):
        assert not list(path.rglob("*.partial"))
    assert sorted(FrameStore.open(path).finished()) == [0]


def test_tags_name_their_process() -> None:
    found = tag_process(writer_tag("tcp://127.0.0.1:8786 #1"))
    mine = this_process()
    assert found is not None and (found.pid, found.start, found.boot, found.namespace) == (mine.pid, mine.start, mine.boot, mine.namespace)
    assert "/" not in writer_tag("a/b") and tag_process("something") is None
    assert not found.is_dead()
    assert ProcessIdentity("x", 999_999_999, "", mine.boot, mine.namespace).is_dead()
    assert not ProcessIdentity("x", 999_999_999, "", "other", mine.namespace).is_dead(), "not ours to say"
