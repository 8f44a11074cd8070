"""The fused renderer: against the plain one and LandMark's frames, on a GPU; its logic over the reference ops, anywhere."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from landmark_batch.kernels import build, fused
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.tiles import tile_order
from landmark_batch.scene.checkpoint import load_scene
from tests.factories import make_scene
from tests.model.conftest import POSES, settings_for
from tests.model.test_reference_frames import FRAMES, assert_bar, read_frames, settings_of

LENS, WIDTH, HEIGHT = (60.0, 60.0, 40.0, 30.0), 83, 61
USUAL: dict[str, Any] = {"density_channels": 16, "appearance_channels": 48, "app_dim": 27, "feature_width": 128}
SCENES: dict[str, dict[str, Any]] = {
    "usual": {"division": (2, 2), "mask": 0.5, "mask_size": (40, 36, 20), "resolutions": (1, 2, 4), **USUAL},
    "one table": {"resolutions": (1,), "activation": "relu", **USUAL},
    "odd channels": {"division": (2, 1), "density_channels": 5, "appearance_channels": 7, "mask": 0.3},
    "three dims": {"ndims": 3, "activation": "relu", "nonlinear_density": True},
    "looks": {"embedding_rows": 5, "mask": 0.3, "view_pe": 4, "fea_pe": 3, "bias": False},
    "four tables": {"resolutions": (1, 2, 3, 4), "activation": "relu", **USUAL},
}


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a.cpu() - b.cpu()).square().mean().clamp_min(1e-20)))


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    status = build.load("cuda")
    assert status.loaded, status.reason
    return "cuda"


@pytest.mark.parametrize("name", list(SCENES))
@pytest.mark.parametrize(("mode", "batch"), [("hull", 1000), ("dense", 0)])
def test_reference_ops_give_the_plain_renderers_frame(name: str, mode: str, batch: int) -> None:
    weights = make_scene(**SCENES[name])
    settings = settings_for(weights.config, mode=mode, samples=64, rays_per_batch=batch, alpha_mask_threshold=0.4)
    expected = Renderer(weights, settings).render(POSES["oblique"], LENS, WIDTH, HEIGHT)
    got = FusedRenderer(weights, settings, "cpu").render(POSES["oblique"], LENS, WIDTH, HEIGHT)
    assert expected.counters["coloured"] > 100
    assert got.counters == expected.counters
    assert psnr(got.rgb, expected.rgb) > 100
    torch.testing.assert_close(got.depth, expected.depth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 7, 45), (1, 1, 1), (17, 8, 64), (8, 24, 33)])
def test_bits_of_a_mask(size: tuple[int, int, int]) -> None:
    torch.manual_seed(3)
    volume = torch.rand(size) < 0.02
    volume[size[0] // 2, size[1] - 1, 7 % size[2]] = True
    bits, coarse = fused.pack_bits(volume)
    assert bits.shape == (*size[:2], -(-size[2] // 32))
    for z, y, x in torch.cartesian_prod(*(torch.arange(n) for n in size)).tolist():
        assert bool(bits[z, y, x // 32].item() >> (x % 32) & 1) == bool(volume[z, y, x])
    cells = list(itertools.product(*(range(-(-n // 8)) for n in size)))
    assert coarse.shape == (-(-len(cells) // 32),)
    for index, (z, y, x) in enumerate(cells):
        near = volume[max(0, 8 * z - 1) : 8 * z + 9, max(0, 8 * y - 1) : 8 * y + 9, max(0, 8 * x - 1) : 8 * x + 9].any()
        assert bool(coarse[index // 32].item() >> (index % 32) & 1) == bool(near)


@pytest.mark.parametrize("width", [8, 32, 40, 45])
def test_bits_of_a_crop_of_a_mask(width: int) -> None:
    """One row of a volume of odd width; one that begins at an odd place; axes in another order."""
    torch.manual_seed(4)
    whole = torch.rand(9, 3, 2 * width + 5) < 0.1
    crops = [whole[2:8, 1:2, 1 : 1 + width], whole[..., :width], whole.flatten()[5 : 5 + 4 * width].view(2, 2, width), whole.mT]
    for crop in crops:
        for got, expected in zip(fused.pack_bits(crop), fused.pack_bits(torch.tensor(crop.tolist())), strict=True):
            assert torch.equal(got, expected)


def test_tiles_cover_the_frame_once() -> None:
    order = tile_order(83, 61, torch.device("cpu"))
    assert sorted(order.tolist()) == list(range(83 * 61))
    first = order[:32]
    assert int(first.max()) == 3 * 83 + 7  # the first warp takes the corner of 8 x 4 pixels


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(SCENES))
@pytest.mark.parametrize("mode", ["hull", "dense"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("size", [(83, 61), (1, 1), (321, 9)])
def test_kernels_against_the_reference(cuda: str, name: str, mode: str, precision: str, size: tuple[int, int]) -> None:
    """fp32: 99.9 % of pixels within 1e-4 and 70 dB; fp16 tables: 50 dB against the fp32 reference."""
    weights = make_scene(**SCENES[name])
    settings = settings_for(weights.config, mode=mode, samples=96, alpha_mask_threshold=0.4, model__precision=precision)
    lens = (size[0] * 0.7, size[0] * 0.7, size[0] / 2, size[1] / 2)
    expected = Renderer(weights, replace(settings, precision="fp32")).render(POSES["oblique"], lens, *size)
    got = FusedRenderer(weights, settings, cuda).render(POSES["oblique"], lens, *size)
    assert psnr(got.rgb, expected.rgb) >= (70 if precision == "fp32" else 50)
    assert psnr(got.depth / settings.far, expected.depth / settings.far) >= (70 if precision == "fp32" else 50)
    if precision == "fp32":
        difference = (got.rgb.cpu() - expected.rgb).abs().amax(-1).flatten()
        assert difference.quantile(0.999) <= 1e-4
        assert abs(got.counters["coloured"] - expected.counters["coloured"]) <= 1 + 0.001 * expected.counters["coloured"]


@pytest.mark.gpu
@pytest.mark.parametrize("samples", [1, 2, 1000])
def test_few_and_many_samples(cuda: str, samples: int) -> None:
    weights = make_scene(**SCENES["usual"])
    settings = settings_for(weights.config, samples=samples)
    expected = Renderer(weights, settings).render(POSES["oblique"], LENS, WIDTH, HEIGHT)
    got = FusedRenderer(weights, settings, cuda).render(POSES["oblique"], LENS, WIDTH, HEIGHT)
    assert psnr(got.rgb, expected.rgb) >= 70


@pytest.mark.gpu
@pytest.mark.parametrize("pose", ["below", "inside"])
def test_rays_that_meet_nothing_or_start_within(cuda: str, pose: str) -> None:
    weights = make_scene(**SCENES["usual"])
    settings = settings_for(weights.config, samples=64)
    expected = Renderer(weights, settings).render(POSES[pose], LENS, WIDTH, HEIGHT)
    got = FusedRenderer(weights, settings, cuda).render(POSES[pose], LENS, WIDTH, HEIGHT)
    assert psnr(got.rgb, expected.rgb) >= 70


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["usual", "odd channels"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_same_bits_whatever_the_batch_and_buffers(cuda: str, name: str, precision: str) -> None:
    weights = make_scene(**SCENES[name])
    settings = settings_for(weights.config, samples=256, model__precision=precision)
    expected = FusedRenderer(weights, settings, cuda).render(POSES["oblique"], LENS, WIDTH, HEIGHT)
    for batch in (33, 1024, 4000):
        got = FusedRenderer(weights, replace(settings, rays_per_batch=batch), cuda).render(POSES["oblique"], LENS, WIDTH, HEIGHT)
        assert torch.equal(got.rgb, expected.rgb) and torch.equal(got.depth, expected.depth) and torch.equal(got.alpha, expected.alpha)
    small = FusedRenderer(weights, settings, cuda)
    small._capacity, small._coloured_per_ray = 1, 0.01  # buffers grow until nothing is lost
    got = small.render(POSES["oblique"], LENS, WIDTH, HEIGHT)
    assert small._capacity > 1
    assert torch.equal(got.rgb, expected.rgb) and got.counters == expected.counters


@pytest.mark.gpu
@pytest.mark.parametrize("name", FRAMES)
def test_landmarks_own_frames(cuda: str, reference_dir: Path, name: str) -> None:
    meta, arrays = read_frames(reference_dir, name)
    weights = load_scene(reference_dir / "ckpt" / meta["ckpt"])
    settings = settings_of(meta, weights.config)
    width, height, focal = meta["W"], meta["H"], meta["focal"]
    lens = (focal, focal, width / 2, height / 2)
    exact, half = FusedRenderer(weights, settings, cuda), FusedRenderer(weights, replace(settings, precision="fp16"), cuda)
    for i, pose in enumerate(arrays["poses"]):
        output = exact.render(pose, lens, width, height).numpy()
        assert_bar(output["rgb"].reshape(-1, 3), arrays["rgb_map"][i].reshape(-1, 3), f"{name} frame {i} rgb")
        assert_bar(
            output["depth"].reshape(-1, 1) / settings.far, arrays["depth_map"][i].reshape(-1, 1) / settings.far, f"{name} frame {i} depth"
        )
        assert psnr(half.render(pose, lens, width, height).rgb, torch.from_numpy(arrays["rgb_map"][i])) >= 50


@pytest.mark.gpu
def test_an_absent_block_is_an_error(cuda: str) -> None:
    weights = make_scene(**SCENES["usual"])
    renderer = FusedRenderer(weights, settings_for(weights.config, samples=64), cuda)
    renderer._slots = torch.tensor([0, 1, -1, 3], device=cuda)
    with pytest.raises(RuntimeError, match="blocks that are not in memory"):
        renderer.render(POSES["above"], LENS, WIDTH, HEIGHT)
