"""Tiles: every pixel once, sizes that follow from samples and device alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.model.tiles import CPU_SAMPLES, Tile, frame_tiles, tile_side


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 65536), st.sampled_from(["cpu", "cuda"]))
def test_every_pixel_belongs_to_one_tile(width: int, height: int, samples: int, device: str) -> None:
    seen = torch.zeros(height * width, dtype=torch.int32)
    columns, rows = tile_side(samples, device)
    for tile in frame_tiles(width, height, samples, device):
        pixels = tile.pixels(width, torch.device("cpu"))
        assert len(pixels) == tile.rays
        assert tile.left % columns == 0 and tile.top % rows == 0
        seen[pixels] += 1
    assert bool((seen == 1).all())


@pytest.mark.parametrize(("samples", "side"), [(1, (256, 256)), (128, (128, 64)), (256, (64, 64)), (293, (64, 32)), (65536, (8, 8))])
def test_tile_side_on_a_cpu(samples: int, side: tuple[int, int]) -> None:
    assert tile_side(samples, "cpu") == side
    assert side == (8, 8) or side[0] * side[1] * samples <= CPU_SAMPLES


def test_a_larger_frame_has_the_same_tiles_where_it_is_full() -> None:
    small = [tile for tile in frame_tiles(100, 80, 256, "cpu") if tile.rays == 64 * 64]
    assert set(small) < set(frame_tiles(333, 95, 256, "cpu"))
    assert Tile(64, 64, 100, 80) in frame_tiles(100, 80, 256, "cpu")
