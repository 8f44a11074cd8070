"""Jobs that fetch blocks, on real worker processes: the pixels of resident jobs, resume, faults of a store, stores by URL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from landmark_batch.errors import CheckpointError, FramesDifferError
from landmark_batch.events import ChunkDone, ChunkFailed, Event
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.workflows import control
from landmark_batch.workflows.itinerary import route_chunks
from landmark_batch.workflows.plan import make_plan
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.result import RenderResult
from tests.fetching.flights import write_store
from tests.workflows.block_jobs import (
    FRAMES,
    HIGH,
    SLOTS,
    block_job,
    frames_with,
    plane_file,
    request_of,
    serve,
    write_flight,
    write_town,
)
from tests.workflows.conftest import InlineCluster, executions, pixels
from tests.workflows.faults import ALL, KilledOnce, allowance


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two worker processes, for all tests of this module."""
    from landmark_batch.workflows.cluster import start_cluster
    from landmark_batch.workflows.machine import Placement

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("no_proxy", "127.0.0.1")
        cluster = start_cluster(Placement("cpu", 2, (), "CPU"), dashboard=False)
        yield cluster.address
        cluster.close()


@pytest.fixture(scope="module")
def resident(town: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Pixel files of the store's job with the whole scene in memory."""
    job = block_job(town / "town.zarr", town / "flight.json", tmp_path_factory.mktemp("frames") / "resident.zarr", "fetching.mode=resident")
    return rendered(job)


def rendered(job: RenderJob) -> dict[str, bytes]:
    """Pixel files of a job that is rendered without processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("landmark_batch.workflows.cluster.start_cluster", lambda placement, **_: InlineCluster(placement.workers))
        assert run_render(job).state == "complete"
    return pixels(job.store_path)


def frames_of(files: dict[str, bytes]) -> dict[int, bytes]:
    """Frame -> its rgb file."""
    return {int(name.removeprefix("rgb/c.").split(".")[0]): data for name, data in files.items()}


def dynamic_job(town: Path, store: Path, *more: str) -> RenderJob:
    return block_job(town / "town.zarr", town / "flight.json", store, *SLOTS, *more)


def explain(result: RenderResult) -> str:
    error = result.error()
    assert error is not None
    assert error.exit_code == 3
    return str(error)


def test_a_job_with_two_slots_has_the_pixels_of_the_whole_scene(
    town: Path, tmp_path: Path, resident: dict[str, bytes], scheduler: str
) -> None:
    """Stopped on its way, it goes on with what is missing; the checkpoint's own job has the same pixels."""
    stop = threading.Event()
    events: list[Event] = []

    def stop_after_four(event: Event) -> None:
        events.append(event)
        if sum(isinstance(event, ChunkDone) for event in events) == 4:
            stop.set()

    job = dynamic_job(town, tmp_path / "dynamic.zarr")
    with Client(scheduler, set_as_default=False, timeout=60) as client, allowance(client, tmp_path, 8):
        first = run_render(job, scheduler=scheduler, sinks=[stop_after_four], stop=stop)
    assert first.state == "interrupted"
    assert 8 <= first.rendered < FRAMES
    second = run_render(job, scheduler=scheduler)
    assert (second.state, second.rendered, second.skipped) == ("complete", FRAMES - first.rendered, first.rendered)
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)
    assert pixels(job.store_path) == resident
    assert first.counters["fetch_loads"] + second.counters["fetch_loads"] >= 6
    assert second.counters["fetch_bytes_read"] > 0
    checkpoint = block_job(town / "town-merged-stack.th", town / "flight.json", tmp_path / "checkpoint.zarr")
    assert rendered(checkpoint) == resident
    whole = FrameStore.open(checkpoint.store_path).finished()
    ours = FrameStore.open(job.store_path).finished()
    assert all(whole[frame].fingerprint != ours[frame].fingerprint for frame in range(FRAMES))


def test_one_worker_follows_the_order_in_space_and_loads_what_was_planned(
    town: Path, tmp_path: Path, resident: dict[str, bytes], inline: list[InlineCluster]
) -> None:
    job = dynamic_job(town, tmp_path / "one.zarr", "parallel.workers=1", "fetching.gpu_blocks=3", "cameras.frames=0-11,13-24")
    plan = make_plan(job)
    route = route_chunks(plan.request, plan.chunks, 1)
    assert route.order is not None
    assert route.order.passes == 0
    assert route.order.loads < route.order.demand
    events: list[Event] = []
    result = run_render(job, sinks=[events.append])
    done = [event.chunk for event in events if isinstance(event, ChunkDone)]
    assert done == [chunk.id for chunk in route.chunks]
    assert done != sorted(done)
    assert result.counters["fetch_loads"] == route.order.loads
    assert pixels(job.store_path).items() < resident.items()
    assert len(inline) == 1


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("kind", ["cut", "half"])
def test_one_slot_of_a_scene_that_was_cut_into_blocks(kind: str, town: Path, tmp_path: Path) -> None:
    """A sequential scene's planes in 3 x 2 blocks, in fp32 and in fp16: every frame in passes, the bits of the checkpoint."""
    checkpoint, store = write_store(tmp_path, kind)
    precision = "model.precision=fp16" if kind == "half" else "model.precision=fp32"
    few = (precision, "cameras.frames=0,5,12", "parallel.workers=1")
    whole = block_job(checkpoint, town / "flight.json", tmp_path / "whole.zarr", *few)
    one = block_job(store, town / "flight.json", tmp_path / "one.zarr", *few, "fetching.mode=dynamic", "fetching.gpu_blocks=1")
    assert run_render(whole).state == "complete"
    result = run_render(one)
    assert result.counters["fetch_loads"] > 6
    assert pixels(one.store_path) == pixels(whole.store_path)


@pytest.mark.usefixtures("inline")
def test_a_replaced_block_makes_stale_only_the_frames_that_see_it(town: Path, tmp_path: Path, resident: dict[str, bytes]) -> None:
    write_town(tmp_path)
    job = block_job(tmp_path / "town.zarr", town / "flight.json", tmp_path / "frames.zarr", *SLOTS)
    run_render(job)
    block = 5
    seen = frames_with(job, block)
    assert set(HIGH) < set(seen) < set(range(FRAMES))
    write_town(tmp_path, changed=block)
    message = rf"{len(seen)} of {FRAMES} finished frames differ: blocks of the scene in sight of frames \d"
    for attempt in (make_plan, run_render):
        with pytest.raises(FramesDifferError, match=message):
            attempt(job)
    plan = make_plan(job, update=True)
    assert plan.todo == tuple(seen)
    assert "blocks of the scene in sight of frames" in plan.describe()
    result = run_render(job, update=True)
    assert (result.state, result.rendered, result.skipped) == ("complete", len(seen), FRAMES - len(seen))
    old, new = frames_of(resident), frames_of(pixels(job.store_path))
    assert {frame for frame in old if old[frame] != new[frame]} <= set(seen)
    assert old[HIGH[0]] != new[HIGH[0]]
    fresh = block_job(tmp_path / "town-merged-stack.th", town / "flight.json", tmp_path / "fresh.zarr")
    assert rendered(fresh) == pixels(job.store_path)


@pytest.mark.usefixtures("inline")
def test_the_same_blocks_elsewhere_are_the_same_scene(town: Path, tmp_path: Path) -> None:
    job = dynamic_job(town, tmp_path / "frames.zarr", "cameras.frames=0-3")
    run_render(job)
    write_town(tmp_path, "moved")
    moved = block_job(tmp_path / "moved.zarr", town / "flight.json", tmp_path / "frames.zarr", "fetching.mode=resident")
    assert make_plan(moved).done == 4
    write_town(tmp_path, "moved", changed=5)
    seen = [frame for frame in frames_with(moved, 5) if frame < 4]
    with pytest.raises(FramesDifferError, match=f"{len(seen)} of 4 finished frames differ"):
        make_plan(moved)


@pytest.mark.parametrize("fault", ["flipped", "missing"])
def test_a_bad_block_is_named_and_costs_only_the_frames_that_need_it(
    fault: str, tmp_path: Path, resident: dict[str, bytes], scheduler: str
) -> None:
    """Tried three times, then set aside; mended, the same command renders the rest."""
    write_town(tmp_path)
    write_flight(tmp_path)
    job = dynamic_job(tmp_path, tmp_path / "frames.zarr")
    block = 5
    file = plane_file(tmp_path / "town.zarr", block)
    good = file.read_bytes()
    needing = frames_with(job, block)
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    events: list[Event] = []
    result = run_render(job, scheduler=scheduler, sinks=[events.append])
    text = explain(result)
    assert f"{file} (block {block}): {'missing' if fault == 'missing' else 'damaged'}" in text
    assert max(sum(event.chunk == other.chunk for other in failed(events)) for event in failed(events)) <= 3
    stand = set(FrameStore.open(job.store_path).finished())
    chunks = [event.frames for event in failed(events) if event.final]
    lost = {frame for frames in chunks for frame in frames}
    assert set(needing) <= lost
    assert stand == set(range(FRAMES)) - lost == set(range(FRAMES)) - set(result.missing)
    assert all(set(frames) & set(needing) for frames in chunks), "a chunk that does not need the block failed"
    file.write_bytes(good)
    again = run_render(job, scheduler=scheduler)
    assert (again.state, again.rendered) == ("complete", len(lost))
    assert pixels(job.store_path) == resident


def failed(events: list[Event]) -> list[ChunkFailed]:
    return [event for event in events if isinstance(event, ChunkFailed)]


def test_a_store_that_cannot_be_opened_ends_the_job_at_once(town: Path, tmp_path: Path, scheduler: str) -> None:
    write_town(tmp_path)
    job = block_job(tmp_path / "town.zarr", town / "flight.json", tmp_path / "frames.zarr", *SLOTS)
    (tmp_path / "town.zarr" / "decoder" / "basis_mat" / "c.0.0").unlink()
    with pytest.raises(CheckpointError, match=r"basis_mat.*missing") as caught:
        run_render(job, scheduler=scheduler)
    assert caught.value.exit_code == 2


def test_a_job_from_a_url_gets_over_a_busy_server(
    town: Path, tmp_path: Path, resident: dict[str, bytes], scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(town) as server:
        files = [str(plane_file(town / "town.zarr", block).relative_to(town)) for block in (0, 3)]
        server.busy = {"town.zarr/zarr.json": 1, "decoder/basis_mat/c.0.0": 1, **dict.fromkeys(files, 1)}
        job = block_job(f"{server.url}/town.zarr", town / "flight.json", tmp_path / "url.zarr", *SLOTS)
        events: list[Event] = []
        result = run_render(job, scheduler=scheduler, sinks=[events.append])
        assert result.state == "complete"
        assert not failed(events)
        assert not any(server.busy[file] for file in files)
        assert pixels(job.store_path) == resident
        wanted = request_of(job)
        assert wanted.blocks is not None
        assert wanted.blocks.size.blocks == 6


def test_a_pause_and_a_killed_worker_change_no_pixel(town: Path, tmp_path: Path, resident: dict[str, bytes], scheduler: str) -> None:
    """Paused, workers give up their slots; killed, one loses them. Both begin again with none."""
    job = dynamic_job(town, tmp_path / "steered.zarr")
    done: list[ChunkDone] = []
    failures: list[ChunkFailed] = []
    paused: list[threading.Timer] = []

    def steer(event: Event) -> None:
        if isinstance(event, ChunkFailed):
            failures.append(event)
        if isinstance(event, ChunkDone):
            done.append(event)
            if len(done) == 2:
                allow(ALL)
                control.pause(job.store_path)
                paused.append(threading.Timer(0.5, control.go_on, (job.store_path,)))
                paused[0].start()

    with Client(scheduler, set_as_default=False, timeout=60) as client, allowance(client, tmp_path, 4) as allow:
        client.register_plugin(KilledOnce(FRAMES // 2, tmp_path / "killed"))
        result = run_render(job, scheduler=scheduler, sinks=[steer])
        client.unregister_worker_plugin(KilledOnce.name)
    assert (result.state, result.rendered, len(paused)) == ("complete", FRAMES, 1)
    assert any("died" in event.error for event in failures)
    assert pixels(job.store_path) == resident
    assert set(executions(job.store_path)) == set(range(FRAMES))
