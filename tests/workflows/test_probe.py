from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landmark_batch.errors import ConfigError, DiskFullError
from landmark_batch.events import ChunkDone, Event, JobStarted
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.workflows import plan as plan_module
from landmark_batch.workflows.costs import CostModel
from landmark_batch.workflows.machine import Machine
from landmark_batch.workflows.measured import recall_probe, record_probe
from landmark_batch.workflows.plan import make_plan, probe_key
from landmark_batch.workflows.predicted import compare_prediction, read_prediction
from landmark_batch.workflows.probe import IN_PLACE, choose_windows, measure_places, probe_plan
from landmark_batch.workflows.probed import Probe
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.request import scene_request
from tests.workflows.block_jobs import block_job, write_flight, write_town
from tests.workflows.conftest import FRAMES

MakeJob = Callable[..., RenderJob]


@pytest.fixture(autouse=True)
def _nothing_is_known(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests measured is not this one's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


MACHINE = Machine("here", "a CPU", 4, 16 * 2**30, (), 0, None, "2.13.0+cpu", None)
PROBE = Probe(CostModel(0.5, 0.0, (0, 20), (1.0, 1.0)), 2, 3.0, 0.1, 1000.0, 2**30, None, (0, 20), (9.0, 9.0), (0.5, 0.5), 32, 18)


@pytest.mark.usefixtures("inline")
def test_a_probe_renders_some_and_tells_of_all(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("cameras.width=128", "cameras.height=72", "output.depth=true", "output.chunk_frames=12")
    plan = make_plan(job, machine=MACHINE)
    assert plan.probe is None
    probe = probe_plan(plan, MACHINE, places=3)
    assert list(tmp_path.iterdir()) == [], "nothing is left beside the job"
    assert (probe.width, probe.height, probe.groups) == (128, 18, 2)
    assert 3 <= len(probe.frames) <= 4  # a place of each worker was its first
    assert probe.host_memory > 2**27
    assert probe.gpu_memory is None
    assert all(value > 0 for value in (*probe.seconds, *probe.samples, probe.startup))
    told = plan.probed(probe)
    assert told.seconds is not None
    assert told.seconds >= told.frame_seconds().sum() / 2
    found = json.loads(json.dumps(told.as_dict()))["probe"]
    assert found["total_seconds"] == pytest.approx(probe.startup + told.seconds)
    assert [(part["first"], part["last"]) for part in found["along"]] == [(i, i + 2) for i in range(0, FRAMES, 3)]
    assert sum(found["seconds_by_frame"].values()) == pytest.approx(found["worker_seconds"])
    text = told.describe()
    assert "to start, as probed here" in text
    assert "as probed frames compress" in text
    assert "frames   0-2  " in text
    result = run_render(job, machine=MACHINE)
    size = sum(file.stat().st_size for name in ("rgb", "depth") for file in (result.store / name).glob("c.*"))
    assert found["bytes"] == pytest.approx(size, rel=0.25)
    with pytest.raises(ConfigError, match="nothing to probe"):
        probe_plan(make_plan(job, machine=MACHINE), MACHINE)


@pytest.mark.usefixtures("inline")
def test_a_scene_in_blocks_is_probed_with_the_blocks_in_hand(tmp_path: Path) -> None:
    _, store = write_town(tmp_path)
    words = ("cameras.width=96", "cameras.height=64", "fetching.mode=dynamic", "fetching.gpu_blocks=3")
    plan = make_plan(block_job(store, write_flight(tmp_path), tmp_path / "town-frames.zarr", *words), machine=MACHINE)
    probe = probe_plan(plan, MACHINE, places=2)
    assert plan.probed(probe).seconds is not None
    assert (probe.width, probe.height) == (96, 16)


@pytest.mark.parametrize(("slots", "rows", "places"), [(3, 16, 8), (2, 64, 2)])
def test_frames_that_need_more_blocks_than_slots_are_probed_whole(tmp_path: Path, slots: int, rows: int, places: int) -> None:
    """With two slots half of the frames do, with three two of 26."""
    _, store = write_town(tmp_path)
    words = ("cameras.width=96", "cameras.height=64", "fetching.mode=dynamic", f"fetching.gpu_blocks={slots}")
    request = scene_request(block_job(store, write_flight(tmp_path), tmp_path / "town-frames.zarr", *words), "cpu", MACHINE)
    windows = choose_windows(request, request.wanted, 8)
    assert len(windows) == places * IN_PLACE
    assert {window.rows for window in windows} == {rows}
    spare = choose_windows(request, request.wanted, 8, 2)
    assert len(spare) == (places + 2) * IN_PLACE
    assert [window.frame for window in spare[:IN_PLACE]] == [0, 1, 2, 3] if slots == 2 else [0] * IN_PLACE


def test_strips_have_the_rays_of_their_frames_and_come_by_all_of_them(make_job: MakeJob) -> None:
    request = scene_request(make_job("cameras.width=4096", "cameras.height=640", "sampling.samples=256"), "cpu")
    windows = choose_windows(request, request.wanted, 8)
    assert len(windows) == 8 * IN_PLACE
    assert {window.rows for window in windows} == {64}
    tops = np.array([window.top for window in windows]).reshape(8, IN_PLACE)
    assert (np.diff(tops, axis=1) == 160).all()
    assert tops.min() == 0
    assert tops.max() + 64 <= 640
    assert len(set(tops[:, 0])) == 8
    assert [window.frame for window in windows[::IN_PLACE]] == [0, 3, 7, 10, 13, 16, 20, 23]


def test_on_a_gpu_whole_neighbours_are_probed(make_job: MakeJob) -> None:
    request = replace(scene_request(make_job(), "cpu"), device="cuda")
    windows = choose_windows(request, (2, 4, 6, 8, 10, 12), 2)
    assert [window.frame for window in windows] == [2, 4, 6, 8, 12, 12, 12, 12]
    assert {(window.top, window.rows) for window in windows} == {(0, 18)}


def chunk(worker: str, windows: tuple[int, ...], seconds: float) -> ChunkDone:
    return ChunkDone("c", windows, worker, 0, 9.0, {"render": 0.75 * seconds, "wait": 0.25 * seconds, "quantise": 1.0, "write": 5.0}, {})


def test_a_workers_first_place_is_not_believed() -> None:
    seen = [
        chunk("a", (0, 1), 40.0),
        chunk("b", (8, 9, 10, 11), 50.0),
        chunk("a", (2, 3), 2.0),
        chunk("a", (4, 5), 4.0),
        chunk("a", (6, 7), 8.0),
    ]
    assert measure_places(seen, IN_PLACE, ("render", "wait")) == {1: 3.0}
    assert measure_places(seen[:1], IN_PLACE, ("render", "quantise", "wait")) == {0: 20.5}
    gpu = [chunk("a", tuple(range(4 * i, 4 * i + 4)), seconds) for i, seconds in enumerate((80.0, 8.0, 4.0))]
    assert measure_places(gpu, IN_PLACE, ("render", "wait"), cold=2) == {2: 1.0}
    assert measure_places(gpu, IN_PLACE, ("render", "wait"), cold=3) == {0: 20.0, 1: 2.0, 2: 1.0}, "better than nothing"


def test_wall_time_of_groups() -> None:
    assert PROBE.wall(10.0, 20) == pytest.approx((10 + 0.1 * 20) / 2 + 10 / 20 / 2)
    assert PROBE.wall(0.5, 1) == pytest.approx(0.6)  # one chunk, one worker
    assert Probe.from_dict(json.loads(json.dumps(PROBE.as_dict()))) == PROBE


@pytest.mark.usefixtures("inline")
def test_a_render_remembers_its_probe_and_keeps_predicted_against_actual(make_job: MakeJob) -> None:
    from landmark_batch.commands.status import examine

    job = make_job("cameras.frames=0-7")
    plan = make_plan(job, machine=MACHINE)
    record_probe(probe_key(plan, MACHINE), PROBE.as_dict())
    assert recall_probe("another") is None
    again = make_plan(job, machine=MACHINE)
    assert again.probe == PROBE
    np.testing.assert_array_equal(again.frame_seconds(), np.full(8, 0.5))
    assert make_plan(make_job("cameras.frames=0-7", "sampling.samples=17"), machine=MACHINE).probe is None
    events: list[Event] = []
    run_render(job, machine=MACHINE, sinks=[events.append])
    started = next(event for event in events if isinstance(event, JobStarted))
    costs = [event.cost for event in events if isinstance(event, ChunkDone)]
    assert started.cost is not None
    assert sum(cost or 0.0 for cost in costs) == pytest.approx(started.cost)
    found = examine(FrameStore.open(job.store_path))["predicted"]
    assert (found["frames"], found["predicted"], found["to_come"]) == (8, 4.0, 0.0)
    assert found["actual"] > 0


@pytest.mark.usefixtures("inline")
def test_without_a_probe_an_earlier_speed_is_the_prediction(make_job: MakeJob) -> None:
    run_render(make_job("cameras.frames=0-3"), machine=MACHINE)
    store = make_job().store_path
    assert compare_prediction(store, FRAMES, {}) is None, "nothing was known of the first run"
    plan = make_plan(make_job("cameras.frames=0-11"), machine=MACHINE)
    assert plan.seconds is not None
    assert plan.frame_seconds().sum() == pytest.approx(plan.seconds * 2)  # two workers
    run_render(make_job("cameras.frames=0-11"), machine=MACHINE)
    values = read_prediction(store, FRAMES)
    assert values is not None
    assert np.isfinite(values).nonzero()[0].tolist() == list(range(4, 12))


def test_a_probe_tells_whether_frames_fit_on_the_disk(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    job = make_job()
    record_probe(probe_key(make_plan(job, machine=MACHINE), MACHINE), {**PROBE.as_dict(), "bytes_per_frame": 10e6})
    free: dict[str, Any] = {"free": 160e6}
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda _: SimpleNamespace(**free))
    with pytest.raises(DiskFullError, match=r"24 frames need 229 MiB, the disk has 153 MiB free"):
        make_plan(job, machine=MACHINE)
    free["free"] = 200e6
    assert any("should it get full" in text for text in make_plan(job, machine=MACHINE).warnings)
