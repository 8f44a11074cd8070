"""Against frames that LandMark's own code rendered from checkpoints that it trained.

Bar: PSNR at least 70 dB, 99.9 % of pixels within 1e-3, depth likewise relative to far. A share of each frame's tiles is
rendered here; the GPU tests render all of every frame.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.model.renderer import Renderer
from landmark_batch.model.settings import RenderSettings, dense_step
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.weights import SceneConfig
from tests.model.conftest import settings_for

FRAMES = (
    "bp0_dense_200x150",
    "bp0_hull256_400x300",
    "bp0m_dense_200x150",
    "bp0m_hull128black_200x150",
    "bp0m_hull256_200x150",
    "bp0m_hull256_200x150_cpu",
    "seq1_dense_200x150_code0",
    "seq1_hull256_200x150_code0",
    "seq1_hull256_200x150_code7",
)
SHARE = 15  # of the tiles of a frame, one in so many


def read_frames(reference: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Settings and arrays (rgb_map, depth_map, poses) of a reference file."""
    with np.load(reference / "frames" / f"{name}.npz") as file:
        arrays = {key: file[key] for key in ("rgb_map", "depth_map", "poses")}
        return json.loads(str(file["meta"])), arrays


def settings_of(meta: dict[str, Any], config: SceneConfig) -> RenderSettings:
    changes: dict[str, Any] = {
        "mode": "hull" if meta["sampling_opt"] else "dense",
        "alpha_mask_threshold": meta["alpha_mask_filter_thre"],
        "output__background": "white" if meta["white_bg"] else "black",
    }
    if meta["sampling_opt"]:
        changes["samples"] = meta["n_importance"]
    if meta["app_code"] is not None:
        changes["scene__appearance"] = meta["app_code"]
    return settings_for(config, **changes)


def assert_bar(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], label: str) -> None:
    error = np.abs(got.astype(np.float64) - want)
    psnr = -10 * np.log10(max(float((error**2).mean()), 1e-20))
    pixels = error.reshape(error.shape[0], -1).max(1)
    within = float((pixels <= 1e-3).mean())
    assert psnr >= 70 and within >= 0.999, f"{label}: {psnr:.1f} dB, {100 * within:.2f} % within 1e-3, worst {error.max():.1e}"


@pytest.mark.parametrize("name", FRAMES)
def test_reference_frames(reference_dir: Path, name: str) -> None:
    meta, arrays = read_frames(reference_dir, name)
    weights = load_scene(reference_dir / "ckpt" / meta["ckpt"])
    settings = settings_of(meta, weights.config)
    assert settings.samples == meta["N_samples"]
    assert (settings.near, settings.far) == tuple(meta["near_far"])
    assert dense_step(weights.config) == pytest.approx(meta["stepSize"], rel=3e-7)  # GPU and CPU round the mean differently
    renderer = Renderer(weights, settings)
    width, height, focal = meta["W"], meta["H"], meta["focal"]
    lens = (focal, focal, width / 2, height / 2)
    share = SHARE if width <= 200 else 3 * SHARE
    for i, pose in enumerate(arrays["poses"]):
        rgb, depth, want_rgb, want_depth = [], [], [], []
        for part in renderer.render_tiles(pose, lens, width, renderer.tiles(width, height)[i % share :: share]):
            tile = part.tile
            region = (slice(tile.top, tile.bottom), slice(tile.left, tile.right))
            rgb.append(renderer.compose(part.rgb, part.alpha))
            depth.append(part.depth)
            want_rgb.append(arrays["rgb_map"][i][region].reshape(-1, 3))
            want_depth.append(arrays["depth_map"][i][region].reshape(-1))
        assert_bar(torch.cat(rgb).numpy(), np.concatenate(want_rgb), f"{name} frame {i} rgb")
        far = settings.far
        assert_bar(torch.cat(depth).numpy()[:, None] / far, np.concatenate(want_depth)[:, None] / far, f"{name} frame {i} depth")
