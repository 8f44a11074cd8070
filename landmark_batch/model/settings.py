"""RenderSettings: everything the renderer needs to know besides the scene and the camera, with all defaults filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from landmark_batch.errors import ConfigError
from landmark_batch.job import RenderJob
from landmark_batch.kernels.build import KernelStatus
from landmark_batch.model.runtime import KernelSource, resolve_runtime
from landmark_batch.scene.weights import Box, SceneConfig

DEFAULT_HULL_SAMPLES = 256
MAX_SAMPLES = 65536


@dataclass(frozen=True)
class RenderSettings:
    """mode: 'hull' (from near to the floor of the scene) or 'dense' (fixed steps from the entry of its box).

    samples: a ray. near, far: along the unnormalised ray. alpha_mask_threshold: the mask's trilinear value must exceed it.
    rays_per_batch: rays in flight at once, 0 = chosen; never changes a pixel. distance_scale: multiplies distances in alpha.
    background: 'white', 'black' or 'transparent' (premultiplied). appearance: row of the embedding, None without one.
    pixel_center: added to pixel indices, 0 (LandMark) or 0.5. aabb: samples outside are dropped; the scene's box or a crop.
    precision: 'fp32' or 'fp16', of planes and lines in memory. tensor_parallel: ranks that share the channels; sums of their shares
    differ in the last bits from the sum of one. notes: what a user should know about these settings.
    runtime_reason: why this runtime, one line.
    """

    mode: Literal["hull", "dense"]
    samples: int
    near: float
    far: float
    alpha_mask_threshold: float
    rays_per_batch: int
    distance_scale: float
    background: Literal["white", "black", "transparent"]
    appearance: int | None
    pixel_center: float
    aabb: Box
    precision: Literal["fp32", "fp16"]
    runtime: Literal["torch", "fused"]
    tensor_parallel: int = 1
    notes: tuple[str, ...] = field(default=(), compare=False)
    runtime_reason: str = field(default="", compare=False)

    def pixel_settings(self) -> dict[str, Any]:
        """What changes pixels, JSON-ready, for a frame's fingerprint. Frames of one rank say nothing of tensor_parallel."""
        return {
            "sampling.mode": self.mode,
            "sampling.samples": self.samples,
            "sampling.near": self.near,
            "sampling.far": self.far,
            "sampling.alpha_mask_threshold": self.alpha_mask_threshold,
            "sampling.distance_scale": self.distance_scale,
            "output.background": self.background,
            "scene.appearance": self.appearance,
            "scene.aabb": [list(corner) for corner in self.aabb],
            "cameras.pixel_center": self.pixel_center,
            "model.precision": self.precision,
            "model.runtime": self.runtime,
            **({"parallel.tensor_parallel": self.tensor_parallel} if self.tensor_parallel > 1 else {}),
        }


def resolve_settings(
    job: RenderJob, config: SceneConfig, *, device: str = "cpu", kernels: KernelSource | KernelStatus | None = None
) -> RenderSettings:
    """Fill in what the job leaves open: near and far from the checkpoint, samples from its step size (dense) or its training
    arguments (hull, 256 without them), distance_scale from the checkpoint, appearance row 0, the scene's own box.

    device: 'cpu' or 'cuda', kernels: where compiled ones come from, or what there is of them; `runtime = "auto"` depends on both.
    Raises ConfigError naming key, value and remedy; KernelBuildError as `resolve_runtime`.
    """
    sampling = job.sampling
    near = config.near_far[0] if sampling.near is None else sampling.near
    far = config.near_far[1] if sampling.far is None else sampling.far
    if not near < far:
        raise ConfigError(
            f"sampling.near = {near:g} is not below sampling.far = {far:g} (the checkpoint's are {config.near_far[0]:g} and"
            f" {config.near_far[1]:g})",
            remedy="set both in [sampling], or neither",
        )
    samples = sampling.samples if sampling.samples is not None else _default_samples(sampling.mode, config)
    if not 1 <= samples <= MAX_SAMPLES:
        raise ConfigError(f"sampling.samples = {samples}: between 1 and {MAX_SAMPLES} samples a ray", remedy="set sampling.samples")
    appearance, notes = _appearance(job, config)
    status, source = (kernels, None) if isinstance(kernels, KernelStatus) else (None, kernels)
    runtime = resolve_runtime(job.model.runtime, device, kernels=status, source=source)
    box = _crop(job.scene.aabb, config)
    return RenderSettings(
        mode=sampling.mode,
        samples=samples,
        near=near,
        far=far,
        alpha_mask_threshold=sampling.alpha_mask_threshold,
        rays_per_batch=sampling.rays_per_batch,
        distance_scale=config.distance_scale if sampling.distance_scale is None else sampling.distance_scale,
        background=job.output.background,
        appearance=appearance,
        pixel_center=job.cameras.pixel_center,
        aabb=box,
        precision=job.model.precision,
        runtime=runtime.runtime,
        tensor_parallel=job.parallel.tensor_parallel,
        notes=notes,
        runtime_reason=runtime.reason,
    )


def dense_step(config: SceneConfig) -> float:
    """Distance between samples in dense mode, as LandMark forms it in float32: mean voxel edge times step_ratio.

    A merged checkpoint's grid_size is that of one block, so its steps are coarser than in training; LandMark does the same.
    """
    low, high = np.asarray(config.aabb, dtype=np.float32)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # a grid of one voxel has no edges: there is no step
        x, y, z = (high - low) / (np.asarray(config.grid_size) - 1).astype(np.float32)
        return float((x + y + z) / np.float32(3) * np.float32(config.step_ratio))


def dense_samples(config: SceneConfig) -> int:
    """Samples that dense mode takes by default: enough to cross the box along its diagonal."""
    low, high = np.asarray(config.aabb, dtype=np.float32)
    step = dense_step(config)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        x, y, z = np.square(high - low)
        steps = float(np.sqrt(x + y + z) / np.float32(step))
    if not (math.isfinite(step) and step > 0 and math.isfinite(steps)):
        raise ConfigError(
            f"the checkpoint's grid {list(config.grid_size)} and step_ratio {config.step_ratio:g} give no step size for dense sampling",
            remedy='set sampling.mode = "hull"',
        )
    return int(steps) + 1


def _default_samples(mode: str, config: SceneConfig) -> int:
    if mode == "dense":
        return dense_samples(config)
    trained = config.training_arg("n_importance")
    if config.training_arg("sampling_opt") and isinstance(trained, int) and trained >= 1:
        return trained
    return DEFAULT_HULL_SAMPLES


def _appearance(job: RenderJob, config: SceneConfig) -> tuple[int | None, tuple[str, ...]]:
    row = job.scene.appearance_row
    if config.embedding_rows == 0:
        if row is None:
            return None, ()
        return None, (f"scene.appearance = {job.scene.appearance}: this scene was trained without appearance codes; it has no effect",)
    if row is None:
        return 0, ()
    if row >= config.embedding_rows:
        raise ConfigError(
            f"scene.appearance = {job.scene.appearance}: row {row} of an embedding of {config.embedding_rows} rows",
            remedy=f"choose a row from 0 to {config.embedding_rows - 1}",
        )
    return row, ()


def _crop(crop: Box | None, config: SceneConfig) -> Box:
    """The scene's box, or the part of it that the job keeps. Planes stay where they are: a crop only hides what is outside."""
    if crop is None:
        return config.aabb
    low = tuple(max(a, b) for a, b in zip(config.aabb[0], crop[0], strict=True))
    high = tuple(min(a, b) for a, b in zip(config.aabb[1], crop[1], strict=True))
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise ConfigError(
            f"scene.aabb = {_shown(crop)} does not meet the scene's box {_shown(config.aabb)}",
            remedy="choose a box inside the scene's, or leave scene.aabb out",
        )
    return ((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _shown(box: Box) -> str:
    """As in a job file, with as many digits as float32 holds."""
    return f"[{', '.join('[' + ', '.join(f'{value:.7g}' for value in corner) + ']' for corner in box)}]"
