"""Regions of a frame: cells that are never short of a block, cut so that each needs few."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.fetching.cells import cell_blocks
from landmark_batch.fetching.regions import CELLS, Region, cell_edges, cut_frame, in_turn
from landmark_batch.fetching.visibility import FrustumBlocks
from landmark_batch.model.sampling import Sampler
from landmark_batch.model.tiles import Tile
from landmark_batch.model.touched import blocks_of, present_blocks
from tests.model.conftest import settings_for

from .test_visibility import cases, demo_city

Grid = NDArray[np.bool_]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases(), st.integers(1, 4), st.integers(1, 4))
def test_no_cell_is_short(case: Any, across: int, down: int) -> None:
    config, chosen, mask, division, c2w, lens, (width, height) = case
    columns = np.unique(np.linspace(0, width, across + 1).astype(int)).tolist()
    rows = np.unique(np.linspace(0, height, down + 1).astype(int)).tolist()
    found = cell_blocks(FrustumBlocks(config, chosen, mask, division), c2w, lens, columns, rows)
    assert found.shape == (len(rows) - 1, len(columns) - 1, division[0] * division[1])
    sampler, device = Sampler(config, chosen, mask, torch.device("cpu")), torch.device("cpu")
    pose = torch.tensor(np.asarray(c2w), dtype=torch.float32)
    for row, (top, bottom) in enumerate(pairwise(rows)):
        for column, (left, right) in enumerate(pairwise(columns)):
            rays = pixel_rays(pose, lens, chosen.pixel_center, Tile(left, top, right, bottom).pixels(width, device), width)
            want = present_blocks([blocks_of(rays, sampler.march(rays), config, division)])
            assert set(want) <= set(np.flatnonzero(found[row, column]).tolist())


def test_cells_see_hardly_more_than_frames_of_their_own_would() -> None:
    config, mask, flight = demo_city((4, 3))
    chosen = settings_for(config, mode="hull", samples=192, alpha_mask_threshold=0.5)
    visible = FrustumBlocks(config, chosen, mask, config.division)
    columns, rows = cell_edges(flight.width, 8), cell_edges(flight.height, 8)
    ours = theirs = 0
    for frame in range(0, 40, 13):
        c2w, (focal_x, focal_y, cx, cy) = flight.c2w[frame], flight.intrinsics[frame].tolist()
        found = cell_blocks(visible, c2w, (focal_x, focal_y, cx, cy), columns, rows)
        for row, (top, bottom) in enumerate(pairwise(rows)):
            for column, (left, right) in enumerate(pairwise(columns)):
                alone = visible.blocks(c2w, (focal_x, focal_y, cx - left, cy - top), right - left, bottom - top)
                assert found[row, column, alone].all()
                ours, theirs = ours + int(found[row, column].sum()), theirs + len(alone)
    assert theirs <= ours <= 1.1 * theirs


@pytest.mark.parametrize(
    ("size", "unit", "edges"),
    [(31, 64, [0, 31]), (128, 64, [0, 64, 128]), (1080, 128, [0, 256, 512, 768, 1024, 1080]), (64, 4, [*range(0, 65, 8)])],
)
def test_edges_of_cells(size: int, unit: int, edges: list[int]) -> None:
    assert cell_edges(size, unit) == edges
    assert len(edges) <= CELLS + 1


def grid_of(rows: list[list[str]], blocks: int) -> Grid:
    """Cells that touch the blocks of their digits."""
    found = np.zeros((len(rows), len(rows[0]), blocks), dtype=np.bool_)
    for row, line in enumerate(rows):
        for column, touched in enumerate(line):
            found[row, column, [int(block) for block in touched]] = True
    return found


def test_two_by_two_blocks_through_two_slots() -> None:
    """Four cells of four blocks, the right ones with a second block: columns first would make (0, 2) and (1, 3), with more on a side."""
    cells = grid_of([["0", "01"], ["2", "23"]], 4)
    found = cut_frame(cells, [0, 8, 12], [0, 4, 8], 2)
    assert sorted(found, key=lambda region: region.top) == [Region(0, 0, 12, 4, (0, 1)), Region(0, 4, 12, 8, (2, 3))]


def test_a_cell_that_needs_too_many_stays_whole_and_is_all_that_is_left_to_passes() -> None:
    cells = grid_of([["0", "1", "2"], ["0", "0123", "2"]], 4)
    found = cut_frame(cells, [0, 700, 1400, 2100], [0, 700, 1400], 3)
    crowded = [region for region in found if len(region.blocks) > 3]
    assert crowded == [Region(700, 700, 1400, 1400, (0, 1, 2, 3))]


def test_what_would_load_more_in_parts_is_left_to_passes() -> None:
    """Two blocks in every cell, one slot: passes load 0 and 1, then 0 again, once for the frame or once for each cell."""
    cells = grid_of([["01"] * 8], 2)
    columns = [*range(0, 65, 8)]
    assert cut_frame(cells, columns, [0, 8], 1) == [Region(0, 0, 64, 8, (0, 1))]
    large = [edge * 64 for edge in columns]
    assert len(cut_frame(cells, large, [0, 8 * 64], 1)) == 8  # so many rays go through passes several times


def test_nothing_in_sight_is_one_region() -> None:
    assert cut_frame(np.zeros((2, 2, 5), dtype=np.bool_), [0, 8, 16], [0, 8, 16], 1) == [Region(0, 0, 16, 16, ())]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, CELLS), st.integers(1, CELLS), st.integers(1, 9), st.integers(1, 600))
def test_regions_cover_a_frame_once(seed: int, across: int, down: int, slots: int, unit: int) -> None:
    generator = np.random.default_rng(seed)
    cells = generator.random((down, across, 9)) < generator.random() ** 2
    columns, rows = [unit * i for i in range(across + 1)], [unit * i for i in range(down + 1)]
    found = cut_frame(cells, columns, rows, slots)
    covered = np.zeros((down, across), dtype=int)
    for region in found:
        part = np.s_[region.top // unit : region.bottom // unit, region.left // unit : region.right // unit]
        covered[part] += 1
        assert region.blocks == tuple(np.flatnonzero(cells[part].any((0, 1))).tolist())
    assert (covered == 1).all()


def test_the_end_that_is_held_comes_first() -> None:
    regions = [Region(0, 0, 8, 8, (0, 1)), Region(8, 0, 16, 8, (1, 2)), Region(16, 0, 24, 8, (2, 3))]
    assert in_turn(regions, 2, (0, 1)) == regions
    assert in_turn(regions, 2, (2, 3)) == regions[::-1]
    assert in_turn(regions, 2, ()) == regions


def test_cells_of_the_same_block_come_one_after_another() -> None:
    cells = grid_of([["0", "1"] * 4], 2)
    found = cut_frame(cells, [*range(0, 65, 8)], [0, 8], 1)
    assert [region.blocks for region in found] in ([(0,)] * 4 + [(1,)] * 4, [(1,)] * 4 + [(0,)] * 4)


def test_neighbours_in_turn_share_blocks() -> None:
    """A strip of cells, each between two blocks: from one end to the other, whatever the halves are."""
    cells = grid_of([[f"{i}{i + 1}" for i in range(8)]], 9)
    found = cut_frame(cells, [1000 * i for i in range(9)], [0, 1000], 3)
    assert all(set(one.blocks) & set(two.blocks) for one, two in pairwise(found))
