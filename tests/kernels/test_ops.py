"""Schemas, shapes for tracing and argument checks of every op."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from landmark_batch import kernels
from landmark_batch.kernels import weighing  # noqa: F401  its op stands in PLAIN
from landmark_batch.kernels.library import PLAIN
from tests.kernels.conftest import BOX, blobs, random_rays


def arguments() -> dict[str, tuple[Any, ...]]:
    """Arguments of each raw op, small but not empty."""
    rays = random_rays(20)
    s = torch.linspace(0, 1, 30)
    extent = kernels.ray_hull(rays, 3.0, BOX[2])
    volume = blobs((9, 12, 13), 0.5)
    occupancy = list(kernels.pack_occupancy(volume))
    ray, t, delta = kernels.march(rays, extent, 0.05 * (1 - s), s, BOX, occupancy, BOX, 0.5)
    assert len(t) > 20
    generator = torch.Generator().manual_seed(0)
    planes = [torch.randn(4, 6 * r, 5 * r, 3, generator=generator) for r in (1, 2)]
    lines = [torch.randn(4, 4 * r, 3, generator=generator) for r in (1, 2)]
    field = (rays, ray, t, list(BOX), [2, 2], None, planes, lines, 2)
    composite = (torch.rand(len(t), generator=generator), ray, delta, 20, "softplus", -1.0, False, 25.0, 1e-3)
    weights, coloured = torch.ops.landmark_batch.composite(*composite)
    seen = ray[coloured]
    matrices = [
        torch.randn(8, 9 * 5 + 15, generator=generator),
        torch.randn(8, 8, generator=generator),
        torch.randn(3, 8, generator=generator),
    ]
    return {
        "pack_occupancy": (volume, 2),
        "pixel_rays": (torch.randn(3, 4, generator=generator), torch.tensor([30.0, 31.0, 8.0, 5.0]), 0.5, torch.arange(160), 16),
        "ray_hull": (rays, 3.0, -0.1),
        "ray_box": (rays, list(BOX), 0.1, 3.0),
        "march": (rays, extent, 0.05 * (1 - s), s, list(BOX), occupancy, list(BOX), 0.5),
        "density": (*field, None),
        "composite": composite,
        "weigh": (rays, ray, t, delta, 20, *field[3:], None, *composite[4:], 1e-7),
        "appearance": (*field, torch.randn(9, 6, generator=generator)),
        "decode": (torch.rand(len(seen), 9, generator=generator), rays, seen, matrices, [], 2, 2),
        "accumulate": (weights, t, ray, coloured, torch.rand(len(seen), 3, generator=generator), 20),
    }


def test_every_op_has_arguments_here() -> None:
    assert set(arguments()) == set(PLAIN)


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.landmark_batch, name).default, arguments()[name])


@pytest.mark.parametrize("name", list(PLAIN))
def test_the_reference_is_the_default_of_every_device(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"landmark_batch::{name}", "CompositeExplicitAutograd")


def test_wrappers_name_the_wrong_argument() -> None:
    rays, ray, t = random_rays(4), torch.zeros(2, dtype=torch.int32), torch.zeros(2)
    plane, line = torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match=r"rays has shape \[4, 5\], not \[any, 6\]"):
        kernels.ray_hull(rays[:, :5], 1.0, 0.0)
    with pytest.raises(TypeError, match=r"rays is torch\.float64"):
        kernels.ray_hull(rays.double(), 1.0, 0.0)
    with pytest.raises(ValueError, match="box has 3 numbers"):
        kernels.ray_box(rays, (0, 0, 0), 0.0, 1.0)
    with pytest.raises(TypeError, match=r"pixel_index is torch\.int32"):
        kernels.pixel_rays(torch.zeros(3, 4), torch.ones(4), 0.0, ray, 4)
    with pytest.raises(ValueError, match="width = 0"):
        kernels.pixel_rays(torch.zeros(3, 4), torch.ones(4), 0.0, ray.long(), 0)
    with pytest.raises(ValueError, match="base is empty"):
        kernels.march(rays, torch.zeros(4), torch.zeros(0), torch.zeros(0), BOX)
    with pytest.raises(ValueError, match="t has shape"):
        kernels.density(rays, ray, t[:1], BOX, (), None, [plane], [line], 1)
    with pytest.raises(ValueError, match=r"planes\[0\] has shape"):
        kernels.density(rays, ray, t, BOX, (2, 2), None, [plane], [line], 1)
    with pytest.raises(ValueError, match="one of each, for 1 or 3 dims"):
        kernels.density(rays, ray, t, BOX, (), None, [plane, plane], [line, line], 1)
    with pytest.raises(ValueError, match="not contiguous"):
        kernels.density(rays, ray, t, BOX, (), None, [plane.permute(0, 2, 1, 3)], [line], 1)
    with pytest.raises(ValueError, match="slots without a division"):
        kernels.density(rays, ray, t, BOX, (), torch.zeros(1, dtype=torch.int64), [plane], [line], 1)
    with pytest.raises(ValueError, match="activation = 'tanh'"):
        kernels.composite(t, ray, t, 4, activation="tanh", shift=0.0, nonlinear=False, scale=1.0, threshold=0.0)
    with pytest.raises(ValueError, match=r"weights\[0\] has shape"):
        matrices = [torch.zeros(8, 9), torch.zeros(8, 8), torch.zeros(3, 8)]
        kernels.decode(torch.zeros(2, 4), rays, ray, matrices, [], fea_pe=0, view_pe=0)
    with pytest.raises(ValueError, match="levels = -1"):
        kernels.pack_occupancy(torch.zeros(2, 2, 2, dtype=torch.bool), -1)
