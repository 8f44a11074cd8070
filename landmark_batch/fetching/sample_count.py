"""About how many samples of a frame survive: a frame's cost, known before it is rendered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from landmark_batch import kernels
from landmark_batch.model.sampling import Sampler

RAYS = 256  # of a frame: their samples take a few milliseconds
TESTED = 40_000  # samples of them in all, where rays have many


def estimate_samples(
    sampler: Sampler, pixel_center: float, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int
) -> int:
    """Samples of a frame inside box and mask, from those of a regular grid of rays that spans it.

    sampler: on the CPU. c2w: [3, 4]. intrinsics: (fl_x, fl_y, cx, cy) in pixels of a frame of width x height.
    """
    rays = max(16, min(RAYS, TESTED // len(sampler.tables[0])))
    columns = min(width, max(1, round((rays * width / height) ** 0.5)))
    rows = min(height, max(1, round(rays / columns)))
    # the middle of cell a of the grid is pixel (a + 0.5) W / columns - 0.5: the rays of a frame of columns x rows with another lens
    across, down = columns / width, rows / height
    focal_x, focal_y, cx, cy = (float(value) for value in intrinsics)
    lens = [focal_x * across, focal_y * down, (0.5 + cx - pixel_center) * across, (0.5 + cy - pixel_center) * down]
    with torch.inference_mode():
        pose = torch.from_numpy(np.asarray(c2w, dtype=np.float32)[:3, :4].copy())
        grid = kernels.pixel_rays(pose, torch.tensor(lens, dtype=torch.float32), 0.5, torch.arange(columns * rows), columns)
        survived = len(sampler.march(grid))
    return int(survived * width * height / (columns * rows) + 0.5)
