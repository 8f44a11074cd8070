"""Intervals of rays."""

from __future__ import annotations

import pytest
import torch

from landmark_batch import kernels


def test_hull_reaches_the_floor_and_falls_back_to_far() -> None:
    rays = torch.tensor(
        [[0.0, 0.0, 2.0, 0.1, 0.0, -1.0], [0.0, 0.0, 2.0, 0.0, 0.0, 1.0], [0.0, 0.0, 2.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0, 0.0, -1.0]]
    )
    reach = kernels.ray_hull(rays, far=7.0, floor=-0.5)
    assert reach.tolist() == [2.5, 7.0, 7.0, -0.5]  # a camera below the floor gets a negative t, as in LandMark


def test_box_entry_is_clamped_to_near_and_far() -> None:
    box = (-1.0, -1.0, 0.0, 1.0, 1.0, 1.0)
    rays = torch.tensor(
        [
            [0.0, 0.0, 3.0, 0.0, 0.0, -1.0],
            [0.0, 0.0, 0.5, 0.0, 0.0, -1.0],
            [0.0, 0.0, 90.0, 0.0, 0.0, -1.0],
            [-4.0, 0.5, 0.5, 2.0, 0.0, 0.0],
        ]
    )
    assert kernels.ray_box(rays, box, near=0.25, far=10.0).tolist() == [2.0, 0.25, 10.0, 1.5]


def test_box_entry_of_an_axis_parallel_ray_counts_zero_as_a_small_direction() -> None:
    rays = torch.tensor([[5.0, 0.0, 3.0, 0.0, 0.0, -1.0]])  # beside the box: enters at (1 - 5) / 1e-6 < 0, but (-1 - 5) / 1e-6 is less
    assert kernels.ray_box(rays, (-1, -1, 0, 1, 1, 1), near=0.0, far=10.0).item() == 2.0


@pytest.mark.parametrize("count", [0, 1])
def test_few_rays(count: int) -> None:
    rays = torch.zeros(count, 6)
    assert kernels.ray_hull(rays, 1.0, 0.0).shape == (count,)
    assert kernels.ray_box(rays, (0, 0, 0, 1, 1, 1), 0.0, 1.0).shape == (count,)
