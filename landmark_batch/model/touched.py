"""Which blocks a frame really touches: every sample of every ray, with the arithmetic that rendering uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.kernels.reference.field import _enter_blocks, _find_blocks, _normalise
from landmark_batch.model.pool import TilePool
from landmark_batch.model.sampling import Sampler, flat_box
from landmark_batch.model.tiles import Tile, frame_tiles
from landmark_batch.scene.weights import SceneConfig


def touched_blocks(
    sampler: Sampler,
    config: SceneConfig,
    division: tuple[int, int],
    c2w: NDArray[np.floating],
    intrinsics: Sequence[float],
    width: int,
    height: int,
    *,
    pixel_center: float,
    device: torch.device | str = "cpu",
) -> set[int]:
    """Blocks that the frame's surviving samples lie in, in the renderer's own tiles and threads, so that not even a last bit differs.

    sampler: on `device`. division: blocks along x and y; of a 'multi-block' scene its own, of a 'single' one that of the cut.
    c2w: [3, 4]. intrinsics: (fl_x, fl_y, cx, cy) in pixels.
    """
    device = torch.device(device)
    pose = torch.as_tensor(np.asarray(c2w, dtype=np.float32)[:3, :4]).to(device)
    lens = torch.tensor([float(value) for value in intrinsics], dtype=torch.float32, device=device)
    box = flat_box(config.aabb)

    def look(tile: Tile) -> list[int]:
        with torch.inference_mode():
            rays = pixel_rays(pose, lens, pixel_center, tile.pixels(width, device), width)
            samples = sampler.march(rays)
            unit = _normalise(rays, samples.ray, samples.t, box)
            touched = torch.zeros(division[0] * division[1], dtype=torch.bool, device=device)
            touched[_blocks_of(unit, config.layout, division)] = True
            found: list[int] = touched.nonzero().view(-1).tolist()
            return found

    pool = TilePool(torch.get_num_threads() if device.type == "cpu" else 0)
    try:
        tiles = frame_tiles(width, height, len(sampler.tables[0]), device.type)
        return {block for blocks in pool.map(look, tiles) for block in blocks}
    finally:
        pool.close()


def _blocks_of(unit: Tensor, layout: str, division: tuple[int, int]) -> Tensor:
    """Blocks [K] int64 of the samples at `unit` [3, M] in [-1, 1] that have one."""
    if layout == "multi-block":
        block, exists = _enter_blocks(unit, division)
        return block[exists].to(torch.int64)
    return _find_blocks(unit, division).to(torch.int64)
