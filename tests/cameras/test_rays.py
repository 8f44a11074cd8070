"""Rays of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landmark_batch.cameras.rays import pixel_rays


def pose(seed: int = 0) -> torch.Tensor:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return torch.tensor(np.concatenate([q, [[0.3], [-0.2], [1.5]]], axis=1), dtype=torch.float32)


def test_directions_of_pixels() -> None:
    identity = torch.eye(4)[:3]
    identity[:, 3] = torch.tensor([1.0, 2.0, 3.0])
    rays = pixel_rays(identity, (10.0, 20.0, 4.0, 3.0), 0.0, torch.tensor([0, 4 + 8 * 3, 7 + 8 * 5]), 8)
    assert rays[:, :3].tolist() == [[1.0, 2.0, 3.0]] * 3
    want = torch.tensor([[-0.4, 0.15, -1.0], [0.0, 0.0, -1.0], [0.3, -0.1, -1.0]])
    torch.testing.assert_close(rays[:, 3:], want, rtol=1e-7, atol=0)
    half = pixel_rays(identity, (10.0, 20.0, 4.0, 3.0), 0.5, torch.tensor([0]), 8)
    torch.testing.assert_close(half[0, 3:], torch.tensor([-0.35, 0.125, -1.0]), rtol=1e-7, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_directions_are_rotated_without_normalising(seed: int) -> None:
    width, height, focal = 61, 47, 53.7
    c2w = pose(seed)
    rays = pixel_rays(c2w, (focal, focal, width / 2, height / 2), 0.0, torch.arange(width * height), width)
    j, i = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    camera = torch.stack([(i - width / 2) / focal, -(j - height / 2) / focal, -torch.ones_like(i)], dim=-1).view(-1, 3)
    want = camera.double() @ c2w[:, :3].T.double()
    torch.testing.assert_close(rays[:, 3:].double(), want, rtol=0, atol=3e-7)
    assert torch.equal(rays[:, :3], c2w[:, 3].expand(len(rays), 3))
    along_axis = -(rays[:, 3:] @ c2w[:, 2])  # t is the distance along the view axis
    torch.testing.assert_close(along_axis, torch.ones(len(rays)), rtol=0, atol=3e-7)


def test_the_last_bit_is_that_of_a_fused_multiply_add() -> None:
    """x r0 rounded, y r1 added with one rounding, r2 taken away with one: what a matrix product does on GPUs and CPUs."""
    width, height, focal = 50, 40, 37.3
    c2w = pose(4)
    rays = pixel_rays(c2w, (focal, focal, width / 2, height / 2), 0.0, torch.arange(width * height), width).numpy()
    r = c2w.numpy()[:, :3]
    f = np.float32(focal)
    for index in range(0, width * height, 37):
        row, column = divmod(index, width)
        x = np.float32(column - width / 2) / f
        y = -np.float32(row - height / 2) / f
        for axis in range(3):
            fused = np.float32(float(y) * float(r[axis, 1]) + float(np.float32(x * r[axis, 0])))
            assert rays[index, 3 + axis] == fused - r[axis, 2]


def test_a_ray_does_not_depend_on_its_company() -> None:
    c2w, lens = pose(), (31.3, 29.9, 20.0, 15.0)
    every = pixel_rays(c2w, lens, 0.0, torch.arange(1200), 40)
    chosen = torch.tensor([1199, 3, 4, 700])
    assert torch.equal(pixel_rays(c2w, lens, 0.0, chosen, 40), every[chosen])
    assert torch.equal(pixel_rays(c2w, torch.tensor(lens), 0.0, chosen, 40), every[chosen])
    assert pixel_rays(c2w, lens, 0.0, chosen[:0], 40).shape == (0, 6)
