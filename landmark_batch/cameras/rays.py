"""Rays of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pixel_rays(c2w: Tensor, intrinsics: Sequence[float] | Tensor, pixel_center: float, pixel_index: Tensor, width: int) -> Tensor:
    """Rays [R, 6] float32 (origin, unnormalised direction) of pixels.

    c2w: [3, 4] float32, camera to world, OpenGL axes. intrinsics: (fl_x, fl_y, cx, cy) in pixels. pixel_index: [R] int64,
    row * width + column. Pixel (i, j) = (column, row) looks along ((i - cx + pixel_center) / fl_x,
    -(j - cy + pixel_center) / fl_y, -1); LandMark has cx = W/2, cy = H/2 and pixel_center = 0. The parameter t along the
    direction is the distance along the view axis, because the direction is not normalised.

    In dense sampling the first sample of a ray lies on the face of the scene's box, and the last bit of the direction decides
    whether it is inside. So directions have the bits of LandMark's matrix product: a true division, then
    (x r0 rounded + y r1) rounded once, then - r2. The fused multiply-add is done in float64, which holds the product exactly.
    """
    lens = torch.as_tensor(intrinsics, dtype=torch.float32, device=pixel_index.device)
    row = torch.div(pixel_index, width, rounding_mode="floor")
    column = pixel_index - row * width
    x = (column.to(torch.float32) - lens[2]).add_(pixel_center).div_(lens[0])
    y = (row.to(torch.float32) - lens[3]).add_(pixel_center).neg_().div_(lens[1])
    rotation = c2w[:, :3]
    first = (x[:, None] * rotation[:, 0]).to(torch.float64)
    both = first.add_(y[:, None].to(torch.float64) * rotation[:, 1].to(torch.float64)).to(torch.float32)
    return torch.cat([c2w[:, 3].expand(both.shape[0], 3), both.sub_(rotation[:, 2])], dim=1)
