"""What rank processes do in tests of what goes wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from landmark_batch.errors import CameraError, GroupError, PixelError
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.scene.weights import AlphaMask
from tests.model.conftest import POSES
from tests.parallel.tasks import Case, lens_of, renderer_of, scene_of, three_frames


def render_broken(rank: int, case: Case, outputs: tuple[OutputSpec, ...]) -> list[str]:
    """A scene whose colours are NaN, and then what else a rounded frame refuses."""
    weights = scene_of(case)
    last = weights.mlp_weights[-1]
    last.fill_(float("nan"))
    renderer = renderer_of(rank, case, weights, outputs)
    if rank:
        renderer.serve()
        return []
    name, width, height = case.frames[0]
    frame = renderer.begin(POSES[name], lens_of(width, height), width, height).finish()
    told = []
    depth = [output for output in outputs if output.name == "depth"]
    assert np.isfinite(frame.quantised(depth, frame=3)["depth"]).all()
    for ask in (
        lambda: frame.quantised(outputs, frame=3),
        lambda: frame.quantised([OutputSpec("alpha", "float32")], frame=3),
        frame.numpy,
    ):
        try:
            ask()
        except PixelError as error:
            told.append(error.message)
    renderer.close()
    return told


def fail_in_flight(rank: int, case: Case, failing: int) -> list[str]:
    """One rank raises in its second frame, while two are in flight; the leader says what came of each of three."""
    renderer = renderer_of(rank, case)
    if rank == failing:
        whole, calls = renderer._part.render, iter(range(1))

        def render(order: Any) -> Any:
            if next(calls, None) is None:
                os._exit(5) if rank else None
                raise RuntimeError("out of luck")
            return whole(order)

        renderer._part.render = render  # type: ignore[method-assign]
    if rank:
        renderer.serve()
        return []
    name, width, height = case.frames[0]
    return three_frames(renderer, (POSES[name], lens_of(width, height), width, height))


def render_wrong_poses(rank: int, case: Case) -> list[str]:
    """Poses that no rank can render, then one that all can."""
    renderer = renderer_of(rank, case)
    if rank:
        renderer.serve()
        return []
    good, told = POSES["above"], []
    for pose, lens, width in (
        (good.astype(str), lens_of(8, 8), 8),
        (good.astype(np.complex64), lens_of(8, 8), 8),
        (good[:2], lens_of(8, 8), 8),
        (np.zeros((2, 3, 4)), lens_of(8, 8), 8),
        (good * np.nan, lens_of(8, 8), 8),
        (good, lens_of(8, 8)[:3], 8),
        (good, (1.0, 1.0, float("inf"), 0.0), 8),
        (good, lens_of(8, 8), 0),
        (good, lens_of(8, 8), 8.5),
    ):
        try:
            renderer.render(pose, lens, width, 8)  # type: ignore[arg-type]
        except CameraError as error:
            told.append(error.message)
    output = renderer.render(good, lens_of(8, 8), 8, 8)
    renderer.close()
    return [*told, f"rendered {output.numpy()['rgb'].shape[0]} rows"]


def render_with_other(rank: int, case: Case, what: str) -> None:
    """Rank 1 has another mask, or another setting, than the others."""
    weights = scene_of(case)
    if rank == 1 and what == "mask":
        assert weights.mask is not None
        weights = replace(weights, mask=AlphaMask(weights.mask.volume.flip(0), weights.mask.aabb))
    if rank == 1 and what == "setting":
        case = replace(case, settings={**case.settings, "distance_scale": 3.0})
    renderer = renderer_of(rank, case, weights)
    if rank == 0:
        name, width, height = case.frames[0]
        renderer.render(POSES[name], lens_of(width, height), width, height)
    else:
        renderer.serve()


def render_and_fail(rank: int, case: Case, failing: int, after: int) -> float:
    """One rank raises in the middle of a frame and its process ends; returns how long after the others got GroupError."""
    renderer = renderer_of(rank, case)
    if rank == failing:
        stages = renderer._part._stages  # type: ignore[attr-defined]
        calls = iter(range(after))
        whole = stages.march_density

        def march_density(rays: torch.Tensor) -> Any:
            if next(calls, None) is None:
                os._exit(5)
            return whole(rays)

        stages.march_density = march_density
    try:
        if rank == 0:
            name, width, height = case.frames[0]
            while True:
                renderer.render(POSES[name], lens_of(width, height), width, height)
        renderer.serve()
    except GroupError:
        os._exit(7)
    return 0.0
