"""Cutting planes at integer texels: every texel that a block's samples read lies in the block's part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from landmark_batch.scene.cut import FINEST, cut_axis, cut_planes, default_division
from landmark_batch.scene.weights import PLANE_AXES
from tests.factories import make_config


def read_by(v: Tensor, size: int, count: int, reciprocal: bool) -> tuple[Tensor, Tensor]:
    """(part, lower texel) of coordinates in the kernels' own arithmetic, float32, every operation rounded.

    reciprocal: divided as torch divides by a number on CUDA.
    """
    cell = torch.tensor(2 / count, dtype=torch.float32)
    part = ((v + 1) * (1 / cell) if reciprocal else (v + 1) / cell).floor().clamp(0, count - 1)
    pixel = (v + 1) * 0.5 * float(size - 1)
    return part.long(), pixel.floor().clamp(0, max(size - 2, 0)).long()


@pytest.mark.parametrize("count", [1, 3, 5, 16])
@pytest.mark.parametrize("size", [1, 2, 33, 97, 2049, 16384])
def test_every_texel_a_part_reads_is_in_it(size: int, count: int) -> None:
    starts, length = cut_axis(size, count)
    borders = torch.arange(count + 1, dtype=torch.float32) * (2 / count) - 1
    near = [borders]  # and the floats around each border
    for side in (-2.0, 2.0):
        for _ in range(4):
            near.append(torch.nextafter(borders if len(near) % 4 == 1 else near[-1], torch.tensor(side)))
    generator = torch.Generator().manual_seed(size * 31 + count)
    texels = torch.arange(size, dtype=torch.float32) / max(size - 1, 1) * 2 - 1
    v = torch.cat([*near, torch.rand(4000, generator=generator) * 2 - 1, texels, torch.tensor([-1.0, 1.0, -1.0000001, 1.0000001])])
    for reciprocal in (False, True):
        part, texel = read_by(v, size, count, reciprocal)
        start = torch.from_numpy(starts).long()[part]
        assert bool((texel >= start).all())
        assert bool((torch.clamp(texel + 1, max=size - 1) < start + length).all())


@pytest.mark.parametrize(("size", "count"), [(33, 4), (2048, 16), (97, 3), (5, 5)])
def test_parts_are_hardly_longer_than_they_must_be(size: int, count: int) -> None:
    starts, length = cut_axis(size, count)
    assert starts[0] == 0
    assert starts[-1] + length == size
    assert np.all(np.diff(starts) >= 0)
    assert np.all(starts[:-1] + length > starts[1:]), "neighbours overlap"
    assert length <= -(-(size - 1) // count) + 3


def test_planes_of_each_dim_are_cut_along_x_and_y_alone() -> None:
    config = make_config(ndims=3, grid_size=(40, 30, 20), resolutions=(1, 2))
    origins, parts = cut_planes(config, (4, 3))
    assert origins.shape == (12, 6, 2)
    for level, (h, w, _) in enumerate(config.level_sizes()):
        across, down = PLANE_AXES[level // 2]
        by_block = origins[:, level].reshape(4, 3, 2)
        assert len(np.unique(by_block[:, :, 0])) == (4 if across == 0 else 3)
        assert len(np.unique(by_block[:, :, 1])) == (3 if down == 1 else 1)
        assert parts[level][0] == (h if down == 2 else cut_axis(h, 3)[1])
        assert parts[level][1] == cut_axis(w, 4 if across == 0 else 3)[1]


def test_the_default_keeps_blocks_to_a_size() -> None:
    assert default_division(make_config(grid_size=(300, 200, 5), resolutions=(1, 4))) == (3, 2)
    assert default_division(make_config(grid_size=(FINEST, FINEST, 5), resolutions=(1,))) == (1, 1)
