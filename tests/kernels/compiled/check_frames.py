"""Whole frames: compiled ops against the reference, every instruction set against the others."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.kernels import build, checked, reference
from landmark_batch.model.output import RenderOutput
from landmark_batch.model.renderer import Renderer
from landmark_batch.scene.weights import SceneWeights
from tests.factories import make_scene
from tests.model.conftest import POSES, settings_for

SCENES: dict[str, dict[str, Any]] = {
    "single, no mask": {},
    "single, mask, relu": {"mask": 0.4, "mask_size": (19, 17, 11), "activation": "relu", "density_shift": 0.0},
    "blocks": {"division": (2, 3), "mask": 0.5, "density_channels": 8, "appearance_channels": 24, "app_dim": 27, "feature_width": 64},
    "3 planes, embedding": {"ndims": 3, "embedding_rows": 5, "mask": 0.6, "resolutions": (1, 2, 4), "bias": False},
    "one block, nonlinear": {"layout": "multi-block", "nonlinear_density": True, "density_channels": 16, "view_pe": -1, "fea_pe": 0},
}


def render(weights: SceneWeights, pose: str, width: int, height: int, **changes: Any) -> RenderOutput:
    renderer = Renderer(weights, settings_for(weights.config, **changes), threads=1)
    return renderer.render(POSES[pose], (0.8 * width, 0.8 * width, width / 2, height / 2), width, height)


@pytest.fixture
def variant() -> Iterator[Callable[[str], str]]:
    """Choose an instruction set; answers with the one in use."""
    path = build.status("cpu").path
    function = ctypes.CDLL(str(path)).landmark_cpu_variant
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
    before = function(None)
    yield lambda name: function(name.encode()).decode()
    function(before)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("mode", ["hull", "dense"])
@pytest.mark.parametrize("scene", SCENES)
def test_against_the_reference(scene: str, mode: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """99.9 % of pixels within 1e-4 and at least 70 dB; pixels that differ more are threshold flips, at most 0.1 %.

    The frames are small, so that one flipped pixel is let pass.
    """
    weights = make_scene(**SCENES[scene])
    for pose, width, height in (("oblique", 41, 23), ("inside", 16, 17)):
        changes = {"mode": mode, "samples": 61, "model__precision": precision}
        got = render(weights, pose, width, height, **changes)
        with monkeypatch.context() as patch:
            patch.setattr(checked, "_ops", reference)
            want = render(weights, pose, width, height, **changes)
        assert abs(got.counters["coloured"] - want.counters["coloured"]) <= 2
        assert got.counters["survived"] == want.counters["survived"], "a mask flip"
        far = weights.config.near_far[1]
        for name, scale in (("rgb", 1.0), ("depth", far), ("alpha", 1.0)):
            error = ((getattr(got, name) - getattr(want, name)).abs() / scale).numpy()
            pixels = error.reshape(width * height, -1).max(1)
            psnr = -10 * np.log10(max(float((error.astype(np.float64) ** 2).mean()), 1e-20))
            assert psnr >= 70, f"{name}: {psnr:.1f} dB, worst {pixels.max():.1e}"
            assert int((pixels > 1e-4).sum()) <= max(1, width * height // 1000), f"{name}: worst {pixels.max():.1e}"


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (67, 5)])
@pytest.mark.parametrize("samples", [1, 2, 40])
def test_odd_sizes_and_one_sample(size: tuple[int, int], samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_scene(mask=0.5)
    got = render(weights, "above", *size, samples=samples)
    with monkeypatch.context() as patch:
        patch.setattr(checked, "_ops", reference)
        want = render(weights, "above", *size, samples=samples)
    torch.testing.assert_close(got.rgb, want.rgb, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.depth, want.depth, rtol=0, atol=1e-5)


def test_an_empty_mask_shows_the_background() -> None:
    weights = make_scene(mask=0.0)
    got = render(weights, "oblique", 20, 10, samples=30)
    assert got.counters["survived"] == 0
    assert torch.equal(got.rgb, torch.ones(10, 20, 3)) and not got.alpha.any() and not got.depth.any()


@pytest.mark.parametrize("scene", SCENES)
def test_instruction_sets_agree_bit_for_bit(scene: str, variant: Callable[[str], str]) -> None:
    """AVX2 and AVX-512 round alike, so a cluster of unlike machines renders one picture; the portable set has no fused products."""
    weights = make_scene(**SCENES[scene])
    frames = {}
    for name in ("avx512", "avx2", "portable"):
        if variant(name) != name:
            continue
        frames[name] = render(weights, "oblique", 23, 19, samples=50).rgb
    assert "portable" in frames
    wide = [frame for name, frame in frames.items() if name != "portable"]
    assert all(torch.equal(frame, wide[0]) for frame in wide)
    for frame in wide[:1]:
        assert int(((frame - frames["portable"]).abs().amax(-1) > 1e-4).sum()) <= 1


def test_the_same_bits_again_and_with_any_number_of_threads() -> None:
    weights = make_scene(**SCENES["blocks"])
    settings = settings_for(weights.config, samples=256)
    frames = []
    for threads in (1, 2, 2):
        renderer = Renderer(weights, settings, threads=threads)
        frames.append(renderer.render(POSES["oblique"], (60.0, 60.0, 40.0, 40.0), 80, 80))
    for frame in frames[1:]:
        assert torch.equal(frame.rgb, frames[0].rgb) and torch.equal(frame.depth, frames[0].depth)
