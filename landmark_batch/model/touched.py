"""Which blocks a frame really touches: every sample of every ray, with the arithmetic that rendering uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.kernels.reference.field import sample_blocks
from landmark_batch.model.pool import TilePool
from landmark_batch.model.sampling import Sampler, Samples, flat_box
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

    def look(tile: Tile) -> list[int]:
        with torch.inference_mode():
            rays = pixel_rays(pose, lens, pixel_center, tile.pixels(width, device), width)
            return present_blocks([blocks_of(rays, sampler.march(rays), config, division)])

    pool = TilePool(torch.get_num_threads() if device.type == "cpu" else 0)
    try:
        tiles = frame_tiles(width, height, len(sampler.tables[0]), device.type)
        return {block for blocks in pool.map(look, tiles) for block in blocks}
    finally:
        pool.close()


def blocks_of(rays: Tensor, samples: Samples, config: SceneConfig, division: Sequence[int]) -> Tensor:
    """Block [M] int64 of each sample, -1 for none. division: as for `touched_blocks`."""
    return sample_blocks(rays, samples.ray, samples.t, flat_box(config.aabb), division, cut=config.layout != "multi-block")


def present_blocks(blocks: Iterable[Tensor]) -> list[int]:
    """Those that any of the samples lies in, ascending. blocks: [M] int64 each, -1 for none."""
    found = [torch.unique(part) for part in blocks]
    return sorted({int(block) for part in found for block in part.tolist() if block >= 0})
