"""Counted without torch, a frame's samples are those that the renderer's own sampler finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from landmark_batch import kernels
from landmark_batch.fetching.sample_count import SampleCounter
from landmark_batch.model.sampling import Sampler, sample_tables
from landmark_batch.scene.mask import StoredMask
from landmark_batch.scene.weights import AlphaMask
from tests.factories import make_config
from tests.model.conftest import settings_for
from tests.model.oracle import look_at

BOX = ((-2.0, -1.5, -0.2), (2.5, 1.8, 0.9))
EYES = ((-1.6, -1.2, 1.0), (0.3, 0.2, 3.0), (0.1, 0.0, 0.3), (6.0, 5.0, 0.5))


def marched(sampler: Sampler, center: float, c2w: np.ndarray, lens: tuple[float, ...], width: int, height: int) -> int:
    """All samples of all pixels."""
    rays = kernels.pixel_rays(
        torch.from_numpy(c2w.astype(np.float32)), torch.tensor(lens, dtype=torch.float32), center, torch.arange(width * height), width
    )
    return len(sampler.march(rays))


@pytest.mark.parametrize("mode", ["hull", "dense"])
@pytest.mark.parametrize("mask", [None, 0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9995])
def test_a_small_frame_is_counted_sample_by_sample(mode: str, mask: float | None, threshold: float) -> None:
    """16 x 12 pixels, each of whose rays is looked at."""
    config = replace(make_config(aabb=BOX, near_far=(0.05, 8.0)), mask_size=None if mask is None else (12, 25, 31))
    settings = settings_for(config, mode=mode, samples=61, alpha_mask_threshold=threshold, cameras__pixel_center=0.5)
    occupancy = None
    if mask is not None:
        volume = torch.rand((12, 25, 31), generator=torch.Generator().manual_seed(4)) < mask
        occupancy = AlphaMask(volume, ((-1.9, -1.5, -0.1), (2.5, 1.7, 0.8)))
    sampler, counter = Sampler(config, settings, occupancy, torch.device("cpu")), SampleCounter(config, settings, occupancy)
    counts = []
    for eye in EYES:
        c2w, lens = look_at(eye, (0.1, 0.1, 0.1)), (13.0, 12.0, 8.3, 5.9)
        counts.append((counter.estimate(c2w, lens, 16, 12), marched(sampler, 0.5, c2w, lens, 16, 12)))
    assert all(abs(one - other) <= 1 + other // 5000 for one, other in counts), counts
    assert max(other for _, other in counts) > 100 or mask in (0.0, 0.02) or threshold > 0.9


@pytest.mark.parametrize("mode", ["hull", "dense"])
@pytest.mark.parametrize("samples", [1, 2, 3, 64, 577])
def test_places_of_samples(mode: str, samples: int) -> None:
    config = make_config()
    settings = settings_for(config, mode=mode, samples=samples)
    base, slope = sample_tables(config, settings)
    counter = SampleCounter(config, settings, None)
    assert np.allclose(counter._base, base.numpy(), rtol=2e-7, atol=1e-7) and np.allclose(counter._slope, slope.numpy(), rtol=0, atol=1e-7)


def test_a_stored_mask_counts_as_a_loaded_one() -> None:
    config = replace(make_config(aabb=BOX), mask_size=(12, 25, 31))
    volume = torch.rand((12, 25, 31), generator=torch.Generator().manual_seed(4)) < 0.3
    stored = StoredMask(np.packbits(volume.numpy()), (12, 25, 31), BOX)
    settings = settings_for(config, samples=40)
    c2w, lens = look_at(EYES[0], (0.1, 0.1, 0.1)), (500.0, 500.0, 320.0, 180.0)
    one, other = (SampleCounter(config, settings, mask).estimate(c2w, lens, 640, 360) for mask in (stored, AlphaMask(volume, BOX)))
    assert one == other > 0
