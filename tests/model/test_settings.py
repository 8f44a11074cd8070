"""Settings: defaults from the checkpoint, refusals, and what counts as changing pixels."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.errors import ConfigError
from landmark_batch.model.settings import dense_samples, dense_step
from tests.factories import make_config
from tests.model.conftest import settings_for


def test_defaults_come_from_the_checkpoint() -> None:
    config = make_config(near_far=(0.4, 2.5), distance_scale=11.0, embedding_rows=9)
    settings = settings_for(config)
    assert (settings.mode, settings.samples) == ("hull", 256)
    assert (settings.near, settings.far, settings.distance_scale) == (0.4, 2.5, 11.0)
    assert (settings.appearance, settings.aabb, settings.pixel_center) == (0, config.aabb, 0.0)
    assert (settings.background, settings.precision, settings.runtime) == ("white", "fp32", "torch")
    assert settings_for(make_config()).appearance is None


@pytest.mark.parametrize(
    ("args", "samples"),
    [
        ((("n_importance", "96"), ("sampling_opt", "True")), 96),
        ((("n_importance", "96"), ("sampling_opt", "1")), 96),
        ((("n_importance", "96"), ("sampling_opt", "False")), 256),
        ((("n_importance", "96"),), 256),
        ((("sampling_opt", "True"),), 256),
        ((("n_importance", "0"), ("sampling_opt", "True")), 256),
    ],
)
def test_hull_samples_of_training(args: tuple[tuple[str, str], ...], samples: int) -> None:
    config = replace(make_config(), training_args=args)
    assert settings_for(config).samples == samples
    assert settings_for(config, samples=7).samples == 7


def test_dense_samples_cross_the_diagonal() -> None:
    config = make_config(aabb=((-2.8, -2.8, -0.2), (2.8, 2.8, 0.25)), grid_size=(20, 20, 3), step_ratio=0.1)
    assert dense_step(config) == pytest.approx(0.027149122, rel=1e-6)
    assert dense_samples(config) == settings_for(config, mode="dense").samples == 293  # as in LandMark's own frames of this box
    assert settings_for(config, mode="dense", samples=50).samples == 50


def test_dense_steps_have_the_bits_that_torch_gives_them() -> None:
    """LandMark forms them with torch; settings are made where torch is not loaded."""
    draw = np.random.default_rng(5)
    for _ in range(300):
        low = draw.normal(size=3) * 10 ** draw.uniform(-2, 3)
        high = low + 10 ** draw.uniform(-1, 4, size=3)
        box = (tuple(low.tolist()), tuple(high.tolist()))
        config = make_config(aabb=box, grid_size=tuple(draw.integers(2, 4000, 3).tolist()), step_ratio=float(draw.uniform(0.01, 3)))
        bounds = torch.tensor(box, dtype=torch.float32)
        units = (bounds[1] - bounds[0]) / (torch.tensor(config.grid_size) - 1)
        step = float(units.mean() * config.step_ratio)
        assert dense_step(config) == step
        crossing = float((bounds[1] - bounds[0]).square().sum().sqrt() / torch.tensor(step))
        near = abs(crossing - round(crossing)) < 0.001  # torch's roots may be an ulp off
        assert abs(dense_samples(config) - 1 - int(crossing)) <= near


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"near": 3.5}, "sampling.near = 3.5 is not below sampling.far = 3"),
        ({"far": 0.2}, "sampling.near = 0.3 is not below sampling.far = 0.2"),
        ({"scene__appearance": 9}, "scene.appearance = 9: row 9 of an embedding of 9 rows"),
        ({"scene__appearance": "sunset"}, "scene.appearance = sunset: row 2180 of an embedding of 9 rows"),
        (
            {"scene__aabb": [[5, 5, 5], [6, 6.1, 1 / 3 + 6]]},
            "scene.aabb = [[5, 5, 5], [6, 6.1, 6.333333]] does not meet the scene's box [[",
        ),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_for(make_config(embedding_rows=9), **changes)
    assert part in error.value.message
    assert error.value.remedy


def test_a_grid_without_steps_is_an_error_in_dense_mode_only() -> None:
    config = make_config(grid_size=(1, 1, 1))
    assert settings_for(config).samples == 256
    with pytest.raises(ConfigError, match="no step size"):
        settings_for(config, mode="dense")
    with pytest.raises(ConfigError, match="between 1 and 65536"):
        settings_for(make_config(step_ratio=1e-7), mode="dense")


def test_appearance_of_a_scene_without_codes_is_ignored_with_a_note() -> None:
    """LandMark does the same: its launcher always asks for code 2930."""
    settings = settings_for(make_config(), scene__appearance=2930)
    assert settings.appearance is None
    assert "no effect" in settings.notes[0]
    assert settings == settings_for(make_config())


def test_crop_stays_inside_the_scene() -> None:
    config = make_config(aabb=((-1, -1, 0), (1, 1, 1)))
    assert settings_for(config, scene__aabb=[[-5, -0.5, 0.2], [0.5, 5, 5]]).aabb == ((-1, -0.5, 0.2), (0.5, 1, 1))


def test_pixel_settings_hold_what_changes_pixels_and_nothing_else() -> None:
    settings = settings_for(make_config(embedding_rows=9))
    base = settings.pixel_settings()
    assert json.loads(json.dumps(base)) == base
    others: dict[str, Any] = {
        "mode": "dense",
        "samples": 3,
        "near": 0.1,
        "far": 9.0,
        "alpha_mask_threshold": 0.25,
        "distance_scale": 2.0,
        "background": "black",
        "appearance": 4,
        "pixel_center": 0.5,
        "aabb": ((0.0, 0.0, 0.0), (0.1, 0.1, 0.1)),
        "precision": "fp16",
        "runtime": "fused",
    }
    assert set(others) | {"rays_per_batch", "tensor_parallel", "runtime_reason", "notes"} == {field.name for field in fields(settings)}
    for name, value in others.items():
        changed = replace(settings, **{name: value}).pixel_settings()
        assert [key for key in base if base[key] != changed[key]] and sum(base[key] != changed[key] for key in base) == 1, name
    assert replace(settings, rays_per_batch=5, runtime_reason="y", notes=("x",)).pixel_settings() == base
    shared = replace(settings, tensor_parallel=2).pixel_settings()
    assert shared == {**base, "parallel.tensor_parallel": 2}  # what was rendered before groups were known stays as it is
    assert settings_for(make_config(), parallel__tensor_parallel=2, parallel__data_parallel=3).tensor_parallel == 2
