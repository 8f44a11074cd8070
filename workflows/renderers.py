"""What a worker renders with, by the name its job snapshot gives: a scene's field, or the stand-ins of the benches.

A renderer takes one camera and returns the arrays of one frame; it knows nothing of stores, chunks or Dask.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import ConfigError
from landmark_batch.frames.pixels import quantise
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.job import RenderJob

if TYPE_CHECKING:
    from landmark_batch.model.runtime import KernelSource
    from landmark_batch.model.settings import RenderSettings
    from landmark_batch.parallel.group import RenderGroup
    from landmark_batch.parallel.renderer import GroupRenderer
    from landmark_batch.scene.shard import ChannelShard
    from landmark_batch.scene.weights import SceneWeights
    from landmark_batch.workflows.snapshot import JobSnapshot


class RenderedFrame(Protocol):
    """counters: what the frame cost. numpy(): rgb [H, W, 3], depth [H, W], alpha [H, W], float32."""

    @property
    def counters(self) -> dict[str, int]: ...

    def numpy(self) -> dict[str, NDArray[np.float32]]: ...

    def quantised(self, outputs: Sequence[OutputSpec], *, frame: int, into: Mapping[str, NDArray[Any]]) -> object:
        """Write the frame in a store's dtypes into arrays by output name. Raises PixelError for NaN and Inf."""
        ...


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

    def quantised(self, outputs: Sequence[OutputSpec], *, frame: int, into: Mapping[str, NDArray[Any]]) -> None:
        for name, values in quantise(self.numpy(), outputs, frame=frame).items():
            into[name][...] = values


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


def open_renderer(
    spec: Mapping[str, Any], job: RenderJob, device: str, threads: int = 1, *, kernels: KernelSource | None = None
) -> tuple[FrameRenderer, str]:
    """The renderer a snapshot names, ready to render, and its device. spec: {'kind': 'scene'} or {'kind': 'simulated', 'seconds': s}.

    device: 'cuda', 'cpu', or 'auto' where the process looks for itself. threads: of this process on a CPU. kernels: where compiled ones
    come from.

    Raises CheckpointError or ConfigError as the scene's own loader does.
    """
    kind = spec.get("kind")
    if kind == "simulated":
        return SimulatedRenderer(float(spec["seconds"])), "cpu"
    if kind != "scene":
        raise ConfigError(f"renderer {kind!r}: this version knows 'scene' and 'simulated'")
    if "runtime" in spec:  # as the client resolved it
        job = job.model_copy(update={"model": job.model.model_copy(update={"runtime": spec["runtime"]})})
    return _open_scene(job, device, threads, kernels)


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees: a renderer asks for the same large arrays again and again.

    By default each of them is new memory from the system, and Dask makes its workers hand back even more: page faults took half
    the time of a render on two cores. Returns whether it was possible.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h; the latter's largest value is 32 MiB
    return bool(mallopt(trim, 2**30) and mallopt(mmap, 2**25))


def open_group_renderer(snapshot: JobSnapshot, device: str, group: RenderGroup, *, kernels: KernelSource | None = None) -> GroupRenderer:
    """This rank's renderer: it reads its share of the channels only. device: 'cuda' or 'cpu'. Raises as `open_renderer`."""
    import torch

    from landmark_batch.parallel.renderer import GroupRenderer
    from landmark_batch.scene.shard import ChannelShard

    job, shape = snapshot.render_job(), group.membership.shape
    if snapshot.renderer.get("kind") != "scene":
        raise ConfigError(f"renderer {snapshot.renderer.get('kind')!r}: groups render scenes")
    job = job.model_copy(update={"model": job.model.model_copy(update={"runtime": snapshot.renderer["runtime"]})})
    shard = ChannelShard(group.membership.rank % shape.tensor, shape.tensor) if shape.tensor > 1 else None
    weights, settings = _load(job, device, snapshot.threads, kernels, shard)
    return GroupRenderer(group, weights, settings, torch.device(device), threads=snapshot.threads)


def _open_scene(job: RenderJob, device: str, threads: int, kernels: KernelSource | None) -> tuple[FrameRenderer, str]:
    import torch

    from landmark_batch.kernels.tuning import Launches
    from landmark_batch.model.fused import FusedRenderer
    from landmark_batch.model.renderer import Renderer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    weights, settings = _load(job, device, threads, kernels, None)
    if settings.runtime == "fused" and device == "cuda":
        return FusedRenderer(weights, settings, torch.device(device), Launches(kernels.cache_dir if kernels is not None else None)), device
    return Renderer(weights, settings, torch.device(device)), device


def _load(
    job: RenderJob, device: str, threads: int, kernels: KernelSource | None, shard: ChannelShard | None
) -> tuple[SceneWeights, RenderSettings]:
    import torch

    from landmark_batch.model.runtime import load_runtime
    from landmark_batch.model.settings import resolve_settings
    from landmark_batch.scene.checkpoint import load_scene

    if device == "cpu":
        torch.set_num_threads(threads)
        keep_freed_memory()
    scene = job.scene
    if scene.checkpoint is None:
        raise ConfigError("scene.checkpoint is not set", remedy="name the .th file, or the directory of -sub{b}.th files")
    weights = load_scene(scene.checkpoint, plane_division=scene.plane_division, edit=scene.edit, edit_block=scene.edit_block, shard=shard)
    settings = resolve_settings(job, weights.config, device=device, kernels=kernels)
    load_runtime(settings.runtime, device, source=kernels)
    return weights, settings
