"""`weigh` is density and composite with the same bits, until nothing more can be seen."""

from __future__ import annotations

import pytest
import torch

from landmark_batch import kernels
from landmark_batch.kernels.weighing import STOP, weigh
from tests.kernels.compiled.check_field import field
from tests.kernels.conftest import BOX, random_rays

ARGUMENTS = {"activation": "softplus", "shift": -1.0, "nonlinear": False, "scale": 25.0, "threshold": 1e-3}


@pytest.mark.parametrize("count", [0, 1, 16, 700])
@pytest.mark.parametrize("channels", [3, 8, 24])
@pytest.mark.parametrize("rays_with_samples", [3, 90])
def test_the_bits_of_the_two_apart(count: int, channels: int, rays_with_samples: int) -> None:
    rays = random_rays(100)
    generator = torch.Generator().manual_seed(count)
    ray = (torch.randint(0, rays_with_samples, (count,), generator=generator) + 5).sort().values.to(torch.int32)
    t = torch.rand(count, generator=generator)
    delta = torch.rand(count, generator=generator) * 0.02
    where = field("odd", channels, 1, (2, 3), torch.float32)
    basis = torch.randn(1, 2 * channels, generator=generator)
    for weights_of in (None, basis):
        feature = kernels.density(rays, ray, t, BOX, *where, weights_of)
        want, want_coloured = kernels.composite(feature, ray, delta, 100, **ARGUMENTS)  # type: ignore[arg-type]
        for stop in (0.0, STOP, 0.3):
            got, coloured = weigh(rays, ray, t, delta, 100, BOX, *where, weights_of, **ARGUMENTS, stop=stop)  # type: ignore[arg-type]
            same = got == want
            assert torch.equal(got[~same], torch.zeros_like(got[~same])), "a weight is the same or 0"
            if stop == 0.0:
                assert bool(same.all())
            assert float(want[~same].max() if bool((~same).any()) else 0.0) <= stop
            assert torch.equal(coloured, (got > 1e-3).nonzero().view(-1))
            stopped = kernels.composite(feature, ray, delta, 100, **ARGUMENTS, stop=stop)  # type: ignore[arg-type]
            assert torch.equal(stopped[0], got) and torch.equal(stopped[1], coloured)
            if stop <= STOP:
                assert torch.equal(coloured, want_coloured)


def test_a_ray_ends_behind_the_sample_that_takes_the_light() -> None:
    feature, delta = torch.tensor([1.0, 9.0, 1.0, 1.0, float("nan"), 1.0]), torch.full((6,), 0.1)
    ray = torch.tensor([0, 0, 0, 1, 2, 2], dtype=torch.int32)
    values = {**ARGUMENTS, "activation": "relu", "shift": 0.0, "scale": 10.0}
    every, _ = kernels.composite(feature, ray, delta, 3, **values)  # type: ignore[arg-type]
    got, coloured = kernels.composite(feature, ray, delta, 3, **values, stop=1e-3)  # type: ignore[arg-type]
    assert got[:4].tolist() == [*every[:2].tolist(), 0.0, float(every[3])] and bool(got[4:].isnan().all())
    assert float(every[2]) > 0 and coloured.tolist() == [0, 1, 3]


def test_a_stopped_ray_leaves_absent_blocks_alone() -> None:
    """What nobody sees need not be in memory; what is seen must be."""
    rays = torch.tensor([[-1.0, -0.8, 0.0, 2.2, 1.7, 0.0]])
    t = torch.tensor([0.1, 0.2, 0.9])  # the last lies in another block
    ray = torch.zeros(3, dtype=torch.int32)
    division, _, planes, lines, resolutions = field("odd", 4, 1, (2, 2), torch.float32)
    planes = [torch.full_like(plane, 100.0) for plane in planes]
    lines = [torch.ones_like(line) for line in lines]
    slots = torch.tensor([0, 1, 2, -1])
    arguments = (rays, ray, t, torch.full((3,), 0.1), 1, BOX, division, slots, planes, lines, resolutions)
    weights, coloured = weigh(*arguments, **ARGUMENTS)  # type: ignore[arg-type]
    assert coloured.tolist() == [0] and weights[2] == 0
    with pytest.raises(RuntimeError, match="a sample lies in a block that is not in memory"):
        weigh(*arguments, **ARGUMENTS, stop=0.0)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_opcheck() -> None:
    rays = random_rays(10)
    ray, t = torch.arange(10, dtype=torch.int32), torch.full((10,), 0.3)
    division, slots, planes, lines, resolutions = field("odd", 4, 1, (), torch.float32)
    arguments = (
        rays,
        ray,
        t,
        t,
        10,
        list(BOX),
        list(division),
        slots,
        planes,
        lines,
        resolutions,
        None,
        "relu",
        0.0,
        False,
        25.0,
        1e-3,
        0.0,
    )
    torch.library.opcheck(torch.ops.landmark_batch.weigh.default, arguments)
