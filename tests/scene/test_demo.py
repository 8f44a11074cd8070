"""`write_demo` end to end: what it writes loads, looks like the city it was made from, and is the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from landmark_batch.cameras.check import check_flight
from landmark_batch.cameras.formats import flight_of_job
from landmark_batch.errors import ConfigError, LandmarkError
from landmark_batch.job import load_job
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.settings import resolve_settings
from landmark_batch.scene import city_scene, demo
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.city_decoder import appearance, encode, one_thread
from landmark_batch.scene.city_field import CEILING, FLOOR
from landmark_batch.scene.city_light import light
from landmark_batch.scene.city_scene import block_nodes, city_of
from landmark_batch.scene.convert import convert_scene
from landmark_batch.scene.demo import DemoFiles, write_demo
from landmark_batch.scene.weights import SceneWeights
from tests.factories import RUNTIME

BLOCKS, FINE = (2, 1), 160


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """A city of two blocks at coarse planes, its decoder fitted in fewer steps than a user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo.SIZES, "small", replace(demo.SIZES["small"], steps=700))
        return write_demo(tmp_path_factory.mktemp("demo") / "new", blocks=BLOCKS, fine=FINE, frames=12, width=96, height=54)


@pytest.fixture(scope="module")
def scene(files: DemoFiles) -> SceneWeights:
    return load_scene(files.checkpoint)


def features_at(scene: SceneWeights, block: int, uv: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sigma before the activation [P], features [P, 27]) read from the checkpoint's own planes. uv in -1..1, z in metres."""
    where = (z - FLOOR) / (CEILING - FLOOR) * 2 - 1
    grid = torch.stack([torch.zeros_like(where), where], dim=-1)[None, None]
    products = []
    for planes, lines in ((scene.density_planes, scene.density_lines), (scene.app_planes, scene.app_lines)):
        parts = []
        for plane, line in zip(planes, lines, strict=True):
            on_plane = F.grid_sample(plane[block].permute(2, 0, 1)[None], uv[None, None], align_corners=True)[0, :, 0]
            on_line = F.grid_sample(line[block].T[None, :, :, None], grid, align_corners=True)[0, :, 0]
            parts.append(on_plane * on_line)
        products.append(torch.cat(parts))
    return products[0].sum(0), products[1].T @ scene.basis_mat.T


def test_files_belong_together(files: DemoFiles, scene: SceneWeights) -> None:
    job = load_job(files.job)
    assert job.scene.checkpoint == files.checkpoint and job.scene.plane_division == BLOCKS and job.scene.metres_per_unit == 100
    assert job.store_path == files.job.parent / "city.zarr"
    flight = flight_of_job(job)
    assert (len(flight), flight.width, flight.height, flight.fps) == (12, 96, 54, 24.0)
    config = scene.config
    assert config.layout == "multi-block" and config.division == BLOCKS and config.resolutions == (1, 2, 4)
    assert (config.density_channels, config.appearance_channels, config.feature_width) == (8, 24, 64)
    assert np.allclose(config.aabb, ((-2.0, -1.0, -0.03), (2.0, 1.0, 1.01)))
    assert [p.shape for p in scene.density_planes] == [(2, n, n, 8) for n in (40, 80, 160)]
    assert scene.warnings == ()
    assert scene.mask is not None and float(scene.mask.volume.float().mean()) == pytest.approx(files.occupancy)
    assert 0.04 < files.occupancy < 0.16
    check_flight(flight, config.aabb, config.near_far)


def test_decoder_fits_the_city_through_the_planes(files: DemoFiles, scene: SceneWeights) -> None:
    assert files.psnr > 30
    generator = torch.Generator().manual_seed(5)
    uv = torch.rand(4000, 2, generator=generator) * 2 - 1
    sigma, _ = features_at(scene, 1, uv, torch.zeros(4000))
    height = sigma / 26.0
    features = features_at(scene, 1, uv, height - 0.3)[1]
    view = torch.tensor([[0.5, 0.3, -0.9]]).expand(4000, 3)
    value = encode(features, view, scene.config.fea_pe, scene.config.view_pe)
    for layer, (weight, bias) in enumerate(zip(scene.mlp_weights, scene.mlp_biases, strict=True)):
        value = F.linear(value, weight, bias)
        value = F.relu(value) if layer < 2 else torch.sigmoid(value)
    assert -10 * torch.log10(F.mse_loss(value, appearance(features, view))) > 28


def test_no_seam_between_blocks(scene: SceneWeights) -> None:
    at = torch.linspace(-1, 1, 1500)
    left, right = torch.stack([torch.ones(1500), at], dim=1), torch.stack([-torch.ones(1500), at], dim=1)
    for z in (0.0, 12.0):
        (sigma_a, features_a), (sigma_b, features_b) = (
            features_at(scene, block, uv, torch.full((1500,), z)) for block, uv in ((0, left), (1, right))
        )
        assert ((sigma_a - sigma_b) / 26.0).abs().max() < 0.5  # metres of height
        assert (features_a - features_b).abs().mean() < 0.005
        assert (features_a - features_b).abs().max() < 0.1


def test_pictures_show_the_city(files: DemoFiles, scene: SceneWeights) -> None:
    """Looking down, every pixel hits the surface that was drawn, in the colour it was drawn in: no holes, no leaks."""
    job = load_job(files.job, ["sampling.samples=320", f"model.runtime={RUNTIME}"])
    renderer = Renderer(scene, resolve_settings(job, scene.config), "cpu")
    spec, city = demo.SIZES["small"], city_of(BLOCKS, demo.SIZES["small"], 0)
    x, y = block_nodes(city, BLOCKS, spec.side, FINE, 1)
    surface = light(city, x, y)
    focal, width, height = 112.0, 96, 64
    c2w = np.array([[1.0, 0, 0, 1.0], [0, 1.0, 0, 0], [0, 0, 1.0, 2.2]])
    out = renderer.render(c2w, (focal, focal, width / 2, height / 2), width, height)
    rgb, depth, alpha = (np.asarray(v) for v in (out.rgb, out.depth, out.alpha))
    assert alpha.min() > 0.99
    j, i = np.mgrid[:height, :width]
    ray = np.stack([(i - width / 2) / focal, -(j - height / 2) / focal, -np.ones_like(i)], axis=-1)
    point = (c2w[:, 3] + depth[..., None] * ray) * 100
    ix, iy = (np.rint((point[..., k] - (x, y)[k][0]) / (x[1] - x[0])).astype(int) for k in range(2))
    inside = (ix > 0) & (ix < FINE - 1) & (iy > 0) & (iy < FINE - 1)
    drawn = surface.height[iy.clip(0, FINE - 1), ix.clip(0, FINE - 1)]
    on_top = inside & (np.abs(point[..., 2] - drawn) < 1.0)
    assert on_top.sum() > 0.7 * inside.sum() > 1500
    expected = surface.top[:, iy.clip(0, FINE - 1), ix.clip(0, FINE - 1)].transpose(1, 2, 0)
    error = np.abs(rgb - expected).mean(axis=-1)[on_top]
    assert np.median(error) < 0.03 and error.mean() < 0.06
    assert rgb.std(axis=(0, 1)).min() > 0.1


def test_flight_frames_are_cheap_and_full(files: DemoFiles, scene: SceneWeights) -> None:
    job = load_job(files.job, [f"model.runtime={RUNTIME}"])
    flight = flight_of_job(job)
    renderer = Renderer(scene, resolve_settings(job, scene.config), "cpu")
    counters = dict.fromkeys(("rays", "survived", "coloured"), 0)
    for frame in (0, 4, 7):
        out = renderer.render(flight.c2w[frame], flight.intrinsics[frame], flight.width, flight.height)
        counters = {name: counters[name] + out.counters[name] for name in counters}
        lower = np.asarray(out.alpha)[flight.height // 2 :]
        assert np.median(lower) > 0.99 and np.asarray(out.rgb)[flight.height // 2 :].std() > 0.1
    assert counters["survived"] < 25 * counters["rays"]
    assert counters["rays"] < counters["coloured"] < 4 * counters["rays"]


def test_same_arguments_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.SIZES, "small", replace(demo.SIZES["small"], steps=8, voxel=4.0))
    monkeypatch.setattr(city_scene, "FIT_POINTS", 9000)
    made: dict[str, list[bytes]] = {}
    threads = torch.get_num_threads()
    try:
        for name, count, seed in (("a", 1, 3), ("b", 2, 3), ("c", 2, 4)):
            torch.set_num_threads(count)
            files = write_demo(tmp_path / name, blocks=(1, 2), fine=48, seed=seed, frames=3)
            made[name] = [p.read_bytes() for p in (files.checkpoint, files.cameras, files.job)]
    finally:
        torch.set_num_threads(threads)
    assert made["a"] == made["b"]
    assert made["a"][0] != made["c"][0]


def test_one_block_alone_and_a_weave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.SIZES, "city", replace(demo.SIZES["city"], steps=4, voxel=8.0))
    monkeypatch.setattr(city_scene, "FIT_POINTS", 9000)
    told: list[tuple[str, float]] = []
    files = write_demo(tmp_path, blocks=(1, 1), size="city", fine=32, frames=2, progress=lambda label, share: told.append((label, share)))
    config = load_scene(files.checkpoint).config
    assert config.division == (1, 1) and (config.density_channels, config.appearance_channels, config.feature_width) == (16, 48, 128)
    assert [share for _, share in told] == sorted(share for _, share in told) and told[-1] == ("done", 1.0)
    again = write_demo(tmp_path, blocks=(3, 2), size="city", fine=32, frames=2)  # replaces the files
    assert load_scene(again.checkpoint).config.division == (3, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["city-merged-stack.th", "city.toml", "transforms.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": (0, 2)}, "blocks = 0x2"),
        ({"blocks": (2, 65)}, "blocks = 2x65"),
        ({"size": "huge"}, "size = 'huge'"),
        ({"fine": 30}, "fine = 30"),
        ({"fine": 130}, "fine = 130"),
        ({"seed": -1}, "seed = -1"),
        ({"frames": 0}, "0 frames"),
        ({"width": 0}, "0x216"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_demo(tmp_path / "d", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("mine")
    with pytest.raises(LandmarkError, match="cannot make this directory"):
        write_demo(tmp_path / "d")
    assert (tmp_path / "d").read_text() == "mine"


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_store_is_the_checkpoint_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made in two processes, block by block: the very bytes that converting the checkpoint gives."""
    monkeypatch.setitem(demo.SIZES, "small", replace(demo.SIZES["small"], steps=20))
    monkeypatch.setattr(city_scene, "FIT_POINTS", 4000)
    plain = write_demo(tmp_path / "plain", blocks=(2, 1), fine=32, frames=1, width=16, height=12)
    made = write_demo(tmp_path / "store", blocks=(2, 1), fine=32, frames=1, width=16, height=12, form="store", jobs=2)
    assert (made.psnr, made.occupancy) == (plain.psnr, plain.occupancy)
    converted = convert_scene(plain.checkpoint, tmp_path / "converted.zarr").target
    ours, theirs = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (made.checkpoint, converted)
    )
    assert ours == theirs
    assert load_job(made.job).scene.checkpoint == made.checkpoint
