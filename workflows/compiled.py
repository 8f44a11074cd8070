"""Compiled kernels before a job: built once, here, so that workers only load them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from landmark_batch.job import RenderJob
from landmark_batch.workflows.render_plan import RenderPlan

logger = logging.getLogger(__name__)


def prepare_kernels(plan: RenderPlan, tell: Callable[[str, float], None]) -> RenderJob | None:
    """Build what a plan's workers will load. Returns the job to plan anew where torch has to do instead, else None.

    tell: called with what is being done and the share that is done. Raises KernelBuildError where fused kernels are demanded, by
    `runtime = "fused"` or by "auto" on CUDA, and cannot be built.
    """
    request = plan.request
    if request.runtime != "fused" or not plan.todo or plan.placement is None:
        return None
    from landmark_batch.model.runtime import resolve_runtime
    from landmark_batch.workflows.worker import kernel_source

    status = kernel_source().prepare(request.device, tell)
    logger.info("kernels: %s", status.reason)
    if status.usable:
        return None
    choice = resolve_runtime(request.job.model.runtime, request.device, kernels=status)
    job = request.job
    return job.model_copy(update={"model": job.model.model_copy(update={"runtime": choice.runtime})})
