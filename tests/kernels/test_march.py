"""The march against a plain lookup of every sample with grid_sample."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from landmark_batch import kernels
from tests.kernels.conftest import BOX, blobs, random_rays


def plain_march(
    rays: Tensor, extent: Tensor, base: Tensor, slope: Tensor, volume: Tensor | None, mask_box: Sequence[float], threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ray, t, delta of survivors, and how far the mask value of every sample is from the threshold: [R, N]."""
    t = base + extent[:, None] * slope
    points = rays[:, None, :3] + rays[:, None, 3:] * t[..., None]
    low, high = torch.tensor(BOX[:3]), torch.tensor(BOX[3:])
    valid = ((points >= low) & (points <= high)).all(-1)
    margin = torch.ones_like(t)
    if volume is not None:
        low, high = torch.tensor(mask_box[:3]), torch.tensor(mask_box[3:])
        unit = (points - low) * (1.0 / (high - low) * 2) - 1
        value = F.grid_sample(volume[None, None].float(), unit.view(1, -1, 1, 1, 3), align_corners=True).view(t.shape)
        valid &= value > threshold
        margin = (value - threshold).abs()
    ray, step = valid.nonzero(as_tuple=True)
    following = torch.cat([t[:, 1:], t[:, -1:]], dim=1)
    return ray, t[ray, step], following[ray, step] - t[ray, step], margin


def tables(samples: int) -> tuple[Tensor, Tensor]:
    s = torch.linspace(0, 1, samples)
    return 0.05 * (1 - s), s


@pytest.mark.parametrize("samples", [1, 8, 65, 200])
@pytest.mark.parametrize("share", [0.0, 0.08, 0.5, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9999])
def test_survivors_are_those_of_a_plain_lookup(samples: int, share: float, threshold: float) -> None:
    rays = random_rays(120)
    volume = blobs((17, 40, 51), share) if 0 < share < 1 else torch.full((17, 40, 51), share == 1.0)
    mask_box = (-0.9, -0.9, -0.1, 1.3, 0.8, 0.4)  # not the scene's: parts of either are outside the other
    base, slope = tables(samples)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    ray, t, delta = kernels.march(rays, extent, base, slope, BOX, kernels.pack_occupancy(volume), mask_box, threshold)
    want_ray, want_t, want_delta, margin = plain_march(rays, extent, base, slope, volume, mask_box, threshold)
    if threshold == 0.0:  # a value above 0 needs a set voxel: nothing to be rounded
        assert torch.equal(ray.long(), want_ray)
        assert torch.equal(t, want_t)
        assert torch.equal(delta, want_delta)
    else:  # grid_sample sums the corners in another order, so a value within rounding of the threshold may fall either way
        doubtful = int((margin < 1e-6).sum())
        assert abs(len(t) - len(want_t)) <= doubtful
        mine = set(zip(ray.tolist(), t.tolist(), strict=True))
        assert len(mine ^ set(zip(want_ray.tolist(), want_t.tolist(), strict=True))) <= doubtful


def test_no_mask_keeps_what_is_in_the_box() -> None:
    rays = random_rays(64)
    base, slope = tables(33)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    ray, t, delta = kernels.march(rays, extent, base, slope, BOX)
    want_ray, want_t, want_delta, _ = plain_march(rays, extent, base, slope, None, BOX, 0.0)
    assert 0 < len(t) < 64 * 33
    assert torch.equal(ray.long(), want_ray)
    assert torch.equal(t, want_t)
    assert torch.equal(delta, want_delta)


@pytest.mark.parametrize("levels", [0, 1, 3, 7])
def test_coarse_levels_change_nothing(levels: int) -> None:
    rays = random_rays(150, seed=3)
    volume = blobs((24, 64, 64), 0.1, seed=5)
    base, slope = tables(200)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    plain = kernels.march(rays, extent, base, slope, BOX, kernels.pack_occupancy(volume, 0), BOX, 0.3)
    found = kernels.march(rays, extent, base, slope, BOX, kernels.pack_occupancy(volume, levels), BOX, 0.3)
    assert len(plain[0]) > 100
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_faces_are_inside_and_the_last_sample_has_no_distance() -> None:
    rays = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, -1.0]])
    base, slope = torch.tensor([0.5, 1.0, 1.5, 1.75]), torch.zeros(4)
    ray, t, delta = kernels.march(rays, torch.zeros(1), base, slope, (-1, -1, -0.5, 1, 1, 0.5))
    assert ray.tolist() == [0, 0, 0]
    assert t.tolist() == [0.5, 1.0, 1.5]
    assert delta.tolist() == [0.5, 0.5, 0.25]
    ray, t, delta = kernels.march(rays, torch.zeros(1), base, slope, (-1, -1, -0.75, 1, 1, 0.5))
    assert delta.tolist() == [0.5, 0.5, 0.25, 0.0]


def test_endless_and_undefined_samples_do_not_survive_a_mask() -> None:
    """A ray that hardly goes down reaches the floor at infinity: near * 0 + inf * 0 is NaN, everything after it infinite."""
    rays = torch.tensor([[0.0, 0.0, 0.2, 1.0, 0.0, -1e-45], [0.0, 0.0, 0.2, 1.0, 0.0, -0.3]])
    base, slope = tables(64)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    assert extent[0] == float("inf")
    occupancy = kernels.pack_occupancy(torch.ones(5, 5, 5, dtype=torch.bool))
    ray, t, _ = kernels.march(rays, extent, base, slope, BOX, occupancy, BOX, 0.5)
    assert set(ray.tolist()) == {1}
    assert bool(t.isfinite().all())


def test_empty_inputs() -> None:
    base, slope = tables(16)
    occupancy = kernels.pack_occupancy(torch.zeros(3, 3, 3, dtype=torch.bool))
    for count in (0, 5):
        rays = random_rays(count)
        ray, t, delta = kernels.march(rays, torch.ones(count), base, slope, BOX, occupancy, BOX, 0.0)
        assert len(ray) == len(t) == len(delta) == 0


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4), (9, 8, 17)])
def test_pack_occupancy_codes_and_levels(size: tuple[int, int, int]) -> None:
    volume = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.3
    codes, coarse, table = kernels.pack_occupancy(volume, 2)
    padded = F.pad(volume, (2, 2, 2, 2, 2, 2))
    for z in range(size[0] + 3):
        for y in range(size[1] + 3):
            for x in range(size[2] + 3):
                bits = padded[z : z + 2, y : y + 2, x : x + 2].flatten().tolist()
                assert codes[z, y, x] == sum(bit << i for i, bit in enumerate(bits))
    offset, nz, ny, nx = table[2].tolist()
    level = coarse[offset:].view(nz, ny, nx)
    for cell in torch.cartesian_prod(*(torch.arange(n) for n in level.shape)).tolist():
        low = [max((c - 3) * 4, 0) for c in cell]
        high = [max((c) * 4, 0) for c in cell]
        assert bool(level[tuple(cell)]) == bool(volume[low[0] : high[0], low[1] : high[1], low[2] : high[2]].any())
