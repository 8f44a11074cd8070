"""RenderRequest: what a job asks to be rendered, checked and resolved, before anyone looks at stores, disks or clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landmark_batch.cameras.flight import Flight
from landmark_batch.chunks import parse_frame_ranges
from landmark_batch.errors import ConfigError
from landmark_batch.frames.fingerprint import FrameSettings
from landmark_batch.frames.spec import OutputSpec, StoreInfo, StoreSpec
from landmark_batch.job import RenderJob
from landmark_batch.workflows.machine import Machine, memory_of_worker
from landmark_batch.workflows.scene_blocks import SceneBlocks, scene_blocks

if TYPE_CHECKING:
    from landmark_batch.fetching.choice import FetchChoice
    from landmark_batch.workflows.costs import FrameCosts

SCENE_RENDERER: Mapping[str, Any] = {"kind": "scene"}
THEIRS = "as the cluster's workers have it"  # runtime of a GPU
NO_KERNELS_HERE = "plain torch, many times slower, is what workers will use, since this machine has no compiled kernels"


@dataclass(frozen=True)
class RenderRequest:
    """flight: all cameras of the job. wanted: frames it asks for, ascending. settings: what fingerprints cover beside the pose.

    renderer: for the workers, see renderers.open_renderer. device: 'cuda' or 'cpu' its settings were resolved for.
    samples: a ray. mode, runtime (and why), precision: for people and for measured speeds. scene: content digest, '' without a scene.
    worker_memory: bytes a worker is expected to need, 0 = unknown. warnings: what the user should know.
    blocks: of a scene in a block store, and what its frames see; fetching: how a worker of this machine holds it, None where each worker
    decides for itself. costs: what its frames take, as far as a plan has found out.
    """

    job: RenderJob
    flight: Flight
    wanted: tuple[int, ...]
    settings: FrameSettings
    spec: StoreSpec
    info: StoreInfo
    device: str
    renderer: Mapping[str, Any] = field(default_factory=lambda: dict(SCENE_RENDERER))
    samples: int = 1
    mode: str = "hull"
    runtime: str = "torch"
    precision: str = "fp32"
    scene: str = ""
    worker_memory: int = 0
    warnings: tuple[str, ...] = ()
    runtime_reason: str = ""
    blocks: SceneBlocks | None = None
    fetching: FetchChoice | None = None
    costs: FrameCosts | None = None

    @property
    def pixels(self) -> int:
        return self.spec.width * self.spec.height


def scene_request(job: RenderJob, device: str, machine: Machine | None = None, *, elsewhere: bool = False) -> RenderRequest:
    """Check a job's scene, cameras and settings without loading planes, without a device and without torch.

    device: 'cuda' or 'cpu'. machine: that renders, where it is known. elsewhere: workers of a cluster render: what this machine has of
    a GPU's kernels says nothing of theirs.

    Raises ConfigError, CheckpointError, CameraError naming what is wrong, where and the remedy.
    """
    from landmark_batch.cameras.check import check_flight
    from landmark_batch.cameras.formats import flight_of_job
    from landmark_batch.kernels.build import KernelStatus
    from landmark_batch.model.memory import estimate_memory
    from landmark_batch.model.settings import resolve_settings
    from landmark_batch.scene.config import load_config
    from landmark_batch.scene.identity import scene_digest
    from landmark_batch.scene.shard import idle_shares
    from landmark_batch.workflows.worker import kernel_source

    checkpoint = checkpoint_of(job)
    config = load_config(checkpoint, plane_division=job.scene.plane_division, edit=job.scene.edit, edit_block=job.scene.edit_block)
    kernels = KernelStatus(device, loaded=False, usable=True, reason=THEIRS) if elsewhere and device == "cuda" else kernel_source()
    settings = resolve_settings(job, config, device=device, kernels=kernels)
    flight = flight_of_job(job)
    wanted = wanted_frames(job, flight)
    warnings = [*settings.notes, *check_flight(flight, settings.aabb, (settings.near, settings.far), frames=wanted)]
    if idle := idle_shares(config, settings.tensor_parallel):
        ranks = settings.tensor_parallel
        warnings.append(f"tensor_parallel = {ranks}: the scene's channels leave {idle} of every {ranks} workers without any")
    if elsewhere and settings.runtime == "torch" and job.model.runtime == "auto":
        warnings.append(
            f"{NO_KERNELS_HERE}: where the cluster's workers have GPUs say --device cuda, where they have a compiler --runtime fused"
        )
    digest = scene_digest(checkpoint, edit=job.scene.edit, edit_block=job.scene.edit_block)
    blocks = scene_blocks(job, settings, flight, device=device)
    choice = None if blocks is None or machine is None else choose(job, blocks, device, *memory_of_worker(job.parallel, machine, device))
    memory = estimate_memory(config, settings, flight.width, flight.height, tensor_parallel=settings.tensor_parallel)
    if blocks is not None and choice is not None and choice.mode == "dynamic":
        memory = (
            blocks.size.rest
            + blocks.size.batch
            + choice.slots * blocks.size.block
            + (_on_host(job, blocks, choice) if device == "cpu" else 0)
        )
    values = {"scene": blocks.base if blocks else digest, "scene.plane_division": list(config.division), **settings.pixel_settings()}
    prints = FrameSettings(values)
    if blocks is not None:
        prints = prints.seeing(flight, (blocks.seen.of(frame).tolist() for frame in range(len(flight))), blocks.digests)
    return RenderRequest(
        job=job,
        flight=flight,
        wanted=wanted,
        settings=prints,
        spec=store_spec(job, flight),
        info=store_info(job, flight),
        device=device,
        samples=settings.samples,
        mode=settings.mode,
        runtime=settings.runtime,
        runtime_reason=settings.runtime_reason,
        renderer={"kind": "scene", "runtime": settings.runtime, **_held(blocks, choice)},
        precision=settings.precision,
        scene=digest,
        worker_memory=memory,
        warnings=tuple(warnings),
        blocks=blocks,
        fetching=choice,
    )


def choose(job: RenderJob, blocks: SceneBlocks, device: str, memory: int, host: int) -> FetchChoice:
    """`choose_fetching` for a worker with these bytes on its device and of its host. Raises as that."""
    from landmark_batch.fetching.choice import choose_fetching

    return choose_fetching(job.fetching, blocks.size, device=device, memory=memory, host=host)


def _on_host(job: RenderJob, blocks: SceneBlocks, choice: FetchChoice) -> int:
    """Bytes of a worker for blocks on their way: its buffers, and what it adds to those for what ranks share."""
    from landmark_batch.fetching.transit import offered_bytes

    grouped = job.parallel.tensor_parallel * job.parallel.data_parallel > 1
    return choice.host_bytes + (min(choice.host_spare, offered_bytes(choice.host_bytes, blocks.size.block)) if grouped else 0)


def _held(blocks: SceneBlocks | None, choice: FetchChoice | None) -> dict[str, Any]:
    """What workers are told of a scene in blocks."""
    if blocks is None:
        return {}
    return {"blocks": {"size": asdict(blocks.size), "choice": asdict(choice) if choice else None}}


def checkpoint_of(job: RenderJob) -> Path | str:
    """The scene's path, or the URL of a block store. Raises ConfigError if the job names none."""
    if job.scene.checkpoint is None:
        where = str(job.path) if job.path is not None else f"job {job.name!r}"
        raise ConfigError(f"{where}: scene.checkpoint is not set", remedy="name the .th file, or the directory of -sub{b}.th files")
    return job.scene.checkpoint


def wanted_frames(job: RenderJob, flight: Flight) -> tuple[int, ...]:
    """Frames the job asks for: cameras.frames, else the whole flight. Raises ConfigError as parse_frame_ranges."""
    if job.cameras.frames is None:
        return tuple(range(len(flight)))
    return tuple(parse_frame_ranges(job.cameras.frames, len(flight)))


def store_spec(job: RenderJob, flight: Flight) -> StoreSpec:
    """The store a job's frames go to."""
    output = job.output
    outputs = []
    if output.rgb is not False:
        outputs.append(OutputSpec("rgb", output.rgb, 4 if output.background == "transparent" else 3))
    if output.depth is not False:
        outputs.append(OutputSpec("depth", output.depth))
    if output.alpha is not False:
        outputs.append(OutputSpec("alpha", output.alpha))
    return StoreSpec(
        frames=len(flight),
        height=flight.height,
        width=flight.width,
        outputs=tuple(outputs),
        compressor=output.compressor,
        frames_per_shard=output.frames_per_shard,
    )


def store_info(job: RenderJob, flight: Flight) -> StoreInfo:
    """What readers of the store are told: the job's fps before the camera file's."""
    return StoreInfo(
        name=job.name, fps=job.video.fps or flight.fps, metres_per_unit=job.scene.metres_per_unit, background=job.output.background
    )
