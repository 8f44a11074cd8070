"""What a render takes in memory, before anything is loaded."""

from __future__ import annotations

import math

from landmark_batch.model.settings import RenderSettings
from landmark_batch.model.tiles import tile_side
from landmark_batch.scene.weights import SceneConfig

MARCH_BYTES = 72  # a sample of a tile: t, three coordinates, mask cell, flags, and what is in hand
SURVIVOR_BYTES = 120  # a survivor: ray, t, delta, feature, weight and compositing's temporaries
COLOURED_BYTES = 112  # a survivor that is coloured: all of its lists, twice where they are copied; its features come on top
CHUNK_BYTES = 5 * 2**23  # interpolation and decoder work on a fixed number of samples at a time (CPU)
CUDA_CHUNK_BYTES = 2**30


def estimate_memory(
    config: SceneConfig,
    settings: RenderSettings,
    width: int,
    height: int,
    *,
    device: str = "cpu",
    threads: int = 1,
    tensor_parallel: int = 1,
) -> int:
    """Bytes that a worker holds on its device while it renders: the scene, a frame and the tiles in flight.

    A tile is taken at its worst: every sample survives and is coloured. A mask usually leaves a tenth. The interpreter and torch
    themselves (about 300 MB, on a GPU its context) come on top. threads: of a CPU worker. tensor_parallel: ranks that share the
    scene's channels; then of one of them.
    """
    return (
        scene_memory(config, settings, tensor_parallel=tensor_parallel)
        + width * height * 5 * 4 * 2
        + batch_memory(config, settings, width, height, device=device, threads=threads, tensor_parallel=tensor_parallel)
    )


def scene_memory(config: SceneConfig, settings: RenderSettings, *, tensor_parallel: int = 1) -> int:
    """Bytes of planes and lines in the settings' precision, the decoder, and the mask as the march reads it."""
    element = 2 if settings.precision == "fp16" else 4
    mask = 0
    if config.mask_size is not None:
        mask = math.prod(config.mask_size) + math.prod(n + 3 for n in config.mask_size) * 8 // 7
    return config.grid_parameters(tensor_parallel) * element + config.decoder_parameters(tensor_parallel) * 4 + mask


def batch_memory(
    config: SceneConfig,
    settings: RenderSettings,
    width: int,
    height: int,
    *,
    device: str = "cpu",
    threads: int = 1,
    tensor_parallel: int = 1,
) -> int:
    """Bytes of all tiles in flight at once. Ranks that share channels hold two a thread: one is summed while the next is marched."""
    columns, rows = tile_side(settings.samples, device)
    rays = min(columns, width) * min(rows, height)
    samples = rays * settings.samples
    tile = samples * max(MARCH_BYTES, SURVIVOR_BYTES, COLOURED_BYTES + 4 * config.app_dim)
    if tensor_parallel > 1:  # partial sums that go out and those that come in, of one tile beside the other
        tile = 2 * (tile + samples * 2 * 4 * (1 + config.app_dim))
    if device != "cpu":
        return tile + CUDA_CHUNK_BYTES
    if settings.rays_per_batch:
        threads = min(threads, max(1, settings.rays_per_batch // (columns * rows)))
    return threads * (tile + CHUNK_BYTES)
