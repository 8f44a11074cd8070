"""What a worker renders with, by the name its job snapshot gives: a scene's field, or the stand-ins of the benches.

A renderer takes one camera and returns the arrays of one frame; it knows nothing of stores, chunks or Dask.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import ConfigError
from landmark_batch.frames.pixels import quantise
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.job import RenderJob
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.snapshot import ROUTE_FILE, SEEN_FILE

if TYPE_CHECKING:
    from landmark_batch.fetching.choice import FetchChoice
    from landmark_batch.fetching.fetcher import Fetcher
    from landmark_batch.fetching.route import Route
    from landmark_batch.fetching.shared_reads import SharedReads
    from landmark_batch.model.fused import FusedRenderer
    from landmark_batch.model.output import BegunFrame
    from landmark_batch.model.renderer import Renderer
    from landmark_batch.model.runtime import KernelSource
    from landmark_batch.model.settings import RenderSettings
    from landmark_batch.scene.shard import ChannelShard
    from landmark_batch.scene.weights import SceneConfig, SceneWeights

logger = logging.getLogger(__name__)


class RenderedFrame(Protocol):
    """counters: what the frame cost. numpy(): rgb [H, W, 3], depth [H, W], alpha [H, W], float32."""

    @property
    def counters(self) -> dict[str, int]: ...

    def numpy(self) -> dict[str, NDArray[np.float32]]: ...

    def quantised(self, outputs: Sequence[OutputSpec], *, frame: int, into: Mapping[str, NDArray[Any]]) -> object:
        """Write the frame in a store's dtypes into arrays by output name. Raises PixelError for NaN and Inf."""
        ...


class FrameRenderer(Protocol):
    def render(
        self, c2w: NDArray[np.float64], intrinsics: Sequence[float], width: int, height: int, *, frame: int | None = None
    ) -> RenderedFrame:
        """frame: its number in the flight, for a renderer that fetches what frames need ahead of them."""
        ...


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

    def render(
        self, c2w: NDArray[np.float64], intrinsics: Sequence[float], width: int, height: int, *, frame: int | None = None
    ) -> SimulatedFrame:
        until = time.perf_counter() + self._seconds
        rgb = np.empty((height, width, 3), np.float32)
        rgb[:] = np.abs(np.sin(np.asarray(c2w[:, 3], np.float64))).astype(np.float32)
        plain = np.ones((height, width), np.float32)
        while (left := until - time.perf_counter()) > 0:
            time.sleep(left)
        return SimulatedFrame(rgb, plain, plain, {"rays": height * width})


class ClosedRenderer:
    """In a closed session's place for a renderer: lets go of the scene's memory."""

    def render(
        self, c2w: NDArray[np.float64], intrinsics: Sequence[float], width: int, height: int, *, frame: int | None = None
    ) -> RenderedFrame:
        raise RuntimeError("the session was closed")


CLOSED = ClosedRenderer()


class ResidentRenderer:
    """A renderer that has the whole scene, whichever frame comes."""

    def __init__(self, renderer: Renderer | FusedRenderer) -> None:
        self.renderer = renderer

    def render(
        self, c2w: NDArray[np.float64], intrinsics: Sequence[float], width: int, height: int, *, frame: int | None = None
    ) -> RenderedFrame:
        return self.renderer.render(c2w, intrinsics, width, height)


class FusedResidentRenderer(ResidentRenderer):
    """One that may have begun the next frame when it gives one."""

    renderer: FusedRenderer

    def begin(
        self, c2w: NDArray[np.float64], intrinsics: Sequence[float], width: int, height: int, *, frame: int | None = None
    ) -> BegunFrame:
        return self.renderer.begin(c2w, intrinsics, width, height)


def device_of(spec: Mapping[str, Any], device: str) -> str:
    """'cuda' or 'cpu': what a renderer of `open_renderer` will work on in this process."""
    if spec.get("kind") == "simulated":
        return "cpu"
    if device == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def open_renderer(
    spec: Mapping[str, Any],
    job: RenderJob,
    device: str,
    threads: int = 1,
    *,
    kernels: KernelSource | None = None,
    route: Callable[[], Route] | None = None,
) -> tuple[FrameRenderer, str]:
    """The renderer a snapshot names, ready to render, and its device. spec: {'kind': 'scene'} or {'kind': 'simulated', 'seconds': s}.

    device: 'cuda', 'cpu', or 'auto' where the process looks for itself. threads: of this process on a CPU. kernels: where compiled ones
    come from. route: what frames see of a scene in blocks, and in which order they come; without it blocks are fetched as frames come.

    Raises CheckpointError or ConfigError as the scene's own loader does.
    """
    kind = spec.get("kind")
    if kind == "simulated":
        return SimulatedRenderer(float(spec["seconds"])), "cpu"
    if kind != "scene":
        raise ConfigError(f"renderer {kind!r}: this version knows 'scene' and 'simulated'")
    if "runtime" in spec:  # as the client resolved it
        job = job.model_copy(update={"model": job.model.model_copy(update={"runtime": spec["runtime"]})})
    return _open_scene(job, spec, device, threads, kernels, route)


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees: a renderer, and a writer, asks for the same large arrays again and again.

    By default each of them is new memory from the system, and Dask makes its workers hand back even more: page faults took half
    the time of a render on two cores, and beside a GPU they hold up the thread that feeds it. Returns whether it was possible.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h; the latter's largest value is 32 MiB
    return bool(mallopt(trim, 2**30) and mallopt(mmap, 2**25))


def _open_scene(
    job: RenderJob, spec: Mapping[str, Any], device: str, threads: int, kernels: KernelSource | None, route: Callable[[], Route] | None
) -> tuple[FrameRenderer, str]:
    import torch

    from landmark_batch.kernels.tuning import Launches
    from landmark_batch.model.fused import FusedRenderer
    from landmark_batch.model.renderer import Renderer

    device = device_of(spec, device)
    launches = Launches(kernels.cache_dir if kernels is not None else None)
    choice = fetch_choice(spec, job, device)
    if choice is not None and choice.mode == "dynamic":
        from landmark_batch.fetching.renderer import FetchingRenderer

        fetcher = open_fetcher(job, choice, device, threads, kernels, route() if route is not None else None)
        memory = choice.batch if device == "cuda" else None
        return FetchingRenderer(fetcher, launches=launches, memory=memory), device
    weights, settings = load_whole(job, device, threads, kernels, None)
    if settings.runtime == "fused" and device == "cuda":
        memory = choice.batch if choice is not None else None
        return FusedResidentRenderer(FusedRenderer(weights, settings, torch.device(device), launches, memory=memory)), device
    return ResidentRenderer(Renderer(weights, settings, torch.device(device))), device


def fetch_choice(spec: Mapping[str, Any], job: RenderJob, device: str) -> FetchChoice | None:
    """How this worker holds a scene in blocks: as the client chose, or by its own memory; None for a checkpoint."""
    blocks = spec.get("blocks")
    if blocks is None:
        return None
    from landmark_batch.fetching.choice import FetchChoice, SceneSize, choose_fetching

    if blocks["choice"] is not None:
        return FetchChoice(**blocks["choice"])
    from landmark_batch.workflows.machine import own_memory

    memory, host = own_memory(device)
    choice = choose_fetching(job.fetching, SceneSize(**blocks["size"]), device=device, memory=memory, host=host)
    logger.info("fetching: %s, %s", choice.mode, choice.reason)
    return choice


def open_fetcher(
    job: RenderJob,
    choice: FetchChoice,
    device: str,
    threads: int,
    kernels: KernelSource | None,
    route: Route | None,
    shard: ChannelShard | None = None,
    shared: SharedReads | None = None,
) -> Fetcher:
    """What brings this worker's share of blocks into its slots. shared: as for BlockCache."""
    import torch

    from landmark_batch.fetching.fetcher import Fetcher
    from landmark_batch.model.runtime import load_runtime
    from landmark_batch.model.settings import resolve_settings
    from landmark_batch.scene.store import BlockStore

    keep_freed_memory()
    if device == "cpu":
        torch.set_num_threads(threads)
    assert job.scene.checkpoint is not None
    store = BlockStore.open(job.scene.checkpoint)
    settings = resolve_settings(job, store.config, device=device, kernels=kernels)
    load_runtime(settings.runtime, device, source=kernels)
    return Fetcher(store, settings, torch.device(device), choice, route, shard=shard, shared=shared)


def route_of(folder: StorePath) -> Route:
    """The route that a run's folder holds. Raises ConfigError where it is damaged."""
    from landmark_batch.fetching.flight_blocks import FlightBlocks
    from landmark_batch.fetching.route import Route

    return Route(FlightBlocks.load(folder / SEEN_FILE), folder / ROUTE_FILE)


def load_whole(
    job: RenderJob, device: str, threads: int, kernels: KernelSource | None, shard: ChannelShard | None
) -> tuple[SceneWeights, RenderSettings]:
    """All blocks of a scene, this worker's channels of them. Raises as `load_scene` and `load_runtime`."""
    import torch

    from landmark_batch.model.field import STORAGE
    from landmark_batch.model.runtime import load_runtime
    from landmark_batch.model.settings import resolve_settings
    from landmark_batch.scene.checkpoint import load_scene

    keep_freed_memory()
    if device == "cpu":
        torch.set_num_threads(threads)
    scene = job.scene
    if scene.checkpoint is None:
        raise ConfigError("scene.checkpoint is not set", remedy="name the .th file, or the directory of -sub{b}.th files")

    def planes(config: SceneConfig) -> tuple[torch.device, torch.dtype]:
        settings = resolve_settings(job, config, device=device, kernels=kernels)
        return torch.device(_first_place(config, settings, device, shard)), STORAGE[settings.precision]

    options = {"plane_division": scene.plane_division, "edit": scene.edit, "edit_block": scene.edit_block, "shard": shard}
    weights = load_scene(scene.checkpoint, **options, planes=planes)  # type: ignore[arg-type]
    settings = resolve_settings(job, weights.config, device=device, kernels=kernels)
    load_runtime(settings.runtime, device, source=kernels)
    return weights, settings


def _first_place(config: SceneConfig, settings: RenderSettings, device: str, shard: ChannelShard | None) -> str:
    """Where planes are read to: the device that renders, unless it would then hold them twice while kernels' channels are filled up."""
    from landmark_batch.fetching.block_reader import GROUP
    from landmark_batch.scene.shard import WHOLE

    widths = [(shard or WHOLE).span(channels)[2] for channels in (config.density_channels, config.appearance_channels)]
    filled = settings.runtime == "fused" and any(width % GROUP for width in widths)
    return "cpu" if filled else device
