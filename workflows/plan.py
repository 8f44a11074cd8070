"""Makes a job's RenderPlan, without a cluster and without a GPU. Refuses with numbers."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from landmark_batch.chunks import FrameChunk
from landmark_batch.errors import ConfigError, DiskFullError, FramesDifferError, StoreError
from landmark_batch.frames.definition import is_store, what_else
from landmark_batch.frames.fingerprint import flight_digest
from landmark_batch.frames.jpegxl import require_compressor
from landmark_batch.frames.resume import Comparison, ResumePlan
from landmark_batch.frames.spec import StoreSpec
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.object_path import ObjectPath, StorePath
from landmark_batch.workflows.builds import Build, other_build, this_build
from landmark_batch.workflows.costs import FrameCosts, cut_chunks, frame_costs
from landmark_batch.workflows.in_hand import CHUNKS, COMMIT_BYTES, chunk_frames
from landmark_batch.workflows.machine import Machine, Placement, choose_device, describe_machine, group_shape, place_workers
from landmark_batch.workflows.measured import Speed, SpeedKey, recall_probe, recall_speed
from landmark_batch.workflows.memory_check import check_memory
from landmark_batch.workflows.probed import Probe
from landmark_batch.workflows.render_plan import RenderPlan, bytes_text
from landmark_batch.workflows.request import RenderRequest, scene_request

CHUNKS_A_WORKER = 12  # of a worker or a render group, at least, where a job is short: all then end together within a few per cent
PROCESS_BYTES = 400 * 2**20  # Python, torch and Dask of one worker before it has loaded anything (measured: 330 to 380 MiB)
PROBED_AT_BEST = 0.7  # of the bytes a probe expects: its frames may be small ones, which compress less well
COMPRESSED_AT_BEST = 0.5  # share of the raw size below which rendered frames rarely go: a disk with less room is refused
_AT_BEST = {"none": 1.0, "jpegxl": 0.2}  # the same of these compressors


def make_plan(
    job: RenderJob, *, update: bool = False, overwrite: bool = False, scheduler: str | None = None, machine: Machine | None = None
) -> RenderPlan:
    """Check everything about a job that can be known before it runs.

    update, overwrite: as for `render`: finished frames of other settings, or all, are rendered again. scheduler: an existing
    cluster renders, this machine's devices do not count. machine: default this one.
    Raises ConfigError, CheckpointError, CameraError, StoreError, FramesDifferError, DiskFullError: whatever `render` would refuse.
    """
    machine = machine or describe_machine(renders=scheduler is None)
    device = choose_device(job.parallel, machine) if scheduler is None else job.parallel.device.replace("auto", "cpu")
    here = scheduler is None
    request = scene_request(job, device, machine if here else None, elsewhere=not here)
    return plan_request(request, machine, update=update, overwrite=overwrite, scheduler=scheduler)


def plan_request(
    request: RenderRequest, machine: Machine, *, update: bool = False, overwrite: bool = False, scheduler: str | None = None
) -> RenderPlan:
    """As `make_plan`, for a request that is resolved already."""
    job, spec = request.job, request.spec
    found = _look(job.store_path, request)
    chosen = None
    if found is not None:
        if found.resume.differing and not (update or overwrite):
            raise refuse_differing(job.store_path, found.resume)
        chosen = narrow(found.resume, request.wanted, overwrite=overwrite)
        spec = replace(found.store.spec, frames=len(request.flight))  # a store keeps its compressor and its sharding
    todo = frames_to_render(chosen, request.wanted, spec)
    require_compressor(spec.compressor)
    costs = frame_costs(request, todo)
    chunks, placement, notes = _split(request, spec, machine, todo, scheduler, costs)
    if placement is not None:
        check_memory(request, placement, machine)
    per_frame = found.store.measured_bytes_per_frame() if found is not None else None
    plan = RenderPlan(
        request=replace(request, costs=costs),
        store_exists=found is not None,
        todo=todo,
        done=len(set(request.wanted) - set(todo)),
        differing=len(chosen.differing) if chosen else 0,
        difference=", ".join(chosen.reasons) if chosen and chosen.differing else "",
        moved=len(chosen.moved) if chosen else 0,
        chunks=chunks,
        bytes_todo=spec.disk_bytes(len(todo)) if todo else 0,
        bytes_expected=None if per_frame is None else int(per_frame * len(todo)),
        disk_free=disk_free(job.store_path),
        worker_memory=worker_memory(request, chunks),
        placement=placement,
        speed=_speed(request, placement, machine),
        warnings=(*request.warnings, *notes),
        found=found,
    )
    plan = _with_seconds(plan, machine)
    return replace(plan, warnings=(*plan.warnings, *_check_build(plan, machine), *_check_disk(plan, spec)))


def refuse_differing(path: StorePath, resume: ResumePlan) -> FramesDifferError:
    """'1180 of 1200 finished frames differ: sampling.samples 256 → 128; --update replaces them, -o NEW.zarr keeps them'."""
    return FramesDifferError(f"{path}: {resume.describe()}; --update replaces them, -o NEW.zarr keeps them")


def narrow(resume: ResumePlan, wanted: Sequence[int], *, overwrite: bool = False) -> ResumePlan:
    """A ResumePlan that gives up finished frames only where the job wants others: those beyond its --frames keep what they hold.

    overwrite: frames that stand are given up too, where they are wanted.
    """
    asked = set(wanted)
    moves = tuple((old, new) for old, new in resume.moved if not (overwrite and new in asked))
    targets = {new for _, new in moves}
    held = {*resume.differing, *(old for old, _ in resume.moved if old not in {kept for kept, _ in moves})}
    if overwrite:
        held |= asked & set(resume.done)
    given_up = {frame for frame in held if frame in asked or frame in targets or frame >= resume.frames}
    done = tuple(frame for frame in resume.done if frame not in given_up)
    return replace(resume, done=done, differing=tuple(sorted(given_up)), moved=moves)


def frames_to_render(resume: ResumePlan | None, wanted: Sequence[int], spec: StoreSpec) -> tuple[int, ...]:
    """Wanted frames that do not stand; with several frames in a file, all of a file that lacks one."""
    standing = {*resume.done, *(new for _, new in resume.moved)} if resume is not None else set()
    missing = [frame for frame in wanted if frame not in standing]
    if spec.frames_per_shard > 1:
        return tuple(sorted({other for frame in missing for other in spec.shard_of(frame)}))
    return tuple(missing)


def chunk_size(todo: int, asked: int, unit: int, workers: int) -> int:
    """Frames a task: as asked, halved while a job is so short that whole chunks would leave workers waiting at its end.

    unit: frames that must be committed together (a divisor of the result). workers: that render side by side, a group counting as one.
    """
    size = max(unit, -(-asked // unit) * unit)
    while size > unit and size % (2 * unit) == 0 and todo / size < workers * CHUNKS_A_WORKER:
        size //= 2
    return size


def _look(path: StorePath, request: RenderRequest) -> Comparison | None:
    """The store at `path` against the request; None where there is none yet. Raises StoreError for what cannot become the job's store."""
    if is_store(path):
        store = FrameStore.open(path)
        store.require(request.spec)
        return Comparison.make(store, request.flight, request.settings)
    if isinstance(path, ObjectPath):
        return None  # what else may be there is looked at when the store is made
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        what = what_else(path) if path.is_dir() else "a file, not a frame store"
        raise StoreError(f"{path} is {what}; it was not touched", remedy="name another path with -o NEW.zarr")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise StoreError(f"{path}: {parent} is a file, not a directory", remedy="name another path with -o NEW.zarr")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise StoreError(f"{path}: {parent} is not writable", remedy="check its permissions, or write elsewhere with -o NEW.zarr")
            break
    return None


def _split(
    request: RenderRequest, spec: StoreSpec, machine: Machine, todo: tuple[int, ...], scheduler: str | None, costs: FrameCosts | None
) -> tuple[tuple[FrameChunk, ...], Placement | None, list[str]]:
    asked = chunk_frames(request)
    if scheduler is not None:
        return tuple(cut_chunks(todo, chunk_size(len(todo), asked, spec.commit_unit, 1), spec.commit_unit, costs)), None, []
    memory = worker_memory(request, ())
    parallel = request.job.parallel
    first, _ = place_workers(parallel, machine, device=request.device, worker_memory=memory)
    chunks = cut_chunks(todo, chunk_size(len(todo), asked, spec.commit_unit, first.groups), spec.commit_unit, costs)
    placement, notes = place_workers(parallel, machine, device=request.device, worker_memory=memory, chunks=len(chunks) or None)
    return tuple(chunks), placement, notes


def worker_memory(request: RenderRequest, chunks: Iterable[FrameChunk]) -> int:
    """Bytes a worker is expected to hold, its process and its pixels included. chunks: () where they are not cut yet."""
    held = max((len(chunk.frames) for chunk in chunks), default=chunk_frames(request))
    buffers = CHUNKS * min(held * request.spec.bytes_per_frame, COMMIT_BYTES)
    return PROCESS_BYTES + request.worker_memory + buffers


def _speed(request: RenderRequest, placement: Placement | None, machine: Machine) -> Speed | None:
    if placement is None or not request.scene:
        return None
    return recall_speed(speed_key(request, placement, machine), request.scene, request.pixels * request.samples / 1e6)


def speed_key(request: RenderRequest, placement: Placement, machine: Machine) -> SpeedKey:
    """Under which a rendering speed is remembered: that of a worker, or of a render group of its shape."""
    shape = group_shape(request.job.parallel)
    device = placement.device_name if shape.size == 1 else f"{placement.device_name} x {shape.tensor} x {shape.data}"
    return SpeedKey(machine.host, device, placement.workers, request.runtime, request.precision, request.mode)


def _with_seconds(plan: RenderPlan, machine: Machine) -> RenderPlan:
    """The plan with what its frames are expected to take, by an earlier probe or by the speed of an earlier run."""
    costs = plan.request.costs
    if costs is None or plan.placement is None or not plan.request.scene:
        return plan
    found = recall_probe(probe_key(plan, machine))
    if found is not None:
        with suppress(KeyError, TypeError):
            return plan.probed(Probe.from_dict(found))
    if plan.speed is None or plan.seconds is None:
        return plan
    share = plan.seconds * plan.placement.groups / costs.of(plan.todo) if plan.todo else 0.0
    seconds = np.full(len(costs.samples), np.nan)
    seconds[list(plan.todo)] = share * costs.each(plan.todo)
    return replace(plan, request=replace(plan.request, costs=replace(costs, seconds=seconds)))


def probe_key(plan: RenderPlan, machine: Machine) -> str:
    """Under which a probe of a plan is remembered: the same frames on the same machine."""
    request, placement = plan.request, plan.placement
    where = speed_key(request, placement, machine) if placement is not None else "elsewhere"
    what = f"{request.scene} {flight_digest(request.flight)}".encode() + request.settings.canonical()
    return f"{where}|{hashlib.sha256(what).hexdigest()}"


def disk_free(path: StorePath) -> int | None:
    """Bytes free where `path` is or will be; None in an object store, which has no end that is known."""
    if isinstance(path, ObjectPath):
        return None
    for place in (path, *path.parents):
        if place.exists():
            return shutil.disk_usage(place).free
    raise ConfigError(f"{path}: no such file system")


def build_of(request: RenderRequest, machine: Machine) -> Build:
    """What this machine would render the request with."""
    return this_build(request.device, machine.torch, request.runtime, request.precision)


def _check_build(plan: RenderPlan, machine: Machine) -> list[str]:
    if not plan.done or plan.placement is None:
        return []
    note = other_build(plan.job.store_path, build_of(plan.request, machine))
    return [note] if note else []


def _check_disk(plan: RenderPlan, spec: StoreSpec) -> list[str]:
    """Raises DiskFullError where the frames to come cannot fit; warns where they may not."""
    if plan.disk_free is None:
        return []
    if plan.bytes_expected is not None and spec.compressor != "none":
        need, sure = plan.bytes_expected, plan.bytes_expected
    elif plan.probe is not None and spec.compressor != "none":
        need = int(plan.probe.bytes_per_frame * len(plan.todo))
        sure = int(need * PROBED_AT_BEST)
    else:
        need, sure = plan.bytes_todo, int(plan.bytes_todo * _AT_BEST.get(spec.compressor, COMPRESSED_AT_BEST))
    if plan.disk_free < sure:
        raise DiskFullError(
            f"{plan.job.store_path}: {len(plan.todo)} frames need {bytes_text(need)}, the disk has {bytes_text(plan.disk_free)} free",
            remedy="make space, name another disk with -o, or render fewer or smaller frames (--frames, --width)",
        )
    if plan.disk_free < need:
        return [
            f"the disk has {bytes_text(plan.disk_free)} free and frames take {bytes_text(need)} uncompressed: "
            "should it get full, the job stops, and goes on when there is space"
        ]
    return []
