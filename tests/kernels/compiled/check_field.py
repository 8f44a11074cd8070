"""Compiled density and appearance against the reference, over every shape of field."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels import reference
from tests.kernels.conftest import BOX, random_rays

SIZES = {"odd": (9, 7, 5), "one texel": (1, 1, 1), "large": (64, 50, 20)}
CHANNELS = (3, 8, 40)
TOLERANCE = 2e-5  # of the largest value: sums in another order


def samples(count: int = 300, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """rays, ray, t: inside the box, on its faces, and some outside."""
    rays = random_rays(40, seed)
    generator = torch.Generator().manual_seed(seed)
    ray = torch.randint(0, 40, (count,), generator=generator).sort().values.to(torch.int32)
    t = torch.rand(count, generator=generator) * 2
    t[: count // 3] = 0
    rays[0, :3] = torch.tensor([BOX[3], BOX[4], BOX[5]])
    rays[1, :3] = torch.tensor([BOX[0], BOX[1], BOX[2]])
    rays[2, :3] = torch.tensor([0.1, BOX[4], 0.2])
    return rays, ray, t


def field(size: str, channels: int, dims: int, division: tuple[int, ...], dtype: torch.dtype, rows: int | None = None) -> tuple[Any, ...]:
    """division, slots, planes, lines, resolutions."""
    generator = torch.Generator().manual_seed(channels + 10 * dims)
    x, y, z = SIZES[size]
    rows = rows or (division[0] * division[1] if division else 1)
    planes, lines = [], []
    for dim in range(dims):
        for r in (1, 2) if size != "one texel" else (1, 1):
            width, height = ((x, y), (x, z), (y, z))[dim]
            planes.append(torch.randn(rows, height * r, width * r, channels, generator=generator).to(dtype))
            lines.append((1 + 0.3 * torch.randn(rows, (z, y, x)[dim] * r, channels, generator=generator)).to(dtype))
    return division, None, planes, lines, 2


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, float(want.abs().max())) if want.numel() else 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("division", [(), (1, 1), (2, 3)], ids=["single", "one block", "2x3"])
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_density_and_appearance(size: str, dims: int, division: tuple[int, ...], dtype: torch.dtype) -> None:
    rays, ray, t = samples()
    for channels in CHANNELS:
        where = field(size, channels, dims, division, dtype)
        generator = torch.Generator().manual_seed(channels)
        columns = channels * 2 * dims
        basis = torch.randn(9, columns, generator=generator)
        want = reference.appearance(rays, ray, t, BOX, *where, basis)
        assert_close(kernels.appearance(rays, ray, t, BOX, *where, basis), want)
        for weights in (None, basis[:1].contiguous()):
            assert_close(kernels.density(rays, ray, t, BOX, *where, weights), reference.density(rays, ray, t, BOX, *where, weights))


@pytest.mark.parametrize("outputs", [1, 16, 27, 48, 70])
def test_outputs_of_the_basis(outputs: int) -> None:
    rays, ray, t = samples(101)
    where = field("odd", 8, 1, (), torch.float32)
    basis = torch.randn(outputs, 16, generator=torch.Generator().manual_seed(0))
    assert_close(kernels.appearance(rays, ray, t, BOX, *where, basis), reference.appearance(rays, ray, t, BOX, *where, basis))


def test_planes_of_one_precision_and_lines_of_another() -> None:
    rays, ray, t = samples()
    division, slots, planes, lines, resolutions = field("odd", 8, 1, (2, 3), torch.float16)
    for mixed in ((planes, [line.float() for line in lines]), ([plane.float() for plane in planes], lines)):
        where = (division, slots, *mixed, resolutions)
        assert_close(kernels.density(rays, ray, t, BOX, *where, None), reference.density(rays, ray, t, BOX, *where, None))


def test_slots() -> None:
    """Blocks in other rows, and a RuntimeError for a sample in an absent one; samples in no block at all need none."""
    rays, ray, t = samples()
    division, _, planes, lines, resolutions = field("odd", 6, 1, (2, 3), torch.float32)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    moved = [[table[order] for table in tables] for tables in (planes, lines)]
    slots = torch.empty(6, dtype=torch.int64)
    slots[order] = torch.arange(6)
    want = kernels.density(rays, ray, t, BOX, division, None, planes, lines, resolutions)
    assert torch.equal(kernels.density(rays, ray, t, BOX, division, slots, *moved, resolutions), want)
    slots[2] = -1
    basis = torch.randn(5, 12)
    for function in (
        lambda: kernels.density(rays, ray, t, BOX, division, slots, *moved, resolutions),
        lambda: kernels.appearance(rays, ray, t, BOX, division, slots, *moved, resolutions, basis),
    ):
        with pytest.raises(RuntimeError, match="a sample lies in a block that is not in memory"):
            function()
    outside = rays + torch.tensor([100.0, 0, 0, 0, 0, 0])
    absent = torch.full((6,), -1)
    none = kernels.density(outside, ray, t, BOX, division, absent, *moved, resolutions)
    assert torch.equal(none, torch.zeros_like(none))


def test_a_sample_has_the_same_bits_in_any_batch() -> None:
    rays, ray, t = samples(133)
    for channels, dtype in ((5, torch.float16), (8, torch.float32), (24, torch.float32)):
        where = field("large", channels, 3, (2, 3), dtype)
        basis = torch.randn(27, channels * 6, generator=torch.Generator().manual_seed(1))
        density = kernels.density(rays, ray, t, BOX, *where)
        features = kernels.appearance(rays, ray, t, BOX, *where, basis)
        some = torch.randperm(133, generator=torch.Generator().manual_seed(2))[:50].sort().values
        for part in (slice(0, 1), slice(1, 17), slice(17, 64), slice(64, 133), some):
            assert torch.equal(kernels.density(rays, ray[part], t[part], BOX, *where), density[part])
            assert torch.equal(kernels.appearance(rays, ray[part], t[part], BOX, *where, basis), features[part])


def test_no_samples() -> None:
    rays, ray, t = samples()
    where = field("odd", 8, 1, (), torch.float32)
    assert kernels.density(rays, ray[:0], t[:0], BOX, *where).shape == (0,)
    assert kernels.appearance(rays, ray[:0], t[:0], BOX, *where, torch.randn(7, 16)).shape == (0, 7)


def test_nan_is_not_hidden() -> None:
    rays, ray, t = samples()
    where = field("odd", 8, 1, (), torch.float32)
    t[100] = float("nan")
    found = kernels.density(rays, ray, t, BOX, *where)
    assert found.isnan().nonzero().view(-1).tolist() == [100]
