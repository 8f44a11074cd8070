"""Compiled composite, decode and accumulate against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels import reference
from tests.kernels.conftest import random_rays


def along_rays(count: int, rays: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """feature, ray, delta: some rays without samples."""
    generator = torch.Generator().manual_seed(seed)
    ray = torch.randint(0, rays, (count,), generator=generator).sort().values.to(torch.int32)
    return torch.randn(count, generator=generator) * 6, ray, torch.rand(count, generator=generator) * 0.05


@pytest.mark.parametrize(("activation", "shift", "nonlinear"), [("softplus", -10.0, False), ("softplus", 3.0, True), ("relu", 0.0, False)])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 2000])
def test_composite(activation: str, shift: float, nonlinear: bool, count: int) -> None:
    feature, ray, delta = along_rays(count, 101)
    want, want_coloured = reference.composite(feature, ray, delta, 101, activation, shift, nonlinear, 25.0, 1e-3)
    got, coloured = kernels.composite(
        feature, ray, delta, 101, activation=activation, shift=shift, nonlinear=nonlinear, scale=25.0, threshold=1e-3
    )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=3e-7)
    assert torch.equal(coloured, (got > 1e-3).nonzero().view(-1))
    flipped = len(set(coloured.tolist()) ^ set(want_coloured.tolist()))
    assert flipped <= 0.001 * count, f"{flipped} of {count} samples cross the threshold"


def test_softplus_over_its_range() -> None:
    """One sample a ray, alpha = 1 - exp(-softplus(x)): relative accuracy where alpha is small, too."""
    x = torch.cat([torch.linspace(-80, 30, 5000), torch.tensor([19.999, 20.0, 20.001, 0.0, -0.0])])
    ray = torch.arange(len(x), dtype=torch.int32)
    got, _ = kernels.composite(
        x, ray, torch.full_like(x, 0.01), len(x), activation="softplus", shift=0.0, nonlinear=False, scale=1.0, threshold=0.0
    )
    want = 1 - torch.exp(-torch.nn.functional.softplus(x.double()) * 0.01)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=1.2e-7)  # 1 - exp(..) keeps half a unit of 1


def test_values_that_are_not_finite_stay() -> None:
    feature, ray, delta = along_rays(64, 8)
    feature[10], feature[20] = float("nan"), float("inf")
    want, _ = reference.composite(feature, ray, delta, 8, "relu", 0.0, False, 25.0, 1e-3)
    got, _ = kernels.composite(feature, ray, delta, 8, activation="relu", shift=0.0, nonlinear=False, scale=25.0, threshold=1e-3)
    assert torch.equal(got.isnan(), want.isnan()) and got.isnan().any()


@pytest.mark.parametrize("count", [0, 1, 500])
def test_accumulate_has_the_reference_s_bits(count: int) -> None:
    feature, ray, t = along_rays(count, 60)
    weights = feature.abs() / 10
    coloured = (weights > 0.3).nonzero().view(-1)
    rgb = torch.rand(len(coloured), 3, generator=torch.Generator().manual_seed(0))
    want = reference.accumulate(weights, t, ray, coloured, rgb, 60)
    got = kernels.accumulate(weights, t, ray, coloured, rgb, 60)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


SHAPES = [
    (27, 2, 2, 128, 128),
    (27, 1, 1, 64, 64),
    (9, 0, -1, 16, 7),
    (5, 6, 4, 33, 129),
    (27, 6, 4, 128, 128),
    (1, 0, 0, 1, 1),
    (3, 1, -1, 200, 5),
]


def decoder(features: int, fea_pe: int, view_pe: int, first: int, second: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(first)
    width = features * (1 + 2 * fea_pe) + (3 + 6 * view_pe if view_pe >= 0 else 0)
    shapes = [(first, width), (second, first), (3, second)]
    return [torch.randn(s, generator=generator) / s[1] ** 0.5 for s in shapes], [torch.randn(s[0], generator=generator) for s in shapes]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode(shape: tuple[int, int, int, int, int], bias: bool) -> None:
    features_in, fea_pe, view_pe = shape[:3]
    weights, biases = decoder(*shape)
    rays = random_rays(50)
    generator = torch.Generator().manual_seed(1)
    for count in (0, 1, 47, 48, 49, 400):
        features = torch.randn(count, features_in, generator=generator) * 2
        ray = torch.randint(0, 50, (count,), generator=generator).sort().values.to(torch.int32)
        want = reference.decode(features, rays, ray, weights, biases if bias else [], fea_pe, view_pe)
        got = kernels.decode(features, rays, ray, weights, biases if bias else [], fea_pe=fea_pe, view_pe=view_pe)
        torch.testing.assert_close(got, want, rtol=0, atol=3e-6)
        parts = [
            kernels.decode(features[p], rays, ray[p], weights, biases if bias else [], fea_pe=fea_pe, view_pe=view_pe)
            for p in (slice(0, 5), slice(5, 60), slice(60, None))
        ]
        assert torch.equal(torch.cat(parts), got), "a sample's bits depend on its batch"


def test_sines_of_any_angle() -> None:
    """A decoder that passes one encoded column on: sin and cos to 2e-7, also far from 0."""
    x = torch.cat([torch.linspace(-7, 7, 1000), torch.linspace(-4e4, 4e4, 777), torch.tensor([0.0, 1e6, -3e8, 1e30])])
    ray = torch.zeros(len(x), dtype=torch.int32)
    out = torch.zeros(3, 2)
    out[0], out[1] = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 0.0])
    for column, function in ((1, torch.sin), (2, torch.cos)):
        first = torch.zeros(2, 3)
        first[0, column], first[1, column] = 1.0, -1.0  # positive and negative part, since ReLU follows
        got = kernels.decode(x[:, None], random_rays(1), ray, [first, torch.eye(2), out], [], fea_pe=1, view_pe=-1)[:, 0]
        want = torch.sigmoid(function(x.double()))
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-7)
