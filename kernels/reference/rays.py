"""Rays and intervals: where a ray's samples begin or end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
