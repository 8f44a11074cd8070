"""RenderPlan: what a job will do and cost, as a value that prints itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from landmark_batch.chunks import FrameChunk, format_frame_ranges
from landmark_batch.job import RenderJob
from landmark_batch.workflows.machine import Placement, group_shape
from landmark_batch.workflows.measured import Speed
from landmark_batch.workflows.request import RenderRequest


@dataclass(frozen=True)
class RenderPlan:
    """A job against its store and this machine.

    todo: frames to render, ascending. done: finished frames of those wanted. differing: finished frames of other settings that
    --update or --overwrite replaces, difference: why in words. moved: frames that only change their place.
    bytes_todo: of what is missing, uncompressed; bytes_expected: as this store's frames compress, None before its first.
    placement: None where an existing cluster decides. worker_memory: bytes, a process included. speed: measured before, else None.
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
    disk_free: int
    worker_memory: int
    placement: Placement | None
    speed: Speed | None
    warnings: tuple[str, ...]

    @property
    def job(self) -> RenderJob:
        return self.request.job

    @property
    def seconds(self) -> float | None:
        """Wall time of rendering what is to do, None if nothing was measured on this machine before."""
        if self.speed is None:
            return None
        return self.speed.seconds(len(self.todo), self.request.pixels, self.request.samples, self.placement.groups if self.placement else 1)

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
            "chunks": len(self.chunks),
            "chunk_frames": max((len(chunk.frames) for chunk in self.chunks), default=0),
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
            "fetching": self._blocks_dict(),
            "warnings": list(self.warnings),
        }

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
            ("chunks", f"{len(self.chunks)} of up to {size} frame{'s' * (size != 1)}" if self.chunks else "none"),
            ("store", f"{job.store_path} ({', '.join(str(output) for output in spec.outputs)})"),
            ("disk", self._describe_disk()),
            ("workers", self._describe_workers()),
            *([("groups", self._describe_groups())] if group_shape(job.parallel).size > 1 else []),
            ("sampling", f"{request.mode}, {request.samples} samples a ray; {request.precision}"),
            *([("blocks", self._describe_blocks()), ("fetching", self._describe_fetching())] if request.blocks is not None else []),
            ("runtime", f"{request.runtime} ({request.runtime_reason})" if request.runtime_reason else request.runtime),
            ("time", self._describe_time()),
        ]
        lines = [job.name, *(f"  {name:9} {text}" for name, text in rows)]
        return "\n".join([*lines, *(f"  warning   {text}" for text in self.warnings)])

    def _describe_disk(self) -> str:
        expected = f", about {bytes_text(self.bytes_expected)} as frames here compress" if self.bytes_expected is not None else ""
        return f"{bytes_text(self.bytes_todo)} uncompressed{expected}; {bytes_text(self.disk_free)} free"

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
        if self.seconds is None or self.speed is None:
            return "unknown: nothing alike has been rendered on this machine before"
        return f"about {duration_text(self.seconds)}, as measured here before{'' if self.speed.same_scene else ' on another scene'}"


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
