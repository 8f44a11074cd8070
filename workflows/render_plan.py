"""RenderPlan: what a job will do and cost, as a value that prints itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.chunks import FrameChunk, format_frame_ranges
from landmark_batch.frames.resume import Comparison
from landmark_batch.job import RenderJob
from landmark_batch.workflows.in_hand import chunk_frames
from landmark_batch.workflows.itinerary import count_chunks
from landmark_batch.workflows.machine import Placement, group_shape
from landmark_batch.workflows.measured import Speed
from landmark_batch.workflows.probed import Probe
from landmark_batch.workflows.request import RenderRequest

Float64 = NDArray[np.float64]

PARTS = 8  # of a flight, for each of which the time is shown


@dataclass(frozen=True)
class RenderPlan:
    """A job against its store and this machine.

    todo: frames to render, ascending. done: finished frames of those wanted. differing: finished frames of other settings that
    --update or --overwrite replaces, difference: why in words. moved: frames that only change their place.
    bytes_todo: of what is missing, uncompressed; bytes_expected: as this store's frames compress, None before its first.
    placement: None where an existing cluster decides. worker_memory: bytes, a process included. speed: measured before, else None.
    probe: some of these frames, measured; then request.costs holds the seconds of all. found: in the store, with all its records.
    """

    request: RenderRequest
    store_exists: bool
    todo: tuple[int, ...]
    done: int
    differing: int
    difference: str
    moved: int
    chunks: tuple[FrameChunk, ...]
    bytes_todo: int
    bytes_expected: int | None
    disk_free: int | None
    worker_memory: int
    placement: Placement | None
    speed: Speed | None
    warnings: tuple[str, ...]
    probe: Probe | None = None
    found: Comparison | None = field(default=None, compare=False, repr=False)

    @property
    def job(self) -> RenderJob:
        return self.request.job

    @property
    def chunk_count(self) -> int:
        """Chunks that go out; `chunks` are in flight order, before 'coarse-to-fine' cuts them again."""
        return count_chunks(self.request, self.chunks)

    @property
    def chunk_frames(self) -> int:
        """Frames of the largest chunk, or of a usual one where nothing is to do."""
        return max((len(chunk.frames) for chunk in self.chunks), default=chunk_frames(self.request))

    @property
    def seconds(self) -> float | None:
        """Wall time of rendering what is to do, start-up left out; None if nothing was measured on this machine before."""
        if self.probe is not None:
            return self.probe.wall(float(self.frame_seconds().sum()), self.chunk_count)
        if self.speed is None:
            return None
        return self.speed.seconds(len(self.todo), self.request.pixels, self.request.samples, self.placement.groups if self.placement else 1)

    def frame_seconds(self) -> Float64:
        """[len(todo)] seconds of each frame to do on one worker (or group); all NaN where nothing is expected."""
        costs = self.request.costs
        if costs is None or costs.seconds is None:
            return np.full(len(self.todo), np.nan)
        return costs.seconds[list(self.todo)]

    def probed(self, probe: Probe) -> RenderPlan:
        """The plan with the times that a probe of it tells."""
        costs = self.request.costs
        if costs is None:
            return self
        todo = np.asarray(self.todo, dtype=np.int64)
        seconds = np.full(len(costs.samples), np.nan)
        seconds[todo] = probe.model.seconds(todo, costs.samples[todo])
        return replace(self, request=replace(self.request, costs=replace(costs, seconds=seconds)), probe=probe)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        request, job = self.request, self.job
        return {
            "name": job.name,
            "store": str(job.store_path),
            "store_exists": self.store_exists,
            "frames": {
                "flight": len(request.flight),
                "wanted": len(request.wanted),
                "done": self.done,
                "todo": len(self.todo),
                "differing": self.differing,
                "moved": self.moved,
                "todo_ranges": format_frame_ranges(self.todo),
            },
            "difference": self.difference,
            "width": request.spec.width,
            "height": request.spec.height,
            "outputs": {output.name: output.dtype for output in request.spec.outputs},
            "chunks": self.chunk_count,
            "chunk_frames": self.chunk_frames,
            "bytes": self.bytes_todo,
            "bytes_expected": self.bytes_expected,
            "disk_free": self.disk_free,
            "worker_memory": self.worker_memory,
            "workers": self.placement.workers if self.placement else None,
            "groups": self.placement.groups if self.placement else None,
            "tensor_parallel": job.parallel.tensor_parallel,
            "data_parallel": job.parallel.data_parallel,
            "device": self.placement.device if self.placement else request.device,
            "gpus": list(self.placement.gpus) if self.placement else [],
            "device_name": self.placement.device_name if self.placement else None,
            "runtime": request.runtime,
            "precision": request.precision,
            "mode": request.mode,
            "samples": request.samples,
            "seconds": self.seconds,
            "probe": probe_dict(self),
            "fetching": self._blocks_dict(),
            "warnings": list(self.warnings),
        }

    def _say_asked(self, size: int) -> str:
        asked = self.job.output.chunk_frames
        if asked == "auto" or size >= min(asked, len(self.todo)):
            return ""
        return f" (chunk_frames = {asked} would leave workers waiting at the end)"

    def describe(self) -> str:
        """The plan as text for people, a few aligned lines."""
        request, job, spec = self.request, self.job, self.request.spec
        wanted, flight = len(request.wanted), len(request.flight)
        frames = f"{wanted} of {flight}" if wanted < flight else f"{flight}"
        standing = [f"{self.done} stand already"] if self.done else []
        standing += [f"{self.differing} are replaced ({self.difference})"] if self.differing else []
        standing += [f"{self.moved} change their place"] if self.moved else []
        size = max((len(chunk.frames) for chunk in self.chunks), default=0)
        rows = [
            ("frames", f"{frames} of {spec.width}×{spec.height}; {'; '.join([*standing, f'{len(self.todo)} to render'])}"),
            ("chunks", f"{self.chunk_count} of up to {size} frame{'s' * (size != 1)}{self._say_asked(size)}" if self.chunks else "none"),
            ("store", f"{job.store_path} ({', '.join(str(output) for output in spec.outputs)})"),
            ("disk", self._describe_disk()),
            ("workers", self._describe_workers()),
            *([("groups", self._describe_groups())] if group_shape(job.parallel).size > 1 else []),
            ("sampling", f"{request.mode}, {request.samples} samples a ray; {request.precision}"),
            *([("blocks", self._describe_blocks()), ("fetching", self._describe_fetching())] if request.blocks is not None else []),
            ("runtime", f"{request.runtime} ({request.runtime_reason})" if request.runtime_reason else request.runtime),
            ("time", self._describe_time()),
            *([("probe", text) for text in describe_probe(self)] if self.probe is not None and self.todo else []),
        ]
        lines = [job.name, *(f"  {name:9} {text}" for name, text in rows)]
        return "\n".join([*lines, *(f"  warning   {text}" for text in self.warnings)])

    def _describe_disk(self) -> str:
        expected = f", about {bytes_text(self.bytes_expected)} as frames here compress" if self.bytes_expected is not None else ""
        if not expected and self.probe is not None:
            expected = f", about {bytes_text(self.probe.bytes_per_frame * len(self.todo))} as probed frames compress"
        free = "" if self.disk_free is None else f"; {bytes_text(self.disk_free)} free"
        return f"{bytes_text(self.bytes_todo)} uncompressed{expected}{free}"

    def _describe_workers(self) -> str:
        if self.placement is None:
            return f"as the cluster has; {bytes_text(self.worker_memory)} of memory each"
        place = self.placement
        on = f"GPU {', '.join(map(str, place.gpus))} ({place.device_name})" if place.gpus else f"the CPU ({place.device_name})"
        return f"{place.workers} on {on}, {bytes_text(self.worker_memory)} of memory each"

    def _describe_groups(self) -> str:
        shape = group_shape(self.job.parallel)
        each = f"of {shape.size} ranks (tensor {shape.tensor} x data {shape.data})"
        return f"{self.placement.groups} {each}" if self.placement else f"{each}, as many as the cluster has workers for"

    def _seen(self) -> tuple[list[int], int]:
        """Blocks that each wanted frame can see, and how many different ones these are."""
        assert self.request.blocks is not None
        sets = [self.request.blocks.seen.of(frame) for frame in self.request.wanted]
        return [len(blocks) for blocks in sets], len({int(block) for blocks in sets for block in blocks})

    def _describe_blocks(self) -> str:
        blocks = self.request.blocks
        assert blocks is not None
        counts, used = self._seen()
        each = bytes_text(blocks.size.block)
        frames = f"{sum(counts) / max(1, len(counts)):.1f} a frame, at most {max(counts, default=0)}"
        return f"{blocks.size.blocks} of {each}; {frames}; {used} in all ({bytes_text(used * blocks.size.block)})"

    def _describe_fetching(self) -> str:
        choice = self.request.fetching
        if choice is None:
            return f"{self.job.fetching.mode}; every worker decides by its own memory"
        if choice.mode == "resident":
            return f"resident: {choice.reason}"
        return f"dynamic, {choice.slots} slots, {bytes_text(choice.host_bytes)} of host memory: {choice.reason}"

    def _blocks_dict(self) -> dict[str, Any] | None:
        blocks, choice = self.request.blocks, self.request.fetching
        if blocks is None:
            return None
        counts, used = self._seen()
        return {
            "blocks": blocks.size.blocks,
            "block_bytes": blocks.size.block,
            "mean_a_frame": sum(counts) / max(1, len(counts)),
            "most_a_frame": max(counts, default=0),
            "used": used,
            "mode": choice.mode if choice is not None else self.job.fetching.mode,
            "reason": choice.reason if choice is not None else None,
            "slots": choice.slots if choice is not None else None,
            "host_bytes": choice.host_bytes if choice is not None else None,
        }

    def _describe_time(self) -> str:
        if not self.todo:
            return "nothing to render"
        if self.probe is not None and self.seconds is not None:
            return f"about {duration_text(self.seconds)}, and {duration_text(self.probe.startup)} to start, as probed here"
        if self.seconds is None or self.speed is None:
            return "unknown: nothing alike has been rendered on this machine before"
        return f"about {duration_text(self.seconds)}, as measured here before{'' if self.speed.same_scene else ' on another scene'}"


def flight_parts(plan: RenderPlan) -> list[dict[str, Any]]:
    """The frames to do in up to eight parts: first and last frame, mean seconds and mean samples of a frame."""
    costs, seconds = plan.request.costs, plan.frame_seconds()
    if costs is None or not plan.todo:
        return []
    samples = costs.samples[list(plan.todo)]
    parts = np.array_split(np.arange(len(plan.todo)), min(PARTS, len(plan.todo)))
    return [
        {
            "first": plan.todo[part[0]],
            "last": plan.todo[part[-1]],
            "seconds_a_frame": float(seconds[part].mean()),
            "samples_a_frame": float(samples[part].mean()),
        }
        for part in parts
    ]


def probe_dict(plan: RenderPlan) -> dict[str, Any] | None:
    """What a probe tells about a plan, JSON-ready."""
    probe = plan.probe
    if probe is None:
        return None
    each = plan.frame_seconds()
    return {
        **probe.as_dict(),
        "worker_seconds": float(each.sum()),
        "render_seconds": plan.seconds,
        "total_seconds": probe.startup + (plan.seconds or 0.0),
        "bytes": round(probe.bytes_per_frame * len(plan.todo)),
        "along": flight_parts(plan),
        "seconds_by_frame": {str(frame): float(value) for frame, value in zip(plan.todo, each, strict=True)},
    }


def describe_probe(plan: RenderPlan) -> list[str]:
    """Lines for people: what was measured, memory, and the time along the flight."""
    probe = plan.probe
    assert probe is not None
    side = f"{probe.groups} side by side" if probe.groups > 1 else "one at a time"
    gpu = f", {bytes_text(probe.gpu_memory)} of GPU memory at its peak" if probe.gpu_memory else ""
    host = f"; {bytes_text(probe.host_memory)} of memory at the peak of all processes" if probe.host_memory else ""
    lines = [f"{len(probe.frames)} places in windows of {probe.width}×{probe.height}, {side}{host}{gpu}"]
    parts = flight_parts(plan)
    width = max(len(f"{part['first']}-{part['last']}") for part in parts)
    for part in parts:
        frames = f"{part['first']}-{part['last']}"
        lines.append(f"frames {frames:>{width}}  {part['seconds_a_frame']:8.3f} s  {part['samples_a_frame'] / 1e6:7.2f} M samples a frame")
    return lines


def bytes_text(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration_text(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} seconds"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} minutes"
