"""Rays of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from landmark_batch import kernels


def pixel_rays(c2w: Tensor, intrinsics: Sequence[float] | Tensor, pixel_center: float, pixel_index: Tensor, width: int) -> Tensor:
    """Rays [R, 6] float32 (origin, unnormalised direction) of pixels.

    c2w: [3, 4] float32, camera to world, OpenGL axes. intrinsics: (fl_x, fl_y, cx, cy) in pixels. pixel_index: [R] int64,
    row * width + column. Pixel (i, j) = (column, row) looks along ((i - cx + pixel_center) / fl_x,
    -(j - cy + pixel_center) / fl_y, -1); LandMark has cx = W/2, cy = H/2 and pixel_center = 0. The parameter t along the
    direction is the distance along the view axis, because the direction is not normalised.

    In dense sampling the first sample of a ray lies on the face of the scene's box, and the last bit of the direction decides
    whether it is inside, so directions have the bits of LandMark's own.
    """
    lens = torch.as_tensor(intrinsics, dtype=torch.float32, device=pixel_index.device)
    return kernels.pixel_rays(c2w, lens, pixel_center, pixel_index, width)
