"""Frames that are begun before the one before them is taken have the pixels of frames rendered one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.frames.spec import OutputSpec
from landmark_batch.kernels import AbsentBlockError, build
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.output import RenderOutput
from landmark_batch.model.timeline import Timeline
from tests.factories import make_scene
from tests.kernels.conftest import one_thread
from tests.model.conftest import POSES, settings_for
from tests.model.test_fused import SCENES

__all__ = ["one_thread"]

pytestmark = pytest.mark.usefixtures("one_thread")

LENS, WIDTH, HEIGHT = (30.0, 30.0, 20.0, 15.0), 43, 31
NAMES = ("oblique", "above", "oblique")
RGB = [OutputSpec("rgb", "uint8", 3), OutputSpec("depth", "float32")]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def renderer_on(device: str, scene: str = "usual", **settings: Any) -> FusedRenderer:
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        status = build.load("cuda")
        assert status.loaded, status.reason
    weights = make_scene(**SCENES[scene])
    return FusedRenderer(weights, settings_for(weights.config, samples=64, **settings), device)


def same(got: RenderOutput, expected: RenderOutput) -> bool:
    pixels = (torch.equal(getattr(got, name), getattr(expected, name)) for name in ("rgb", "depth", "alpha"))
    return all(pixels) and got.counters == expected.counters


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scene", ["usual", "odd channels"])
@pytest.mark.parametrize("background", ["black", "white"])
def test_two_frames_in_flight(device: str, scene: str, background: str) -> None:
    renderer = renderer_on(device, scene, output__background=background)
    expected = [renderer.render(POSES[name], LENS, WIDTH, HEIGHT) for name in NAMES]
    begun = [renderer.begin(POSES[name], LENS, WIDTH, HEIGHT) for name in NAMES]
    for frame, whole in zip(begun, expected, strict=True):
        got = frame.finish()
        assert same(got, whole)
        rounded, wanted = got.quantised(RGB, frame=0), whole.quantised(RGB, frame=0)
        assert all(np.array_equal(rounded[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_buffers_that_are_too_small_for_two_frames_at_once(device: str) -> None:
    expected = [renderer_on(device).render(POSES[name], LENS, WIDTH, HEIGHT) for name in NAMES]
    small = renderer_on(device)
    small._capacity, small._coloured_per_ray = 1, 0.01
    begun = [small.begin(POSES[name], LENS, WIDTH, HEIGHT) for name in NAMES]  # all with the first buffers
    assert all(same(frame.finish(), whole) for frame, whole in zip(begun, expected, strict=True))
    assert small._coloured_per_ray > 0.01  # the reference ops take any number of samples a ray


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("small", [False, True])
def test_some_pixels_of_two_frames_in_flight(device: str, small: bool) -> None:
    """What `render_pixels` gives, and nothing of a share without pixels. small: buffers that are too small for both frames."""
    calm, renderer = renderer_on(device), renderer_on(device)
    pixels = torch.arange(0, WIDTH * HEIGHT, 1 if small else 3, device=device)
    expected = [calm.render_pixels(POSES[name], LENS, WIDTH, pixels) for name in NAMES]
    if small:
        renderer._capacity, renderer._coloured_per_ray = 1, 0.01
    else:  # so that its buffers have grown
        for name in NAMES:
            renderer.render_pixels(POSES[name], LENS, WIDTH, pixels)
    begun = [renderer.begin_pixels(POSES[name], LENS, WIDTH, pixels) for name in NAMES]
    for frame, (rgb, depth, alpha, counters) in zip(begun, expected, strict=True):
        got = frame.finish()
        assert torch.equal(got.rgb, rgb) and torch.equal(got.depth, depth) and torch.equal(got.alpha, alpha)
        assert got.counters == counters and frame.ready()
        assert (got.after is not None) == (device == "cuda" and not small)  # one that was rendered again needs no event
    assert (renderer._coloured_per_ray > 0.01) if small else (renderer._coloured_per_ray == calm._coloured_per_ray)
    nothing = renderer.begin_pixels(POSES["above"], LENS, WIDTH, pixels[:0]).finish()
    assert nothing.rgb.shape == (0, 3) and nothing.counters["rays"] == 0


@pytest.mark.gpu
def test_an_absent_block_shows_when_its_frame_is_taken() -> None:
    device = "cuda"
    renderer = renderer_on(device)
    good = renderer.render(POSES["above"], LENS, WIDTH, HEIGHT)
    first = renderer.begin(POSES["above"], LENS, WIDTH, HEIGHT)
    renderer._slots = torch.tensor([0, 1, -1, 3], device=device)
    second = renderer.begin(POSES["above"], LENS, WIDTH, HEIGHT)
    assert same(first.finish(), good)
    with pytest.raises(AbsentBlockError):
        second.finish()


@pytest.mark.parametrize("device", DEVICES)
def test_a_trace_changes_no_pixel(device: str, tmp_path: Path) -> None:
    """Some frames step by step, the others as without one."""
    renderer = renderer_on(device)
    expected = [renderer.render(POSES[name], LENS, WIDTH, HEIGHT) for name in NAMES]
    with Timeline(tmp_path / "t.json", "w", kernel_seconds=0):
        for _ in range(8):
            begun = [renderer.begin(POSES[name], LENS, WIDTH, HEIGHT) for name in NAMES]
            assert all(same(frame.finish(), whole) for frame, whole in zip(begun, expected, strict=True))
    found = json.loads((tmp_path / "t.json").read_text())
    names = [event["name"] for event in found if event.get("cat") == ("device" if device == "cuda" else "host")]
    assert names.count("march and density") >= 17
    assert names.count("replay") == (8 * len(NAMES) - 17 if renderer._shade is not None else 0)
