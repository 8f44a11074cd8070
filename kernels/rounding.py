"""The op that takes a frame off its device, rounded: floats to what a store holds, and whether one cannot be stored. Compiled for CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .library import NAMESPACE

TOPS = {torch.uint8: 255.0, torch.int16: 65535.0}  # int16 holds unsigned values of its width: not every device computes with those
_SCHEMA = "(Tensor[] planes, Tensor?[] alphas, float[] limits, Tensor(a!)[] places, Tensor(b!) wrong, Tensor(c!)? picture, int index) -> ()"


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values in a type of TOPS: floor(v · top + 0.5) of v clamped to 0..1; or in another float type."""
    top = TOPS.get(dtype)
    if top is None:
        return values.to(dtype)
    levels = values.clamp(0.0, 1.0).mul_(top).add_(0.5)  # casting cuts off: floor
    return levels.to(dtype) if dtype == torch.uint8 else levels.to(torch.int32).to(dtype)


def _quantise(values: Tensor, alpha: Tensor | None, limit: float, out: Tensor, wrong: Tensor, index: int) -> None:
    """values [..., C] float32. alpha [...]: joins as the last channel; None. limit: the largest magnitude that can be stored.

    out [..., C or C + 1]: gets them `rounded` to its type, uint8, int16, float16 or float32. wrong [n] int32: [index] becomes 1 where a
    value is not a number or past the limit.
    """
    joined = values if alpha is None else torch.cat([values, alpha[..., None]], dim=-1)
    if joined.numel():
        wrong[index] |= ~(joined.abs().amax() <= limit)
    out.copy_(rounded(joined, out.dtype).view(out.shape))


def _reference(
    planes: Sequence[Tensor],
    alphas: Sequence[Tensor | None],
    limits: Sequence[float],
    places: Sequence[Tensor],
    wrong: Tensor,
    picture: Tensor | None,
    index: int,
) -> None:
    """planes, alphas, limits: of each output, values, alpha and limit of `_quantise`. places: get them, in their types. wrong [n] int32:
    its words.

    On a CUDA device all is done by its current stream, into pinned host memory. picture: gets `png_stream` of output `index`, which is
    [H, W, 3] uint8, if kernels are loaded that make it and the device has the memory for it.
    """
    device = planes[0].device
    words = torch.zeros(len(planes), dtype=torch.int32, device=device)
    for i, (values, alpha, limit, place) in enumerate(zip(planes, alphas, limits, places, strict=True)):
        for plane in (values, alpha):
            if plane is not None and plane.is_cuda:
                plane.record_stream(torch.cuda.current_stream(device))
        out = torch.empty(place.shape, dtype=place.dtype, device=device)
        _quantise(values, alpha, limit, out, words, i)
        place.copy_(out, non_blocking=True)
    wrong.copy_(words, non_blocking=True)


def _no_shape(*_: object) -> None:
    return None


torch.library.define(f"{NAMESPACE}::read_back", _SCHEMA)
torch.library.impl(f"{NAMESPACE}::read_back", "default", _reference)
torch.library.register_fake(f"{NAMESPACE}::read_back", _no_shape)

read_back = torch.ops.landmark_batch.read_back
