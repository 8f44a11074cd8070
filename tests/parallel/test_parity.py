"""A group of real processes against the renderer of one: the same bits over data ranks, close over tensor ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from landmark_batch.parallel.shape import GroupShape
from tests.parallel.conftest import Grouped
from tests.parallel.ranks import Answer, Ranks
from tests.parallel.tasks import Case, render, render_alone, scene_of

HULL: dict[str, Any] = {"samples": 32, "alpha_mask_threshold": 0.3}
DENSE: dict[str, Any] = {"mode": "dense", "samples": 24}
USUAL: dict[str, Any] = {"resolutions": (1, 2, 4), "app_dim": 27, "density_channels": 16, "appearance_channels": 48, "feature_width": 128}
CASES: dict[str, Case] = {
    "single": Case({}, HULL),
    "blocks": Case({"division": (2, 3), "mask": 0.7}, HULL, (("oblique", 37, 29), ("inside", 31, 23))),
    "blocks, dense": Case({"division": (2, 3), "mask": 0.7}, DENSE, (("below", 37, 29),)),
    "three dims": Case({"ndims": 3, "nonlinear_density": True, "activation": "relu"}, HULL),
    "three dims, dense": Case({"division": (3, 1), "ndims": 3, "nonlinear_density": True}, DENSE),
    "relu": Case({"activation": "relu", "mask": 0.4, "mask_aabb": ((-0.7, -0.6, 0.0), (0.9, 0.5, 0.4))}, DENSE),
    "appearance": Case({"embedding_rows": 7}, {**HULL, "scene__appearance": 3}),
    "no bias, no view": Case({"bias": False, "view_pe": -1, "fea_pe": 0}, {**HULL, "output__background": "transparent"}),
    "one block alone": Case({"layout": "multi-block"}, {**HULL, "cameras__pixel_center": 0.5, "output__background": "black"}),
    "usual sizes": Case({**USUAL, "division": (2, 2), "mask": 0.5}, HULL),
    "fewer channels than ranks": Case({"density_channels": 2, "appearance_channels": 1}, HULL),
    "fp16": Case({"mask": 0.6}, {**HULL, "model__precision": "fp16"}),
    "empty mask": Case({"mask": 0.0}, HULL),
    "no samples in the crop": Case({"mask": 0.5}, {**HULL, "scene__aabb": [[1.1, 0.8, 0.4], [1.2, 0.9, 0.5]]}, (("above", 21, 17),)),
    "nothing is seen": Case({"weight_threshold": 2.0}, HULL),
    "odd sizes": Case({"mask": 0.5}, HULL, (("above", 1, 1), ("above", 65, 1), ("inside", 3, 70), ("inside", 9, 8))),
    "one tile": Case({}, HULL, tile=2**20),
    "threads": Case({"division": (2, 3), "mask": 0.7}, HULL, (("oblique", 47, 39),), threads=3),
}
COUNTERS = ("rays", "samples", "survived", "coloured")


@pytest.fixture(scope="module")
def alone(ranks: Ranks) -> list[list[tuple[dict[str, Any], dict[str, int]]]]:
    """Every case by one rank."""
    results: list[list[tuple[dict[str, Any], dict[str, int]]]] = ranks.call(0, render_alone, list(CASES.values()))
    return results


def all_of(answers: Sequence[Answer]) -> Any:
    """The leader's answer, once no rank has failed."""
    values = [answer.get() for answer in answers]
    return values[0]


@pytest.mark.parametrize("data", [2, 3])
def test_data_ranks_change_no_bit(group: Grouped, alone: list[Any], data: int) -> None:
    shape = GroupShape(1, data)
    with group(shape) as ranks:
        answers = ranks.all(range(shape.size), render, list(CASES.values()))
    results = all_of(answers)
    for name, frames, wanted in zip(CASES, results, alone, strict=True):
        for (got, counters), (want, counted) in zip(frames, wanted, strict=True):
            for key, array in want.items():
                assert got[key].dtype == np.float32 and np.array_equal(got[key], array), (name, key)
            assert {key: counters[key] for key in COUNTERS} == counted and counters["tensor_bytes"] == 0


def assert_close(name: str, got: dict[str, Any], want: dict[str, Any]) -> None:
    """99.9 % of pixels within 1e-5, none past 2e-3: a sample at the weight threshold may fall the other way."""
    for key in ("rgb", "depth", "alpha"):
        scale = 3.0 if key == "depth" else 1.0  # far
        difference = (np.abs(got[key].astype(np.float64) - want[key]) / scale).reshape(want["alpha"].size, -1).max(axis=1)
        assert (difference > 1e-5).sum() <= difference.size // 1000, (name, key, difference.max())
        assert difference.max() <= 2e-3, (name, key)


@pytest.mark.parametrize("tensor", [2, 3])
def test_tensor_ranks_stay_close(group: Grouped, alone: list[Any], tensor: int) -> None:
    shape = GroupShape(tensor)
    with group(shape) as ranks:
        answers = ranks.all(range(shape.size), render, list(CASES.values()))
    results = all_of(answers)
    for name, frames, wanted in zip(CASES, results, alone, strict=True):
        for (got, counters), (want, counted) in zip(frames, wanted, strict=True):
            assert_close(name, got, want)
            assert [counters[key] for key in COUNTERS[:3]] == [counted[key] for key in COUNTERS[:3]]
            assert abs(counters["coloured"] - counted["coloured"]) <= 1 + counted["coloured"] // 1000
            sums = (counted["survived"] + counters["coloured"] * scene_of(CASES[name]).config.app_dim) * 4 * (tensor - 1)
            lists = counters["survived"] / 8 * (tensor - 1)
            assert counters["tensor_bytes"] >= sums * 0.9
            assert counters["tensor_bytes"] <= sums + lists + 4096 * (1 + counted["rays"] // 64)  # and a header of each tile


def test_mixed_mode_has_the_bits_of_its_tensor_size(group: Grouped) -> None:
    """Data rows, threads and order change nothing."""
    cases = [CASES[name] for name in ("blocks", "three dims, dense", "usual sizes", "odd sizes", "empty mask", "threads")]
    results = []
    for shape, chosen in ((GroupShape(2, 1), cases), (GroupShape(2, 2), cases), (GroupShape(2, 2), cases[::-1])):
        with group(shape) as ranks:
            frames = all_of(ranks.all(range(shape.size), render, chosen))
        results.append(frames if chosen is cases else frames[::-1])
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            for (got, counters), (want, counted) in zip(mine, theirs, strict=True):
                assert all(np.array_equal(got[key], want[key]) for key in want) and counters == counted
