"""Rays of pixels, and intervals: where a ray's samples begin or end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pixel_rays(c2w: Tensor, intrinsics: Tensor, pixel_center: float, pixel_index: Tensor, width: int) -> Tensor:
    """Rays [R, 6] of pixels: the camera's place and the unnormalised direction through each.

    c2w [3, 4], intrinsics [4] (fl_x, fl_y, cx, cy), pixel_index [R] int64 = row * width + column. Directions have the bits of
    LandMark's matrix product: a true division, then (x r0 rounded + y r1) rounded once, then - r2. The fused multiply-add is done
    in float64, which holds the product exactly.
    """
    row = torch.div(pixel_index, width, rounding_mode="floor")
    column = pixel_index - row * width
    x = (column.to(torch.float32) - intrinsics[2]).add_(pixel_center).div_(intrinsics[0])
    y = (row.to(torch.float32) - intrinsics[3]).add_(pixel_center).neg_().div_(intrinsics[1])
    rotation = c2w[:, :3]
    first = (x[:, None] * rotation[:, 0]).to(torch.float64)
    both = first.add_(y[:, None].to(torch.float64) * rotation[:, 1].to(torch.float64)).to(torch.float32)
    return torch.cat([c2w[:, 3].expand(both.shape[0], 3), both.sub_(rotation[:, 2])], dim=1)


def ray_hull(rays: Tensor, far: float, floor: float) -> Tensor:
    """t [R] at which each ray reaches the plane z = floor; `far` where it does not go down.

    rays: [R, 6] origin and unnormalised direction. As LandMark's sample_ray_within_hull: a camera below the floor gives a
    negative t, which is kept.
    """
    height = rays[:, 2] - floor
    slope = rays[:, 5]
    reach = -(height / slope)
    return torch.where(slope >= 0, torch.full_like(reach, far), reach)


def ray_box(rays: Tensor, box: Sequence[float], near: float, far: float) -> Tensor:
    """t [R] at which each ray enters the box (x0, y0, z0, x1, y1, z1), clamped to near..far.

    A direction component of 0 counts as 1e-6, as in LandMark's sample_ray.
    """
    origin, direction = rays[:, :3], rays[:, 3:]
    bounds = torch.tensor(box, dtype=rays.dtype, device=rays.device).view(2, 3)
    vector = torch.where(direction == 0, torch.full_like(direction, 1e-6), direction)
    upper = (bounds[1] - origin) / vector
    lower = (bounds[0] - origin) / vector
    return torch.minimum(upper, lower).amax(-1).clamp(near, far)
