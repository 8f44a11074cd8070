"""probe_plan: parts of a few frames of a job, rendered as the job would, tell what the whole of it will take.

On a CPU these are strips of frames, on GPUs whole frames (a part leaves a GPU half idle). Workers, scheduler and store are real ones: what
they cost beside the rendering is measured with it. The store of the probe stands beside the job's and is removed.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from landmark_batch.errors import ConfigError
from landmark_batch.events import ChunkDone, Event, Preparing
from landmark_batch.frames.store import FrameStore
from landmark_batch.workflows.costs import fit_costs
from landmark_batch.workflows.in_hand import CHUNKS
from landmark_batch.workflows.machine import Machine, group_shape, resident_memory
from landmark_batch.workflows.plan import worker_memory
from landmark_batch.workflows.probed import Probe
from landmark_batch.workflows.render_plan import RenderPlan
from landmark_batch.workflows.request import RenderRequest, store_spec

if TYPE_CHECKING:
    from landmark_batch.fetching.flight_blocks import FlightBlocks

PLACES = 12
IN_PLACE = 4  # windows at a place, on a CPU; on a GPU as many frames as the job's chunks have
RAYS = 2**17  # of a window, where a frame has as many: what a chunk costs beside its rays is then little
SMALL = 64  # rows of a frame that is not worth being cut
CROWDED = 0.1  # share of frames that need more blocks than there are slots, from which on they are looked at whole
LOOK_SECONDS = 0.2  # between two looks at the memory that workers hold, and more where a look takes more than
LOOK_SHARE = 0.05  # of that time
_STAGES = {"cpu": ("render", "wait"), "cuda": ("render", "quantise", "wait")}  # of a chunk, that keep its worker from the next one
_COLD = {
    "cpu": 1,
    "cuda": CHUNKS,
}  # chunks of a worker that load libraries and touch memory: a GPU's, all sets of arrays and its writers' buffers
_GOLDEN = 0.618034  # steps of this share of a row of windows come by every part of it


@dataclass(frozen=True)
class Window:
    """Rows top to top + rows of a frame of the flight, in its full width."""

    frame: int
    top: int
    rows: int


def probe_plan(
    plan: RenderPlan,
    machine: Machine,
    *,
    places: int = PLACES,
    scheduler: str | None = None,
    stop: threading.Event | None = None,
) -> Probe:
    """Render windows at so many places of a plan's flight, evenly over the frames that are to do, and measure them.

    Raises ConfigError for a job that renders no scene or has nothing left to do, and whatever `run_render` raises.
    """
    from landmark_batch.workflows.render import run_render

    request, costs = plan.request, plan.request.costs
    if costs is None or not plan.todo:
        raise ConfigError(f"{plan.job.name}: nothing to render, so nothing to probe", remedy="leave --probe out")
    groups = plan.placement.groups if plan.placement is not None else 1
    each = plan.chunk_frames if request.device == "cuda" else IN_PLACE
    cold = _COLD[request.device]
    looked_at = choose_windows(request, plan.todo, places, groups * cold, each=each)
    with _folder_beside(plan.job.store_neighbour) as folder:
        small = _probe_request(request, looked_at, each, folder / "probe.zarr")
        seen: list[ChunkDone] = []
        started = prepared = time.time()

        def keep(event: Event) -> None:
            nonlocal prepared
            if isinstance(event, Preparing):
                prepared = event.at  # kernels are built once: no later run waits for them
            elif isinstance(event, ChunkDone):
                seen.append(event)

        with _watched_memory(plan.placement.gpus if plan.placement is not None else ()) as held:
            result = run_render(
                small.job,
                request=small,
                sinks=[keep],
                scheduler=scheduler,
                stop=stop,
                machine=machine,
                dashboard=False,
                log=folder / "probe.log",
            )
        error = result.error()
        if error is not None:
            raise error
        size = FrameStore.open(small.job.store_path).measured_bytes_per_frame() or 0.0
    groups = max(1, result.workers // group_shape(request.job.parallel).size)
    scale = request.pixels / small.pixels
    measured = measure_places(seen, each, _STAGES[request.device], cold=cold)
    numbers = [[window.frame for window in looked_at[place * each :][:each]] for place in measured]
    frames, seconds = [of[0] for of in numbers], [taken * scale for taken in measured.values()]
    samples = [float(costs.samples[of].mean()) for of in numbers]
    larger = 8 * 5 * (request.pixels - small.pixels) + worker_memory(request, plan.chunks) - worker_memory(small, ())
    return Probe(
        model=fit_costs(frames, samples, seconds),
        groups=groups,
        startup=max(0.0, result.startup_seconds - (prepared - started)),
        between=result.stages.get("idle", 0.0) / max(1, len(seen) - groups),
        bytes_per_frame=size * scale,
        host_memory=held.host + result.workers * max(0, larger) if scheduler is None else 0,
        gpu_memory=held.gpu,
        frames=tuple(frames),
        samples=tuple(samples),
        seconds=tuple(seconds),
        width=small.flight.width,
        height=small.flight.height,
    )


def choose_windows(request: RenderRequest, todo: Sequence[int], places: int, spare: int = 0, *, each: int = IN_PLACE) -> list[Window]:
    """What to render at so many places and some to spare, evenly over `todo`: `each` windows a place, all of one size.

    On a CPU strips that spread over a frame's height, each place's a little lower than the one before; with the rays of whole frames,
    since neighbouring rays of a smaller frame lie further apart and find less in the caches. On a GPU, and where frames are small,
    whole neighbouring frames. These too, at fewer places, where frames need more blocks than there are slots: a strip needs fewer, and
    what is loaded from frame to frame is not a strip's loads times their number.
    """
    from landmark_batch.model.tiles import tile_side

    crowded = _is_crowded(request, todo)
    if crowded:
        places = -(-places // each)
    chosen = sorted({int(i) for i in np.linspace(0, len(todo) - 1, min(places + spare, len(todo))).round()})
    height = request.flight.height
    rows = min(height // each, max(tile_side(request.samples, request.device)[1], RAYS // request.flight.width))
    if request.device == "cuda" or height < SMALL or crowded:
        return [Window(todo[min(i + k, len(todo) - 1)], 0, height) for i in chosen for k in range(each)]
    room = height / each - rows
    return [
        Window(todo[i], int(k * height / each + room * (number * _GOLDEN % 1.0)), rows)
        for number, i in enumerate(chosen)
        for k in range(each)
    ]


def _is_crowded(request: RenderRequest, todo: Sequence[int]) -> bool:
    """Whether a CPU's frames need more blocks than its slots hold, one of ten at least."""
    blocks, choice = request.blocks, request.fetching
    if request.device == "cuda" or blocks is None or choice is None or choice.mode != "dynamic":
        return False
    counts = np.diff(blocks.seen.offsets)[np.searchsorted(blocks.seen.frames, np.asarray(todo, dtype=np.int64))]
    return float((counts > choice.slots).mean()) >= CROWDED


def measure_places(seen: Sequence[ChunkDone], each: int, stages: Sequence[str], *, cold: int = 1) -> dict[int, float]:
    """{place: mean seconds of its windows, `each` a place, in these stages}, ascending; without those that hold one of a worker's first
    `cold` chunks, which load libraries and touch memory, where others are left.
    """
    begun: Counter[str] = Counter()
    started: set[int] = set()
    times: dict[int, list[float]] = {}
    for event in seen:
        begun[event.worker] += 1
        if begun[event.worker] <= cold:
            started.update(window // each for window in event.frames)
        seconds = sum(event.stages.get(name, 0.0) for name in stages) / max(1, len(event.frames))
        for window in event.frames:
            times.setdefault(window // each, []).append(seconds)
    warm = {place: values for place, values in times.items() if place not in started} or times
    return {place: sum(values) / len(values) for place, values in sorted(warm.items())}


def _probe_request(request: RenderRequest, windows: Sequence[Window], each: int, store: Path) -> RenderRequest:
    """A flight of these windows, `each` a place, for the same renderer, into a store of its own. On a CPU a place is a file, and so goes
    out as one chunk; on a GPU files are the job's: they are written as fast as it renders.
    """
    flight, frames = request.flight, [window.frame for window in windows]
    lenses = flight.intrinsics[frames].copy()
    lenses[:, 3] -= [window.top for window in windows]
    part = replace(
        flight,
        c2w=flight.c2w[frames],
        intrinsics=lenses,
        height=windows[0].rows,
        time=np.arange(len(frames), dtype=np.float64),
        names=tuple(f"window {number}" for number in range(len(frames))),
    )
    blocks = request.blocks
    if blocks is not None:
        blocks = replace(blocks, seen=_seen_by(blocks.seen, frames, windows[0].rows / flight.height))
    files = {} if request.device == "cuda" else {"frames_per_shard": each}
    output = request.job.output.model_copy(update={"store": store, "chunk_frames": each, **files, "order": "time"})
    job = request.job.model_copy(update={"name": "probe", "output": output})
    return replace(
        request,
        job=job,
        flight=part,
        wanted=tuple(range(len(frames))),
        spec=store_spec(job, part),
        blocks=blocks,
        costs=None,
        scene="",  # the speed of so small a job is not remembered
        warnings=(),
    )


def _seen_by(seen: FlightBlocks, frames: Sequence[int], share: float) -> FlightBlocks:
    """Of windows, each of which sees no more than its frame."""
    rows = [seen.of(frame) for frame in frames]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    samples = np.array([seen.samples[np.searchsorted(seen.frames, frame)] * share for frame in frames]).astype(np.int64)
    return replace(
        seen, offsets=offsets, ids=np.concatenate([*rows, np.zeros(0, np.int32)]), samples=samples, frames=np.arange(len(frames))
    )


@contextmanager
def _folder_beside(store: Path) -> Iterator[Path]:
    """A folder on the store's own disk (on this machine, where it is to be in an object store), gone at the end."""
    parent = next(place for place in store.parents if place.is_dir())
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{store.stem}.probe.", dir=parent))
    except OSError as error:
        raise ConfigError(f"{parent}: cannot be written: {error}", remedy="name another path with -o, or plan without --probe") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Held:
    """Peaks so far, in bytes."""

    host = 0
    gpu: int | None = None


@contextmanager
def _watched_memory(gpus: Sequence[int]) -> Iterator[_Held]:
    """Looks at this process, its children and its GPUs, again and again."""
    held, over = _Held(), threading.Event()
    look_at_gpus = _gpu_looker(gpus)

    def watch() -> None:
        pause = LOOK_SECONDS
        while not over.wait(pause):
            began = time.perf_counter()
            held.host = max(held.host, _tree_memory())
            pause = max(LOOK_SECONDS, (time.perf_counter() - began) / LOOK_SHARE)
            if gpus:
                held.gpu = max(held.gpu or 0, look_at_gpus())

    thread = threading.Thread(target=watch, name="memory of a probe", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        over.set()
        thread.join()


def _tree_memory() -> int:
    """Bytes that this process and its children hold."""
    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            total += resident_memory(process)
    return total


def _gpu_looker(gpus: Sequence[int]) -> Callable[[], int]:
    """What tells the bytes that are taken on the fullest of these GPUs, beyond what is taken now."""
    if not gpus:
        return lambda: 0
    import torch

    def taken(ordinal: int) -> int:
        free, total = torch.cuda.mem_get_info(ordinal)
        return int(total - free)

    before = {ordinal: taken(ordinal) for ordinal in gpus}
    return lambda: max(taken(ordinal) - before[ordinal] for ordinal in gpus)
