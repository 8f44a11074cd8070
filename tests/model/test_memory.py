"""The memory estimate against what a process really takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from landmark_batch.model.memory import CHUNK_BYTES, batch_memory, estimate_memory, scene_memory
from landmark_batch.scene.shard import ChannelShard, shard_weights
from landmark_batch.scene.weights import scene_bytes
from tests.factories import make_config, make_scene
from tests.model.conftest import settings_for

MEASURE = """
import sys, torch
from tests.factories import make_scene
from tests.model.conftest import POSES, settings_for
from landmark_batch.model.memory import batch_memory
from landmark_batch.model.renderer import Renderer

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

torch.set_num_threads(1)
threads, width = int(sys.argv[1]), int(sys.argv[2])
weights = make_scene(
    resolutions=(1, 2, 4), app_dim=27, density_channels=16, appearance_channels=48, feature_width=128, weight_threshold=-1.0,
    aabb=((-9.0, -9.0, -9.0), (9.0, 9.0, 9.0)), near_far=(0.0, 4.0),
)
settings = settings_for(weights.config, samples=256)
lens = (200.0, 200.0, width / 2, 8.0)
Renderer(weights, settings_for(weights.config, samples=1), threads=threads).render(POSES["above"], lens, 16, 16)  # torch warms up
renderer = Renderer(weights, settings, threads=threads)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
output = renderer.render(POSES["above"], lens, width, 16)
assert output.counters["coloured"] > 0.98 * output.counters["samples"], output.counters
print(status("VmHWM") - before, batch_memory(weights.config, settings, width, 16, threads=threads))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux's /proc")
@pytest.mark.parametrize(("threads", "width"), [(1, 32), (2, 128)])
def test_a_tile_at_its_worst_stays_below_the_estimate(threads: int, width: int) -> None:
    """Every sample survives and is coloured. The estimate is above the truth, and not more than four times."""
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", MEASURE, str(threads), str(width)], capture_output=True, text=True, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    taken, estimate = (int(word) for word in run.stdout.split())
    assert taken <= estimate <= 4 * taken, (taken, estimate)


def test_scene_memory_counts_the_tensors() -> None:
    weights = make_scene(division=(2, 2), ndims=3, embedding_rows=5, nonlinear_density=True)
    groups = (weights.density_planes, weights.density_lines, weights.app_planes, weights.app_lines)
    grid = sum(tensor.numel() for group in groups for tensor in group)
    decoder = [weights.basis_mat, weights.basis_density, weights.embedding, *weights.mlp_weights, *weights.mlp_biases]
    rest = sum(tensor.numel() for tensor in decoder if isinstance(tensor, torch.Tensor))
    full, half = (settings_for(weights.config, model__precision=precision) for precision in ("fp32", "fp16"))
    assert scene_memory(weights.config, full) == 4 * (grid + rest)
    assert scene_memory(weights.config, half) == 2 * grid + 4 * rest


def test_the_estimate_follows_what_it_should() -> None:
    config = make_config()
    settings = settings_for(config, samples=256)
    base = estimate_memory(config, settings, 384, 216)
    assert base > scene_memory(config, settings) + batch_memory(config, settings, 384, 216)
    assert estimate_memory(config, settings, 384, 216, threads=2) > base
    assert estimate_memory(config, settings, 3840, 2160) > base
    bounded = settings_for(config, samples=256, rays_per_batch=1000)
    assert estimate_memory(config, bounded, 384, 216, threads=4) == base
    assert batch_memory(config, settings, 8, 8) < batch_memory(config, settings, 384, 216)
    assert estimate_memory(config, settings, 384, 216, device="cuda") > base


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_memory_of_a_rank_counts_its_tensors(size: int) -> None:
    weights = make_scene(division=(2, 2), ndims=3, embedding_rows=5, nonlinear_density=True)  # 4 density and 6 appearance channels
    share = shard_weights(weights, ChannelShard(0, size))
    groups = (share.density_planes, share.density_lines, share.app_planes, share.app_lines)
    grid = sum(tensor.numel() for group in groups for tensor in group)
    decoder = [share.basis_mat, share.basis_density, share.embedding, *share.mlp_weights, *share.mlp_biases]
    rest = sum(tensor.numel() for tensor in decoder if isinstance(tensor, torch.Tensor))
    settings = settings_for(weights.config, samples=64)
    assert scene_memory(weights.config, settings, tensor_parallel=size) == 4 * (grid + rest)
    assert scene_bytes(weights.config, shares=size) == 4 * (grid + rest)
    alone, shared = (batch_memory(weights.config, settings, 64, 64, tensor_parallel=ranks) for ranks in (1, size))
    assert shared > 2 * (alone - CHUNK_BYTES)  # two tiles and what is exchanged of them
