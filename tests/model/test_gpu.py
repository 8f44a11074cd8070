"""On a CUDA device: parity with LandMark's frames, exactness, and agreement with the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from landmark_batch.model.renderer import Renderer
from landmark_batch.scene.checkpoint import load_scene
from tests.factories import make_scene
from tests.model.conftest import POSES, settings_for
from tests.model.test_exactness import CHANNELS, LENS, same
from tests.model.test_reference_frames import FRAMES, assert_bar, read_frames, settings_of

pytestmark = pytest.mark.gpu

SCENES = [
    {"division": (2, 2), "mask": 0.5, "mask_size": (30, 30, 12), "resolutions": (1, 2, 4), **CHANNELS},
    {"ndims": 3, "activation": "relu", "nonlinear_density": True},
    {"embedding_rows": 5, "mask": 0.3, "view_pe": 4, "fea_pe": 3, "bias": False},
]


@pytest.fixture(autouse=True)
def needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.parametrize("name", FRAMES)
def test_reference_frames(reference_dir: Path, name: str) -> None:
    meta, arrays = read_frames(reference_dir, name)
    weights = load_scene(reference_dir / "ckpt" / meta["ckpt"])
    settings = settings_of(meta, weights.config)
    renderer = Renderer(weights, settings, "cuda")
    width, height, focal = meta["W"], meta["H"], meta["focal"]
    for i, pose in enumerate(arrays["poses"]):
        output = renderer.render(pose, (focal, focal, width / 2, height / 2), width, height).numpy()
        assert_bar(output["rgb"].reshape(-1, 3), arrays["rgb_map"][i].reshape(-1, 3), f"{name} frame {i} rgb")
        far = settings.far
        assert_bar(output["depth"].reshape(-1, 1) / far, arrays["depth_map"][i].reshape(-1, 1) / far, f"{name} frame {i} depth")


@pytest.mark.parametrize("scene", range(len(SCENES)))
@pytest.mark.parametrize("mode", ["hull", "dense"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_same_bits_whatever_the_way(scene: int, mode: str, precision: str) -> None:
    weights = make_scene(**SCENES[scene])
    settings = settings_for(weights.config, mode=mode, samples=128, model__precision=precision)
    width, height = 640, 360  # several tiles
    lens = (400.0, 400.0, width / 2, height / 2)
    first = Renderer(weights, settings, "cuda")
    expected = first.render(POSES["oblique"], lens, width, height)
    first.render(POSES["above"], LENS, 101, 67)
    assert same(first.render(POSES["oblique"], lens, width, height), expected)
    other = Renderer(weights, replace(settings, rays_per_batch=999), "cuda", threads=3, profile=True)
    assert same(other.render(POSES["oblique"], lens, width, height), expected)
    tiles = other.tiles(width, height)
    assert len(tiles) > 2
    rgb = torch.full((height, width, 3), -1.0, device="cuda")
    alpha = torch.full((height, width), -1.0, device="cuda")
    for part in other.render_tiles(POSES["oblique"], lens, width, tiles[::-1]):
        tile = part.tile
        rgb[tile.top : tile.bottom, tile.left : tile.right] = part.rgb.view(tile.bottom - tile.top, -1, 3)
        alpha[tile.top : tile.bottom, tile.left : tile.right] = part.alpha.view(tile.bottom - tile.top, -1)
    assert torch.equal(other.compose(rgb, alpha), expected.rgb)


@pytest.mark.parametrize("scene", range(len(SCENES)))
@pytest.mark.parametrize("mode", ["hull", "dense"])
def test_agrees_with_the_cpu(scene: int, mode: str) -> None:
    weights = make_scene(**SCENES[scene])
    settings = settings_for(weights.config, mode=mode, samples=96)
    for pose in POSES.values():
        cuda = Renderer(weights, settings, "cuda").render(pose, LENS, 101, 67).numpy()
        cpu = Renderer(weights, settings, "cpu").render(pose, LENS, 101, 67).numpy()
        for name in cpu:
            assert np.quantile(np.abs(cuda[name] - cpu[name]), 0.995) < 2e-4, name


def test_lower_matrix_precision_of_the_process_is_not_used() -> None:
    weights = make_scene(**SCENES[0])
    settings = settings_for(weights.config, samples=64)
    expected = Renderer(weights, settings, "cuda").render(POSES["above"], LENS, 101, 67)
    torch.set_float32_matmul_precision("medium")
    try:
        assert same(Renderer(weights, settings, "cuda").render(POSES["above"], LENS, 101, 67), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
