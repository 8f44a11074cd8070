"""The op that rounds a frame: floats to what a store holds, and whether a value cannot be stored. Compiled for CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import NAMESPACE

TOPS = {torch.uint8: 255.0, torch.int16: 65535.0}  # int16 holds unsigned values of its width: not every device computes with those
_SCHEMA = "(Tensor values, Tensor? alpha, float limit, Tensor(a!) out, Tensor(b!) wrong, int index) -> ()"


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values in a type of TOPS: floor(v · top + 0.5) of v clamped to 0..1; or in another float type."""
    top = TOPS.get(dtype)
    if top is None:
        return values.to(dtype)
    levels = values.clamp(0.0, 1.0).mul_(top).add_(0.5)  # casting cuts off: floor
    return levels.to(dtype) if dtype == torch.uint8 else levels.to(torch.int32).to(dtype)


def _reference(values: Tensor, alpha: Tensor | None, limit: float, out: Tensor, wrong: Tensor, index: int) -> None:
    """values [..., C] float32. alpha [...]: joins as the last channel; None. limit: the largest magnitude that can be stored.

    out [..., C or C + 1]: gets them `rounded` to its type, uint8, int16, float16 or float32. wrong [n] int32: [index] becomes 1 where a
    value is not a number or past the limit.
    """
    joined = values if alpha is None else torch.cat([values, alpha[..., None]], dim=-1)
    if joined.numel():
        wrong[index] |= ~(joined.abs().amax() <= limit)
    out.copy_(rounded(joined, out.dtype).view(out.shape))


def _no_shape(*_: object) -> None:
    return None


torch.library.define(f"{NAMESPACE}::quantise", _SCHEMA)
torch.library.impl(f"{NAMESPACE}::quantise", "default", _reference)
torch.library.register_fake(f"{NAMESPACE}::quantise", _no_shape)

quantise = torch.ops.landmark_batch.quantise
