"""The renderer against a plain dense renderer, over every axis of the format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.model.renderer import Renderer
from landmark_batch.scene.weights import SceneWeights
from tests.factories import make_scene
from tests.model.conftest import POSES, settings_for
from tests.model.oracle import field_of_view, render_plainly

WIDTH, HEIGHT = 19, 14
FOCAL = field_of_view(WIDTH)
LENS = (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2)

SCENES: dict[str, dict[str, Any]] = {
    "plain": {},
    "three dims": {"ndims": 3},
    "relu": {"activation": "relu"},
    "nonlinear density": {"nonlinear_density": True, "ndims": 3, "activation": "relu"},
    "no bias, no encoding": {"bias": False, "view_pe": 0, "fea_pe": 0},
    "no view direction": {"view_pe": -1, "fea_pe": 1},
    "many octaves": {"view_pe": 4, "fea_pe": 3},
    "appearance": {"embedding_rows": 7},
    "mask": {"mask": 0.4, "mask_size": (13, 11, 6)},
    "mask in its own box": {"mask": 0.5, "mask_aabb": ((-0.7, -0.6, 0.0), (0.9, 0.5, 0.4))},
    "empty mask": {"mask": 0.0},
    "blocks": {"division": (2, 3), "mask": 0.7},
    "blocks in three dims": {"division": (3, 1), "ndims": 3, "nonlinear_density": True},
    "one block alone": {"division": (1, 1), "layout": "multi-block"},
    "usual sizes": {"resolutions": (1, 2, 4), "app_dim": 27, "density_channels": 16, "appearance_channels": 48, "feature_width": 128},
    "high threshold": {"weight_threshold": 0.05, "distance_scale": 3.0},
}


def check(weights: SceneWeights, poses: Sequence[str], tolerance: float = 1e-5, **changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Render from some places; all but a few pixels agree with the oracle. Returns the last frame."""
    settings = settings_for(weights.config, **changes)
    renderer = Renderer(weights, settings)
    for name in poses:
        output = renderer.render(POSES[name], LENS, WIDTH, HEIGHT).numpy()
        want = render_plainly(weights, settings, POSES[name], LENS, WIDTH, HEIGHT)
        for key, value in output.items():
            difference = np.abs(value - want[key].numpy())
            # a sample at a seam or at a threshold may fall the other way by rounding
            assert np.quantile(difference, 0.99) < tolerance, (name, key, difference.max())
            assert value.dtype == np.float32
    return output


@pytest.mark.parametrize("scene", list(SCENES))
def test_hull(scene: str) -> None:
    check(make_scene(**SCENES[scene]), ["above", "inside"], samples=32, alpha_mask_threshold=0.3)


@pytest.mark.parametrize("scene", list(SCENES))
def test_dense(scene: str) -> None:
    check(make_scene(**SCENES[scene]), ["oblique", "below"], mode="dense", samples=24)


def test_settings_reach_the_picture() -> None:
    weights = make_scene(embedding_rows=5, mask=0.6)
    base = check(weights, ["inside"], samples=32)
    for changes in (
        {"scene__appearance": 3},
        {"near": 0.5},
        {"far": 1.5},
        {"distance_scale": 4.0},
        {"alpha_mask_threshold": 0.8},
        {"cameras__pixel_center": 0.5},
        {"output__background": "black"},
        {"scene__aabb": [[-0.5, -0.5, -0.2], [0.4, 0.6, 0.4]]},
        {"model__precision": "fp16"},
    ):
        tolerance = 0.02 if "model__precision" in changes else 1e-5  # float16 holds 11 bits of each texel
        changed = check(weights, ["inside"], tolerance, **({"samples": 32} | changes))
        assert not np.array_equal(base["rgb"], changed["rgb"]), changes


def test_backgrounds() -> None:
    weights = make_scene(mask=0.3)
    outputs = {
        name: Renderer(weights, settings_for(weights.config, samples=24, output__background=name)).render(
            POSES["oblique"], LENS, WIDTH, HEIGHT
        )
        for name in ("white", "black", "transparent")
    }
    alpha = outputs["white"].alpha
    assert alpha.min() == 0 and alpha.max() > 0.5
    assert torch.equal(outputs["black"].rgb, outputs["transparent"].rgb)  # premultiplied
    assert torch.equal(outputs["white"].rgb, (outputs["black"].rgb + (1 - alpha[..., None])).clamp(0, 1))
    assert bool((outputs["white"].rgb[alpha == 0] == 1).all()) and bool((outputs["black"].rgb[alpha == 0] == 0).all())


def test_counters_and_stages() -> None:
    weights = make_scene(mask=0.5)
    output = Renderer(weights, settings_for(weights.config, samples=24)).render(POSES["above"], LENS, WIDTH, HEIGHT)
    counters = output.counters
    assert counters["rays"] == WIDTH * HEIGHT and counters["samples"] == WIDTH * HEIGHT * 24
    assert counters["samples"] > counters["survived"] > counters["coloured"] > 0
    assert set(output.stages) == {"rays", "march", "weigh", "appearance", "decode", "accumulate"}
    assert all(seconds > 0 for seconds in output.stages.values())


def test_nan_in_a_plane_reaches_the_picture() -> None:
    weights = make_scene()
    weights.app_planes[0][:] = float("nan")
    output = Renderer(weights, settings_for(weights.config, samples=24)).render(POSES["above"], LENS, WIDTH, HEIGHT)
    assert bool(output.rgb.isnan().any()) and bool(output.depth.isfinite().all())


@pytest.mark.parametrize("size", [(1, 1), (65, 1), (3, 70)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    weights = make_scene(mask=0.5)
    settings = settings_for(weights.config, samples=16)
    lens = (40.0, 40.0, size[0] / 2, size[1] / 2)
    output = Renderer(weights, settings).render(POSES["above"], lens, *size).numpy()
    want = render_plainly(weights, settings, POSES["above"], lens, *size)
    assert output["rgb"].shape == (size[1], size[0], 3)
    assert np.quantile(np.abs(output["rgb"] - want["rgb"].numpy()), 0.99) < 1e-5
