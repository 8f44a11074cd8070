"""How much of a job a worker has in hand at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from landmark_batch.frames.spec import StoreSpec
    from landmark_batch.workflows.request import RenderRequest

CHUNKS = 3  # that a worker has in hand at most: one is rendered while those before it are encoded and written
SLOW_CHUNKS = 2  # where rendering one takes long: the last chunks of a job are then not in the hand of one worker while others wait
QUICK_SECONDS = 1.0  # of a chunk's rendering, that is not long
PASSING = 1  # more of a job before others: with one that waits, no moment is left in which another job's chunk begins
COMMIT_BYTES = 256 * 2**20  # pixels a worker holds before it commits them; larger chunks are committed in parts
CPU_FRAMES = 8  # of a chunk where the job does not say
GPU_FRAMES = (4, 32)  # at least and at most, of as many as GPU_BYTES hold: a power of two, so that dear chunks can be halved
GPU_BYTES = 128 * 2**20  # a fused kernel's frame takes milliseconds: what a chunk costs beside its frames must be little


def chunk_frames(request: RenderRequest) -> int:
    """Frames a task that a job asks for, or that are usual on its device."""
    return _chunk(request.job.output.chunk_frames, request.device, request.spec)


def _chunk(asked: int | Literal["auto"], device: str, spec: StoreSpec) -> int:
    return usual_chunk(device, spec.bytes_per_frame) if asked == "auto" else asked


def frames_at_once(asked: int | Literal["auto"], device: str, spec: StoreSpec) -> int:
    """Frames that a worker commits together, of whole chunks. asked: `output.chunk_frames`."""
    return min(most_at_once(spec), _chunk(asked, device, spec))


def most_at_once(spec: StoreSpec) -> int:
    """Frames that are committed together at most: as many as COMMIT_BYTES hold, in whole files."""
    return max(spec.commit_unit, COMMIT_BYTES // max(1, spec.bytes_per_frame) // spec.commit_unit * spec.commit_unit)


def usual_chunk(device: str, frame_bytes: int) -> int:
    """Frames of a chunk where the job leaves it to us. frame_bytes: of a frame's pixels, all outputs."""
    if device != "cuda":
        return CPU_FRAMES
    least, most = GPU_FRAMES
    held = max(1, min(most, GPU_BYTES // max(1, frame_bytes)))
    return max(least, 1 << (held.bit_length() - 1))
