"""The compiled march gives the reference's very samples: same rays, same bits of t and delta."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels import reference
from tests.kernels.conftest import BOX, blobs, random_rays

MASKS = {
    "none": None,
    "blobs": blobs((24, 31, 37), 0.4),
    "sparse": torch.rand((24, 31, 37), generator=torch.Generator().manual_seed(3)) < 0.02,
    "full": torch.ones(9, 7, 5, dtype=torch.bool),
    "empty": torch.zeros(9, 7, 5, dtype=torch.bool),
    "one voxel": torch.ones(1, 1, 1, dtype=torch.bool),
}


def assert_same(rays: Tensor, extent: Tensor, base: Tensor, slope: Tensor, mask: Tensor | None, threshold: float, **boxes: object) -> int:
    occupancy = list(kernels.pack_occupancy(mask)) if mask is not None else []
    box, mask_box = boxes.get("box", BOX), boxes.get("mask_box", BOX)
    want = reference.march(rays, extent, base, slope, box, occupancy, mask_box, threshold)  # type: ignore[arg-type]
    got = kernels.march(rays, extent, base, slope, box, occupancy, mask_box, threshold)  # type: ignore[arg-type]
    for name, a, b in zip(("ray", "t", "delta"), want, got, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), f"{name}: {len(a)} samples, {len(b)} compiled"
    return len(got[0])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("samples", [1, 2, 7, 8, 9, 16, 33, 192, 300])
def test_hull(mask: str, samples: int) -> None:
    rays = random_rays(201, seed=samples)
    s = torch.linspace(0, 1, samples)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    assert torch.equal(extent, reference.ray_hull(rays, 3.0, BOX[2]))
    counts = [assert_same(rays, extent, 0.05 * (1 - s), s, MASKS[mask], threshold) for threshold in (0.0, 0.5, 0.98, 0.9995)]
    assert (max(counts) > 0) == (mask != "empty") or samples == 1
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("mask", ["none", "blobs", "sparse"])
@pytest.mark.parametrize("step", [0.0005, 0.01, 1.0])
def test_dense(mask: str, step: float) -> None:
    rays = random_rays(150, seed=1)
    rays[::7, 3:5] = 0.0  # straight down: a direction of 0 on two axes
    extent = kernels.ray_box(rays, BOX, 0.1, 3.0)
    assert torch.equal(extent, reference.ray_box(rays, BOX, 0.1, 3.0))
    steps = torch.arange(555, dtype=torch.float32) * step
    assert_same(rays, extent, steps, torch.ones_like(steps), MASKS[mask], 0.5)


def test_a_crop_and_a_mask_of_another_box() -> None:
    rays = random_rays(100)
    s = torch.linspace(0, 1, 100)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    found = assert_same(
        rays, extent, 0.0 * s, s, MASKS["blobs"], 0.5, box=(-0.5, -0.5, 0.0, 0.7, 0.3, 0.4), mask_box=(-2.0, -0.4, -0.2, 0.9, 1.7, 0.3)
    )
    assert found > 100


def test_no_rays() -> None:
    s = torch.linspace(0, 1, 5)
    assert assert_same(torch.zeros(0, 6), torch.zeros(0), s, s, MASKS["blobs"], 0.5) == 0


def test_values_that_are_not_finite() -> None:
    rays = random_rays(64)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    extent[::5] = float("nan")
    extent[1::5] = float("inf")
    extent[2::5] = -1e30
    rays[3::5, 4] = float("nan")
    s = torch.linspace(0, 1, 40)
    for mask in ("none", "blobs"):
        occupancy = [] if mask == "none" else list(kernels.pack_occupancy(MASKS[mask]))
        want = reference.march(rays, extent, 0.1 * (1 - s), s, BOX, occupancy, BOX, 0.5)
        got = kernels.march(rays, extent, 0.1 * (1 - s), s, BOX, occupancy, BOX, 0.5)
        assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(want, got, strict=True))


def test_more_samples_than_a_buffer_holds() -> None:
    """Two million survivors: the buffer is emptied on the way."""
    rays = random_rays(600)
    rays[:, 2], rays[:, 5] = 0.2, 0.0
    s = torch.linspace(0, 1, 4000)
    extent = torch.full((600,), 0.5)
    assert assert_same(rays, extent, 0.0 * s, s, None, 0.0) > 2**20


def test_inputs_need_not_be_contiguous() -> None:
    rays = random_rays(50)
    s = torch.linspace(0, 1, 30)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    wide = torch.cat([rays, rays], dim=1)[:, :6]
    assert not wide.is_contiguous()
    a = kernels.march(rays, extent, 0.1 * (1 - s), s, BOX)
    b = kernels.march(wide, extent, 0.1 * (1 - s), s, BOX)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("width", [1, 7, 64])
@pytest.mark.parametrize("center", [0.0, 0.5])
def test_rays_of_pixels(width: int, center: float) -> None:
    generator = torch.Generator().manual_seed(width)
    pose, lens = torch.randn(3, 4, generator=generator), torch.tensor([17.3, 19.1, 0.37 * width, 11.0])
    for pixels in (torch.arange(width * 23), torch.randint(0, 10**9, (301,), generator=generator), torch.zeros(0, dtype=torch.int64)):
        want = reference.pixel_rays(pose, lens, center, pixels, width)
        assert torch.equal(kernels.pixel_rays(pose, lens, center, pixels, width), want)
    wide = torch.randn(3, 8, generator=generator)[:, ::2]
    pixels = torch.arange(0, 90, 3)
    assert torch.equal(kernels.pixel_rays(wide, lens, center, pixels, width), reference.pixel_rays(wide, lens, center, pixels, width))


def bundle(count: int, seed: int) -> Tensor:
    """Neighbouring rays as a camera has them, some of them level with the horizon."""
    pose = torch.tensor([[0.9, 0.1, 0.42, 0.3], [-0.3, 0.85, 0.44, -0.5], [-0.31, -0.52, 0.8, 0.6]])
    lens = torch.tensor([40.0 + seed, 40.0, 32.0, 20.0])
    return reference.pixel_rays(pose, lens, 0.0, torch.arange(count) * 3 + 17 * seed, 64)


@pytest.mark.parametrize("mask", ["none", "blobs", "sparse"])
@pytest.mark.parametrize("count", [1, 15, 17, 200])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0])
def test_rays_that_go_together(mask: str, count: int, spread: float) -> None:
    """Sixteen rays are bounded together: alike, nearly alike, a camera's, and with one among them that is none."""
    rays = bundle(count, 3)
    rays[:, 3:] = rays[:1, 3:] + (rays[:, 3:] - rays[:1, 3:]) * spread
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    for samples in (2, 31, 200):
        s = torch.linspace(0, 1, samples)
        assert_same(rays, extent, 0.05 * (1 - s), s, MASKS[mask], 0.5)
        assert_same(rays, kernels.ray_box(rays, BOX, 0.1, 3.0), s * 2, torch.ones_like(s), MASKS[mask], 0.5)
    if mask == "none":
        return  # what is not finite survives there: see below
    for place, value in ((0, 1e30), (3, float("inf")), (5, 1e-45)):
        odd = rays.clone()
        odd[count // 2, place] = value
        assert_same(odd, kernels.ray_hull(odd, 3.0, BOX[2]), 0.05 * (1 - s), s, MASKS[mask], 0.5)


@pytest.mark.parametrize("levels", [0, 1, 2, 7])
def test_any_number_of_coarse_levels(levels: int) -> None:
    rays, s = bundle(640, 1), torch.linspace(0, 1, 150)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    occupancy = list(kernels.pack_occupancy(blobs((60, 61, 62), 0.2), levels))
    want = reference.march(rays, extent, 0.1 * (1 - s), s, BOX, occupancy, BOX, 0.5)
    got = kernels.march(rays, extent, 0.1 * (1 - s), s, BOX, occupancy, BOX, 0.5)
    assert len(want[0]) > 1000
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_tables_that_go_back_and_forth() -> None:
    """Nothing says that the samples of a ray are in order, as long as a coarse cell covers eight of them: here all are near."""
    rays, generator = bundle(200, 2), torch.Generator().manual_seed(5)
    s = torch.rand(64, generator=generator) * 0.01 + 0.4
    assert_same(rays, torch.full((200,), 2.0), 0.0 * s, s, MASKS["blobs"], 0.5)
