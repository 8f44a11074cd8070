from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark_batch.chunks import split_frames
from landmark_batch.errors import CameraError, CheckpointError, ConfigError, DiskFullError, FramesDifferError, StoreError
from landmark_batch.frames.resume import ResumePlan
from landmark_batch.frames.spec import OutputSpec, StoreSpec
from landmark_batch.job import RenderJob
from landmark_batch.scene.config import load_config
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.workflows import plan as plan_module
from landmark_batch.workflows.machine import Gpu, Machine
from landmark_batch.workflows.plan import chunk_size, frames_to_render, make_plan, narrow
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.request import NO_KERNELS_HERE
from tests.factories import make_scene
from tests.workflows.conftest import FRAMES

MakeJob = Callable[..., RenderJob]
MACHINE = Machine("here", "a CPU", 4, 16 * 2**30, (), 0, None, "2.13.0+cpu", None)


def test_a_plan_counts_without_touching_anything(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("cameras.frames=0-9", "output.depth=true", "parallel.workers=1", "output.chunk_frames=2")
    plan = make_plan(job, machine=MACHINE)
    assert (len(plan.todo), plan.done, plan.differing, plan.store_exists) == (10, 0, 0, False)
    assert plan.bytes_todo >= 10 * 32 * 18 * (3 + 4)
    assert plan.worker_memory > 2**28
    assert plan.seconds is None
    assert plan.placement is not None
    assert (plan.placement.device, plan.placement.workers) == ("cpu", 1)
    text = plan.describe()
    assert "10 of 24 of 32×18" in text
    assert "unknown" in text
    told = json.loads(json.dumps(plan.as_dict()))
    assert told["frames"] == {"flight": 24, "wanted": 10, "done": 0, "todo": 10, "differing": 0, "moved": 0, "todo_ranges": "0-9"}
    assert told["outputs"] == {"rgb": "uint8", "depth": "float32"}
    assert told["seconds"] is None
    assert not job.store_path.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("inline")
def test_a_plan_knows_what_stands_and_then_also_the_time(make_job: MakeJob) -> None:
    run_render(make_job("cameras.frames=0-5"), machine=MACHINE)
    plan = make_plan(make_job(), machine=MACHINE)
    assert (plan.done, len(plan.todo), plan.store_exists) == (6, 18, True)
    assert plan.bytes_expected is not None
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert "as measured here before" in plan.describe()
    assert make_plan(make_job("cameras.frames=0-3"), machine=MACHINE).describe().endswith("nothing to render")
    with pytest.raises(FramesDifferError, match=r"6 of 6 finished frames differ: sampling\.samples 16 → 20"):
        make_plan(make_job("sampling.samples=20"), machine=MACHINE)
    updated = make_plan(make_job("sampling.samples=20"), machine=MACHINE, update=True)
    assert (updated.differing, len(updated.todo)) == (6, FRAMES)
    assert "6 are replaced (sampling.samples 16 → 20)" in updated.describe()
    assert len(make_plan(make_job("cameras.frames=4-7"), machine=MACHINE, overwrite=True).todo) == 4


@pytest.mark.usefixtures("inline")
def test_a_store_rendered_on_another_build_is_told(make_job: MakeJob) -> None:
    run_render(make_job("cameras.frames=0"), machine=MACHINE)
    assert make_plan(make_job(), machine=MACHINE).warnings == ()
    plan = make_plan(make_job(), machine=replace(MACHINE, torch="2.14.0+cpu"))
    assert any("torch 2.13.0+cpu" in text and "torch 2.14.0+cpu" in text for text in plan.warnings)
    assert "warning" in plan.describe()


def test_a_disk_that_cannot_hold_the_frames_is_refused_with_numbers(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("output.rgb=float32", "cameras.width=1920", "cameras.height=1080")
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * 2**20))
    with pytest.raises(DiskFullError, match=r"24 frames need 570 MiB, the disk has 100 MiB free"):
        make_plan(job, machine=MACHINE)
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=400 * 2**20))
    assert any("should it get full" in text for text in make_plan(job, machine=MACHINE).warnings)  # it may fit compressed
    with pytest.raises(DiskFullError):
        make_plan(make_job("output.rgb=float32", "cameras.width=1920", "cameras.height=1080", "output.compressor=none"), machine=MACHINE)
    assert not job.store_path.exists()


@pytest.mark.parametrize(
    ("override", "error", "text"),
    [
        ("parallel.tensor_parallel=3", ConfigError, r"2 workers do not divide into groups of 3 .*: use 3"),
        ("parallel.data_parallel=4", ConfigError, r"2 workers do not divide into groups of 4 .*: use 4"),
        ("fetching.mode=dynamic", ConfigError, r"fetching.mode.*\n.*landmark-batch convert"),
        ("fetching.gpu_blocks=4", ConfigError, r"gpu_blocks = 4"),
        ("fetching.gpu_memory=8GiB", ConfigError, r"gpu_memory = 8GiB"),
        ("fetching.host_memory=8GiB", ConfigError, r"host_memory = 8GiB"),
        ("cameras.frames=0-99", ConfigError, r"frame 99 is outside the flight of 24 frames"),
        ("cameras.file=/nowhere/path.json", CameraError, r"/nowhere/path.json"),
        ("scene.checkpoint=/nowhere/scene.th", CheckpointError, r"/nowhere/scene.th"),
        ("sampling.near=9", ConfigError, r"near"),
        ("parallel.device=cuda", ConfigError, r"no NVIDIA GPU.*\n.*--device cpu"),
    ],
)
def test_what_cannot_be_rendered_is_refused_with_the_remedy(override: str, error: type[Exception], text: str, make_job: MakeJob) -> None:
    job = make_job(override)
    with pytest.raises(error, match=text):
        make_plan(job, machine=MACHINE)
    with pytest.raises(error, match=text):
        run_render(job, machine=MACHINE)
    assert not job.store_path.exists()


def test_a_store_path_that_is_a_file_or_below_one_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for store in ("file", "file/flight.zarr"):
        with pytest.raises(StoreError, match="file"):
            make_plan(make_job(f"output.store={tmp_path / store}"), machine=MACHINE)
    assert (tmp_path / "file").read_text() == "x"


def test_another_size_is_another_store(make_job: MakeJob, inline: object) -> None:
    run_render(make_job("cameras.frames=0"), machine=MACHINE)
    with pytest.raises(StoreError, match="another size or dtype is another store"):
        make_plan(make_job("cameras.width=16", "cameras.height=9"), machine=MACHINE)


def test_a_machine_whose_gpus_torch_cannot_use_stops_before_frame_0(make_job: MakeJob) -> None:
    blind = replace(MACHINE, gpus_present=4, gpu_problem="this torch was built without CUDA")
    job = make_job("parallel.device=auto")
    with pytest.raises(ConfigError, match=r"4 NVIDIA GPUs that torch 2\.13\.0\+cpu cannot use: .* without CUDA\n.*--device cpu"):
        run_render(job, machine=blind)
    assert make_plan(make_job(), machine=blind).placement is not None  # device = "cpu" was asked for


def test_a_plan_for_gpus_needs_none(make_job: MakeJob) -> None:
    gpus = tuple(Gpu(i, "H100", 80 * 2**30) for i in range(4))
    plan = make_plan(
        make_job("parallel.device=auto", "parallel.workers=0", "output.chunk_frames=1", "model.runtime=torch"),
        machine=replace(MACHINE, gpus=gpus),
    )
    assert plan.placement is not None
    assert (plan.placement.device, plan.placement.gpus) == ("cuda", (0, 1, 2, 3))
    assert "GPU 0, 1, 2, 3 (H100)" in plan.describe()


def test_a_client_without_kernels_says_what_workers_of_a_cluster_will_do(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDMARK_BATCH_KERNELS", "/none")

    def told(*overrides: str, scheduler: str | None) -> bool:
        plan = make_plan(make_job(*overrides), machine=MACHINE, update=False, overwrite=False, scheduler=scheduler)
        return any(NO_KERNELS_HERE in warning for warning in plan.warnings)

    assert told("model.runtime=auto", scheduler="tcp://head:8786")
    assert not told("model.runtime=auto", scheduler=None)
    assert not told("model.runtime=auto", "parallel.device=cuda", scheduler="tcp://head:8786")
    assert not told("model.runtime=torch", scheduler="tcp://head:8786")


def test_a_plan_of_render_groups(make_job: MakeJob) -> None:
    words = ("parallel.workers=0", "parallel.tensor_parallel=2", "output.chunk_frames=1")
    alone = make_plan(make_job("parallel.workers=0", "output.chunk_frames=1"), machine=MACHINE)
    assert "groups" not in alone.describe().split()
    assert (alone.as_dict()["groups"], alone.as_dict()["tensor_parallel"], alone.as_dict()["data_parallel"]) == (4, 1, 1)
    plan = make_plan(make_job(*words), machine=MACHINE)
    assert "  groups    2 of 2 ranks (tensor 2 x data 1)" in plan.describe().splitlines()
    told = plan.as_dict()
    assert (told["workers"], told["groups"], told["tensor_parallel"], told["data_parallel"]) == (4, 2, 2, 1)
    both = make_plan(make_job(*words, "parallel.data_parallel=2"), machine=replace(MACHINE, cores=2))
    assert both.placement is not None
    assert (both.placement.workers, both.placement.groups) == (4, 1)
    assert "  groups    1 of 4 ranks (tensor 2 x data 2)" in both.describe().splitlines()
    few = make_plan(make_job(*words, "cameras.frames=0"), machine=MACHINE)
    assert few.placement is not None
    assert (few.placement.workers, few.placement.groups) == (2, 1)  # one chunk, one group
    idle = make_plan(make_job("parallel.workers=0", "parallel.tensor_parallel=8"), machine=MACHINE)  # 4 and 6 channels
    assert idle.warnings == ("tensor_parallel = 8: the scene's channels leave 2 of every 8 workers without any",)
    elsewhere = make_plan(make_job(*words), machine=MACHINE, scheduler="tcp://127.0.0.1:8786")
    assert "of 2 ranks (tensor 2 x data 1), as many as the cluster has workers for" in elsewhere.describe()
    assert elsewhere.as_dict()["groups"] is None


def test_a_rank_of_a_group_needs_its_share_of_the_scene(make_job: MakeJob, tmp_path: Path) -> None:
    path = tmp_path / "large.th"
    save_landmark_checkpoint(make_scene(grid_size=(200, 200, 5), density_channels=16, appearance_channels=48), path)
    size = load_config(path).grid_parameters() * 4
    needs = [
        make_plan(make_job(f"scene.checkpoint={path}", "parallel.workers=4", f"parallel.tensor_parallel={ranks}"), machine=MACHINE)
        for ranks in (1, 2, 4)
    ]
    assert needs[1].worker_memory - needs[2].worker_memory == pytest.approx(size / 4, rel=0.01)
    assert 0.8 * size / 2 < needs[0].worker_memory - needs[1].worker_memory < size / 2  # less the second tile in flight


@pytest.mark.usefixtures("inline")
def test_frames_of_another_number_of_tensor_ranks_are_others(make_job: MakeJob) -> None:
    run_render(make_job("cameras.frames=0-5"), machine=MACHINE)
    with pytest.raises(FramesDifferError, match=r"6 of 6 finished frames differ: parallel\.tensor_parallel 1 → 2;"):
        make_plan(make_job("parallel.tensor_parallel=2"), machine=MACHINE)
    assert make_plan(make_job("parallel.data_parallel=2"), machine=MACHINE).done == 6


@given(st.integers(0, 20_000), st.integers(1, 64), st.sampled_from([1, 1, 1, 4, 5]), st.integers(1, 16))
def test_chunks_are_whole_files_and_as_large_as_asked_unless_the_job_is_short(todo: int, asked: int, unit: int, workers: int) -> None:
    size = chunk_size(todo, asked, unit, workers)
    largest = -(-asked // unit) * unit
    assert size % unit == 0
    assert unit <= size <= largest
    assert largest % size == 0  # the same frame falls into the same chunk or a part of it
    if size < largest:
        assert todo / (2 * size) < workers * plan_module.CHUNKS_A_WORKER
    assert sum(len(chunk.frames) for chunk in split_frames(range(todo), size)) == todo


def resume(done: list[int], differing: list[int] = [], moved: list[tuple[int, int]] = [], frames: int = 10) -> ResumePlan:  # noqa: B006
    return ResumePlan(frames, len(done) + len(differing) + len(moved), tuple(done), (), tuple(differing), tuple(moved))


def test_narrow_gives_up_only_what_the_job_replaces() -> None:
    every = range(10)
    assert narrow(resume([0, 1], [2, 3]), every).differing == (2, 3)
    assert narrow(resume([0, 1], [2, 3]), [3, 4]).differing == (3,)  # frame 2 keeps what it holds
    assert narrow(resume([0], [12]), [0]).differing == (12,)  # beyond the new end of the flight
    assert narrow(resume([0], [5], [(7, 5)]), [0]).differing == (5,)  # another frame moves onto it
    over = narrow(resume([0, 1, 2], [3], [(7, 5), (8, 9)]), [1, 3, 5], overwrite=True)
    assert over.differing == (
        1,
        3,
    )
    assert over.moved == ((8, 9),)
    assert over.done == (0, 2)


def test_frames_that_share_a_file_are_rendered_together() -> None:
    spec = StoreSpec(10, 4, 4, (OutputSpec("rgb", "uint8", 3),), frames_per_shard=4)
    assert frames_to_render(None, [1, 9], spec) == (0, 1, 2, 3, 8, 9)
    assert frames_to_render(resume([0, 1, 2, 3]), [1, 9], spec) == (8, 9)
