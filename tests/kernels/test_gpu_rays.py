"""On a CUDA device: compiled rays have the bits of the reference, there and on a CPU."""

from __future__ import annotations

import pytest
import torch

from landmark_batch import kernels
from landmark_batch.kernels import reference
from tests.kernels.conftest import random_rays

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("count", [0, 1, 255, 256, 1000, 4 * 4099])
@pytest.mark.parametrize("center", [0.0, 0.5])
def test_rays_of_pixels(device: str, count: int, center: float) -> None:
    generator = torch.Generator().manual_seed(count)
    for width in (1, 17, 1920):
        pose, lens = torch.randn(3, 4, generator=generator), torch.tensor([700.3, 701.1, width / 2, 411.7])
        index = torch.randint(0, width * 1080, (count,), generator=generator)
        got = kernels.pixel_rays(pose.to(device), lens.to(device), center, index.to(device), width)
        assert got.is_cuda and torch.equal(got, reference.pixel_rays(pose.to(device), lens.to(device), center, index.to(device), width))
        assert torch.equal(got.cpu(), reference.pixel_rays(pose, lens, center, index, width))


@pytest.mark.parametrize("count", [0, 1, 257, 5000])
def test_where_rays_reach_the_floor(device: str, count: int) -> None:
    rays = random_rays(count)
    rays[::7, 5], rays[::11, 5], rays[::13, 2] = 0.0, -0.0, -0.1
    for floor in (-0.1, 0.3):
        got = kernels.ray_hull(rays.to(device), 3.7, floor)
        assert got.is_cuda and torch.equal(got.cpu(), reference.ray_hull(rays, 3.7, floor))
