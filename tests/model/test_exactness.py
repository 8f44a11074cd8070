"""A frame has the same bits whatever the way it is rendered."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from landmark_batch.model import tiles
from landmark_batch.model.output import RenderOutput
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.settings import RenderSettings
from landmark_batch.scene.weights import SceneWeights
from tests.factories import make_scene
from tests.model.conftest import POSES, settings_for

WIDTH, HEIGHT = 101, 67
LENS = (60.0, 60.0, WIDTH / 2, HEIGHT / 2)
CHANNELS: dict[str, Any] = {"density_channels": 16, "appearance_channels": 48, "app_dim": 27, "feature_width": 128}


@pytest.fixture(scope="module", autouse=True)
def small_tiles() -> Iterator[None]:
    """Many tiles from a small frame."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_SAMPLES", 2**17)
        yield


@pytest.fixture(scope="module")
def weights() -> SceneWeights:
    return make_scene(division=(2, 2), mask=0.5, mask_size=(30, 30, 12), resolutions=(1, 2, 4), **CHANNELS)


@pytest.fixture(scope="module")
def settings(weights: SceneWeights) -> RenderSettings:
    return settings_for(weights.config, samples=96, alpha_mask_threshold=0.5)


@pytest.fixture(scope="module")
def expected(small_tiles: None, weights: SceneWeights, settings: RenderSettings) -> RenderOutput:
    return Renderer(weights, settings, threads=1).render(POSES["oblique"], LENS, WIDTH, HEIGHT)


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same(a: RenderOutput, b: RenderOutput) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("rgb", "depth", "alpha"))


def test_the_frame_is_worth_comparing(expected: RenderOutput) -> None:
    assert expected.counters["coloured"] > 5000
    assert float(expected.rgb.std()) > 0.05


@pytest.mark.parametrize("rays_per_batch", [1, 777, 4096, 1_000_000])
def test_rays_per_batch(rays_per_batch: int, weights: SceneWeights, settings: RenderSettings, expected: RenderOutput) -> None:
    changed = replace(settings, rays_per_batch=rays_per_batch)
    assert same(Renderer(weights, changed, threads=2).render(POSES["oblique"], LENS, WIDTH, HEIGHT), expected)


@pytest.mark.parametrize(("own", "torch_threads"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_threads(own: int, torch_threads: int, weights: SceneWeights, settings: RenderSettings, expected: RenderOutput) -> None:
    torch.set_num_threads(torch_threads)
    renderer = Renderer(weights, settings, threads=own)
    assert same(renderer.render(POSES["oblique"], LENS, WIDTH, HEIGHT), expected)
    assert torch.get_num_threads() == torch_threads
    seen: list[int] = []
    fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert seen == [torch_threads]  # threads of other people keep torch's number
    renderer.close()
    assert same(renderer.render(POSES["oblique"], LENS, WIDTH, HEIGHT), expected)


def test_what_was_rendered_before(weights: SceneWeights, settings: RenderSettings, expected: RenderOutput) -> None:
    renderer = Renderer(weights, settings, threads=2)
    for pose in (POSES["inside"], POSES["above"]):
        renderer.render(pose, LENS, WIDTH + 3, HEIGHT - 5)
    assert same(renderer.render(POSES["oblique"], LENS, WIDTH, HEIGHT), expected)


def test_tiles_in_any_order_and_share(weights: SceneWeights, settings: RenderSettings, expected: RenderOutput) -> None:
    """Two renderers with every other tile each, backwards, give the frame's pixels."""
    rgb = torch.full((HEIGHT, WIDTH, 3), -1.0)
    alpha = torch.full((HEIGHT, WIDTH), -1.0)
    every = Renderer(weights, settings).tiles(WIDTH, HEIGHT)
    assert len(every) >= 6
    for share in (every[::2], every[1::2]):
        renderer = Renderer(weights, settings, threads=2)
        for part in renderer.render_tiles(POSES["oblique"], LENS, WIDTH, share[::-1]):
            tile = part.tile
            region = (slice(tile.top, tile.bottom), slice(tile.left, tile.right))
            rgb[region] = part.rgb.view(tile.bottom - tile.top, -1, 3)
            alpha[region] = part.alpha.view(tile.bottom - tile.top, -1)
    assert torch.equal(renderer.compose(rgb, alpha), expected.rgb)
    assert torch.equal(alpha, expected.alpha)


def test_lower_matrix_precision_of_the_process(weights: SceneWeights, settings: RenderSettings, expected: RenderOutput) -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        assert same(Renderer(weights, settings, threads=1).render(POSES["oblique"], LENS, WIDTH, HEIGHT), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("precision", "mode"), [*itertools.product(["fp32", "fp16"], ["hull", "dense"])])
def test_every_mode_is_exact(precision: str, mode: str, weights: SceneWeights) -> None:
    settings = settings_for(weights.config, mode=mode, samples=64, model__precision=precision)
    one = Renderer(weights, settings, threads=1).render(POSES["above"], LENS, WIDTH, HEIGHT)
    two = Renderer(weights, settings, threads=2).render(POSES["above"], LENS, WIDTH, HEIGHT)
    assert same(one, two)
