"""In which order the chunks of a job go out, and what each is expected to cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from landmark_batch.chunks import FrameChunk
from landmark_batch.fetching.ranges import balanced_cuts
from landmark_batch.fetching.route import Itinerary
from landmark_batch.fetching.schedule import FLIGHT, ChunkOrder, follow_order, order_chunks
from landmark_batch.workflows.levels import coarse_to_fine, deal_levels
from landmark_batch.workflows.request import RenderRequest, choose

RAY_COST = 8.0  # of a ray, in samples: marching and the image, whatever the ray meets (a frame of empty sky is not free)
COARSE = "coarse to fine"


@dataclass(frozen=True)
class ChunkRoute:
    """chunks: in the order they go out. costs: of each, in samples; None where nothing is known of them, or ranges are of equal numbers.
    order: why this one, None where the whole scene is held. cuts: where each group's range of chunks begins, and their number.
    """

    chunks: tuple[FrameChunk, ...]
    costs: tuple[float, ...] | None
    order: ChunkOrder | None
    cuts: tuple[int, ...]

    def itinerary(self) -> Itinerary:
        """The frames in that order, with the bounds of the groups' ranges."""
        frames = np.array([frame for chunk in self.chunks for frame in chunk.frames], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum([len(chunk.frames) for chunk in self.chunks], dtype=np.int64)])
        return Itinerary(frames, starts[np.asarray(self.cuts, dtype=np.int64)])


def route_chunks(request: RenderRequest, chunks: Sequence[FrameChunk], groups: int, *, unit: int | None = None) -> ChunkRoute:
    """The order of a job's chunks, as output.order says. With 'coarse-to-fine' their frames are cut into other chunks of that size.

    chunks: in flight order. groups: that render side by side. unit: frames a file of the store, default as the job asks.
    """
    groups, slots = max(1, groups), _slots(request)
    if request.blocks is None or slots is None or slots >= request.blocks.size.blocks:
        slots = None
    asked = request.job.output.order
    if asked == "coarse-to-fine" and chunks:
        return _coarse_to_fine(request, chunks, groups, slots, unit or request.spec.commit_unit)
    costs = _costs(request, chunks)
    if costs is None or slots is None or not chunks:
        return ChunkRoute(tuple(chunks), None if costs is None else tuple(costs), None, (0, len(chunks)))
    if asked == "time":
        cuts = tuple(balanced_cuts(costs, groups))
        return ChunkRoute(tuple(chunks), tuple(costs), _followed(request, FLIGHT, chunks, cuts, slots), cuts)
    order = _in_space(request, chunks, costs, slots, groups)
    numbers = order.order.tolist()
    return ChunkRoute(tuple(chunks[i] for i in numbers), tuple(costs[i] for i in numbers), order, order.cuts)


def count_chunks(request: RenderRequest, chunks: Sequence[FrameChunk], *, unit: int | None = None) -> int:
    """How many chunks go out for those in flight order: with 'coarse-to-fine' their frames are cut again. unit: as for `route_chunks`."""
    if request.job.output.order != "coarse-to-fine" or not chunks:
        return len(chunks)
    return sum(len(level) for level in _levels(request, chunks, unit or request.spec.commit_unit))


def _levels(request: RenderRequest, chunks: Sequence[FrameChunk], unit: int) -> list[list[FrameChunk]]:
    frames, size = [frame for chunk in chunks for frame in chunk.frames], max(len(chunk.frames) for chunk in chunks)
    return coarse_to_fine(frames, size, flight=request.wanted, unit=unit)


def _coarse_to_fine(request: RenderRequest, chunks: Sequence[FrameChunk], groups: int, slots: int | None, unit: int) -> ChunkRoute:
    """Each level in flight order, or in space where blocks are fetched; every group goes through all levels."""
    levels = _levels(request, chunks, unit)
    if slots is not None:
        for number, level in enumerate(levels):
            order = _in_space(request, level, _costs(request, level) or (), slots, 1)
            levels[number] = [level[i] for i in order.order.tolist()]
    dealt, cuts = deal_levels(levels, groups)
    followed = _followed(request, COARSE, dealt, cuts, slots) if slots is not None else None
    return ChunkRoute(tuple(dealt), None, followed, cuts)


def _costs(request: RenderRequest, chunks: Sequence[FrameChunk]) -> list[float] | None:
    """In samples; None where nothing is known."""
    if request.costs is not None:
        return [request.costs.of(chunk.frames) for chunk in chunks]
    if request.blocks is None:
        return None
    each = request.blocks.seen.samples + RAY_COST * request.pixels
    return [float(each[list(chunk.frames)].sum()) for chunk in chunks]


def _in_space(request: RenderRequest, chunks: Sequence[FrameChunk], costs: Sequence[float], slots: int, groups: int) -> ChunkOrder:
    assert request.blocks is not None
    places = request.flight.c2w[:, :2, 3]
    centres = np.array([places[list(chunk.frames)].mean(0) for chunk in chunks])
    return order_chunks(request.blocks.seen, [chunk.frames for chunk in chunks], centres, costs, slots, groups)


def _followed(request: RenderRequest, name: str, chunks: Sequence[FrameChunk], cuts: Sequence[int], slots: int) -> ChunkOrder:
    assert request.blocks is not None
    return follow_order(name, request.blocks.seen, [chunk.frames for chunk in chunks], cuts, slots)


def _slots(request: RenderRequest) -> int | None:
    """Slots of a worker; None where it is to decide for itself, or holds the whole scene."""
    if request.fetching is not None:
        return request.fetching.slots if request.fetching.mode == "dynamic" else None
    fetching = request.job.fetching
    if fetching.mode == "resident" or request.blocks is None or (fetching.gpu_blocks is None and fetching.gpu_memory is None):
        return None
    choice = choose(request.job, request.blocks, request.device, 0, sys.maxsize)  # by what the job says alone
    return choice.slots if choice.mode == "dynamic" else None
