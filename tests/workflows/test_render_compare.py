"""What a job compares when it goes on: flight and store once, again where another was there meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from landmark_batch.frames import resume
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.workflows import drive
from landmark_batch.workflows import render as render_module
from landmark_batch.workflows.render import run_render
from tests.workflows.conftest import FRAMES, InlineCluster, executions

MakeJob = Callable[..., RenderJob]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames done, of each comparison."""
    found: list[int] = []
    compare = resume.compare

    def counted(store: FrameStore, *args: Any) -> resume.ResumePlan:
        plan = compare(store, *args)
        found.append(len(plan.done))
        return plan

    monkeypatch.setattr(resume, "compare", counted)
    monkeypatch.setattr(drive, "compare", counted)
    return found


@pytest.mark.usefixtures("inline")
def test_a_resumed_job_looks_once_at_what_stands(make_job: MakeJob, compared: list[int]) -> None:
    run_render(make_job("cameras.frames=0-1"))
    compared.clear()
    result = run_render(make_job())
    assert (result.state, result.rendered, result.skipped) == ("complete", FRAMES - 2, 2)
    assert compared == [2]
    assert run_render(make_job()).rendered == 0
    assert compared == [2, FRAMES]


@pytest.mark.usefixtures("inline")
def test_frames_that_another_job_rendered_after_the_plan_stand(
    make_job: MakeJob, compared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_render(make_job("cameras.frames=0"))
    prepare_kernels = render_module.prepare_kernels
    meanwhile = [make_job("cameras.frames=1")]

    def late(plan: Any, tell: Any) -> Any:
        if meanwhile:
            run_render(meanwhile.pop())
        return prepare_kernels(plan, tell)

    monkeypatch.setattr(render_module, "prepare_kernels", late)
    compared.clear()
    job = make_job()
    result = run_render(job)
    assert (result.state, result.rendered) == ("complete", FRAMES - 2)
    assert compared == [1, 1, 2], "the plan's, the other job's, and one more when the store was taken"
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)


def test_frames_that_another_job_rendered_before_the_driver_came_stand(make_job: MakeJob, compared: list[int]) -> None:
    run_render(make_job("cameras.frames=0"), cluster=lambda _: InlineCluster(1))  # type: ignore[arg-type,return-value]
    compared.clear()
    job = make_job()

    def late(_: Callable[[], bool]) -> Any:
        run_render(make_job("cameras.frames=2-3"), cluster=lambda _: InlineCluster(1))  # type: ignore[arg-type,return-value]
        return InlineCluster(1)

    result = run_render(job, cluster=late)
    assert (result.state, result.rendered) == ("complete", FRAMES - 3)
    assert compared == [1, 1, 3], "the plan's, the other job's, the driver's"
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)
