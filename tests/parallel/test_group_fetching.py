"""Groups that fetch blocks: the bits of the same group with the whole scene in memory, whatever is held and foreseen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landmark_batch.fetching.block_sets import block_sets
from landmark_batch.fetching.crowded import crowded_loads, frame_regions
from landmark_batch.fetching.visibility import FrustumBlocks
from landmark_batch.model import tiles
from landmark_batch.parallel.regions import region_rule
from landmark_batch.parallel.shape import GroupShape
from landmark_batch.scene.store import BlockStore
from tests.fetching.flights import make_settings, open_fetching, route_of, write_store
from tests.parallel.conftest import group_of
from tests.parallel.fetching_tasks import TILE, Flown, Frame, fly, fly_alone, fly_short
from tests.parallel.ranks import Ranks
from tests.parallel.tasks import load_kernels

POSES = (1, 2, 3)  # steep, flat, inside
BLOCKS = 6
RENDERED = ("rays", "samples", "survived", "coloured", "tensor_bytes")
SHAPES = {"DP 2": GroupShape(1, 2), "TP 2": GroupShape(2, 1), "TP 2 x DP 2": GroupShape(2, 2)}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A scene of six blocks, one whose whole planes were cut into six."""
    return {kind: write_store(tmp_path_factory.mktemp(kind), kind)[1] for kind in ("blocks", "cut")}


@pytest.fixture(scope="module")
def compiled(libraries: Path) -> Iterator[Ranks]:
    """Four processes with the compiled CPU kernels; runtime torch goes around them."""
    processes = Ranks(4)
    for answer in processes.all(range(4), load_kernels, str(libraries)):
        answer.get()
    yield processes
    processes.close()


def fly_in(ranks: Ranks, shape: GroupShape, cases: list[Flown]) -> list[list[Frame]]:
    """In one group, one case after another: a busy machine may take a while for all of them."""
    found: list[list[Frame]] = []
    with group_of(ranks, shape) as members:
        for case in cases:
            answers = members.together(fly, [(rank, [case]) for rank in range(shape.size)])
            for answer in sorted(answers, key=lambda answer: answer.error == "GroupError"):  # which only says that another failed
                answer.get()
            found += answers[0].get()
    return found


def assert_same(found: list[Frame], wanted: list[Frame], note: object) -> None:
    """Every bit, and how much was rendered."""
    assert len(found) == len(wanted) == len(POSES)
    for (got, counters), (want, counted) in zip(found, wanted, strict=True):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name}, {note}")
        for name in RENDERED:
            assert counters[name] == counted.get(name, 0), (name, note)


@pytest.mark.parametrize("name", SHAPES)
def test_any_number_of_slots_gives_the_bits_of_the_whole_scene(compiled: Ranks, stores: dict[str, Path], name: str) -> None:
    """Data ranks alone: the bits of one rank, too. What was fetched is counted over all ranks."""
    shape = SHAPES[name]
    runtimes = ("torch", "fused") if shape.size == 2 else ("torch",)
    held = (1, 2, BLOCKS) if shape.size == 2 else (2, BLOCKS)
    whole = [Flown(store, 0, POSES, settings={"runtime": runtime}) for store in stores.values() for runtime in runtimes]
    cases = [replace(case, slots=slots) for case in whole for slots in (0, *held)]
    results = dict(zip([(case.store, case.settings["runtime"], case.slots) for case in cases], fly_in(compiled, shape, cases), strict=True))
    for case in whole:
        key = case.store, case.settings["runtime"]
        resident = results[(*key, 0)]
        assert sum(counters["coloured"] for _, counters in resident) > 100
        assert not any("fetch_loads" in counters for _, counters in resident)
        if shape.tensor == 1:
            assert_same(resident, compiled.call(0, fly_alone, case), case)
        for slots in held:
            frames = results[(*key, slots)]
            assert_same(frames, resident, (*key, slots))
            fetched = {field: sum(counters.get(field, 0) for _, counters in frames) for field in ("fetch_loads", "fetch_bytes_read")}
            assert fetched["fetch_bytes_read"] > 0
            if slots == BLOCKS:
                assert fetched["fetch_loads"] == BLOCKS * shape.size  # each rank its own channels of each block, once
            else:
                assert fetched["fetch_loads"] > BLOCKS * shape.size


def loads(frames: list[Frame]) -> list[int]:
    return [counters.get("fetch_loads", 0) for _, counters in frames]


def loads_of_one_rank(case: Flown, folder: Path) -> list[int]:
    """Blocks that a renderer of one rank loads, frame by frame."""
    store, opened = BlockStore.open(case.store), list[Any]()
    settings = make_settings(store, **case.settings)
    renderer = open_fetching(opened, store, settings, case.slots, route_of(store, settings, folder, list(case.poses), case.scale))
    try:
        return [renderer.render(*case.view(index), frame=index).counters["fetch_loads"] for index in case.poses]
    finally:
        for thing in reversed(opened):
            thing.close()


def planned_loads(case: Flown, index: int, shape: GroupShape) -> tuple[int, bool]:
    """Blocks that a plan says each rank loads for a frame alone, and whether any of its regions goes through passes."""
    store, view = BlockStore.open(case.store), case.view(index)
    settings = make_settings(store, **case.settings)
    frustum, rule = FrustumBlocks(store.config, settings, store.mask(), store.division), region_rule(shape, settings, "cpu")
    regions = frame_regions(frustum, *view, rule.unit, case.slots, rule.passes)
    found = crowded_loads(block_sets([frustum.blocks(*view)]), [[0]], lambda row: regions, case.slots, most=1, passes=rule.passes)
    return found.loads, any(len(region.blocks) > case.slots for region in regions)


@pytest.mark.parametrize("name", ["DP 2", "TP 2"])
def test_crowded_frames_load_on_each_rank_what_they_load_on_one(
    compiled: Ranks, stores: dict[str, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Region by region, several tiles at once and two frames in flight: what the plan says, less than in passes, and the same bits."""
    monkeypatch.setattr(tiles, "CPU_SAMPLES", TILE)
    shape, flight = SHAPES[name], (0, 2, 0)
    whole = [Flown(store, 0, flight, scale=2, threads=2) for store in stores.values()]  # frames of 4 x 5 tiles
    cases = [replace(case, slots=slots, in_flight=2) for case in whole for slots in (4, 5)]
    found = fly_in(compiled, shape, [*whole, *cases, *(replace(case, cut=False) for case in cases)])
    exact = 0
    for number, (case, frames) in enumerate(zip(cases, found[2:6], strict=True)):
        for (got, counters), (want, counted) in zip(frames, found[number // 2], strict=True):
            for output in want:
                np.testing.assert_array_equal(got[output], want[output], err_msg=f"{output}, {case}")
            assert [counters[field] for field in RENDERED] == [counted.get(field, 0) for field in RENDERED]
        planned, in_passes = planned_loads(case, flight[0], shape)
        if not in_passes:
            assert loads(frames)[0] == shape.size * planned, case
            exact += 1
        if shape.tensor == 1 or case.slots == 5:  # where tensor ranks leave as much to passes as one rank does
            assert loads(frames) == [shape.size * count for count in loads_of_one_rank(case, tmp_path)], case
        if shape.tensor > 1 or case.slots == 5:
            assert sum(loads(frames)) < sum(loads(found[6 + number])), case
    assert exact >= 2


@pytest.mark.parametrize("name", SHAPES)
def test_the_ranks_of_a_host_read_each_block_once(compiled: Ranks, stores: dict[str, Path], name: str) -> None:
    """And render the same bits with it."""
    shape = SHAPES[name]
    whole = [Flown(store, 0, POSES) for store in stores.values()]
    found = fly_in(compiled, shape, [*whole, *(replace(case, slots=BLOCKS, host=24) for case in whole)])
    for case, resident, frames in zip(whole, found, found[len(whole) :], strict=False):
        assert_same(frames, resident, case)
        planes = BLOCKS * sum(table.height * table.width * table.channels for table in BlockStore.open(case.store).tables) * 4
        assert sum(counters.get("fetch_bytes_read", 0) for _, counters in frames) == planes
        assert sum(counters.get("fetch_bytes_shared", 0) for _, counters in frames) == planes * (shape.size - 1)


@pytest.mark.parametrize("name", ["DP 2", "TP 2"])
def test_blocks_that_were_not_foreseen_are_fetched_and_frames_rendered_again(compiled: Ranks, stores: dict[str, Path], name: str) -> None:
    """With two frames in flight and several tiles at once; with room for what is found, and without."""
    ways = ((BLOCKS, "short", 2), (2, "short", 2), (2, "none", 1))
    whole = [Flown(stores["blocks"], 0, POSES), Flown(stores["cut"], 0, POSES, settings={"runtime": "fused"})]
    cases = [
        replace(case, slots=slots, foresight=foresight, in_flight=2, threads=threads)
        for case in whole
        for slots, foresight, threads in ways
    ]
    found = fly_in(compiled, SHAPES[name], [*whole, *cases])
    for number, (case, frames) in enumerate(zip(cases, found[len(whole) :], strict=True)):
        for (got, counters), (want, _) in zip(frames, found[number // len(ways)], strict=True):
            for output in want:
                np.testing.assert_array_equal(got[output], want[output], err_msg=f"{output}, {case}")
            assert counters["rays"] == want["alpha"].size
        assert sum(counters.get("fetch_loads", 0) for _, counters in frames) >= BLOCKS


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("slots", [4, BLOCKS])
def test_a_data_rank_out_of_memory_takes_fewer_slots_by_itself(compiled: Ranks, stores: dict[str, Path], failing: int, slots: int) -> None:
    """The other one keeps its own; a warning for each time, and nothing of the old tables is left when others are made."""
    flight = (0, 2, 1, 3, 0)
    for store in stores.values():
        case = Flown(store, slots, flight, scale=2, threads=2, in_flight=2)
        (expected,) = fly_in(compiled, SHAPES["DP 2"], [replace(case, slots=0)])
        with group_of(compiled, SHAPES["DP 2"]) as members:
            answers = [answer.get() for answer in members.together(fly_short, [(rank, case, failing, 2) for rank in range(2)])]
        for (got, counters), (want, counted) in zip(answers[0][0], expected, strict=True):
            for name in want:
                np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name}, {case}")
            assert [counters[field] for field in RENDERED] == [counted.get(field, 0) for field in RENDERED]
        halvings = {6: ["6 slots: 3", "3 slots: 1"], 4: ["4 slots: 2"]}[slots]
        told = [f"rank {failing}: out of GPU memory with {change} from here on, with the same pixels" for change in halvings]
        assert answers[failing][1:] == (int(halvings[-1][-1]), told, [0] * len(halvings))
        assert answers[1 - failing][1:] == (slots, [], [])


@pytest.mark.parametrize("name", ["DP 2", "TP 2"])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_read_leaves_no_other_in_an_exchange(stores: dict[str, Path], tmp_path: Path, name: str, failing: int) -> None:
    """It names block and file; the others hear of it as its process ends, wherever they are."""
    shutil.copytree(stores["blocks"], tmp_path / "bad.zarr")
    store = BlockStore.open(tmp_path / "bad.zarr")
    file = Path(store.where(3, store.tables[-1]))
    file.write_bytes(file.read_bytes()[:-1])
    case = Flown(stores["blocks"], BLOCKS, POSES)
    ranks = Ranks(2)
    try:
        with group_of(ranks, SHAPES[name], whole=False) as members:
            cases = [replace(case, store=tmp_path / "bad.zarr") if rank == failing else case for rank in range(2)]
            answers = members.together(fly, list(enumerate([own] for own in cases)))
    finally:
        ranks.close()
    failed, other = answers[failing], answers[1 - failing]
    assert failed.error == "CheckpointError" and "block 3" in failed.text and str(file) in failed.text
    assert other.error == "GroupError", other
