"""Emission and absorption along rays: weights of samples, and their sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 64  # elements: whole vectors on every CPU, so that exp and log1p never take their scalar tail


def composite(
    feature: Tensor,
    ray: Tensor,
    delta: Tensor,
    count: int,
    activation: str,
    shift: float,
    nonlinear: bool,
    scale: float,
    threshold: float,
    stop: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Weights [M] of all samples and the indices [C] int64 of those above `threshold`.

    feature [M]: of `density`, all channels summed; ray [M] int32 ascending below `count`; delta [M]. activation: 'softplus' of
    feature + shift, or 'relu'; nonlinear: the feature passes a ReLU first. alpha = 1 - exp(-sigma * delta * scale), weight =
    alpha * product over earlier samples of (1 - alpha + 1e-10), formed in sample order. Without the early stop: `stop` is not looked at.
    """
    samples = feature.shape[0]
    size = -(-samples // PAD) * PAD
    sigma = F.pad(feature, (0, size - samples))
    if nonlinear:
        sigma = sigma.relu_()
    sigma = F.softplus(sigma.add_(shift)) if activation == "softplus" else sigma.relu_()
    alpha = 1.0 - torch.exp(-sigma * F.pad(delta * scale, (0, size - samples)))
    alpha = alpha[:samples]

    start = _starts(ray, count)
    ray = ray.to(torch.int64)
    rank = torch.arange(samples, device=ray.device) - start.index_select(0, ray)
    longest = int(start.diff().amax()) if samples else 0
    passed = torch.ones(longest + 1, count, dtype=alpha.dtype, device=alpha.device)
    place = rank * count + ray
    passed.view(-1)[place + count] = (1.0 - alpha).add_(1e-10)
    transmittance = passed.cumprod(0).view(-1).index_select(0, place)
    weights = alpha * transmittance
    return weights, (weights > threshold).nonzero().view(-1)


def accumulate(weights: Tensor, t: Tensor, ray: Tensor, coloured: Tensor, rgb: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over each ray's samples, in their order: rgb [R, 3] of weight * rgb, depth [R] of weight * t, alpha [R] of weight.

    weights, t [M]; ray [M] int32 ascending below `count` = R; coloured [C] int64 ascending into M, rgb [C, 3] their colours: a
    sample that has none adds black.
    """
    depth_alpha = _sum_by_ray(torch.stack([weights * t, weights], dim=1), ray, count)
    colour = _sum_by_ray(rgb * weights.index_select(0, coloured)[:, None], ray.index_select(0, coloured), count)
    return colour, depth_alpha[:, 0].contiguous(), depth_alpha[:, 1].contiguous()


def _starts(ray: Tensor, count: int) -> Tensor:
    """Index [count + 1] of each ray's first sample."""
    return torch.searchsorted(ray, torch.arange(count + 1, dtype=ray.dtype, device=ray.device))


def _sum_by_ray(values: Tensor, ray: Tensor, count: int) -> Tensor:
    """values [M, D] summed over the samples of each ray, one after another: [count, D]. D > 1 keeps CUDA on its serial kernel."""
    if values.shape[0] == 0:
        return values.new_zeros(count, values.shape[1])
    return torch.segment_reduce(values, "sum", offsets=_starts(ray, count), axis=0, unsafe=True, initial=0)
