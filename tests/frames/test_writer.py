"""Commits: whole or not at all, whoever is killed, whatever the disk says."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landmark_batch.errors import DiskFullError, StaleWriterError, StoreError
from landmark_batch.frames import durable
from landmark_batch.frames.fingerprint import flight_fingerprints
from landmark_batch.frames.layout import StoreLayout
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.records import pixel_digest
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store

from .processes import run, start, wait_for
from .store_kit import assert_is, commit, make_flight, make_settings, make_spec, pixels_of, render

FLIGHT, SETTINGS = make_flight(6), make_settings()
PRINTS = flight_fingerprints(SETTINGS, FLIGHT)


def create(path: Path, **more: Any) -> FrameStore:
    return FrameStore.create(path, make_spec(6, **more), FLIGHT, SETTINGS)


def stacked(store: FrameStore, frames: list[int]) -> dict[str, Any]:
    each = [pixels_of(store.spec, PRINTS[frame]) for frame in frames]
    return {name: np.stack([pixels[name] for pixels in each]) for name in store.spec.names}


def test_a_writer_that_is_closed_under_its_commit_says_so_and_records_nothing(fast_path: Path) -> None:
    """As when a run is closed, because its scheduler went away, while a chunk of it is being written."""
    store = create(fast_path / "a.zarr")
    writer = store.writer("w0")
    with writer.begin([0, 1], [PRINTS[0], PRINTS[1]]) as pending:
        pending.take(stacked(store, [0, 1]))
        pending.add(0)
        pending.add(1)
        end = time.monotonic() + 60
        while pending.waiting and time.monotonic() < end:
            time.sleep(0.01)
        writer.close()
        with pytest.raises(StaleWriterError, match=r"a\.zarr: writer w0 was closed while it wrote frames \[0, 1\]"):
            pending.finish(seconds=1.0)
    assert store.finished() == {}
    writer.close()
    commit(store, [0, 1], PRINTS)
    assert sorted(store.finished()) == [0, 1]
    assert verify_store(store.path).ok


def test_a_writer_that_is_closed_when_its_files_have_their_names_records_them(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(fast_path / "a.zarr")
    writer, sync = store.writer("w0"), durable.sync_directories

    def closing(places: Any) -> None:
        sync(places)
        writer.close()

    monkeypatch.setattr(durable, "sync_directories", closing)
    with writer.begin([0, 1], [PRINTS[0], PRINTS[1]]) as pending:
        pending.take(stacked(store, [0, 1]))
        pending.finish(seconds=1.0)
    assert sorted(store.finished()) == [0, 1]
    assert verify_store(store.path).ok


def test_receipt_and_record(fast_path: Path) -> None:
    store = create(fast_path / "a.zarr")
    frames = [0, 1, 4]
    pixels = stacked(store, frames)
    receipt = store.writer("w7", 2, 3).commit(frames, pixels, [PRINTS[i] for i in frames], seconds=3.0)
    assert receipt.frames == (0, 1, 4) and receipt.write_seconds > 0
    assert receipt.digests["rgb"] == tuple(pixel_digest(frame) for frame in pixels["rgb"])
    assert receipt.bytes == sum(store.chunk_file(name, i).stat().st_size for name in store.spec.names for i in frames)
    found = store.finished()
    assert list(found) == frames
    one = found[4]
    assert (one.fingerprint, one.worker, one.attempt, one.epoch, one.seconds, one.pid) == (PRINTS[4], "w7", 2, 3, 1.0, os.getpid())
    assert one.digests == {"rgb": receipt.digests["rgb"][2], "depth": receipt.digests["depth"][2]}
    assert one.sizes == {name: store.chunk_file(name, 4).stat().st_size for name in store.spec.names}
    assert one.settings == SETTINGS.digest and abs(one.at - time.time()) < 60
    assert not store.done().any(), "`done` follows when the owner says so"
    assert store.refresh_done() == 3
    assert store.done().tolist() == [True, True, False, False, True, False]


def test_digest_covers_shape_and_dtype() -> None:
    pixels = np.arange(24, dtype=np.uint8)
    digests = [pixel_digest(pixels.reshape(2, 12)), pixel_digest(pixels.reshape(12, 2)), pixel_digest(pixels.view(np.uint16).reshape(2, 6))]
    assert len(set(digests)) == 3
    assert pixel_digest(pixels.reshape(2, 12)[:, ::2]) == pixel_digest(pixels.reshape(2, 12)[:, ::2].copy())
    assert pixel_digest(np.zeros((0, 3), np.uint8))


@pytest.mark.parametrize("unit", [1, 2])
@pytest.mark.parametrize("compressor", ["auto", "none"])
def test_black_frames_are_frames(fast_path: Path, unit: int, compressor: str) -> None:
    store = create(fast_path / "a.zarr", frames_per_shard=unit, compressor=compressor)
    with StoreOwner.acquire(store.path) as owner:
        black = {name: np.zeros((2, *store.spec.frame_shape(name)), store.spec.output(name).dtype) for name in store.spec.names}
        store.writer("w", generation=owner.generation).commit([2, 3], black, [PRINTS[2], PRINTS[3]], seconds=1.0)
        store.refresh_done()
    assert store.chunk_file("rgb", 2).is_file() and store.chunk_file("depth", 3).is_file()
    assert not store.read("rgb", 3).any()
    assert verify_store(store.path).ok
    assert render(store.path, FLIGHT, SETTINGS, spec=store.spec) == [0, 1, 4, 5]


def test_what_does_not_fit_is_refused(fast_path: Path) -> None:
    store = create(fast_path / "a.zarr")
    writer = store.writer("w")
    good, prints = stacked(store, [0, 1]), PRINTS[:2]
    for frames in ([], [1, 0], [0, 0], [5, 6], [-1, 0]):
        with pytest.raises(StoreError, match="cannot commit frames"):
            writer.commit(frames, good, prints, seconds=1.0)
    with pytest.raises(StoreError, match="1 fingerprints"):
        writer.commit([0, 1], good, prints[:1], seconds=1.0)
    with pytest.raises(StoreError, match=r"outputs \['rgb'\]"):
        writer.commit([0, 1], {"rgb": good["rgb"]}, prints, seconds=1.0)
    with pytest.raises(StoreError, match=r"rgb of frames \[0, 1\] is float64"):
        writer.commit([0, 1], {**good, "rgb": good["rgb"] / 255.0}, prints, seconds=1.0)
    with pytest.raises(StoreError, match=r"depth of frames \[0, 1\] is float32 \(2, 10, 15\), the store holds float32 \(2, 10, 16\)"):
        writer.commit([0, 1], {**good, "depth": good["depth"][..., 1:]}, prints, seconds=1.0)
    assert store.finished() == {} and not list((store.path / "rgb").glob("c.*"))


def test_a_shard_is_committed_whole(fast_path: Path) -> None:
    store = create(fast_path / "a.zarr", frames_per_shard=4)
    assert store.spec.commit_unit == 4
    with pytest.raises(StoreError, match=r"part of a shard of 4: \[2, 3\] are missing from this commit\n.*multiples of 4 frames"):
        store.writer("w").commit([0, 1], stacked(store, [0, 1]), PRINTS[:2], seconds=1.0)
    receipt = store.writer("w").commit([4, 5], stacked(store, [4, 5]), PRINTS[4:], seconds=1.0)
    assert receipt.bytes == sum(store.chunk_file(name, 4).stat().st_size for name in store.spec.names)
    commit(store, [0, 1, 2, 3], PRINTS)
    store.refresh_done()
    assert_is(store.path, FLIGHT, SETTINGS)
    assert len(list((store.path / "rgb").glob("c.*"))) == 2


def test_epochs(fast_path: Path) -> None:
    store = create(fast_path / "a.zarr")
    old, new, other = store.writer("a", epoch=1), store.writer("b", epoch=2), store.writer("c", epoch=1, group="g2")
    store.fence(2)
    with pytest.raises(StaleWriterError, match="epoch 1 has ended, group '' is in epoch 2"):
        old.commit([0], stacked(store, [0]), PRINTS[:1], seconds=1.0)
    new.commit([0], stacked(store, [0]), PRINTS[:1], seconds=1.0)
    other.commit([1], stacked(store, [1]), PRINTS[1:2], seconds=1.0)
    store.fence(1)
    with pytest.raises(StaleWriterError):
        old.commit([2], stacked(store, [2]), PRINTS[2:3], seconds=1.0)
    store.fence(2, group="g2")
    with pytest.raises(StaleWriterError, match="group 'g2' is in epoch 2"):
        other.commit([2], stacked(store, [2]), PRINTS[2:3], seconds=1.0)
    assert list(store.finished()) == [0, 1] and not list(store.path.rglob("*.partial"))


@pytest.mark.parametrize("place", ["staged", "published"])
def test_fenced_in_the_middle_of_a_commit(fast_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    store = create(fast_path / "a.zarr")
    monkeypatch.setattr(durable, "step", lambda name: store.fence(1) if name == place else None)
    with pytest.raises(StaleWriterError):
        commit(store, [0], PRINTS)
    assert store.finished() == {} and not list(store.path.rglob("*.partial"))
    assert store.chunk_file("rgb", 0).exists() == (place == "published")


def test_temporary_files_taken_away_end_a_commit(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(fast_path / "a.zarr")

    def clean(name: str) -> None:
        if name == "staged":
            for file in store.path.rglob("*.partial"):
                file.unlink()

    monkeypatch.setattr(durable, "step", clean)
    with pytest.raises(StaleWriterError, match="removed under writer"):
        commit(store, [0, 1], PRINTS)
    assert store.finished() == {}


def test_a_damaged_fence_stops_writers_until_the_job_starts_again(fast_path: Path) -> None:
    store = create(fast_path / "a.zarr")
    writer = store.writer("w")
    store.layout.fence.write_bytes(b"")
    for call in (lambda: store.writer("w"), lambda: writer.commit([0], stacked(store, [0]), PRINTS[:1], seconds=1.0)):
        with pytest.raises(StoreError, match=r"fence\.json: damaged .*\n.*start the job again"):
            call()
    assert render(store.path, FLIGHT, SETTINGS) == list(range(6))


# -- disks


@pytest.fixture
def small_disk(fast_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = fast_path / "small"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_limit_is_not_called_a_full_disk(tmp_path: Path) -> None:
    """What errno says of the disk is not always that it is full."""
    quota = durable.store_error(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path)
    assert isinstance(quota, DiskFullError) and str(quota).startswith(f"{tmp_path}: the disk quota is used up (Disk quota exceeded)\n")
    limit = durable.store_error(OSError(errno.EFBIG, "File too large"), tmp_path)
    assert isinstance(limit, DiskFullError) and "raise the limit (`ulimit -f`)" in str(limit)


def test_a_full_disk_stops_with_the_fact_and_goes_on_later(small_disk: Path) -> None:
    path = small_disk / "a.zarr"
    spec = make_spec(6, height=300, width=200, outputs=(OutputSpec("rgb", "uint8", 3),), compressor="none")
    flight = make_flight(6, width=200, height=300)
    prints = flight_fingerprints(SETTINGS, flight)
    store = FrameStore.create(path, spec, flight, SETTINGS)
    (small_disk / "ballast").write_bytes(bytes(300_000))
    with pytest.raises(DiskFullError, match=r"the disk is full \(No space left on device, .* MB free\)\n.*finished frames stay"):
        for first in (0, 2, 4):
            commit(store, [first, first + 1], prints)
    finished = sorted(store.finished())
    assert finished == [0, 1] and not list(path.rglob("*.partial"))
    assert verify_store(path).ok
    with pytest.raises(DiskFullError):
        FrameStore.create(small_disk / "b.zarr", make_spec(20_000), make_flight(20_000), SETTINGS)
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["a.zarr", "ballast"]
    (small_disk / "ballast").unlink()
    with pytest.raises(DiskFullError):
        render(path, flight, SETTINGS, spec=spec, chunk=1)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert not set(render(path, flight, SETTINGS, spec=spec)) & set(finished)
    assert_is(path, flight, SETTINGS)


@pytest.mark.parametrize("call", ["fsync", "close", "write"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_errors_of_every_call_record_nothing(fast_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    store = create(fast_path / "a.zarr")
    plain = getattr(os, call)

    def fail(descriptor: int, *arguments: Any) -> Any:
        target = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if ".partial" in target and target.startswith("c.1."):
            if call == "close":
                plain(descriptor)
            raise OSError(number, os.strerror(number))
        return plain(descriptor, *arguments)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreError) as error:
        commit(store, [0, 1, 2], PRINTS)
    monkeypatch.undo()
    assert isinstance(error.value, DiskFullError) == (number != errno.EIO)
    assert store.finished() == {} and not list(store.path.rglob("*.partial")) and not list((store.path / "rgb").glob("c.*"))
    commit(store, [0, 1, 2], PRINTS)
    assert sorted(store.finished()) == [0, 1, 2]


def test_a_file_size_limit_is_a_full_disk(fast_path: Path) -> None:
    store = create(fast_path / "a.zarr", compressor="none")
    assert run(_commit_within_400_bytes, store.path, fast_path / "said") == 0
    assert (fast_path / "said").read_text().startswith("DiskFullError")
    assert store.finished() == {} and not list(store.path.rglob("*.partial"))


def _commit_within_400_bytes(path: Path, said: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
    try:
        commit(FrameStore.open(path), [0, 1], PRINTS)
    except StoreError as error:
        said.write_text(f"{type(error).__name__}: {error.message[:200]}")


def test_commits_of_many_threads(fast_path: Path) -> None:
    """One writer shared by threads, and a writer a thread of one worker: one log, every frame."""
    store = create(fast_path / "a.zarr")
    shared = store.writer("shared")

    def work(frame: int) -> None:
        writer = shared if frame % 2 else store.writer("own")
        writer.commit([frame], stacked(store, [frame]), [PRINTS[frame]], seconds=1.0)

    threads = [threading.Thread(target=work, args=(frame,)) for frame in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.refresh_done()
    assert_is(store.path, FLIGHT, SETTINGS)
    assert len(list(store.layout.ledger.iterdir())) == 2


def test_a_store_made_anew_at_the_same_place(fast_path: Path) -> None:
    """A process that wrote a store which was then removed starts a log of its own in the next one."""
    import shutil

    for _ in range(2):
        render(fast_path / "a.zarr", FLIGHT, SETTINGS)
        assert_is(fast_path / "a.zarr", FLIGHT, SETTINGS)
        shutil.rmtree(fast_path / "a.zarr")


# -- kills


def _write_for_ever(path: Path, ready: Path) -> None:
    with StoreOwner.acquire(path) as owner:
        store = FrameStore.open(path)
        missing = [frame for frame in range(store.spec.frames) if frame not in store.finished()]
        flight = store.flight()
        prints = flight_fingerprints(SETTINGS, flight)
        ready.touch()
        for frame in missing:
            commit(store, [frame], prints, worker=f"w{frame % 2}", generation=owner.generation)


def test_sigkill_at_random_instants(fast_path: Path) -> None:
    """Three writers killed somewhere in their work: what is recorded stands, and the finished store is the calm one byte for byte."""
    _kill_writers(fast_path, 3, frames=120, seed=int(time.time()))


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(4))
def test_sigkill_at_many_instants(fast_path: Path, seed: int) -> None:
    _kill_writers(fast_path, 20, frames=400, seed=seed)


def _kill_writers(folder: Path, kills: int, *, frames: int, seed: int) -> None:
    flight = make_flight(frames)
    rng = random.Random(seed)
    calm, path = folder / "calm.zarr", folder / "a.zarr"
    for place in (calm, path):
        FrameStore.create(place, make_spec(frames), flight, SETTINGS)
    recorded: dict[int, Any] = {}
    for number in range(kills):
        ready = folder / f"ready{number}"
        process = start(_write_for_ever, path, ready)
        wait_for(ready)
        time.sleep(rng.uniform(0.0, 0.15))
        process.kill()
        process.join()
        finished = FrameStore.open(path).finished()
        assert {frame: finished[frame] for frame in recorded} == recorded, f"nothing recorded is rendered again (seed {seed})"
        recorded = finished
        report = verify_store(path)
        assert not report.damaged and not report.other, (seed, report)
    rendered = render(path, flight, SETTINGS, chunk=1, workers=2)
    assert not set(rendered) & set(recorded), f"seed {seed}"
    render(calm, flight, SETTINGS, chunk=4)
    assert_is(path, flight, SETTINGS)
    assert not list(path.rglob("*.partial")) and list(StoreLayout(path).owners.iterdir()) == []
    for name in ("rgb", "depth", "done", "pose"):
        files = sorted(file.name for file in (calm / name).iterdir() if file.is_file())
        assert files == sorted(file.name for file in (path / name).iterdir() if file.is_file())
        for file in files:
            assert (calm / name / file).read_bytes() == (path / name / file).read_bytes(), f"{name}/{file}, seed {seed}"
