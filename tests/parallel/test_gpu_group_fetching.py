"""Groups of GPUs over NCCL that fetch blocks, with the fused kernels and with plain torch. Needs two CUDA devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from landmark_batch.parallel.shape import GroupShape
from tests.fetching.flights import write_store
from tests.parallel.conftest import group_of
from tests.parallel.fetching_tasks import Flown, fly, fly_alone
from tests.parallel.ranks import Ranks
from tests.parallel.test_parity import all_of

pytestmark = pytest.mark.gpu

FLIGHT = (0, 1, 2, 3, 0)
BLOCKS = 6
USUAL = {"resolutions": (1, 2, 4), "app_dim": 27, "density_channels": 16, "appearance_channels": 48, "feature_width": 128}


@pytest.fixture(autouse=True)
def needs_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of blocks and of cut planes, in the shape that kernels are compiled for and in another."""
    kinds = (("blocks", USUAL), ("cut", USUAL), ("blocks", {}), ("cut3", {}))
    return [write_store(tmp_path_factory.mktemp("stores"), kind, **shape)[1] for kind, shape in kinds]


@pytest.mark.parametrize("shape", [GroupShape(1, 2), GroupShape(2, 1)], ids=["DP 2", "TP 2"])
@pytest.mark.parametrize(("runtime", "precision"), [("fused", "fp32"), ("fused", "fp16"), ("torch", "fp32")])
def test_any_number_of_slots_gives_the_bits_of_the_whole_scene(
    own_ranks: Ranks, stores: list[Path], shape: GroupShape, runtime: str, precision: str
) -> None:
    """Known beforehand, or met while rendering, with two frames in flight. Data ranks alone: the bits of one GPU, too."""
    settings = {"runtime": runtime, "precision": precision}
    whole = [Flown(store, 0, FLIGHT, settings=settings, device="cuda", scale=10) for store in stores]
    held = [(1, "route"), (2, "route"), (BLOCKS, "route"), (2, "short"), (BLOCKS, "short")]
    cases = [replace(case, slots=slots, foresight=foresight, in_flight=2) for case in whole for slots, foresight in held]
    alone = [own_ranks.call(0, fly_alone, case) for case in whole] if shape.tensor == 1 else []
    with group_of(own_ranks, shape, device="cuda") as ranks:
        found = all_of(ranks.all(range(2), fly, [*whole, *cases]))
    resident, dynamic = found[: len(whole)], found[len(whole) :]
    for number, (case, frames) in enumerate(zip(cases, dynamic, strict=True)):
        references = [resident[number // len(held)], *([alone[number // len(held)]] if alone else [])]
        assert sum(counters.get("fetch_loads", 0) for _, counters in frames) >= BLOCKS
        assert references[0][0][0]["alpha"].max() > 0.5
        for wanted in references:
            for (got, counters), (want, counted) in zip(frames, wanted, strict=True):
                for name in want:
                    np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name}, {case}")
                assert [counters[name] for name in ("rays", "survived", "coloured")] == [
                    counted[name] for name in ("rays", "survived", "coloured")
                ]


@pytest.mark.parametrize("shape", [GroupShape(1, 2), GroupShape(2, 1)], ids=["DP 2", "TP 2"])
@pytest.mark.parametrize("runtime", ["fused", "torch"])
def test_crowded_frames_go_region_by_region(own_ranks: Ranks, stores: list[Path], shape: GroupShape, runtime: str) -> None:
    """With the bits of the whole scene, and fewer loads than in passes; where passes are made dear, many small regions."""
    whole = [Flown(store, 0, FLIGHT, settings={"runtime": runtime}, device="cuda", scale=10) for store in stores[:2]]
    cases = [replace(case, slots=slots, in_flight=2, pass_rays=rays) for case in whole for slots, rays in ((5, 0), (5, 512), (3, 512))]
    with group_of(own_ranks, shape, device="cuda") as ranks:
        found = all_of(ranks.all(range(2), fly, [*whole, *cases, *(replace(case, slots=5, cut=False) for case in whole)]))
    resident, cut, passes = found[:2], found[2:8], found[8:]
    for number, (case, frames) in enumerate(zip(cases, cut, strict=True)):
        for (got, counters), (want, counted) in zip(frames, resident[number // 3], strict=True):
            for name in want:
                np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name}, {case}")
            for name in ("rays", "survived", "coloured"):
                assert counters[name] == counted[name], (name, case)
    for number, frames in enumerate(passes):
        loads, of_passes = (sum(counters.get("fetch_loads", 0) for _, counters in some) for some in (cut[3 * number], frames))
        assert loads < of_passes or runtime == "torch"  # two tiles, which both see nearly everything


@pytest.mark.parametrize("shape", [GroupShape(1, 2), GroupShape(2, 1), GroupShape(2, 2)], ids=["DP 2", "TP 2", "TP 2 x DP 2"])
@pytest.mark.parametrize("runtime", ["fused", "torch"])
def test_what_gpus_copy_from_each_other_has_the_same_bits(own_ranks: Ranks, stores: list[Path], shape: GroupShape, runtime: str) -> None:
    """Ranks with the same channels fetch parts of blocks from each other's slots; those with different ones do not."""
    if torch.cuda.device_count() < shape.size:
        pytest.skip(f"fewer than {shape.size} CUDA devices")
    alone = [Flown(store, 0, FLIGHT, settings={"runtime": runtime}, device="cuda", scale=10) for store in stores[:2]]
    held = (1, 2, 5, BLOCKS)
    cases = [replace(case, slots=slots, in_flight=2, host=24) for case in alone for slots in held]
    with group_of(own_ranks, shape, device="cuda") as ranks:
        found = all_of(ranks.all(range(shape.size), fly, [*alone, *cases, *(replace(case, peers=0.2) for case in cases)]))
    resident, plain, shared = found[:2], found[2 : 2 + len(cases)], found[2 + len(cases) :]
    for number, (case, frames) in enumerate(zip(cases, shared, strict=True)):
        for (got, _), (want, _) in zip(frames, resident[number // len(held)], strict=True):
            for name in want:
                np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name}, {case}")
        copied, pulled = (sum(counters.get(f"fetch_bytes_{way}", 0) for _, counters in frames) for way in ("copied", "pulled"))
        assert not any(counters.get("fetch_bytes_pulled") for _, counters in plain[number])
        if shape.data == 1:
            assert not pulled, case
        elif case.slots == BLOCKS:
            assert pulled, case
            assert copied + pulled == sum(counters.get("fetch_bytes_copied", 0) for _, counters in plain[number])
