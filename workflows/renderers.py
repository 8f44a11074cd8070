"""What a worker renders with, by the name its job snapshot gives: a scene's field, or the stand-ins of the benches.

A renderer takes one camera and returns the arrays of one frame; it knows nothing of stores, chunks or Dask.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import ConfigError
from landmark_batch.job import RenderJob


class RenderedFrame(Protocol):
    """counters: what the frame cost. numpy(): rgb [H, W, 3], depth [H, W], alpha [H, W], float32."""

    @property
    def counters(self) -> dict[str, int]: ...
    def numpy(self) -> dict[str, NDArray[np.float32]]: ...


class FrameRenderer(Protocol):
    def render(self, c2w: NDArray[np.float64], intrinsics: Sequence[float], width: int, height: int) -> RenderedFrame: ...


@dataclass(frozen=True)
class SimulatedFrame:
    rgb: NDArray[np.float32]
    depth: NDArray[np.float32]
    alpha: NDArray[np.float32]
    counters: dict[str, int] = field(default_factory=dict)

    def numpy(self) -> dict[str, NDArray[np.float32]]:
        return {"rgb": self.rgb, "depth": self.depth, "alpha": self.alpha}


class SimulatedRenderer:
    """A frame takes `seconds` of wall time and shows where its camera stands: measures everything around a renderer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def render(self, c2w: NDArray[np.float64], intrinsics: Sequence[float], width: int, height: int) -> SimulatedFrame:
        until = time.perf_counter() + self._seconds
        rgb = np.empty((height, width, 3), np.float32)
        rgb[:] = np.abs(np.sin(np.asarray(c2w[:, 3], np.float64))).astype(np.float32)
        plain = np.ones((height, width), np.float32)
        while (left := until - time.perf_counter()) > 0:
            time.sleep(left)
        return SimulatedFrame(rgb, plain, plain, {"rays": height * width})


def open_renderer(spec: Mapping[str, Any], job: RenderJob, device: str, threads: int = 1) -> tuple[FrameRenderer, str]:
    """The renderer a snapshot names, ready to render, and its device. spec: {'kind': 'scene'} or {'kind': 'simulated', 'seconds': s}.

    device: 'cuda', 'cpu', or 'auto' where the process looks for itself. threads: of this process on a CPU.

    Raises CheckpointError or ConfigError as the scene's own loader does.
    """
    kind = spec.get("kind")
    if kind == "simulated":
        return SimulatedRenderer(float(spec["seconds"])), "cpu"
    if kind != "scene":
        raise ConfigError(f"renderer {kind!r}: this version knows 'scene' and 'simulated'")
    return _open_scene(job, device, threads)


def _open_scene(job: RenderJob, device: str, threads: int) -> tuple[FrameRenderer, str]:
    import torch

    from landmark_batch.model.renderer import Renderer
    from landmark_batch.model.settings import resolve_settings
    from landmark_batch.scene.checkpoint import load_scene

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(threads)
    if job.scene.checkpoint is None:
        raise ConfigError("scene.checkpoint is not set", remedy="name the .th file, or the directory of -sub{b}.th files")
    weights = load_scene(
        job.scene.checkpoint, plane_division=job.scene.plane_division, edit=job.scene.edit, edit_block=job.scene.edit_block
    )
    renderer = Renderer(weights, resolve_settings(job, weights.config, device=device), torch.device(device))
    return renderer, device
