"""compare and adopt: what a changed job renders, what it moves, what it refuses to lose."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landmark_batch.errors import FramesDifferError, StaleWriterError, StoreBusyError, StoreError
from landmark_batch.frames.adopt import adopt
from landmark_batch.frames.fingerprint import FrameSettings, flight_fingerprints
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.resume import ResumePlan, StoreState, compare, stands, state_of
from landmark_batch.frames.spec import StoreInfo
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store

from .store_kit import SCENE, assert_is, commit, make_flight, make_settings, make_spec, pick, render

FLIGHT, SETTINGS = make_flight(8), make_settings()


@pytest.fixture
def path(fast_path: Path) -> Path:
    return fast_path / "flight.zarr"


def plan_of(path: Path, flight: object, settings: FrameSettings = SETTINGS) -> ResumePlan:
    return compare(FrameStore.open(path), flight, settings)  # type: ignore[arg-type]


def test_missing_frames_only(path: Path) -> None:
    assert render(path, FLIGHT, SETTINGS, only=[0, 1, 5]) == [0, 1, 5]
    plan = plan_of(path, FLIGHT)
    assert (plan.done, plan.missing, plan.differing, plan.moved) == ((0, 1, 5), (2, 3, 4, 6, 7), (), ())
    assert plan.to_render == plan.missing and plan.describe() == "" and plan.finished == 3
    assert render(path, FLIGHT, SETTINGS) == [2, 3, 4, 6, 7]
    assert render(path, FLIGHT, SETTINGS) == []
    assert_is(path, FLIGHT, SETTINGS)


@pytest.mark.parametrize("unit", [1, 4])
def test_settings_differ(path: Path, unit: int) -> None:
    spec = make_spec(8, frames_per_shard=unit)
    render(path, FLIGHT, SETTINGS, spec=spec)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and "owners" not in file.parts}
    with pytest.raises(FramesDifferError) as error:
        render(path, FLIGHT, make_settings(128), spec=spec)
    assert error.value.message == f"{path}: 8 of 8 finished frames differ: sampling.samples 256 → 128"
    assert error.value.remedy == "--update replaces them, -o NEW.zarr keeps them"
    after = {file: file.read_bytes() for file in before}
    assert {file.name for file in before if before[file] != after[file]} <= {"fence.json", "done"}
    assert render(path, FLIGHT, make_settings(128), spec=spec, update=True) == list(range(8))
    assert_is(path, FLIGHT, make_settings(128))
    assert verify_store(path).ok


def test_reasons(path: Path) -> None:
    render(path, FLIGHT, SETTINGS)

    def reasons(flight: object = FLIGHT, settings: FrameSettings = SETTINGS) -> str:
        return plan_of(path, flight, settings).describe()

    assert reasons(settings=make_settings(scene="cd" * 16)) == "8 of 8 finished frames differ: scene content changed"
    assert reasons(settings=make_settings(background="black")).endswith("differ: background not set → black")
    assert reasons(settings=FrameSettings({"scene": SCENE})).endswith("sampling.mode hull → not set, sampling.samples 256 → not set")
    edited = pick(FLIGHT, [0, 1, 2, -1, -2, -3, 6, -4])
    assert reasons(edited) == "4 of 8 finished frames differ: pose of frames 3-5,7"
    lens = dataclasses.replace(FLIGHT, intrinsics=FLIGHT.intrinsics * np.where(np.arange(8) == 2, 1.5, 1.0)[:, None])
    assert reasons(lens) == "1 of 8 finished frames differ: lens of frame 2"
    assert reasons(edited, make_settings(128)) == "8 of 8 finished frames differ: sampling.samples 256 → 128, pose of frames 3-5,7"
    assert reasons(pick(FLIGHT, [0, 1, 2])) == "5 of 8 finished frames differ: frames 3-7 no longer in the flight"
    assert reasons(pick(FLIGHT, [0, 1, 3, 4, 5, 6, 7])) == "1 of 8 finished frames differ: frame 2 no longer in the flight"


def test_a_replaced_block_makes_frames_that_see_it_stale(path: Path) -> None:
    seen = [[0], [0], [0, 1], [1], [1, 2], [2], [2], [2]]
    before = SETTINGS.seeing(FLIGHT, seen, ["a", "b", "c"])
    render(path, FLIGHT, before)
    assert plan_of(path, FLIGHT, before).done == tuple(range(8))
    plan = plan_of(path, FLIGHT, SETTINGS.seeing(FLIGHT, seen, ["a", "B", "c"]))
    assert plan.differing == (2, 3, 4) and plan.done == (0, 1, 5, 6, 7)
    assert plan.describe() == "3 of 8 finished frames differ: blocks of the scene in sight of frames 2-4"


def test_only_pixels_count(path: Path) -> None:
    """File, names, times, fps and the store's labels may change: nothing is rendered, and the store says the new ones."""
    render(path, FLIGHT, SETTINGS)
    renamed = dataclasses.replace(FLIGHT, source="elsewhere.json", fps=30.0, time=FLIGHT.time * 2, names=tuple(f"x{i}" for i in range(8)))
    assert render(path, renamed, SETTINGS) == []
    held = FrameStore.open(path).flight()
    assert (held.names, held.fps, held.source) == (renamed.names, 30.0, "elsewhere.json")
    np.testing.assert_array_equal(held.time, renamed.time)
    store = FrameStore.open(path)
    with StoreOwner.acquire(path) as owner:
        assert adopt(store, owner, compare(store, renamed, SETTINGS), renamed, SETTINGS, info=StoreInfo("new", 30.0, 2.0)) == ()
    assert FrameStore.open(path).name == "new"
    assert_is(path, renamed, SETTINGS)


@pytest.mark.parametrize(
    ("order", "rendered"),
    [
        ([0, 1, 2, -1, 3, 4, 5, 6, 7], [3]),  # inserted
        ([-1, 0, 1, 2, 3, 4, 5, 6, 7], [0]),
        ([0, 1, 2, 3, 4, 5, 6, 7, -1, -2], [8, 9]),  # longer
        ([7, 6, 5, 4, 3, 2, 1, 0], []),  # backwards: cycles
        ([1, 2, 3, 4, 5, 6, 7, 0], []),
        ([0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, 6, 7], [1, 3, 5, 7, 9]),
    ],
)
def test_frames_move_with_the_flight(path: Path, order: list[int], rendered: list[int]) -> None:
    render(path, FLIGHT, SETTINGS)
    flight = pick(FLIGHT, order)
    plan = plan_of(path, flight)
    assert plan.differing == () and plan.missing == tuple(rendered)
    assert render(path, flight, SETTINGS) == rendered
    assert_is(path, flight, SETTINGS)
    report = verify_store(path)
    assert report.ok and not report.notes
    assert render(path, FLIGHT, SETTINGS, update=True) == []
    assert_is(path, FLIGHT, SETTINGS)


def test_part_of_a_flight_moves(path: Path) -> None:
    render(path, FLIGHT, SETTINGS, only=[0, 3, 4])
    flight = pick(FLIGHT, [0, 1, 2, -1, 3, 4, 5, 6, 7])
    plan = plan_of(path, flight)
    assert (plan.done, plan.moved, plan.missing) == ((0,), ((3, 4), (4, 5)), (1, 2, 3, 6, 7, 8))
    assert render(path, flight, SETTINGS, only=[3]) == [3]
    assert sorted(FrameStore.open(path).finished()) == [0, 3, 4, 5]


@pytest.mark.parametrize(("order", "lost"), [([0, 1, 2, 3, 4], [5, 6, 7]), ([0, 2, 3, 4, 5, 6, 7], [1]), ([0, -1, 2, 3, 4, 5, 6, 7], [1])])
def test_finished_frames_are_not_lost_without_a_word(path: Path, order: list[int], lost: list[int]) -> None:
    render(path, FLIGHT, SETTINGS)
    flight = pick(FLIGHT, order)
    assert list(plan_of(path, flight).differing) == lost
    with pytest.raises(FramesDifferError, match=f"{len(lost)} of 8 finished frames differ"):
        render(path, flight, SETTINGS)
    assert_is(path, FLIGHT, SETTINGS)
    assert render(path, flight, SETTINGS, update=True) == [i for i in range(len(order)) if order[i] < 0]
    assert_is(path, flight, SETTINGS)
    assert verify_store(path).ok and not verify_store(path).notes


def test_hovering_camera(path: Path) -> None:
    """Frames of one pose have one fingerprint: each place keeps a file of its own."""
    flight = pick(FLIGHT, [0, 0, 0, 1, 1])
    render(path, flight, SETTINGS)
    longer = pick(FLIGHT, [0, 0, -1, 0, 1, 1])
    plan = plan_of(path, longer)
    assert plan.differing == () and plan.missing == (2,)
    assert render(path, longer, SETTINGS) == [2]
    assert_is(path, longer, SETTINGS)


def test_overwrite_renders_all(path: Path) -> None:
    render(path, FLIGHT, SETTINGS)
    assert render(path, FLIGHT, SETTINGS, overwrite=True) == list(range(8))
    shorter = pick(FLIGHT, [3, 4, 5])
    assert render(path, shorter, make_settings(128), overwrite=True) == [0, 1, 2]
    assert_is(path, shorter, make_settings(128))
    assert verify_store(path).ok and not verify_store(path).notes


def test_lost_files_are_rendered_again(path: Path) -> None:
    render(path, FLIGHT, SETTINGS)
    store = FrameStore.open(path)
    store.chunk_file("rgb", 2).unlink()
    store.chunk_file("depth", 5).write_bytes(b"short")
    assert plan_of(path, FLIGHT).damaged == (2, 5)
    assert render(path, FLIGHT, SETTINGS) == [2, 5]
    assert_is(path, FLIGHT, SETTINGS)


def test_lost_file_of_a_frame_that_would_move(path: Path) -> None:
    render(path, FLIGHT, SETTINGS)
    FrameStore.open(path).chunk_file("rgb", 5).unlink()
    flight = pick(FLIGHT, [-1, 0, 1, 2, 3, 4, 5, 6, 7])
    assert render(path, flight, SETTINGS) == [0, 6]
    assert_is(path, flight, SETTINGS)


def test_shards_are_rendered_whole(path: Path) -> None:
    spec = make_spec(8, frames_per_shard=3)
    assert render(path, FLIGHT, SETTINGS, spec=spec, only=[3, 4, 5]) == [3, 4, 5]
    assert sorted(file.name for file in (path / "rgb").glob("c.*")) == ["c.1.0.0.0"]
    assert render(path, FLIGHT, SETTINGS, spec=spec) == [0, 1, 2, 6, 7]
    assert_is(path, FLIGHT, SETTINGS)
    longer = pick(FLIGHT, [0, 1, 2, 3, 4, 5, 6, 7, -1])
    assert render(path, longer, SETTINGS, spec=make_spec(9, frames_per_shard=3)) == [6, 7, 8]
    assert_is(path, longer, SETTINGS)
    inserted = pick(FLIGHT, [0, 1, 2, -1, 3, 4, 5, 6, 7, -1])
    assert plan_of(path, inserted).moved == ()
    with pytest.raises(FramesDifferError, match="6 of 9 finished frames differ: pose of frames 3-8"):
        render(path, inserted, SETTINGS)
    assert verify_store(path).ok


def test_another_size_is_refused(path: Path) -> None:
    render(path, FLIGHT, SETTINGS)
    with pytest.raises(StoreError, match=r"holds frames of 16×10, path\.json asks for 20×10"):
        plan_of(path, make_flight(8, width=20))


def test_a_shared_store_keeps_its_flight_and_settings(path: Path) -> None:
    render(path, FLIGHT, SETTINGS, only=[0])
    store, longer = FrameStore.open(path), pick(FLIGHT, [*range(8), -1])
    with StoreOwner.acquire(path), StoreOwner.acquire(path, join=True) as second:
        assert adopt(store, second, compare(store, FLIGHT, SETTINGS), FLIGHT, SETTINGS) == (1, 2, 3, 4, 5, 6, 7)
        with pytest.raises(StoreBusyError, match="is shared with another job"):
            adopt(store, second, compare(store, longer, SETTINGS), longer, SETTINGS)
        with pytest.raises(StoreBusyError, match="is shared with another job"):
            adopt(store, second, compare(store, FLIGHT, make_settings(1)), FLIGHT, make_settings(1), update=True)
    assert sorted(FrameStore.open(path).finished()) == [0]


def test_a_writer_of_the_job_before_is_refused(path: Path) -> None:
    """--update while a worker of the old job still lives: its frames of old settings never count."""
    render(path, FLIGHT, SETTINGS, only=[0, 1])
    store = FrameStore.open(path)
    prints = flight_fingerprints(SETTINGS, FLIGHT)
    with StoreOwner.acquire(path) as old:
        zombie = store.writer("zombie", generation=old.generation)
    new = make_settings(128)
    render(path, FLIGHT, new, update=True, only=[0])
    pixels: dict[str, Any] = {"rgb": np.zeros((1, 10, 16, 3), np.uint8), "depth": np.zeros((1, 10, 16), np.float32)}
    with pytest.raises(StaleWriterError, match="has ended"):
        zombie.commit([1], pixels, [prints[1]], seconds=1.0)
    assert list(FrameStore.open(path).finished()) == [0]
    with pytest.raises(StaleWriterError):
        commit(store, [1], prints, generation=old.generation)
    assert not list(path.rglob("*.partial"))


def test_plan_is_made_of_a_store_that_others_changed(path: Path) -> None:
    """A FrameStore that was open while another job gave the store a longer flight sees it."""
    render(path, FLIGHT, SETTINGS)
    store = FrameStore.open(path)
    longer = pick(FLIGHT, [*range(8), -1])
    render(path, longer, SETTINGS)
    assert compare(store, longer, SETTINGS).done == tuple(range(9))
    assert store.spec.frames == 9


# -- a comparison that still holds


def state_then(path: Path) -> StoreState:
    state = state_of(FrameStore.open(path).layout)
    assert state is not None
    return state


def test_a_store_that_nobody_changed_is_as_it_was(path: Path) -> None:
    render(path, FLIGHT, SETTINGS, only=range(4))
    before = state_then(path)
    with StoreOwner.acquire(path) as owner:
        assert stands(before, owner.layout)
    with StoreOwner.acquire(path) as owner:
        assert not stands(before, owner.layout), "another job had it meanwhile"
    assert not stands(None, owner.layout)


@pytest.mark.parametrize("change", ["commit", "discard", "damage", "settings", "flight", "fence", "definition"])
def test_what_changes_a_store_shows_in_its_state(path: Path, change: str) -> None:
    render(path, FLIGHT, SETTINGS, only=range(4))
    store = FrameStore.open(path)
    before, layout = state_then(path), store.layout
    if change == "commit":
        commit(store, [4], flight_fingerprints(SETTINGS, FLIGHT), worker="late")  # of a job that ends just now
    elif change == "discard":
        store.discard([0], "test")
    elif change == "damage":
        store.chunk_file("depth", 1).write_bytes(store.chunk_file("depth", 0).read_bytes())
        verify_store(path)
    elif change == "settings":
        dataclasses.replace(store.definition, settings="other").save(layout.definition)
    elif change == "flight":
        layout.journal.write_bytes(b"")  # a change of flight was cut short: taking the store will finish it
    elif change == "fence":
        layout.fence.write_bytes(b"damaged")
    else:
        layout.definition.unlink()
    assert state_of(layout) != before
    if change in ("commit", "discard", "damage", "settings"):
        with StoreOwner.acquire(path):
            assert not stands(before, layout)
