"""URLs on the command line: a block store's is a scene; where a file is needed, one is refused and never taken for a path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from landmark_batch.job import load_job
from tests.commands.conftest import FRAMES, Run
from tests.workflows.block_jobs import serve

GONE = "https://host.invalid/scenes/town.toml"


@pytest.fixture
def url(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a block store that has the scene of park.th; its folder holds no other scene."""
    assert run("convert", "park.th", "far/scene.zarr", "--blocks", "2x1").code == 0
    (park.parent / "park.th").unlink()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(park.parent / "far") as server:
        yield f"{server.url}/scene.zarr"


def test_a_scene_behind_a_url_is_planned_as_it_is(url: str, run: Run) -> None:
    outcome = run("plan", f"{url}/", "--cameras", "transforms.json", "--device", "cpu", "--json")
    assert outcome.code == 0, outcome.text
    found = json.loads(outcome.out)
    assert (found["name"], found["frames"]["todo"]) == ("scene-frames", FRAMES)
    assert run("plan", "--ckpt", url, "--cameras", "transforms.json", "--device", "cpu").code == 0, "LandMark's own word for it"


def test_a_job_file_and_a_flight_are_made_of_a_scene_behind_a_url(url: str, run: Run, tmp_path: Path) -> None:
    assert run("cameras", "orbit", url, "-o", "orbit.json", "--frames", "3").code == 0
    outcome = run("new", url, "--cameras", "orbit.json")
    assert outcome.code == 0, outcome.text
    text = (tmp_path / "scene-frames.toml").read_text()
    assert "# A flight over scene.zarr" in text
    job = load_job(tmp_path / "scene-frames.toml")
    assert (job.scene.checkpoint, job.store_path) == (url, tmp_path / "scene-frames.zarr")


def test_preview_of_a_scene_behind_a_url(url: str, run: Run, inline: None, tmp_path: Path) -> None:
    words = ("--samples", "8", "--seconds", "5", "--device", "cpu", "--runtime", "torch")
    outcome = run("preview", url, "--cameras", "transforms.json", *words)
    assert outcome.code == 0, outcome.text
    assert (tmp_path / "scene-frames.preview.mp4").is_file()


@pytest.mark.parametrize("command", ["preview", "plan", "render"])
def test_a_job_file_behind_a_url_is_refused(command: str, run: Run, tmp_path: Path) -> None:
    outcome = run(command, GONE, "--cameras", "transforms.json")
    assert outcome.code == 2
    assert f"{GONE}: a job file is read from this machine alone" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "park.toml", "--cameras", GONE],
        ["convert", GONE, "scene.zarr"],
        ["convert", "park.th", GONE],
        ["export", "images", "park.zarr", GONE],
        ["export", "video", "park.zarr", GONE],
        ["evaluate", "park.zarr", "--dataset", GONE],
        ["demo", GONE],
        ["bench", GONE],
        ["new", "park.th", "--cameras", GONE],
        ["kernels", "build", "-o", GONE],
        ["scheduler", "--scheduler-file", GONE],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_other_command_takes_a_url_for_a_path(words: list[str], park: Path, run: Run) -> None:
    before = sorted(park.parent.rglob("*"))
    outcome = run(*words)
    assert outcome.code == 2, outcome.text
    assert f"{GONE}: a URL, where a path is needed" in outcome.err
    assert sorted(park.parent.rglob("*")) == before


def test_a_file_url_is_a_path(park: Path, run: Run) -> None:
    here = f"file://{park.parent}"
    outcome = run("plan", f"{here}/park.toml", "--cameras", f"{here}/transforms.json")
    assert outcome.code == 0, outcome.text
    assert f"{FRAMES} of 32×24" in outcome.out
