"""What fetching would move on a planned job: `plan --fetching`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from landmark_batch.chunks import split_frames
from landmark_batch.errors import ConfigError
from landmark_batch.fetching.block_sets import block_sets
from landmark_batch.fetching.regions import Region
from landmark_batch.workflows.fetch_report import FetchReport, describe_fetching
from landmark_batch.workflows.itinerary import RAY_COST, route_chunks
from landmark_batch.workflows.render_plan import RenderPlan
from landmark_batch.workflows.request import RenderRequest, checkpoint_of
from landmark_batch.workflows.scene_blocks import how_to_convert

LANDMARK_SLOTS = 9  # LandMark's neighbour_size where nothing is said
CUT_FRAMES = 2000  # crowded ones that are cut into regions for a report, some milliseconds each


def fetch_report(plan: RenderPlan) -> FetchReport:
    """For the frames the job asks for, those that stand already too. A job that holds the whole scene is shown with its gpu_blocks, or
    LandMark's nine. Raises ConfigError for a scene that is no block store.
    """
    request = plan.request
    blocks, choice = request.blocks, request.fetching
    if blocks is None:
        raise ConfigError(
            f"{request.job.scene.checkpoint}: a checkpoint has no blocks to fetch",
            remedy=how_to_convert(request.job),
        )
    dynamic = choice is not None and choice.mode == "dynamic"
    slots = choice.slots if choice is not None and dynamic else request.job.fetching.gpu_blocks or LANDMARK_SLOTS
    parts = split_frames(request.wanted, plan.chunk_frames)
    chunks = [chunk.frames for chunk in parts]
    costs = blocks.seen.samples + RAY_COST * request.pixels
    groups = plan.placement.groups if plan.placement is not None else 1
    report = describe_fetching(
        blocks.seen,
        chunks,
        request.flight.c2w[:, :3, 3],
        aabb=blocks.aabb,
        division=blocks.division,
        block_bytes=blocks.size.block,
        slots=min(slots, blocks.size.blocks),
        groups=groups,
        costs=[float(costs[list(chunk)].sum()) for chunk in chunks],
    )
    if request.job.output.order in ("time", "coarse-to-fine"):
        route = route_chunks(request, parts, groups)
        if route.order is not None:
            chunks = [chunk.frames for chunk in route.chunks]
            report = replace(report, order=route.order, chunks=len(chunks), loads=route.order.loads, demand=route.order.demand)
    return _by_regions(request, report, chunks)


def _by_regions(request: RenderRequest, report: FetchReport, chunks: Sequence[Sequence[int]]) -> FetchReport:
    """The report with crowded frames counted as they are rendered. chunks: those that the order is of."""
    if not report.order.passes:
        return report
    from landmark_batch.fetching.crowded import crowded_loads, frame_regions
    from landmark_batch.fetching.visibility import FrustumBlocks
    from landmark_batch.model.settings import resolve_settings
    from landmark_batch.parallel.regions import region_rule
    from landmark_batch.parallel.shape import GroupShape
    from landmark_batch.scene.store import BlockStore
    from landmark_batch.workflows.worker import kernel_source

    assert request.blocks is not None
    store, flight, slots = BlockStore.open(checkpoint_of(request.job)), request.flight, report.slots
    settings = resolve_settings(request.job, store.config, device=request.device, kernels=kernel_source())
    frustum = FrustumBlocks(store.config, settings, store.stored_mask(), store.division)
    parallel = request.job.parallel
    rule = region_rule(GroupShape(parallel.tensor_parallel, parallel.data_parallel), settings, request.device)

    def regions(frame: int) -> list[Region]:
        lens, size = flight.intrinsics[frame].tolist(), (flight.width, flight.height)
        return frame_regions(frustum, flight.c2w[frame], lens, *size, rule.unit, slots, rule.passes)

    order = report.order.order.tolist()
    ranges = [[frame for i in order[low:high] for frame in chunks[i]] for low, high in pairwise(report.order.cuts)]
    found = crowded_loads(block_sets(request.blocks.seen), ranges, regions, slots, most=CUT_FRAMES, passes=rule.passes)
    return replace(report, loads=found.loads, demand=found.demand, sampled=found.sampled)
