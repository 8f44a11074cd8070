"""The op that makes the image data of a PNG. Compiled for CUDA; elsewhere the reference, which is slow."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import NAMESPACE
from .reference import deflating

MOST_ROWS, MOST_BYTES = 2**20, 2**31
_SCHEMA = "(Tensor pixels, Tensor(a!) out) -> ()"


def _reference(pixels: Tensor, out: Tensor) -> None:
    """pixels [H, W, 3] uint8. out [N] uint8, N a multiple of 4, 256 or more: see `reference.deflating.png_stream`."""
    made = out.cpu().numpy()
    deflating.png_stream(pixels.cpu().numpy(), made)
    out.copy_(torch.from_numpy(made))


def _no_shape(*_: object) -> None:
    return None


torch.library.define(f"{NAMESPACE}::png_stream", _SCHEMA)
torch.library.impl(f"{NAMESPACE}::png_stream", "default", _reference)
torch.library.register_fake(f"{NAMESPACE}::png_stream", _no_shape)

png_stream = torch.ops.landmark_batch.png_stream


def makes_pictures(height: int, width: int) -> bool:
    """Whether kernels are loaded that make them, of so many pixels."""
    compiled = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::png_stream", "CUDA")
    fits = 0 < height < MOST_ROWS and 3 * height * width < MOST_BYTES
    return compiled and fits and bool(torch.ops.landmark_batch.png_fits(width))
