"""What fetching would move on a planned job: `plan --fetching`."""

from __future__ import annotations

from dataclasses import replace

from landmark_batch.chunks import split_frames
from landmark_batch.errors import ConfigError
from landmark_batch.workflows.fetch_report import FetchReport, describe_fetching
from landmark_batch.workflows.itinerary import RAY_COST, route_chunks
from landmark_batch.workflows.render_plan import RenderPlan

LANDMARK_SLOTS = 9  # LandMark's neighbour_size where nothing is said


def fetch_report(plan: RenderPlan) -> FetchReport:
    """For the frames the job asks for, those that stand already too. A job that holds the whole scene is shown with its gpu_blocks, or
    LandMark's nine. Raises ConfigError for a scene that is no block store.
    """
    request = plan.request
    blocks, choice = request.blocks, request.fetching
    if blocks is None:
        raise ConfigError(
            f"{request.job.scene.checkpoint}: a checkpoint has no blocks to fetch",
            remedy="convert it once with `landmark-batch convert`, and name the store",
        )
    dynamic = choice is not None and choice.mode == "dynamic"
    slots = choice.slots if choice is not None and dynamic else request.job.fetching.gpu_blocks or LANDMARK_SLOTS
    size = max((len(chunk.frames) for chunk in plan.chunks), default=request.job.output.chunk_frames)
    parts = split_frames(request.wanted, size)
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
            return replace(report, order=route.order, chunks=len(route.chunks))
    return report
