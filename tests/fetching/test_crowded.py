"""What is loaded on a flight with frames that need more blocks than there are slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from landmark_batch.fetching import crowded
from landmark_batch.fetching.belady import belady
from landmark_batch.fetching.block_sets import block_sets
from landmark_batch.fetching.crowded import CrowdedLoads, crowded_loads, frame_regions
from landmark_batch.fetching.regions import PASS_RAYS, Region
from landmark_batch.fetching.visibility import FrustumBlocks
from tests.model.conftest import settings_for

from .test_visibility import demo_city

MANY = 10**6


def strip(*parts: tuple[int, ...]) -> list[Region]:
    """Regions side by side."""
    return [Region(8 * i, 0, 8 * i + 8, 8, blocks) for i, blocks in enumerate(parts)]


def test_a_crowded_frame_loads_what_its_regions_need() -> None:
    sets = block_sets([[0, 1], [0, 1, 2, 3], [2, 3]])
    assert belady(sets, 2).loads == 6  # in passes: 0 and 1, 2 and 3, and two of them again
    found = crowded_loads(sets, [[0, 1, 2]], {1: strip((0, 1), (2, 3))}.__getitem__, 2, most=MANY)
    assert found == CrowdedLoads(loads=4, demand=4, sampled=False)


def test_the_order_is_that_of_each_group_and_demand_goes_in_flight_order() -> None:
    sets = block_sets([[0], [0, 1, 2], [2], [0, 1, 2]])
    regions = {1: strip((0,), (1,), (2,)), 3: strip((0,), (1,), (2,))}
    assert crowded_loads(sets, [[0, 1], [3, 2]], regions.__getitem__, 1, most=MANY).loads == 3 + 3
    assert crowded_loads(sets, [[2, 0, 1, 3]], regions.__getitem__, 1, most=MANY) == CrowdedLoads(1 + 1 + 2 + 2, 1 + 2 + 0 + 2, False)


def test_regions_that_are_left_to_passes_load_their_blocks_for_all_of_their_rays() -> None:
    sets = block_sets([[0, 1, 2]])
    large = [Region(0, 0, 3 * PASS_RAYS // 8, 8, (0, 1, 2))]
    once = belady(sets, 2).loads
    assert once == 4
    assert crowded_loads(sets, [[0]], lambda row: large, 2, most=MANY).loads == once + 2 + 2
    assert crowded_loads(sets, [[0]], lambda row: (), 2, most=MANY).loads == once, "a frame that cannot be cut"


def test_of_very_many_crowded_frames_some_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowded, "STRETCH", 4)
    sets = block_sets([[i % 3, i % 3 + 1, i % 3 + 2] for i in range(240)])
    asked = Counter[int]()

    def regions(row: int) -> Sequence[Region]:
        asked[row] += 1
        blocks = sets[row].tolist()
        return strip(tuple(blocks[:2]), tuple(blocks[1:]))

    exact = crowded_loads(sets, [range(240)], regions, 2, most=240)
    assert not exact.sampled
    assert asked == Counter(range(240)), "each once"
    asked.clear()
    found = crowded_loads(sets, [range(240)], regions, 2, most=60)
    assert found.sampled
    assert 0 < len(asked) <= 60
    assert found.loads == pytest.approx(exact.loads, rel=0.25)
    assert exact.loads < belady(sets, 2).loads


def test_a_frame_is_cut_between_cells_or_not_at_all() -> None:
    config, mask, flight = demo_city((4, 3))
    visible = FrustumBlocks(config, settings_for(config, mode="hull", samples=64, alpha_mask_threshold=0.5), mask, config.division)
    pose, lens = flight.c2w[0], flight.intrinsics[0].tolist()
    whole = visible.blocks(pose, lens, flight.width, flight.height).tolist()
    assert len(whole) > 2
    found = frame_regions(visible, pose, lens, flight.width, flight.height, (16, 16), len(whole) - 1)
    assert len(found) > 1
    assert np.unique([block for region in found for block in region.blocks]).tolist() == whole
    assert frame_regions(visible, pose, lens, flight.width, flight.height, (256, 128), 2) == []
