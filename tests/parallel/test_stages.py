"""The stages over the CUDA kernels' own ops, here their references, against the plain stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.parallel.stages import FusedTensorStages, TensorStages
from landmark_batch.scene.shard import ChannelShard, shard_weights
from tests.factories import make_scene
from tests.kernels.conftest import one_thread
from tests.model.conftest import POSES, settings_for
from tests.parallel.tasks import lens_of

__all__ = ["one_thread"]

CPU = torch.device("cpu")
SCENES: list[dict[str, Any]] = [
    {"division": (2, 2), "mask": 0.5, "mask_size": (40, 36, 20)},
    {"ndims": 3, "activation": "relu", "nonlinear_density": True, "density_channels": 5, "appearance_channels": 7},
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_kernels_ops_give_the_plain_stages_results(scene: dict[str, Any], rank: int) -> None:
    weights = shard_weights(make_scene(**scene), ChannelShard(rank, 2))
    settings = settings_for(weights.config, samples=48, alpha_mask_threshold=0.3, model__runtime="torch")
    plain, kernels = TensorStages(weights, settings, CPU), FusedTensorStages(weights, settings, CPU)
    kernels._samples_per_ray = 0.01  # grows until nothing is lost
    pose = torch.tensor(POSES["oblique"], dtype=torch.float32)
    rays = pixel_rays(pose, torch.tensor(lens_of(36, 30)), 0.0, torch.arange(36 * 30), 36)
    with plain.running():
        samples, partial = plain.march_density(rays)
        got, other = kernels.march_density(rays)
        assert torch.equal(samples.ray, got.ray) and torch.equal(samples.t, got.t) and torch.equal(samples.delta, got.delta)
        assert len(samples) > 1024
        torch.testing.assert_close(partial, other, rtol=1e-5, atol=1e-5)
        seen = samples.select(torch.arange(0, len(samples), 7))
        torch.testing.assert_close(plain.appearance(rays, seen), kernels.appearance(rays, seen), rtol=1e-5, atol=1e-5)
        assert kernels.appearance(rays, samples.select(torch.arange(0))).shape == (0, weights.config.app_dim)
