"""The job a command line asks for: flags over job file, a checkpoint alone, LandMark's words. Seen through `plan --json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from landmark_batch.cameras.paths import orbit_flight
from landmark_batch.cameras.write import write_transforms
from landmark_batch.commands.job_source import JobCommand, job_options, parse_gpus, read_job
from landmark_batch.errors import ConfigError
from landmark_batch.job import ParallelSection, load_job
from landmark_batch.scene.export import save_landmark_checkpoint
from tests.commands.conftest import FRAMES, Run
from tests.factories import make_scene


def planned(run: Run, *words: str | Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    outcome = run("plan", *words, "--json", env=env)
    assert outcome.code == 0, outcome.text
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_plan_says_what_a_job_takes(
    park: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("empty")))
    outcome = run("plan", "park.toml")
    assert outcome.code == 0
    assert f"{FRAMES} of 32×24" in outcome.out
    assert "unknown: nothing alike has been rendered on this machine before" in outcome.out
    found = planned(run, "park.toml", env={"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("empty"))})
    assert (found["frames"]["todo"], found["samples"], found["workers"]) == (FRAMES, 16, 1)
    assert found["store"] == str(park.parent / "park.zarr")
    assert found["seconds"] is None
    assert sorted(path.name for path in park.parent.iterdir()) == ["park.th", "park.toml", "transforms.json"], "plan writes nothing"


def test_plan_counts_the_chunks_of_the_order_that_is_asked_for(park: Path, run: Run) -> None:
    box = ((-1.0, -1.0, 0.0), (1.0, 1.0, 0.5))
    write_transforms(orbit_flight(box, width=32, height=24, frames=23, fps=6.0), park.parent / "long.json")
    words = ("park.toml", "--cameras", "long.json", "--set", "output.chunk_frames=5")
    assert planned(run, *words)["chunks"] == 5
    assert planned(run, *words, "--order", "coarse-to-fine")["chunks"] == 7  # of 3, 3, 5 + 1 and 5 + 5 + 1 frames


def test_flags_come_before_the_job_file_and_set_before_flags(park: Path, run: Run) -> None:
    found = planned(run, "park.toml", "--frames", "0-4x2", "--width", "16", "--samples", "8", "-o", "sub/other.zarr", "--workers", "2")
    assert found["frames"]["todo_ranges"] == "0,2,4"
    assert (found["width"], found["height"], found["samples"], found["workers"]) == (16, 12, 8, 2)
    assert found["store"] == str(park.parent / "sub" / "other.zarr")
    assert found["name"] == "other"
    assert planned(run, "park.toml", "--samples", "8", "--set", "sampling.samples=4")["samples"] == 4


def test_exports_follow_the_store_named_on_the_command_line(park: Path, run: Run, inline: None) -> None:
    outcome = run("render", "park.toml", "--frames", "0", "-o", "test.zarr", "--png", "--video")
    assert outcome.code == 0, outcome.text
    names = {str(path.relative_to(park.parent)) for path in park.parent.rglob("*") if "test.zarr" not in str(path)}
    assert {"test", "test/rgb", "test/rgb/test.00000.png", "test.mp4", "test.log"} <= names
    assert not [name for name in names if name.startswith("park.") and name not in ("park.th", "park.toml")]


def test_cameras_on_the_command_line_are_relative_to_the_working_directory(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = park.parent / "elsewhere"
    elsewhere.mkdir()
    cameras = json.loads((park.parent / "transforms.json").read_text())
    (elsewhere / "two.json").write_text(json.dumps({**cameras, "frames": cameras["frames"][:2]}))
    monkeypatch.chdir(elsewhere)
    found = planned(run, "../park.toml", "--cameras", "two.json")
    assert found["frames"]["flight"] == 2
    assert found["store"] == str(park.parent / "park.zarr"), "outputs stay beside the job file"


def test_a_checkpoint_renders_without_a_job_file_as_its_new_job_would(park: Path, run: Run) -> None:
    town = park.parent / "town-merged-stack.th"
    save_landmark_checkpoint(make_scene(division=(2, 2)), town)
    assert run("new", "town-merged-stack.th", "--cameras", "transforms.json").code == 0
    direct, filed = planned(run, town, "--cameras", "transforms.json"), planned(run, "town.toml")
    assert direct["name"] == "town"
    assert abs(direct.pop("disk_free") - filed.pop("disk_free")) < 2**30  # others write to the same disk meanwhile
    assert direct == filed


def test_new_writes_a_job_file_that_runs_from_anywhere(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = park.parent / "jobs"
    jobs.mkdir()
    outcome = run("new", "park.th", "--cameras", "transforms.json", "-o", "jobs/night.toml")
    assert outcome.code == 0, outcome.text
    assert "jobs/night.toml" in outcome.out
    text = (jobs / "night.toml").read_text()
    assert 'checkpoint = "../park.th"' in text
    assert f"# {FRAMES} frames of 32x24" in text
    assert str(park.parent) not in text, "relative paths alone"
    monkeypatch.chdir("/")
    job = load_job(jobs / "night.toml")
    assert job.scene.checkpoint == park.parent / "park.th"
    assert job.store_path == jobs / "night.zarr"
    monkeypatch.chdir(park.parent)
    assert run("new", "park.th", "--cameras", "transforms.json", "-o", "jobs/night.toml").code == 2
    assert run("new", "park.th", "--cameras", "transforms.json", "-o", "jobs/night.toml", "--force").code == 0


def test_new_takes_what_the_checkpoint_says_of_rendering(reference_dir: Path, run: Run, tmp_path: Path) -> None:
    checkpoint = reference_dir / "ckpt" / "bp0-merged-stack.th"
    cameras = reference_dir / "brighton" / "path.json"
    outcome = run("new", checkpoint, "--cameras", cameras)
    assert outcome.code == 0, outcome.text
    job = load_job(tmp_path / "bp0.toml")
    assert job.scene.checkpoint == checkpoint.resolve()
    assert job.scene.plane_division == (2, 2)
    assert job.sampling.mode == "dense", "its sampling_opt is 0"
    assert job.output.background == "white", "its white_bkgd is 1"
    plan = planned(run, "bp0.toml")
    assert (plan["frames"]["flight"], plan["width"], plan["height"]) == (240, 960, 540)


def test_landmarks_own_command_line(reference_dir: Path, run: Run) -> None:
    words = [
        *("--config", reference_dir / "confs" / "bp0.txt", "--ckpt", reference_dir / "ckpt" / "bp0-merged-stack.th"),
        *("--model_type", "MultiBlockTorch", "--save_png", "--render_batch_size", "4096", "--alpha-mask-filter-thre", "0.5"),
        *("--use_multistream", "--pose_num", "1", "--dataroot", reference_dir / "brighton", "--device", "cpu"),
    ]
    found = planned(run, *words, env={"RENDER_1080P": "True"})
    assert found["name"] == "bp0"
    assert (found["width"], found["height"]) == (1920, 1080)
    assert (found["mode"], found["samples"], found["runtime"]) == ("hull", 128, "torch")
    assert found["frames"]["wanted"] == 1
    said = run("plan", *words).err
    assert said.count("landmark: without meaning here:") == 1
    assert "use_multistream" not in said


def test_a_moving_area_of_a_checkpoint_is_refused_with_the_remedy(reference_dir: Path, run: Run) -> None:
    words = [
        *("--config", reference_dir / "confs" / "bp0.txt", "--ckpt", reference_dir / "ckpt" / "bp0-merged-stack.th"),
        *("--model_type", "MovingAreaTorch", "--dataroot", reference_dir / "brighton"),
    ]
    outcome = run("plan", *words)
    assert outcome.code == 2
    assert 'fetching.mode = "dynamic"' in outcome.err
    assert run("plan", *words, "--runtime", "torch", "--set", "fetching.mode=resident").code == 0


@pytest.mark.parametrize("model", ["MultiBlockTensorParallelTorch", "MultiBlockTensorParallelKernelFusion", None])
def test_tensor_parallel_model_types_are_render_groups(model: str | None, reference_dir: Path, run: Run) -> None:
    words = [
        *("--config", reference_dir / "confs" / "bp0.txt", "--ckpt", reference_dir / "ckpt" / "bp0-merged-stack.th"),
        *("--dataroot", reference_dir / "brighton", "--runtime", "torch", "--device", "cpu", "--workers", "4"),
        *(("--model_type", model) if model else ()),
    ]
    outcome = run("plan", *words, env={"TENSOR_PARALLEL_SIZE": "2"})
    assert outcome.code == 0
    assert "2 of 2 ranks (tensor 2 x data 1)" in outcome.out
    assert outcome.err.count("TENSOR_PARALLEL_SIZE") == 1
    whole = run("plan", *words, "--data-parallel", "2", env={"TENSOR_PARALLEL_SIZE": "2"})
    assert "1 of 4 ranks (tensor 2 x data 2)" in whole.out


def test_flags_of_groups(park: Path, run: Run) -> None:
    words = ["--workers", "4", "--tensor-parallel", "2", "--data-parallel", "2", "--priority", "-3", "--render-timeout", "45.5"]
    found = json.loads(run("plan", "park.toml", *words, "--json").out)
    assert (found["workers"], found["groups"], found["tensor_parallel"], found["data_parallel"]) == (4, 1, 2, 2)

    @click.command(cls=JobCommand)
    @job_options
    @click.pass_context
    def read(ctx: click.Context, /, **flags: Any) -> ParallelSection:
        return read_job(ctx, flags).job.parallel

    parallel = read.main([str(park), *words], standalone_mode=False)
    assert (parallel.tensor_parallel, parallel.data_parallel, parallel.priority, parallel.render_timeout) == (2, 2, -3, 45.5)
    assert read.main([str(park)], standalone_mode=False) == ParallelSection(workers=1, device=parallel.device)


def test_a_model_type_of_fused_kernels_is_told_of_the_other_runtime(reference_dir: Path, run: Run) -> None:
    words = [
        *("--config", reference_dir / "confs" / "bp0.txt", "--ckpt", reference_dir / "ckpt" / "bp0-merged-stack.th"),
        *("--model_type", "MultiBlockKernelFusion", "--dataroot", reference_dir / "brighton"),
    ]
    assert "--runtime torch renders the same picture" in run("plan", *words).err
    plain = run("plan", *words, "--runtime", "torch")
    assert plain.code == 0
    assert "runtime   torch" in plain.out
    assert "--runtime torch" not in plain.err


def test_landmark_mode_renders_and_saves_its_pictures(park: Path, run: Run, inline: None, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "transforms.json").rename(data / "transforms_test.json")
    config = tmp_path / "park.txt"
    config.write_text("expname = west\nn_importance = 16\nsampling_opt = 1\nlr_init = 0.1\n")
    words = ["--config", config, "--ckpt", "park.th", "--model_type", "Torch", "--dataroot", "data", "--save_png", "--pose_num", "2"]
    outcome = run("render", *words, "--device", "cpu", env={"PNG_SAVING_PATH": "pictures", "PROFILE_STAGES": "1"})
    assert outcome.code == 0, outcome.text
    assert sorted(path.name for path in (tmp_path / "pictures" / "rgb").iterdir()) == ["0.png", "1.png"]
    assert "landmark: without meaning here: lr_init, sampling_opt" in outcome.err
    assert "seconds over all workers" in outcome.out
    assert (tmp_path / "west.zarr").is_dir()


def test_landmarks_options_do_not_mix_with_a_job_file(park: Path, run: Run) -> None:
    outcome = run("render", "park.toml", "--render_batch_size", "64")
    assert outcome.code == 2
    assert "--render_batch_size is an option of LandMark's and does not go with park.toml" in outcome.err
    assert "--set section.key=value" in outcome.err


@pytest.mark.parametrize(
    ("text", "gpus"), [("4", [0, 1, 2, 3]), ("1", [0]), ("0,2", [0, 2]), ("3,", [3]), ("0,", [0]), (" 2 , 1 ", [2, 1])]
)
def test_gpus_by_number_or_by_name(text: str, gpus: list[int]) -> None:
    assert parse_gpus(text) == gpus


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1,,2", "1;2", ","])
def test_gpus_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpus"):
        parse_gpus(text)
