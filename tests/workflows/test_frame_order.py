"""Jobs with output.order: which chunks go out first, what stands after a stop, the same pixels in the end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.events import ChunkDone, Event, JobStarted
from landmark_batch.fetching.schedule import FLIGHT
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.workflows.fetch_plan import fetch_report
from landmark_batch.workflows.itinerary import COARSE, ChunkRoute, route_chunks
from landmark_batch.workflows.order import STOP_FILE
from landmark_batch.workflows.plan import make_plan
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.session import RenderSession
from landmark_batch.workflows.snapshot import run_folder
from tests.workflows.block_jobs import FRAMES as TOWN_FRAMES
from tests.workflows.block_jobs import SLOTS, block_job
from tests.workflows.conftest import FRAMES, InlineCluster, executions, pixels


def route_of(job: RenderJob, groups: int = 1) -> ChunkRoute:
    plan = make_plan(job)
    return route_chunks(plan.request, plan.chunks, groups)


def frames_of(route: ChunkRoute) -> list[int]:
    return [frame for chunk in route.chunks for frame in chunk.frames]


def stop_after(chunks: int, job: RenderJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's word comes while a chunk is rendered."""
    render, done = RenderSession.render, []

    def and_stop(self: RenderSession, *args: Any, **options: Any) -> Any:
        receipt = render(self, *args, **options)
        done.append(receipt)
        if len(done) == chunks:
            (folder,) = run_folder(job.store_path, "any").parent.iterdir()
            (folder / STOP_FILE).touch()
        return receipt

    monkeypatch.setattr(RenderSession, "render", and_stop)


@pytest.mark.usefixtures("inline")
def test_a_job_that_is_stopped_early_shows_the_whole_flight(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    plain = make_job("output.store=" + str(tmp_path / "plain.zarr"))
    assert run_render(plain).state == "complete"
    job = make_job("output.order=coarse-to-fine", "output.chunk_frames=3", "parallel.workers=1")
    route = route_of(job)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, job, patch)
        first = run_render(job)
    stand = [*FrameStore.open(job.store_path).finished()]
    assert first.state == "interrupted"
    assert 12 <= len(stand) < FRAMES
    assert stand == sorted(frames_of(route)[: len(stand)])
    gaps = [b - a for a, b in pairwise([*stand, FRAMES])]
    assert max(gaps) <= 2 < FRAMES // len(route.chunks)
    second = run_render(job)
    assert (second.state, second.skipped) == ("complete", len(stand))
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)
    assert pixels(job.store_path) == pixels(plain.store_path)


@pytest.mark.usefixtures("inline")
def test_plan_and_job_count_the_chunks_that_go_out(make_job: Callable[..., RenderJob]) -> None:
    job = make_job("output.order=coarse-to-fine", "output.chunk_frames=5", "cameras.frames=0-22", "parallel.workers=1")
    plan = make_plan(job)
    events: list[Event] = []
    assert run_render(job, sinks=[events.append]).state == "complete"
    (started,) = [event for event in events if isinstance(event, JobStarted)]
    done = sum(isinstance(event, ChunkDone) for event in events)
    assert plan.chunk_count == plan.as_dict()["chunks"] == started.chunks == done > len(plan.chunks)
    assert f"{done} of up to" in plan.describe()


@pytest.mark.usefixtures("inline")
def test_files_of_several_frames_go_out_whole(make_job: Callable[..., RenderJob]) -> None:
    job = make_job("output.order=coarse-to-fine", "output.chunk_frames=2", "output.frames_per_shard=4")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(2, job, patch)
        assert run_render(job).state == "interrupted"
    stand = [*FrameStore.open(job.store_path).finished()]
    assert len(stand) % 4 == 0
    assert {frame // 4 for frame in stand} >= {0, 4}
    again = make_job("output.order=coarse-to-fine", "output.chunk_frames=2")  # the store keeps its files
    assert run_render(again).state == "complete"
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)


@pytest.mark.parametrize(("order", "name"), [("time", FLIGHT), ("coarse-to-fine", COARSE), ("space", "")])
def test_fetching_follows_the_order_that_the_job_asks_for(
    order: str, name: str, town: Path, tmp_path: Path, inline: list[InlineCluster]
) -> None:
    more = ("parallel.workers=1", "fetching.gpu_blocks=3", "cameras.frames=0-11,13-24")
    job = block_job(town / "town.zarr", town / "flight.json", tmp_path / "frames.zarr", *SLOTS, *more, f"output.order={order}")
    route = route_of(job)
    assert route.order is not None
    frames = frames_of(route)
    assert sorted(frames) == [*range(12), *range(13, 25)]
    assert (frames == sorted(frames)) is (order == "time")
    report = fetch_report(make_plan(job))
    assert (report.order.name, report.order.loads) == (route.order.name, route.order.loads)
    if name:
        assert route.order.name == name
        assert f"{name}: as the job asks" in report.describe()
    events: list[Event] = []
    result = run_render(job, sinks=[events.append])
    assert [event.chunk for event in events if isinstance(event, ChunkDone)] == [chunk.id for chunk in route.chunks]
    assert result.counters["fetch_loads"] == route.order.loads
    assert len(inline) == 1


def test_groups_go_through_all_levels_of_a_fetched_scene(town: Path, tmp_path: Path) -> None:
    job = block_job(town / "town.zarr", town / "flight.json", tmp_path / "frames.zarr", *SLOTS, "output.order=coarse-to-fine")
    route = route_of(job, groups=2)
    assert route.order is not None
    assert route.order.cuts == route.cuts
    assert len(route.order.plans) == 2
    itinerary = route.itinerary()
    assert sorted(itinerary.frames.tolist()) == list(range(TOWN_FRAMES))
    low, middle, high = itinerary.bounds.tolist()
    for part in (itinerary.frames[low:middle], itinerary.frames[middle:high]):
        assert part[0] % 4 == 0, "both groups begin with coarse levels"


@pytest.mark.parametrize("order", ["time", "space"])
def test_a_scene_held_whole_is_rendered_in_flight_order(order: str, make_job: Callable[..., RenderJob]) -> None:
    route = route_of(make_job(f"output.order={order}"))
    assert frames_of(route) == list(range(FRAMES))
    assert route.order is None
