"""A change of flight is killed after every single step: no finished frame is lost, none is taken for another."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from landmark_batch.errors import FramesDifferError
from landmark_batch.frames.fingerprint import FrameSettings, flight_fingerprints
from landmark_batch.frames.layout import StoreLayout
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.relocate import restructure
from landmark_batch.frames.resume import compare
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store

from .processes import count_steps, die_at, run
from .store_kit import assert_is, make_flight, make_settings, pick, pixels_of, render

FLIGHT, SETTINGS = make_flight(4), make_settings()
ORDERS = {"insert": [0, -1, 1, 2, 3], "cycle": [1, 2, 3, 0], "shorter": [2, 0]}


def _render_and_die(path: Path, order: list[int], update: bool, step: int) -> None:
    die_at(step)
    render(path, pick(FLIGHT, order), SETTINGS, update=update, only=())


def _take_and_die(path: Path, step: int) -> None:
    die_at(step)
    with StoreOwner.acquire(path):
        pass


def _check_what_readers_see(path: Path) -> None:
    """Whatever is recorded at this moment is what its fingerprint says."""
    store = FrameStore.open(path)
    for frame, found in store.finished().items():
        for name, expected in pixels_of(store.spec, found.fingerprint).items():
            if store.chunk_file(name, frame).exists():
                assert (store.read(name, frame) == expected).all(), f"frame {frame} is not what its record says"


@pytest.mark.parametrize("kind", ["insert", "cycle"])
def test_killed_at_every_kind_of_step(fast_path: Path, kind: str) -> None:
    """The first step of each kind, and the last of those that move files; `test_killed_after_every_step` takes all of them."""
    _kill_and_resume(fast_path, kind, every=False)


def _telling(names: list[str], kind: str) -> list[int]:
    last = {names.index(name, i) for i, name in enumerate(names) if name in ("out", "in") and name not in names[i + 1 :]}
    first = {names.index(name) for name in names if kind == "insert" or name in ("out", "phase", "in")}
    return sorted(first | last)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ORDERS)
def test_killed_after_every_step(fast_path: Path, kind: str) -> None:
    _kill_and_resume(fast_path, kind, every=True)


def _kill_and_resume(fast_path: Path, kind: str, *, every: bool) -> None:
    order, update = ORDERS[kind], kind == "shorter"
    whole, path = fast_path / "whole.zarr", fast_path / "a.zarr"
    render(whole, FLIGHT, SETTINGS)
    flight = pick(FLIGHT, order)
    shutil.copytree(whole, path)
    steps = count_steps(lambda: render(path, flight, SETTINGS, update=update, only=()))
    assert {"journal", "discarded", "out", "phase", "in", "installed", "described", "trimmed", "recorded", "forgotten"} <= set(steps)
    for step in range(len(steps)) if every else _telling(steps, kind):
        shutil.rmtree(path)
        shutil.copytree(whole, path)
        assert run(_render_and_die, path, order, update, step) == -9
        _check_what_readers_see(path)
        if every or step % 2:
            run(_take_and_die, path, (step * 7 + 3) % len(steps))  # and killed once more while it recovers
            _check_what_readers_see(path)
        rendered = render(path, flight, SETTINGS, update=update)
        assert rendered == [i for i, source in enumerate(order) if source < 0], f"killed in step {step}, {steps[step]}"
        assert not StoreLayout(path).journal.exists() and not list(path.rglob("*.moving"))
        assert_is(path, flight, SETTINGS)
        report = verify_store(path)
        assert report.ok and not report.notes, (step, report)


def test_killed_and_the_user_goes_back(fast_path: Path) -> None:
    """The edit is undone after the kill: finishing the change and moving back costs no frame."""
    path = fast_path / "a.zarr"
    render(path, FLIGHT, SETTINGS)
    order = ORDERS["insert"]
    for step in (2, 5, 8, 12, 20, 30):
        run(_render_and_die, path, order, False, step)
        assert render(path, FLIGHT, SETTINGS) == []
        assert_is(path, FLIGHT, SETTINGS)


def test_a_damaged_journal_costs_frames_not_truth(fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    render(path, FLIGHT, SETTINGS)
    assert run(_render_and_die, path, ORDERS["cycle"], False, 9) == -9
    journal = StoreLayout(path).journal
    journal.write_bytes(journal.read_bytes()[:-40])
    flight = pick(FLIGHT, ORDERS["cycle"])
    assert not verify_store(path).ok
    rendered = render(path, flight, SETTINGS, update=True)
    assert set(rendered) <= {0, 1, 2, 3}
    assert_is(path, flight, SETTINGS)
    render(path, flight, SETTINGS)
    assert verify_store(path).ok
    assert not list(path.rglob("*.moving")) and not StoreLayout(path).rebuilt.exists()


def test_a_frame_that_vanished_is_not_recorded_at_its_new_place(fast_path: Path) -> None:
    path = fast_path / "a.zarr"
    render(path, FLIGHT, SETTINGS)
    store = FrameStore.open(path)
    flight = pick(FLIGHT, ORDERS["insert"])
    plan = compare(store, flight, SETTINGS)
    assert plan.moved == ((1, 2), (2, 3), (3, 4))
    store.chunk_file("rgb", 2).unlink()
    with StoreOwner.acquire(path) as owner, owner.restructuring():
        restructure(store.layout, store.definition, flight, SETTINGS.digest, moves=plan.moved)
    assert sorted(FrameStore.open(path).finished()) == [0, 2, 4]
    assert render(path, flight, SETTINGS) == [1, 3]


def test_settings_change_killed(fast_path: Path) -> None:
    """--update is killed after every step: a frame is either still the old one, on record as such, or missing."""
    whole, path = fast_path / "whole.zarr", fast_path / "a.zarr"
    render(whole, FLIGHT, SETTINGS)
    shutil.copytree(whole, path)
    new = make_settings(128)
    steps = count_steps(lambda: render(path, FLIGHT, new, update=True, only=()))
    for step in range(len(steps)):
        shutil.rmtree(path)
        shutil.copytree(whole, path)
        assert run(_update_and_die, path, new, step) == -9
        _check_what_readers_see(path)
        assert not (FrameStore.open(path).done() & ~_recorded(path)).any()
        if FrameStore.open(path).finished():
            with pytest.raises(FramesDifferError):
                render(path, FLIGHT, new)
        assert render(path, FLIGHT, new, update=True) == [0, 1, 2, 3]
        assert_is(path, FLIGHT, new)


def _update_and_die(path: Path, settings: FrameSettings, step: int) -> None:
    die_at(step)
    render(path, FLIGHT, settings, update=True, only=())


def _recorded(path: Path) -> NDArray[np.bool_]:
    finished = FrameStore.open(path).finished()
    assert {found.fingerprint for found in finished.values()} <= set(flight_fingerprints(SETTINGS, FLIGHT))
    return np.array([frame in finished for frame in range(4)])
