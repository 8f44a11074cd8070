"""Small scenes in blocks, poses over them, and what renders them by fetching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from landmark_batch.fetching.choice import FetchChoice
from landmark_batch.fetching.fetcher import Fetcher
from landmark_batch.fetching.flight_blocks import FlightBlocks
from landmark_batch.fetching.renderer import FetchingRenderer
from landmark_batch.fetching.route import Itinerary, Route
from landmark_batch.fetching.visibility import FrustumBlocks
from landmark_batch.model.settings import RenderSettings
from landmark_batch.scene.convert import convert_scene
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.scene.store import BlockStore
from landmark_batch.scene.weights import AlphaMask
from tests.factories import RUNTIME, make_scene

WIDTH, HEIGHT = 31, 17
LENS = (26.0, 26.0, 15.5, 8.5)
KINDS = ("blocks", "cut", "cut3", "masked", "half")


def look_at(eye: tuple[float, float, float], target: tuple[float, float, float]) -> NDArray[np.float64]:
    """Camera to world [3, 4], OpenGL axes, z up."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross(forward, (0.0, 0.05, 1.0))
    right /= np.linalg.norm(right)
    return np.column_stack([right, np.cross(right, forward), -forward, eye])


POSES = [
    look_at((0.0, 0.0, 1.6), (0.1, 0.0, 0.0)),  # high: everything
    look_at((-0.9, -0.7, 0.9), (-0.7, -0.5, 0.0)),  # steep, over a corner
    look_at((1.1, 0.8, 0.35), (-1.0, -0.7, 0.1)),  # flat, across the whole
    look_at((0.05, 0.02, 0.2), (1.2, 0.9, 0.2)),  # inside
    look_at((-0.9, -0.7, 0.9), (-2.0, -2.0, 0.9)),  # away from it
]


def write_store(folder: Path, kind: str, **more: Any) -> tuple[Path, Path]:
    """(checkpoint, store) of a small scene. more: of `make_scene`."""
    shape: dict[str, Any] = {"blocks": {"division": (2, 3)}, "masked": {"division": (3, 2), "nonlinear_density": True}}.get(
        kind, {"grid_size": (23, 17, 5), "ndims": 3 if kind == "cut3" else 1}
    )
    scene = make_scene(seed=3, **shape, **more)
    if kind == "masked":
        volume = torch.rand(6, 9, 11, generator=torch.Generator().manual_seed(1)) < 0.4
        scene = type(scene)(**{**scene.__dict__, "mask": AlphaMask(volume, scene.config.aabb)})
    (checkpoint,) = save_landmark_checkpoint(scene, folder / f"{kind}{'-merged-stack' if scene.config.blocks > 1 else ''}.th")
    blocks = (3, 2) if scene.config.layout == "single" else None
    convert_scene(checkpoint, folder / f"{kind}.zarr", precision="fp16" if kind == "half" else "fp32", blocks=blocks)
    return checkpoint, folder / f"{kind}.zarr"


def make_settings(store: BlockStore, **changes: Any) -> RenderSettings:
    config = store.config
    values: dict[str, Any] = {
        "mode": "hull",
        "samples": 40,
        "near": 0.05,
        "far": 3.0,
        "alpha_mask_threshold": 0.0,
        "rays_per_batch": 0,
        "distance_scale": config.distance_scale,
        "background": "white",
        "appearance": None,
        "pixel_center": 0.0,
        "aabb": config.aabb,
        "precision": "fp32",
        "runtime": RUNTIME,
    }
    return RenderSettings(**{**values, **changes})


def route_of(store: BlockStore, settings: RenderSettings, folder: Path, order: list[int], scale: int = 1) -> Route:
    """scale: of the frames' rows and columns."""
    lens, size = [value * scale for value in LENS], (WIDTH * scale, HEIGHT * scale)
    visible = FrustumBlocks(store.config, settings, store.mask(), store.division)
    sets = [visible.blocks(pose, lens, *size) for pose in POSES]
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.int64)
    seen = FlightBlocks(offsets, np.concatenate(sets).astype(np.int32), np.ones(len(POSES), np.int64), np.arange(len(POSES)))
    file = folder / "route.npz"
    Itinerary(np.array(order), np.array([0, len(order)])).save(file)
    return Route(seen, file)


def open_fetching(
    opened: list[Any],
    store: BlockStore,
    settings: RenderSettings,
    slots: int,
    route: Route | None,
    device: str = "cpu",
    memory: int | None = None,
) -> FetchingRenderer:
    choice = FetchChoice("dynamic", "test", slots, 2 * store.block_bytes(settings.precision))
    fetcher = Fetcher(store, settings, torch.device(device), choice, route)
    renderer = FetchingRenderer(fetcher, threads=1, memory=memory)
    opened += [fetcher, renderer]
    return renderer


def frame(renderer: Any, index: int, **route: Any) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = renderer.render(POSES[index], LENS, WIDTH, HEIGHT, **route).numpy()
    return found
