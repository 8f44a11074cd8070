"""run_render without processes: resume, update, overwrite, subsets, stopping, failures, what is left behind."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.cameras.formats import load_flight
from landmark_batch.errors import CheckpointError, DiskFullError, StoreBusyError, StoreError
from landmark_batch.events import ChunkDone, ChunkFailed, Event, JobDone, JobStarted
from landmark_batch.frames import durable
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.pictures import PictureOrder
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import RenderJob
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.workflows import drive
from landmark_batch.workflows.order import ABORT_FILE, STOP_FILE
from landmark_batch.workflows.render import render, run_render
from tests.factories import make_scene
from tests.workflows.conftest import FRAMES, InlineCluster, executions, pixels

MakeJob = Callable[..., RenderJob]


def frames_of(events: list[Event]) -> list[int]:
    return sorted(frame for event in events if isinstance(event, ChunkDone) for frame in event.frames)


@pytest.mark.usefixtures("inline")
def test_a_job_renders_every_frame_and_says_so(make_job: MakeJob) -> None:
    events: list[Event] = []
    job = make_job("output.depth=true", "output.alpha=true")
    result = run_render(job, sinks=[events.append])
    assert (result.state, result.exit_code, result.rendered, result.skipped, result.missing) == ("complete", 0, FRAMES, 0, ())
    assert result.error() is None
    store = FrameStore.open(job.store_path)
    assert sorted(store.finished()) == list(range(FRAMES))
    assert store.read("rgb", 3).std() > 1  # a picture, not a plain colour
    assert np.asarray(store.array("done")[...]).all()
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)
    assert isinstance(events[0], JobStarted)
    assert events[0].todo == FRAMES
    assert frames_of(events) == list(range(FRAMES))
    assert isinstance(events[-1], JobDone)
    assert events[-1].state == "complete"
    assert result.counters["rays"] == FRAMES * 32 * 18
    assert {"render", "write", "idle"} <= result.stages.keys()
    assert not list((job.store_path / "done/.landmark").glob("runs/*"))  # the snapshot is gone


@pytest.mark.usefixtures("inline")
def test_the_log_has_one_line_a_chunk(make_job: MakeJob) -> None:
    job = make_job()
    events: list[Event] = []
    result = run_render(job, sinks=[events.append])
    assert result.log == job.log_path
    lines = job.log_path.read_text().splitlines()
    chunks = [event.chunk for event in events if isinstance(event, ChunkDone)]
    told = [json.loads(line.partition("ChunkDone ")[2])["chunk"] for line in lines if "ChunkDone" in line]
    assert told == chunks


def test_a_finished_job_starts_no_workers(make_job: MakeJob, inline: list[InlineCluster]) -> None:
    job = make_job()
    run_render(job)
    before = pixels(job.store_path)
    result = run_render(job)
    assert (result.state, result.rendered, result.skipped) == ("complete", 0, FRAMES)
    assert len(inline) == 1
    assert pixels(job.store_path) == before


@pytest.mark.usefixtures("inline")
def test_a_subset_fills_its_frames_and_the_rest_follows(make_job: MakeJob) -> None:
    assert run_render(make_job("cameras.frames=3,8-12x2")).rendered == 4
    job = make_job()
    assert sorted(FrameStore.open(job.store_path).finished()) == [3, 8, 10, 12]
    result = run_render(job)
    assert (result.rendered, result.skipped) == (FRAMES - 4, 4)
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)


@pytest.mark.usefixtures("inline")
def test_pixels_do_not_depend_on_chunks_workers_or_ray_batches(make_job: MakeJob, tmp_path: Path) -> None:
    job, other = (
        make_job(),
        make_job(f"output.store={tmp_path / 'other.zarr'}", "output.chunk_frames=7", "parallel.workers=1", "sampling.rays_per_batch=100"),
    )
    run_render(job)
    run_render(other)
    assert pixels(job.store_path) == pixels(other.store_path)


@pytest.mark.usefixtures("inline")
def test_several_frames_in_a_file_are_rendered_together(make_job: MakeJob) -> None:
    job = make_job("output.frames_per_shard=5", "output.chunk_frames=3", "cameras.frames=6")
    assert run_render(job).rendered == 5
    assert sorted(FrameStore.open(job.store_path).finished()) == [5, 6, 7, 8, 9]
    rest = make_job("output.frames_per_shard=5", "output.chunk_frames=3")
    assert run_render(rest).rendered == FRAMES - 5


@pytest.mark.usefixtures("inline")
def test_stop_ends_after_the_chunks_in_hand_and_the_next_run_goes_on(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job, stop = make_job("output.chunk_frames=2"), threading.Event()

    def stop_after_three(event: Event) -> None:
        done.append(event)
        if sum(isinstance(item, ChunkDone) for item in done) == 3:
            stop.set()

    done: list[Event] = []
    with monkeypatch.context() as patch:
        patch.setattr(InlineCluster, "word", (4, STOP_FILE))
        result = run_render(job, sinks=[stop_after_three], stop=stop)
    assert (result.state, result.exit_code) == ("interrupted", 130)
    assert 0 < result.rendered < FRAMES
    assert "goes on" in str(result.error())
    assert run_render(job).rendered == FRAMES - result.rendered
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)


def test_ctrl_c_ends_the_workers_at_once_and_the_store_stays_good(
    make_job: MakeJob, inline: list[InlineCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, ChunkDone):
            raise KeyboardInterrupt

    job = make_job("output.chunk_frames=2")
    with monkeypatch.context() as patch:
        patch.setattr(InlineCluster, "word", (2, ABORT_FILE))
        result = run_render(job, sinks=[interrupt])
    assert result.state == "interrupted"
    assert result.rendered < FRAMES
    assert inline[0].closed
    assert len(FrameStore.open(job.store_path).finished()) > 0
    assert run_render(job).state == "complete"


@pytest.mark.usefixtures("inline")
def test_frames_that_hold_nan_are_named_and_the_rest_is_rendered(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from landmark_batch.model.renderer import Renderer

    original = Renderer.render
    bad = load_flight(make_job().cameras.file).c2w[9]  # type: ignore[arg-type]

    def sometimes_nan(self: Renderer, c2w: Any, *args: Any) -> Any:
        out = original(self, c2w, *args)
        return replace(out, rgb=out.rgb * torch.nan) if np.array_equal(c2w, bad) else out

    monkeypatch.setattr(Renderer, "render", sometimes_nan)
    job = make_job("output.chunk_frames=1")
    events: list[Event] = []
    result = run_render(job, sinks=[events.append])
    assert (result.state, result.exit_code, result.missing) == ("incomplete", 3, (9,))
    assert "frame 9: rgb holds 1728 values that are NaN" in str(result.error())
    assert [event.final for event in events if isinstance(event, ChunkFailed)] == [False, False, True]
    monkeypatch.undo()


@pytest.mark.usefixtures("inline")
def test_a_full_disk_stops_the_job_and_it_goes_on_when_there_is_space(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("output.chunk_frames=2")
    original = durable.write_new
    written: list[Path] = []

    def full_after_ten(path: Path, data: bytes | memoryview) -> None:
        if "/rgb/" in str(path):
            written.append(path)
            if len(written) > 10:
                raise OSError(errno.ENOSPC, "No space left on device")
        original(path, data)

    monkeypatch.setattr(durable, "write_new", full_after_ten)
    with pytest.raises(DiskFullError, match="the disk is full"):
        run_render(job)
    assert len(FrameStore.open(job.store_path).finished()) == 10
    monkeypatch.setattr(durable, "write_new", original)
    assert run_render(job).rendered == FRAMES - 10


@pytest.mark.usefixtures("inline")
def test_a_store_that_another_job_writes_is_refused(make_job: MakeJob) -> None:
    job = make_job()
    run_render(make_job("cameras.frames=0"))
    with StoreOwner.acquire(job.store_path), pytest.raises(StoreBusyError, match="process"):
        run_render(job)


@pytest.mark.usefixtures("inline")
def test_join_waits_for_the_frames_another_process_has_claimed(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("output.chunk_frames=4")
    run_render(make_job("cameras.frames=0"))
    monkeypatch.setattr("landmark_batch.workflows.drive.OTHERS_SECONDS", 0.1)
    with StoreOwner.acquire(job.store_path) as other:
        other.claim([5, 6, 13])
        order: list[int] = []

        def give_up(event: Event) -> None:
            if isinstance(event, ChunkDone):
                order.extend(event.frames)
                if len(order) == FRAMES - 4:  # all but those three, and one that stood before
                    other.release([5, 6, 13])

        result = run_render(job, join=True, sinks=[give_up])
    assert result.state == "complete"
    assert executions(job.store_path) == dict.fromkeys(range(FRAMES), 1)
    assert sorted(order[-3:]) == [5, 6, 13]  # once they were free


def test_a_scene_that_cannot_be_loaded_leaves_nothing_behind(
    make_job: MakeJob, inline: list[InlineCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    from landmark_batch.workflows import session

    def broken(*_: Any, **__: Any) -> Any:
        raise CheckpointError("scene.th: a tensor is cut off")

    monkeypatch.setattr(session, "open_renderer", broken)
    job = make_job()
    with pytest.raises(CheckpointError, match="cut off"):
        run_render(job)
    assert inline[0].closed
    assert not job.store_path.exists()
    assert not job.log_path.exists()


@pytest.mark.usefixtures("inline")
def test_a_foreign_folder_is_never_touched(make_job: MakeJob) -> None:
    job = make_job()
    job.store_path.mkdir()
    (job.store_path / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match="foreign"):
        run_render(job)
    assert [path.name for path in job.store_path.iterdir()] == ["letter.txt"]


@pytest.mark.usefixtures("inline")
def test_exports_get_the_frames_to_come_and_every_event_after(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run_render(make_job("cameras.frames=0-3"))
    job = make_job("cameras.frames=0-9")
    opened: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    events: list[Event] = []

    ordered = PictureOrder(str(job.store_path.parent), "mark", "city", "{frame}.png", 0)
    told: list[dict[str, Any] | None] = []
    written = drive.write_snapshot

    def write(snapshot: Any, *rest: Any, **more: Any) -> Any:
        told.append(snapshot.pictures)
        return written(snapshot, *rest, **more)

    monkeypatch.setattr(drive, "write_snapshot", write)

    class Exports:
        pictures = ordered

        def __call__(self, event: Event) -> None:
            events.append(event)

    def open_exports(wanted: tuple[int, ...], pending: tuple[int, ...]) -> Any:
        assert FrameStore.open(job.store_path).spec.frames == FRAMES
        opened.append((wanted, pending))
        return Exports()

    run_render(job, exports=open_exports)
    assert opened == [(tuple(range(10)), tuple(range(4, 10)))]
    assert frames_of(events) == list(range(4, 10))
    assert told == [ordered.as_dict()]


@pytest.mark.usefixtures("inline")
def test_the_python_api_takes_a_job_file(make_job: MakeJob, scene_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "city.toml"
    file.write_text(
        f'[scene]\ncheckpoint = "{scene_dir}/scene.th"\n[cameras]\nfile = "{scene_dir}/path.json"\n'
        '[sampling]\nsamples = 16\n[model]\nruntime = "torch"\n[parallel]\ndevice = "cpu"\nworkers = 2\n'
    )
    result = render(file, ["cameras.frames=0-3"])
    assert result.store == tmp_path / "city.zarr"
    assert result.rendered == 4
    with pytest.raises(TypeError, match="overrides"):
        render(make_job(), ["cameras.frames=0"])


@pytest.mark.usefixtures("inline")
def test_a_scene_whose_decoder_overflows_is_reported_not_stored(make_job: MakeJob, tmp_path: Path) -> None:
    scene = make_scene(resolutions=(1,))
    signs = torch.where(torch.arange(scene.mlp_weights[1].numel()) % 2 == 0, 3e38, -3e38).reshape(scene.mlp_weights[1].shape)
    overflowing = replace(scene, mlp_weights=(scene.mlp_weights[0], signs, scene.mlp_weights[2]))
    save_landmark_checkpoint(overflowing, tmp_path / "hot.th")
    job = make_job(f"scene.checkpoint={tmp_path / 'hot.th'}", "cameras.frames=0-1", "output.chunk_frames=1")
    result = run_render(job)
    assert (result.state, result.missing) == ("incomplete", (0, 1))
    assert "NaN or infinite" in str(result.error())
    assert executions(job.store_path) == {}


# -- a long flight is compared with its store once
