"""In which order the chunks of a job go out, and what each is expected to cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landmark_batch.chunks import FrameChunk
from landmark_batch.workflows.request import RenderRequest, choose

if TYPE_CHECKING:
    from landmark_batch.fetching.route import Itinerary
    from landmark_batch.fetching.schedule import ChunkOrder

RAY_COST = 8.0  # of a ray, in samples: marching and the image, whatever the ray meets (a frame of empty sky is not free)


@dataclass(frozen=True)
class ChunkRoute:
    """chunks: in the order they go out. costs: of each, in samples; None where nothing is known of them. order: why this one, None
    where the whole scene is held and flight order is as good as any.
    """

    chunks: tuple[FrameChunk, ...]
    costs: tuple[float, ...] | None
    order: ChunkOrder | None

    def itinerary(self) -> Itinerary:
        """The frames in that order, with the bounds of the groups' ranges."""
        from landmark_batch.fetching.route import Itinerary

        frames = np.array([frame for chunk in self.chunks for frame in chunk.frames], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum([len(chunk.frames) for chunk in self.chunks], dtype=np.int64)])
        cuts = self.order.cuts if self.order is not None else (0, len(self.chunks))
        return Itinerary(frames, starts[np.asarray(cuts, dtype=np.int64)])


def route_chunks(request: RenderRequest, chunks: Sequence[FrameChunk], groups: int) -> ChunkRoute:
    """chunks: in flight order. groups: that render side by side."""
    blocks = request.blocks
    if blocks is None or not chunks:
        return ChunkRoute(tuple(chunks), None, None)
    frame_costs = blocks.seen.samples + RAY_COST * request.pixels
    costs = [float(frame_costs[list(chunk.frames)].sum()) for chunk in chunks]
    slots = _slots(request)
    if slots is None or slots >= blocks.size.blocks:
        return ChunkRoute(tuple(chunks), tuple(costs), None)
    from landmark_batch.fetching.schedule import order_chunks

    places = request.flight.c2w[:, :2, 3]
    centres = np.array([places[list(chunk.frames)].mean(0) for chunk in chunks])
    order = order_chunks(blocks.seen, [chunk.frames for chunk in chunks], centres, costs, slots, max(1, groups))
    numbers = order.order.tolist()
    return ChunkRoute(tuple(chunks[i] for i in numbers), tuple(costs[i] for i in numbers), order)


def _slots(request: RenderRequest) -> int | None:
    """Slots of a worker; None where it is to decide for itself, or holds the whole scene."""
    if request.fetching is not None:
        return request.fetching.slots if request.fetching.mode == "dynamic" else None
    fetching = request.job.fetching
    if fetching.mode == "resident" or request.blocks is None or (fetching.gpu_blocks is None and fetching.gpu_memory is None):
        return None
    choice = choose(request.job, request.blocks, request.device, 0, sys.maxsize)  # by what the job says alone
    return choice.slots if choice.mode == "dynamic" else None
