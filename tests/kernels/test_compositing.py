"""Weights and sums along rays: by hand, against the dense formula, and in sample order."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from landmark_batch import kernels


def composite(feature: Tensor, ray: Tensor, delta: Tensor, count: int, **changes: object) -> tuple[Tensor, Tensor]:
    values = {"activation": "relu", "shift": 0.0, "nonlinear": False, "scale": 1.0, "threshold": 0.0} | changes
    return kernels.composite(feature, ray.to(torch.int32), delta, count, **values)  # type: ignore[arg-type]


def test_two_rays_by_hand() -> None:
    feature = torch.tensor([1.0, 2.0, -3.0, 0.5])
    ray = torch.tensor([0, 0, 2, 2])
    delta = torch.tensor([0.5, 0.25, 1.0, 1.0])
    weights, coloured = composite(feature, ray, delta, 4, scale=2.0, threshold=0.01)
    first = 1 - math.exp(-1.0)
    want = [first, (1 - math.exp(-1.0)) * (1 - first + 1e-10), 0.0, 1 - math.exp(-1.0)]
    torch.testing.assert_close(weights, torch.tensor(want), rtol=1e-6, atol=0)
    assert coloured.tolist() == [0, 1, 3]
    rgb = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.2, 0.4, 0.6]])
    colour, depth, alpha = kernels.accumulate(weights, torch.tensor([1.0, 2.0, 3.0, 4.0]), ray.to(torch.int32), coloured, rgb, 4)
    torch.testing.assert_close(colour[0], torch.tensor([want[0], want[1], 0.5 * (want[0] + want[1])]))
    torch.testing.assert_close(depth, torch.tensor([want[0] + 2 * want[1], 0.0, 4 * want[3], 0.0]))
    torch.testing.assert_close(alpha, torch.tensor([want[0] + want[1], 0.0, want[3], 0.0]))
    assert colour[1].tolist() == colour[3].tolist() == [0.0, 0.0, 0.0]


def test_threshold_is_strict() -> None:
    weights, coloured = composite(torch.tensor([1.0, 1.0]), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), 2)
    assert weights[1] == 0
    assert coloured.tolist() == [0]


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("nonlinear", [False, True])
def test_against_the_dense_formula(activation: str, nonlinear: bool) -> None:
    """Empty samples in between, as a dense renderer has them, change nothing: their factor is 1."""
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(30, 50, generator=generator) * 4
    delta = torch.rand(30, 50, generator=generator) * 0.1
    alive = torch.rand(30, 50, generator=generator) < 0.4
    alive[7] = False
    passed = feature.relu() if nonlinear else feature
    sigma = torch.where(alive, F.softplus(passed - 1) if activation == "softplus" else passed.relu(), 0)
    alpha = 1 - torch.exp(-sigma * (delta * 25))
    kept = torch.cat([torch.ones(30, 1), 1 - alpha + 1e-10], dim=1).cumprod(1)[:, :-1]
    ray = alive.nonzero()[:, 0]
    weights, coloured = composite(
        feature[alive], ray, delta[alive], 30, activation=activation, shift=-1.0, nonlinear=nonlinear, scale=25.0, threshold=1e-3
    )
    torch.testing.assert_close(weights, (alpha * kept)[alive], rtol=1e-5, atol=1e-7)
    assert torch.equal(coloured, (weights > 1e-3).nonzero().view(-1))


def test_sums_run_in_sample_order() -> None:
    """Float32 addition one after another, no pairs, no trees: 1 + 2^-24 + ... stays 1, the other way round it does not."""
    tiny = 2.0**-24
    values = torch.tensor([1.0] + [tiny] * 64 + [tiny] * 64 + [1.0])
    ray = torch.tensor([0] * 65 + [1] * 65, dtype=torch.int32)
    every = torch.arange(130)
    colour, depth, alpha = kernels.accumulate(values, torch.ones(130), ray, every, torch.ones(130, 3), 2)
    forwards, backwards = 1.0, 1.0 + 64 * tiny
    assert alpha.tolist() == depth.tolist() == [forwards, backwards]
    assert colour.tolist() == [[forwards] * 3, [backwards] * 3]


def test_a_ray_has_the_same_bits_in_any_company() -> None:
    generator = torch.Generator().manual_seed(5)
    counts = torch.randint(0, 40, (64,), generator=generator)
    ray = torch.repeat_interleave(torch.arange(64), counts)
    feature, delta = torch.randn(len(ray), generator=generator), torch.rand(len(ray), generator=generator)
    settings = {"activation": "softplus", "shift": -1.0, "scale": 5.0}
    whole, _ = composite(feature, ray, delta, 64, **settings)
    for chosen in (10, 33, 63):
        mine = ray == chosen
        alone, _ = composite(feature[mine], torch.zeros(int(mine.sum())), delta[mine], 1, **settings)
        assert torch.equal(whole[mine], alone)


def test_nan_is_not_hidden() -> None:
    weights, coloured = composite(torch.tensor([float("nan"), 1.0]), torch.tensor([0, 1]), torch.ones(2), 2)
    assert bool(weights[0].isnan())
    assert coloured.tolist() == [1]
    _, depth, alpha = kernels.accumulate(weights, torch.ones(2), torch.tensor([0, 1], dtype=torch.int32), coloured, torch.ones(1, 3), 2)
    assert bool(alpha[0].isnan()) and bool(depth[0].isnan()) and bool(alpha[1].isfinite())


def test_no_samples() -> None:
    weights, coloured = composite(torch.zeros(0), torch.zeros(0), torch.zeros(0), 3)
    assert weights.shape == coloured.shape == (0,)
    colour, depth, alpha = kernels.accumulate(weights, torch.zeros(0), torch.zeros(0, dtype=torch.int32), coloured, torch.zeros(0, 3), 3)
    assert colour.tolist() == [[0.0] * 3] * 3 and depth.tolist() == alpha.tolist() == [0.0] * 3
