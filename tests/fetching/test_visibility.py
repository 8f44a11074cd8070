"""Blocks of a frame: never fewer than all rays touch, hardly more; and about as many samples."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.formats import load_flight
from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.cameras.survey import survey_flight
from landmark_batch.fetching.visibility import FrustumBlocks
from landmark_batch.model.sampling import Sampler
from landmark_batch.model.settings import RenderSettings
from landmark_batch.model.touched import touched_blocks
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.city_field import CEILING, FLOOR, METRES
from landmark_batch.scene.city_flight import city_flight
from landmark_batch.scene.city_mask import ShellMask
from landmark_batch.scene.city_raster import draw
from landmark_batch.scene.city_scene import block_nodes, city_of
from landmark_batch.scene.demo import SIZES
from landmark_batch.scene.weights import AlphaMask, Box, SceneConfig
from tests.factories import make_config
from tests.model.conftest import settings_for
from tests.model.oracle import look_at

BOX: Box = ((-2.0, -1.5, -0.2), (2.5, 1.8, 0.9))
Pose = NDArray[np.floating[Any]]
Lens = tuple[float, float, float, float]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def truth(
    config: SceneConfig,
    chosen: RenderSettings,
    mask: AlphaMask | None,
    division: tuple[int, int],
    c2w: Pose,
    lens: Lens,
    size: tuple[int, int],
) -> set[int]:
    sampler = Sampler(config, chosen, mask, torch.device("cpu"))
    return touched_blocks(sampler, config, division, c2w, lens, *size, pixel_center=chosen.pixel_center)


def patchy_mask(seed: int, size: tuple[int, int, int], share: float, box: Box) -> AlphaMask:
    generator = torch.Generator().manual_seed(seed)
    return AlphaMask(torch.rand(size, generator=generator) < share, box)


def scene(layout: str, division: tuple[int, int]) -> SceneConfig:
    config = make_config(division=division if layout == "multi-block" else (1, 1), layout=layout, aabb=BOX, near_far=(0.05, 8.0))
    return replace(config, grid_size=(40, 30, 12))


coordinate = st.floats(-6, 6, width=32)
share = st.sampled_from([0.0, 0.002, 0.02, 0.5, 1.0])


@st.composite
def places(draw: st.DrawFn) -> NDArray[np.float64]:
    """Of a camera: anywhere, inside the box, on its faces, on seams of blocks, just above or below its floor."""
    low, high = np.array(BOX)
    kind = draw(st.sampled_from(["anywhere", "inside", "face", "floor", "far"]))
    unit = np.array([draw(st.floats(0, 1)) for _ in range(3)])
    place = low + unit * (high - low)
    if kind == "anywhere":
        place = np.array([draw(coordinate) for _ in range(3)])
    elif kind == "face":
        axis = draw(st.integers(0, 2))
        place[axis] = draw(st.sampled_from([low[axis], high[axis], (low[axis] + high[axis]) / 2]))
    elif kind == "floor":
        place[2] = low[2] + draw(st.sampled_from([0.0, 1e-3, -1e-3, 0.04, -0.5, -1e-7]))
    elif kind == "far":
        place = place + draw(st.sampled_from([5.0, 50.0, 1000.0])) * np.array([math.cos(6 * unit[0]), math.sin(6 * unit[0]), unit[1]])
    return place


@st.composite
def poses(draw: st.DrawFn) -> Pose:
    """Towards a point of the box, or any way at all (rolled too); straight down and level as well."""
    place = draw(places())
    if draw(st.booleans()):
        low, high = np.array(BOX)
        target = low + np.array([draw(st.floats(-0.2, 1.2)) for _ in range(3)]) * (high - low) + 1e-3
        return np.asarray(look_at(tuple(place), tuple(target)))
    pitch = draw(st.sampled_from([-math.pi / 2, -1.2, -0.3, -0.01, 0.0, 0.01, 0.4, math.pi / 2]))
    yaw, roll = draw(st.floats(0, 6.3)), draw(st.sampled_from([0.0, 0.3, math.pi]))
    forward = np.array([math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), math.sin(pitch)])
    right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    up = np.cross(right, forward)
    right, up = math.cos(roll) * right + math.sin(roll) * up, math.cos(roll) * up - math.sin(roll) * right
    return np.stack([right, up, -forward, place], axis=1)


@st.composite
def lenses(draw: st.DrawFn, width: int, height: int) -> Lens:
    focal = width * draw(st.sampled_from([0.3, 0.8, 2.0, 20.0]))
    aspect = draw(st.sampled_from([1.0, 1.0, 0.6]))
    off = draw(st.sampled_from([0.5, 0.5, -0.4, 1.7]))  # the optical axis beside the frame
    return focal, focal * aspect, width * off, height * draw(st.sampled_from([0.5, 0.5, 1.3]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[SceneConfig, RenderSettings, AlphaMask | None, tuple[int, int], Pose, Lens, tuple[int, int]]:
    division = draw(st.sampled_from([(1, 1), (2, 2), (3, 2), (5, 1), (1, 3), (7, 6)]))
    config = scene(draw(st.sampled_from(["single", "multi-block"])), division)
    mask_box = draw(st.sampled_from([BOX, ((-1.0, -2.5, -0.1), (3.0, 1.0, 0.6))]))
    mask_size = draw(st.sampled_from([(7, 23, 31), (24, 60, 80), (1, 9, 12), (2, 1, 1)]))
    mask = None if draw(st.booleans()) and draw(st.booleans()) else patchy_mask(draw(st.integers(0, 99)), mask_size, draw(share), mask_box)
    changes: dict[str, Any] = {"mode": draw(st.sampled_from(["hull", "dense"])), "samples": draw(st.sampled_from([1, 7, 48, 160]))}
    changes["near"] = draw(st.sampled_from([0.0, 0.05, 0.7, 2.5]))
    changes["far"] = draw(st.sampled_from([2.6, 8.0]))
    changes["alpha_mask_threshold"] = draw(st.sampled_from([0.0, 0.0, 0.5, 0.98]))
    changes["cameras__pixel_center"] = draw(st.sampled_from([0.0, 0.5]))
    if draw(st.sampled_from([False, False, True])):
        changes["scene__aabb"] = [[-1.0, -1.2, -0.1], [1.9, 3.0, 0.5]]
    size = draw(st.sampled_from([(24, 16), (9, 31), (1, 1), (40, 2)]))
    return config, settings_for(config, **changes), mask, division, draw(poses()), draw(lenses(*size)), size


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_never_short(case: tuple[SceneConfig, RenderSettings, AlphaMask | None, tuple[int, int], Pose, Lens, tuple[int, int]]) -> None:
    config, chosen, mask, division, c2w, lens, size = case
    visible = FrustumBlocks(config, chosen, mask, division)
    found = visible.blocks(c2w, lens, *size)
    assert found.dtype == np.int32 and (np.diff(found) > 0).all()
    assert truth(config, chosen, mask, division, c2w, lens, size) <= set(found.tolist())


@pytest.mark.parametrize("layout", ["single", "multi-block"])
def test_one_pixel_that_looks_along_a_seam(layout: str) -> None:
    """Which side a sample falls on is decided by float32's last bit: both sides are needed, and no more than those that meet here."""
    division = (3, 3)
    config = scene(layout, division)
    chosen = settings_for(config, mode="hull", samples=64)
    visible = FrustumBlocks(config, chosen, None, division)
    generator = np.random.default_rng(5)
    seam = BOX[0][0] + (BOX[1][0] - BOX[0][0]) * 2 / 3
    sides = set()
    for _ in range(60):
        start, stop = generator.uniform((-0.3, 0.3), (0.3, 1.2), (2, 2))
        near, far = seam + generator.uniform(-4e-7, 4e-7, 2)
        c2w = look_at((near, start[0] - 0.1, 1.0 + start[1]), (far, stop[0], stop[1] - 0.3))
        focal = generator.uniform(0.5, 30.0)
        want = truth(config, chosen, None, division, c2w, (focal, focal, 0.0, 0.0), (1, 1))
        found = visible.blocks(c2w, (focal, focal, 0.0, 0.0), 1, 1).tolist()
        assert want <= set(found) <= {3, 4, 5, 6, 7, 8}
        sides |= {block // 3 for block in want}
    assert sides == {1, 2}


def test_the_far_face_counts_to_the_next_column() -> None:
    """LandMark's index of a sample exactly on the far y face: dense samples begin on it."""
    config = scene("multi-block", (3, 2))
    chosen = settings_for(config, mode="dense", samples=1)
    c2w = look_at((-1.5, 3.0, 0.3), (-1.5, 1.0, 0.3))
    lens = (60.0, 60.0, 12.0, 8.0)
    want = truth(config, chosen, None, (3, 2), c2w, lens, (24, 16))
    assert 2 in want
    assert want <= set(FrustumBlocks(config, chosen, None, (3, 2)).blocks(c2w, lens, 24, 16).tolist()) <= {0, 1, 2}


def test_nothing_in_view_is_no_block() -> None:
    config = scene("multi-block", (4, 3))
    lens = (30.0, 30.0, 12.0, 8.0)
    empty = AlphaMask(torch.zeros(4, 5, 6, dtype=torch.bool), BOX)
    above, away = look_at((0.0, 0.0, 3.0), (0.1, 0.1, 0.0)), look_at((0.0, 0.0, 3.0), (0.1, 0.1, 6.0))
    chosen = settings_for(config, mode="hull")
    assert FrustumBlocks(config, chosen, empty, (4, 3)).blocks(above, lens, 24, 16).tolist() == []
    visible = FrustumBlocks(config, chosen, None, (4, 3))
    assert visible.blocks(away, lens, 24, 16).tolist() == []
    assert visible.samples(away, lens, 24, 16) == 0
    assert visible.blocks(above, lens, 24, 16).tolist() != []


def test_a_crop_hides_blocks() -> None:
    config = scene("multi-block", (4, 3))
    chosen = settings_for(config, mode="hull", scene__aabb=[[-2.0, -1.5, -0.2], [-1.2, -0.7, 0.9]])
    found = FrustumBlocks(config, chosen, None, (4, 3)).blocks(look_at((0, 0, 6.0), (0.01, 0.01, 0.0)), (10.0, 10.0, 12.0, 8.0), 24, 16)
    assert found.tolist() == [0]


def test_pickled_it_finds_the_same() -> None:
    config = scene("multi-block", (4, 3))
    chosen = settings_for(config, mode="hull", alpha_mask_threshold=0.5)
    visible = FrustumBlocks(config, chosen, patchy_mask(3, (24, 60, 80), 0.02, BOX), (4, 3))
    c2w, lens = look_at((-1.6, -1.2, 1.0), (0.1, 0.1, 0.1)), (20.0, 20.0, 12.0, 8.0)
    expected = visible.blocks(c2w, lens, 24, 16).tolist(), visible.samples(c2w, lens, 24, 16)
    packed = pickle.dumps(visible)
    assert len(packed) < visible.tree.nbytes + 24 * 60 * 80 // 4
    again = pickle.loads(packed)
    assert (again.blocks(c2w, lens, 24, 16).tolist(), again.samples(c2w, lens, 24, 16)) == expected
    assert expected[0] and expected[1]


def assert_bars(visible: FrustumBlocks, flight: Flight, frames: range, label: str, *, shrink: int = 1) -> None:
    """Never short, at most 15 % more blocks and estimates within 20 % on the mean, and within 20 % for nine of ten frames."""
    config, chosen, mask, division = visible.config, visible.settings, visible.mask, visible.division
    sampler = Sampler(config, chosen, mask, torch.device("cpu"))
    width, height = flight.width // shrink, flight.height // shrink
    ratios, errors = [], []
    for frame in frames:
        c2w = flight.c2w[frame]
        lens = tuple((flight.intrinsics[frame] / shrink).tolist())
        want = touched_blocks(sampler, config, division, c2w, lens, width, height, pixel_center=chosen.pixel_center)
        found = set(visible.blocks(c2w, lens, width, height).tolist())
        assert want <= found, f"{label}, frame {frame}: {sorted(want - found)} are missing"
        if not want:
            continue
        rays = pixel_rays(torch.tensor(c2w, dtype=torch.float32), lens, chosen.pixel_center, torch.arange(width * height), width)
        survived = len(sampler.march(rays))
        ratios.append(len(found) / len(want))
        errors.append(abs(visible.samples(c2w, lens, width, height) / survived - 1))
    text = f"{label}: blocks {np.mean(ratios):.3f} of what is touched, samples off by {np.mean(errors):.3f}, at most {max(errors):.3f}"
    assert np.mean(ratios) <= 1.15 and np.mean(errors) <= 0.2 and np.mean(np.array(errors) <= 0.2) >= 0.9, text


def demo_city(blocks: tuple[int, int]) -> tuple[SceneConfig, AlphaMask, Flight]:
    """Box, mask and flight of the demo's city; its planes and decoder say nothing of what is in view."""
    spec = SIZES["small"]
    city = city_of(blocks, spec, 0)
    shell = ShellMask(city.half_x, city.half_y, spec.voxel, spec.shell)
    for block in range(blocks[0] * blocks[1]):
        x, y = block_nodes(city, blocks, spec.side, 64, block)
        shell.add(x, y, draw(city, x, y).height)
    bits, _ = shell.pack()
    x, y = city.half_x / METRES, city.half_y / METRES
    config = make_config(division=blocks, aabb=((-x, -y, FLOOR / METRES), (x, y, CEILING / METRES)), near_far=(0.2, 12.5))
    volume = torch.from_numpy(np.unpackbits(bits).view(np.bool_).reshape(shell.shape))
    return config, AlphaMask(volume, config.aabb), city_flight(city.half_x, city.half_y, 40, 160, 90)


def test_the_demo_and_a_survey_of_it() -> None:
    config, mask, flight = demo_city((4, 2))
    chosen = settings_for(config, mode="hull", samples=192, alpha_mask_threshold=0.5)
    visible = FrustumBlocks(config, chosen, mask, config.division)
    assert_bars(visible, flight, range(0, 40, 8), "the demo's flight")
    survey = survey_flight(config.aabb, width=160, height=90, near_far=config.near_far)
    assert_bars(visible, survey, range(0, len(survey), len(survey) // 5), "a survey")


@pytest.mark.parametrize("checkpoint", ["bp0m-merged-stack.th", "seq1.th"])
def test_the_reference_flight(reference_dir: Path, checkpoint: str) -> None:
    weights = load_scene(reference_dir / "ckpt" / checkpoint)
    config = weights.config
    chosen = settings_for(config, mode="hull", samples=256, alpha_mask_threshold=0.5)
    visible = FrustumBlocks(config, chosen, weights.mask, config.division if config.layout == "multi-block" else (5, 4))
    assert_bars(visible, load_flight(reference_dir / "brighton" / "path.json"), range(0, 240, 60), checkpoint, shrink=8)
