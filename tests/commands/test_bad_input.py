"""Bad input through the command line: exit code 2, one clear message, no traceback, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from landmark_batch.commands.common import write_text
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.workflows import plan
from tests.commands.conftest import FRAMES, Run
from tests.factories import make_scene

Spoil = Callable[[dict[str, Any]], None]


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(run: Run, folder: Path, *words: str | Path, message: str) -> None:
    """The command ends with 2 and says `message` once; the folder stays as it was."""
    before = listing(folder)
    outcome = run(*words)
    assert outcome.code == 2, outcome.text
    assert message in outcome.err, outcome.err
    problems = [line for line in outcome.err.splitlines() if line.startswith("landmark-batch") and "warning" not in line]
    assert len(problems) == 1
    assert listing(folder) == before


# -- checkpoints


class _Villain:
    """Unpickling it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _foreign(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))


def _other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "not a checkpoint")


def _other_dict(path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, path)


def _malicious(path: Path) -> None:
    content = torch.load(path, map_location="cpu", weights_only=False)
    content["kwargs"]["extra"] = _Villain(path.parent / "taken-over")
    torch.save(content, path)


def _malicious_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Villain(path.parent / "taken-over")))


@pytest.mark.parametrize("command", ["info", "plan", "new", "render"])
@pytest.mark.parametrize("spoil", [_truncated, _foreign, _other_zip, _other_dict, _malicious, _malicious_pickle, Path.unlink])
def test_bad_checkpoints(spoil: Callable[[Path], None], command: str, park: Path, run: Run) -> None:
    checkpoint = park.parent / "park.th"
    spoil(checkpoint)
    words = {"info": ["park.th"], "new": ["park.th", "--cameras", "transforms.json", "-o", "new.toml"]}.get(command, ["park.toml"])
    refused(run, park.parent, command, *words, message="park.th")
    assert not (park.parent / "taken-over").exists()


def _plane(content: dict[str, Any]) -> None:
    planes = content["state_dict"]
    planes["density_plane.0"] = planes["density_plane.0"][..., :-1]


def _basis(content: dict[str, Any]) -> None:
    content["state_dict"]["basis_mat.weight"] = content["state_dict"]["basis_mat.weight"][:, :-1]


def _mask(content: dict[str, Any]) -> None:
    content["alphaMask.shape"] = (1, 1, 50, 70, 90)


@pytest.mark.parametrize(("spoil", "message"), [(_plane, "plane"), (_basis, "basis"), (_mask, "ask")])
def test_tensors_of_other_shapes(spoil: Spoil, message: str, park: Path, run: Run) -> None:
    checkpoint = park.parent / "park.th"
    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    spoil(content)
    torch.save(content, checkpoint)
    refused(run, park.parent, "info", "park.th", message=message)
    refused(run, park.parent, "render", "park.toml", message=message)


def test_a_wrong_plane_division_lists_those_that_fit(park: Path, run: Run) -> None:
    town = park.parent / "town-merged-stack.th"
    save_landmark_checkpoint(make_scene(division=(2, 3)), town)
    words = ["--set", "scene.checkpoint=town-merged-stack.th", "--set", "scene.plane_division=2x2"]
    refused(run, park.parent, "render", "park.toml", *words, message="plane_division")
    refused(run, park.parent, "info", town, "--plane-division", "5x5", message="plane_division")
    outcome = run("info", town, "--plane-division", "5x5")
    assert "2" in outcome.err and "3" in outcome.err
    refused(run, park.parent, "info", town, "--plane-division", "two", message="2x3")


# -- cameras


def _frames(park: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((park.parent / "transforms.json").read_text())
    return content


def _matrix(content: dict[str, Any]) -> Any:
    return content["frames"][2]["transform_matrix"]


def _nan(content: dict[str, Any]) -> None:
    _matrix(content)[0][3] = float("nan")


def _singular(content: dict[str, Any]) -> None:
    _matrix(content)[0][:3] = [0.0, 0.0, 0.0]


def _non_square(content: dict[str, Any]) -> None:
    del _matrix(content)[1][3]


def _two_rows(content: dict[str, Any]) -> None:
    del _matrix(content)[2:]


def _no_matrix(content: dict[str, Any]) -> None:
    del content["frames"][2]["transform_matrix"]


@pytest.mark.parametrize("spoil", [_nan, _singular, _non_square, _two_rows, _no_matrix])
def test_a_bad_pose_is_named_by_its_frame(spoil: Spoil, park: Path, run: Run) -> None:
    content = _frames(park)
    spoil(content)
    (park.parent / "transforms.json").write_text(json.dumps(content))
    refused(run, park.parent, "render", "park.toml", message="frame 2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": []}, "frames is empty"),
        ({"fl_x": 0.0, "fl_y": 0.0}, "focal"),
        ({"w": 0}, "0"),
        ({"h": -24}, "-24"),
        ({"frames": 3}, "frames"),
    ],
)
def test_a_bad_camera_file_names_the_value(change: dict[str, Any], message: str, park: Path, run: Run) -> None:
    (park.parent / "transforms.json").write_text(json.dumps(_frames(park) | change))
    refused(run, park.parent, "render", "park.toml", message=message)


def test_a_camera_file_that_is_none(park: Path, run: Run) -> None:
    for text in ("{", "[1, 2]", "null", '{"name": "x"}'):
        (park.parent / "transforms.json").write_text(text)
        refused(run, park.parent, "render", "park.toml", message="transforms.json")
    (park.parent / "transforms.json").write_text("# Image list with two lines of data per image:\n1 0.8 0 0.6 0 1 2 3 1 a.jpg\n")
    message = "transforms.json: not JSON, so no camera file: it begins with '# Image list with two lines of...'\n  files read: "
    refused(run, park.parent, "render", "park.toml", message=message)
    (park.parent / "transforms.json").unlink()
    refused(run, park.parent, "render", "park.toml", message="transforms.json")


def test_a_flight_that_sees_nothing_of_the_scene(park: Path, run: Run) -> None:
    content = _frames(park)
    _matrix(content)[0][3] += 1e6
    (park.parent / "transforms.json").write_text(json.dumps(content))
    refused(run, park.parent, "render", "park.toml", message="frame 2")


# -- values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", f"0-{FRAMES}"], f"frame {FRAMES} is outside the flight of {FRAMES} frames"),
        (["--frames", "5-2"], "ends before it starts"),
        (["--frames", "all"], "cannot read 'all'"),
        (["--width", "0"], "cameras.width = 0"),
        (["--height", "-1"], "cameras.height = -1"),
        (["--set", "cameras.focal=0"], "--set cameras.focal=0: cameras.focal = 0"),
        (["--samples", "0"], "--samples 0: sampling.samples = 0"),
        (["--data-parallel", "0"], "--data-parallel 0: parallel.data_parallel = 0"),
        (["--set", "cameras.file="], "--set cameras.file=: cameras.file is empty"),
        (
            ["--set", "sampling.near=3", "--set", "sampling.far=2"],
            "with --set sampling.near=3 --set sampling.far=2: sampling: near = 3.0 must be below far = 2.0",
        ),
        (["--set", "sampling.near=1000"], "near"),
        (["--set", "sampling.sampels=3"], "landmark-batch: --set sampling.sampels=3: unknown key sampling.sampels"),
        (["--set", "sampling.sampels=3"], "did you mean sampling.samples?"),
        (["--set", "sampling.samples"], "not of the form section.key=value"),
        (["--set", "scene.appearance=dusk"], "sunset"),
        (["--set", "scene.aabb=[[50,50,50],[51,51,51]]"], "scene.aabb"),
        (["--set", "scene.edit=new"], "edit"),
        (["--runtime", "cuda"], "model.runtime = 'cuda'"),
        (["--tensor-parallel", "0"], "parallel.tensor_parallel = 0"),
        (["--tensor-parallel", "2"], "1 worker does not divide into groups of 2"),
        (["--data-parallel", "2", "--workers", "3"], "3 workers do not divide into groups of 2"),
        (["--priority", "-1001"], "parallel.priority = -1001"),
        (["--render-timeout", "-1"], "parallel.render_timeout = -1.0"),
        (["--set", "fetching.mode=dynamic"], "dynamic"),
        (["--set", "fetching.gpu_memory=8GiB"], "gpu_memory"),
        (["--device", "tpu"], "parallel.device = 'tpu'"),
        (["--gpus", "x"], "--gpus 'x'"),
        (["--gpus", "0"], "--gpus 0"),
        (["--cameras", "none.json"], "none.json"),
        (["--set", "output.rgb=false"], "nothing to render"),
        (["--scheduler", "nonsense://1"], "nonsense://1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_values(words: list[str], message: str, park: Path, run: Run) -> None:
    refused(run, park.parent, "render", "park.toml", *words, message=message)


def test_gpus_that_are_not_there(park: Path, run: Run) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    refused(run, park.parent, "render", "park.toml", "--device", "cuda", message="cuda")
    refused(run, park.parent, "render", "park.toml", "--device", "auto", "--gpus", "0,1", message="gpus = [0, 1]")


def test_a_broken_job_file(park: Path, run: Run) -> None:
    park.write_text('[scene]\ncheckpoint = "park.th\n')
    refused(run, park.parent, "render", "park.toml", message="park.toml: broken TOML")
    park.write_text("[scene]\ncheckpont = 'park.th'\n")
    refused(run, park.parent, "render", "park.toml", message="did you mean scene.checkpoint?")
    park.write_text("[cameras]\nfile = 'transforms.json'\n")
    refused(run, park.parent, "render", "park.toml", message="scene.checkpoint")
    park.write_text("[scene]\ncheckpoint = 'park.th'\n")
    refused(run, park.parent, "render", "park.toml", message="no cameras")


# -- stores


def test_a_store_path_that_cannot_be_one(park: Path, run: Run) -> None:
    (park.parent / "file.zarr").write_text("mine")
    foreign = park.parent / "foreign.zarr"
    foreign.mkdir()
    (foreign / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    refused(run, park.parent, "render", "park.toml", "-o", "file.zarr", message="file.zarr")
    refused(run, park.parent, "render", "park.toml", "-o", "foreign.zarr", message="foreign.zarr")
    refused(run, park.parent, "render", "park.toml", "-o", "file.zarr/deeper.zarr", message="file.zarr")
    for command in ("status", "verify", "evaluate", "export"):
        for store in ("file.zarr", "foreign.zarr", "none.zarr"):
            words = {"evaluate": ["--dataset", "."], "export": []}.get(command, [])
            name = [command, "images"] if command == "export" else [command]
            refused(run, park.parent, *name, store, *words, message=store)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_in_a_folder_that_is_not_ours(park: Path, run: Run) -> None:
    closed = park.parent / "closed"
    closed.mkdir(mode=0o555)
    refused(run, park.parent, "render", "park.toml", "-o", "closed/a.zarr", message="closed")


def test_a_folder_that_may_not_be_written_is_told_before_the_first_frame(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    may = os.access
    monkeypatch.setattr(plan.os, "access", lambda path, mode: Path(path) != park.parent and may(path, mode))
    for command in ("plan", "render"):
        refused(run, park.parent, command, "park.toml", message=f"{park.parent}/park.zarr: {park.parent} is not writable")


def test_a_path_that_may_not_be_looked_at(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the command was about to do with it."""

    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("landmark_batch.frames.store.load_definition", lambda layout: denied(layout.root))
    refused(run, park.parent, "status", "park.zarr", message="park.zarr: Permission denied\n  check its permissions")


def test_a_store_of_frames_is_no_scene_and_no_job(store: Path, run: Run) -> None:
    refused(run, store.parent, "info", "park.zarr", message="landmark-batch status park.zarr tells of it")
    refused(run, store.parent, "render", "park.zarr", message="park.zarr: a store of frames, not a job")


def test_a_store_where_nothing_can_be_written(park: Path, run: Run) -> None:
    """/proc refuses even root."""
    refused(run, park.parent, "render", "park.toml", "-o", "/proc/landmark.zarr", message="/proc/landmark.zarr")


def test_a_disk_that_cannot_hold_the_frames(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(park.parent)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage._replace(free=5000))
    refused(run, park.parent, "render", "park.toml", message="the disk has 4.9 KiB free")


def test_exports_are_checked_before_anything_is_rendered(park: Path, run: Run) -> None:
    refused(run, park.parent, "render", "park.toml", "--video", "--set", "video.codec=libx999", message="libx999")
    refused(run, park.parent, "render", "park.toml", "--png", "--set", "images.bit_depth=16", message="--allow-8bit")


def test_plan_says_that_a_film_could_not_be_made(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run("plan", "park.toml", "--set", "video.codec=libx999")
    assert outcome.code == 0, outcome.text
    assert "note: --video would be refused: video codec 'libx999': this build of FFmpeg has no such encoder; it has " in outcome.err
    assert "--video" not in run("plan", "park.toml", "--set", "video.codec=mpeg4").err

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("encoders are loaded for a job that says nothing of its film")

    monkeypatch.setattr("landmark_batch.workflows.export.check_exports", loaded)
    assert run("plan", "park.toml").code == 0


# -- the other commands


def test_new_without_cameras_or_over_a_file(park: Path, run: Run) -> None:
    refused(run, park.parent, "new", "park.th", message="--cameras FILE")
    refused(run, park.parent, "new", "park.th", "--cameras", "transforms.json", message="park.toml exists")
    refused(run, park.parent, "new", "park.th", "--cameras", "transforms.json", "-o", "none/a.toml", message="none/a.toml")


_LIMITED = """
import resource, sys
from landmark_batch.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
main()
"""


@pytest.mark.usefixtures("park")
def test_a_file_that_finds_no_room_leaves_what_was_there(tmp_path: Path) -> None:
    job = tmp_path / "mine.toml"
    job.write_text("mine\n")
    before = listing(tmp_path)
    words = ["new", "park.th", "--cameras", "transforms.json", "-o", "mine.toml", "--force"]
    done = subprocess.run([sys.executable, "-c", _LIMITED, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "landmark-batch: mine.toml: cannot write it: File too large\n  raise the limit (`ulimit -f`)\n"
    assert listing(tmp_path) == before


def test_a_pipe_and_a_link_stay_what_they_are(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    write_text(Path(f"/proc/self/fd/{writing}"), "through a pipe")
    assert os.read(reading, 100) == b"through a pipe"
    os.close(reading)
    os.close(writing)
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "through a link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "through a link"


def test_a_full_disk_asks_for_space(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, *words: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    message = "orbit.json: cannot write it: No space left on device\n  make space"
    refused(run, park.parent, "cameras", "orbit", "park.th", "-o", "orbit.json", message=message)


def test_a_checkpoint_without_cameras(park: Path, run: Run) -> None:
    refused(run, park.parent, "render", "park.th", message="add --cameras FILE")


def test_a_checkpoint_is_converted_by_the_line_that_is_told(park: Path, run: Run) -> None:
    """Pasted into a shell, whatever is in the path."""
    folder = park.parent / "the studio's"
    folder.mkdir()
    park.with_name("park.th").rename(folder / "my park.th")
    words = ["--set", "scene.checkpoint=the studio's/my park.th", "--set", "fetching.mode=dynamic"]
    outcome = run("plan", "park.toml", *words)
    assert outcome.code == 2
    report = run("plan", "park.toml", *words[:2], "--fetching")
    assert report.code == 2
    assert report.err.partition("convert it once: `")[2].strip() == outcome.err.partition("convert it once: `")[2].partition("; or ")[0]
    line, _, rest = outcome.err.partition("convert it once: `")[2].partition("`, then ")
    assert run(*shlex.split(line)[1:]).code == 0
    assert shlex.split(rest.partition(";")[0]) == ["--set", "scene.checkpoint=my park.zarr"]
    assert run("info", "my park.zarr").code == 0


def test_a_scene_in_blocks_is_told_from_a_folder_that_is_not_ours(park: Path, run: Run) -> None:
    assert run("convert", "park.th", "park.zarr").code == 0  # the name that park.toml gives to its frames
    told = "a scene in blocks, not a frame store; it was not touched"
    for words in (["status", "park.zarr"], ["render", "park.toml"], ["export", "video", "park.zarr"]):
        refused(run, park.parent, *words, message=told)


def test_a_store_of_frames_is_not_converted(store: Path, run: Run) -> None:
    refused(run, store.parent, "convert", "park.zarr", "scene.zarr", message="park.zarr: a store of frames, not of a scene")


def test_a_group_without_a_command_says_what_there_is(park: Path, run: Run) -> None:
    outcome = run("kernels")
    assert outcome.code == 2
    assert outcome.err.startswith("Usage: landmark-batch kernels")
    assert "--help says more" not in outcome.err


def test_demo_over_a_file_or_with_bad_sizes(park: Path, run: Run) -> None:
    refused(run, park.parent, "demo", "park.th", message="is a file")
    refused(run, park.parent, "demo", "new", "--blocks", "2", message="--blocks '2'")
    refused(run, park.parent, "demo", "new", "--blocks", "0x2", message="--blocks '0x2'")
    refused(run, park.parent, "demo", "new", "--frames", "0", message="0 frames")


def test_flights_that_cannot_be_made(park: Path, run: Run) -> None:
    folder = park.parent
    refused(run, folder, "cameras", "orbit", "-o", "a.json", message="a scene's box is needed")
    refused(run, folder, "cameras", "orbit", "park.th", "--aabb", "0,0,0,1,1,1", "-o", "a.json", message="leave one of the two out")
    refused(run, folder, "cameras", "orbit", "--aabb", "0,0,0,1,1", "-o", "a.json", message="not 6 numbers")
    refused(run, folder, "cameras", "orbit", "--aabb", "1,1,1,0,0,0", "-o", "a.json", message="first corner")
    refused(run, folder, "cameras", "survey", "park.th", "--fov", "0", "-o", "a.json", message="fov = 0")
    refused(run, folder, "cameras", "interpolate", "park.th", "-o", "a.json", message="park.th")
    refused(run, folder, "cameras", "interpolate", "transforms.json", "-o", "transforms.json", message="transforms.json exists")
    refused(run, folder, "cameras", "orbit", "park.th", "-o", "none.th/a.json", "--frames", "0", message="0")
