"""bench fetching: a flight rendered with some of a scene's blocks in slots, beside the same with all of them, and what was moved."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from landmark_batch.chunks import split_frames
from landmark_batch.errors import ConfigError
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.job import RenderJob
from landmark_batch.workflows.bench_link import copy_rate
from landmark_batch.workflows.in_hand import chunk_frames
from landmark_batch.workflows.itinerary import route_chunks
from landmark_batch.workflows.machine import Machine, choose_device, describe_machine
from landmark_batch.workflows.request import RenderRequest, scene_request
from landmark_batch.workflows.saved_report import SavedReport

if TYPE_CHECKING:
    from landmark_batch.fetching.choice import FetchChoice
    from landmark_batch.workflows.renderers import RenderedFrame

RGB = (OutputSpec("rgb", "uint8", 3),)
WARM_UP = 2  # frames before the clock starts: graphs are recorded, buffers grow
MOVED = ("fetch_loads", "fetch_bytes_read", "fetch_bytes_copied")  # counted from the first block on, before the clock starts too

Tell = Callable[[str], None]


@dataclass(frozen=True)
class FetchRun:
    """One pass over the flight. seconds: of all frames, from the first pose to the last uint8 image on the host. counters: of frames.

    gpu_peak, host_peak: most bytes that torch held on the GPU, and that this process had in memory, up to its end; host_blocks: of
    buffers for blocks among these. digest: of all pixels.
    """

    mode: str
    slots: int
    seconds: float
    frames: int
    counters: dict[str, int]
    gpu_peak: int
    host_peak: int
    host_blocks: int
    digest: str
    copy_rate: float = 0.0

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds


@dataclass(frozen=True)
class FetchingBench(SavedReport):
    """dynamic, resident: the runs; resident None where the scene does not fit. planned: loads of Belady's plan. link: GB/s of a plain
    copy from pinned host memory, 0 on a CPU. order: of the chunks.
    """

    scene: str
    device: str
    runtime: str
    precision: str
    width: int
    height: int
    samples: int
    blocks: int
    block_bytes: int
    blocks_mean: float
    blocks_max: int
    order: str
    planned: int
    demand: int
    dynamic: FetchRun
    resident: FetchRun | None
    link: float
    notes: tuple[str, ...] = field(default=())

    @property
    def ratio(self) -> float | None:
        """Frames a second beside resident rendering."""
        return self.dynamic.rate / self.resident.rate if self.resident is not None else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "ratio": self.ratio}

    def describe(self) -> str:
        """A table for people."""
        run, counted = self.dynamic, self.dynamic.counters
        moved = counted.get("fetch_bytes_copied", 0) or counted.get("fetch_loads", 0) * self.block_bytes  # a GPU's copies are counted
        seen = f"{self.blocks_mean:.1f} a frame, {self.blocks_max} at most"
        how = f"{self.samples} samples a ray, {self.precision}, {self.runtime}; {self.order}"
        rows = [
            ("scene", f"{self.scene}: {self.blocks} blocks of {_mib(self.block_bytes)}; {seen}"),
            ("frames", f"{run.frames} of {self.width}×{self.height}, {how}"),
            ("dynamic", f"{run.rate:.2f} frames/s with {run.slots} slots ({_mib(run.slots * self.block_bytes)})"),
        ]
        if self.resident is not None:
            same = "the same bits" if self.resident.digest == run.digest else "OTHER BITS"
            rows.append(("resident", f"{self.resident.rate:.2f} frames/s; dynamic has {self.ratio:.3f} of it, {same}"))
        stall = counted.get("fetch_stall_microseconds", 0) / 1e6
        rows += [
            ("moved", f"{counted.get('fetch_loads', 0)} blocks (planned {self.planned}, on demand {self.demand}), {moved / 1e9:.3g} GB"),
            ("read", f"{counted.get('fetch_bytes_read', 0) / 1e9:.3g} GB from the store"),
            ("stalls", f"{counted.get('fetch_stalls', 0)}, {stall:.3f} s of {run.seconds:.3f} s"),
            ("memory", f"host {_mib(run.host_blocks)} of blocks, {_mib(run.host_peak)} in all; GPU {_mib(run.gpu_peak)}"),
        ]
        if self.link:
            rows.append(("link", f"copies {run.copy_rate:.1f} GB/s; {self.link:.1f} GB/s for one large copy from pinned memory"))
        lines = [f"fetching on {self.device}", *(f"  {name:9} {text}" for name, text in rows)]
        return "\n".join([*lines, *(f"  note      {note}" for note in self.notes)])


def bench_fetching(job: RenderJob, *, frames: int | None = None, machine: Machine | None = None, tell: Tell | None = None) -> FetchingBench:
    """Render a job's flight in this process, with its fetching and then with the whole scene, writing nothing.

    frames: of the flight, from its first. fetching.mode must not be resident; "auto" is taken for "dynamic".
    Raises ConfigError, CheckpointError, CameraError, StoreError as `render` does.
    """
    tell = tell or (lambda line: None)
    machine = machine or describe_machine()
    if job.fetching.mode == "auto":
        job = job.model_copy(update={"fetching": job.fetching.model_copy(update={"mode": "dynamic"})})
    if frames is not None:
        job = job.model_copy(update={"cameras": job.cameras.model_copy(update={"frames": f"0-{frames - 1}"})})
    device = choose_device(job.parallel, machine)
    tell("what the flight sees")
    request = scene_request(job, device, machine)
    blocks, choice = request.blocks, request.fetching
    if blocks is None or choice is None or choice.mode != "dynamic":
        raise ConfigError(
            f"{job.scene.checkpoint}: {'a checkpoint' if blocks is None else 'held whole'}: nothing is fetched",
            remedy="name a block store (`landmark-batch convert`) and leave fetching.mode out",
        )
    chunks = split_frames(request.wanted, chunk_frames(request))
    route = route_chunks(request, chunks, 1)
    order = [frame for chunk in route.chunks for frame in chunk.frames]
    counts = [len(blocks.seen.of(frame)) for frame in order]
    tell(f"dynamic, {choice.slots} slots")
    dynamic = _run(request, choice, order, device)
    resident, notes = None, []
    try:
        tell("resident")
        resident = _run(request, None, order, device)
    except (ConfigError, RuntimeError) as error:  # OutOfMemoryError is one
        notes.append(f"the whole scene was not rendered: {str(error).splitlines()[0]}")
    found = route.order
    return FetchingBench(
        scene=str(job.scene.checkpoint),
        device=_device_name(device, machine),
        runtime=request.runtime,
        precision=request.precision,
        width=request.spec.width,
        height=request.spec.height,
        samples=request.samples,
        blocks=blocks.size.blocks,
        block_bytes=blocks.size.block,
        blocks_mean=float(np.mean(counts)),
        blocks_max=max(counts),
        order=found.name if found is not None else "flight order",
        planned=found.loads if found is not None else len({int(b) for frame in order for b in blocks.seen.of(frame)}),
        demand=found.demand if found is not None else 0,
        dynamic=dynamic,
        resident=resident,
        link=copy_rate() / 1e9 if device == "cuda" else 0.0,
        notes=tuple(notes),
    )


def _run(request: RenderRequest, choice: FetchChoice | None, order: Sequence[int], device: str) -> FetchRun:
    import hashlib

    import torch

    from landmark_batch.fetching.route import Route
    from landmark_batch.workflows.renderers import open_renderer
    from landmark_batch.workflows.worker import kernel_source

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    spec: dict[str, Any] = {"kind": "scene", "runtime": request.runtime}
    if choice is not None:
        spec |= {"blocks": {"size": {}, "choice": asdict(choice)}}
    assert request.blocks is not None
    seen, threads = request.blocks.seen, torch.get_num_threads()
    renderer, _ = open_renderer(spec, request.job, device, threads, kernels=kernel_source(), route=lambda: Route.along(seen, order))
    flight, digest, counters = request.flight, hashlib.sha256(), Counter[str]()
    lenses = flight.intrinsics.tolist()
    images = {"rgb": np.empty((flight.height, flight.width, 3), np.uint8)}

    def render(frame: int) -> RenderedFrame:
        output = renderer.render(flight.c2w[frame], lenses[frame], flight.width, flight.height, frame=frame)
        output.quantised(RGB, frame=frame, into=images)
        return output

    for _ in range(WARM_UP):
        warm = render(order[0]).counters
        counters.update({name: warm[name] for name in MOVED if name in warm})
    spent = 0.0
    for frame in order:
        started = time.perf_counter()
        output = render(frame)
        spent += time.perf_counter() - started
        digest.update(images["rgb"].data)
        counters.update(output.counters)
    stats = getattr(renderer, "stats", None)
    run = FetchRun(
        mode="dynamic" if choice is not None else "resident",
        slots=choice.slots if choice is not None else 0,
        seconds=spent,
        frames=len(order),
        counters=dict(counters),
        gpu_peak=int(torch.cuda.max_memory_reserved()) if device == "cuda" else 0,
        host_peak=_peak_memory(),
        host_blocks=stats.host_peak_bytes if stats is not None else 0,
        digest=digest.hexdigest(),
        copy_rate=stats.copy_rate if stats is not None else 0.0,
    )
    close = getattr(renderer, "close", None)
    if close is not None:
        close()
    return run


def _device_name(device: str, machine: Machine) -> str:
    return machine.gpus[0].name if device == "cuda" and machine.gpus else machine.cpu


def _peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"
