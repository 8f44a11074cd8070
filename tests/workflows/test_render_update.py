"""Jobs whose settings or flight have changed since frames were rendered: what is refused, what is rendered again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from landmark_batch.cameras.formats import load_flight
from landmark_batch.cameras.write import write_transforms
from landmark_batch.errors import FramesDifferError
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.workflows.render import run_render
from tests.workflows.conftest import FRAMES, executions, pixels

MakeJob = Callable[..., RenderJob]


@pytest.mark.usefixtures("inline")
def test_other_settings_are_refused_then_update_replaces_all(make_job: MakeJob) -> None:
    job, changed = make_job(), make_job("sampling.samples=24")
    run_render(job)
    before = pixels(job.store_path)
    with pytest.raises(FramesDifferError, match=r"24 of 24 finished .* sampling\.samples 16 → 24; --update replaces them, -o"):
        run_render(changed)
    assert pixels(job.store_path) == before
    assert run_render(changed, update=True).rendered == FRAMES
    assert pixels(job.store_path) != before
    assert run_render(changed).rendered == 0


@pytest.mark.usefixtures("inline")
def test_update_renders_the_edited_poses_only(make_job: MakeJob, scene_dir: Path, tmp_path: Path) -> None:
    job = make_job()
    run_render(job)
    flight = load_flight(scene_dir / "path.json")
    c2w = flight.c2w.copy()
    c2w[[2, 5, 6, 11, 20], 2, 3] += 0.01
    edited = write_transforms(replace(flight, c2w=c2w), tmp_path / "edited.json")
    changed = make_job(f"cameras.file={edited}")
    with pytest.raises(FramesDifferError, match="5 of 24 finished frames differ: pose of frames 2,5-6,11,20"):
        run_render(changed)
    result = run_render(changed, update=True)
    assert (result.rendered, result.skipped) == (5, FRAMES - 5)


@pytest.mark.usefixtures("inline")
def test_a_frame_inserted_in_the_flight_renders_one_frame(make_job: MakeJob, scene_dir: Path, tmp_path: Path) -> None:
    job = make_job()
    run_render(job)
    old = FrameStore.open(job.store_path).read("rgb", 10)
    raw = json.loads((scene_dir / "path.json").read_text())
    between = json.loads(json.dumps(raw["frames"][9]))
    between["transform_matrix"][2][3] += 0.02
    raw["frames"].insert(10, between)
    longer = tmp_path / "longer.json"
    longer.write_text(json.dumps(raw))
    changed = make_job(f"cameras.file={longer}")
    assert run_render(changed).rendered == 1
    store = FrameStore.open(job.store_path)
    assert len(store.finished()) == FRAMES + 1
    assert np.array_equal(store.read("rgb", 11), old)


@pytest.mark.usefixtures("inline")
def test_overwrite_renders_what_is_wanted_again_and_no_more(make_job: MakeJob) -> None:
    job = make_job()
    run_render(job)
    before = pixels(job.store_path)
    assert run_render(make_job("cameras.frames=4-7"), overwrite=True).rendered == 4
    assert executions(job.store_path)[0] == 1
    assert len(FrameStore.open(job.store_path).finished()) == FRAMES
    assert run_render(job, overwrite=True).rendered == FRAMES
    assert pixels(job.store_path) == before


@pytest.mark.usefixtures("inline")
def test_update_of_a_subset_keeps_the_other_frames(make_job: MakeJob) -> None:
    run_render(make_job())
    changed = make_job("sampling.samples=24", "cameras.frames=0-3")
    assert run_render(changed, update=True).rendered == 4
    assert len(FrameStore.open(changed.store_path).finished()) == FRAMES
