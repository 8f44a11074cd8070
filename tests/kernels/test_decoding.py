"""The decoder against the perceptron written out, and its independence of row counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels.reference.decoding import positional_encoding
from landmark_batch.kernels.reference.products import CPU_ROWS
from tests.kernels.conftest import random_rays


def layers(width: int, hidden: int = 16, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(hidden, width), (hidden, hidden), (3, hidden)]
    return [torch.randn(*s, generator=generator) * s[1] ** -0.5 for s in sizes], [torch.randn(s[0], generator=generator) for s in sizes]


def test_positional_encoding_order() -> None:
    """All sines then all cosines, frequency fastest inside a channel."""
    x = torch.tensor([[0.3, -0.7]])
    angles = torch.tensor([0.3, 0.6, 1.2, -0.7, -1.4, -2.8])
    torch.testing.assert_close(positional_encoding(x, 3)[0], torch.cat([angles.sin(), angles.cos()]))
    assert positional_encoding(x, 0).shape == (1, 0)


@pytest.mark.parametrize("fea_pe", [0, 2])
@pytest.mark.parametrize("view_pe", [-1, 0, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_against_the_perceptron_written_out(fea_pe: int, view_pe: int, bias: bool) -> None:
    rays = random_rays(12)
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(77, 9, generator=generator)
    ray = torch.randint(0, 12, (77,), generator=generator).sort().values.to(torch.int32)
    view = rays[ray.long(), 3:]
    columns = [features, *([view] if view_pe >= 0 else [])]
    for value, octaves in ((features, fea_pe), (view, view_pe)):
        if octaves > 0:
            angles = torch.stack([value * 2.0**f for f in range(octaves)], dim=-1).flatten(1)
            columns += [angles.sin(), angles.cos()]
    joined = torch.cat(columns, dim=1)
    weights, biases = layers(joined.shape[1])
    hidden = joined
    for i, weight in enumerate(weights):
        hidden = hidden @ weight.T + (biases[i] if bias else 0)
        hidden = hidden.relu() if i < 2 else hidden.sigmoid()
    got = kernels.decode(features, rays, ray, weights, biases if bias else [], fea_pe=fea_pe, view_pe=view_pe)
    torch.testing.assert_close(got, hidden, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("one_thread")
def test_a_colour_has_the_same_bits_wherever_it_comes() -> None:
    rays = random_rays(30)
    generator = torch.Generator().manual_seed(2)
    count = 2 * CPU_ROWS + 17
    features = torch.randn(count, 27, generator=generator)
    ray = torch.randint(0, 30, (count,), generator=generator).sort().values.to(torch.int32)
    weights, biases = layers(27 * 5 + 15, hidden=128)
    whole = kernels.decode(features, rays, ray, weights, biases, fea_pe=2, view_pe=2)
    for start, stop in ((0, 1), (5, 6), (1000, 1100), (3, count)):
        part = kernels.decode(features[start:stop].contiguous(), rays, ray[start:stop].contiguous(), weights, biases, fea_pe=2, view_pe=2)
        assert torch.equal(part, whole[start:stop])


def test_no_samples() -> None:
    weights, biases = layers(4 * 3 + 3)
    got = kernels.decode(torch.zeros(0, 4), random_rays(2), torch.zeros(0, dtype=torch.int32), weights, biases, fea_pe=1, view_pe=0)
    assert got.shape == (0, 3)
