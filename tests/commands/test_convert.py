"""convert, and a block store in place of a checkpoint: in job files, on command lines, in the demo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from landmark_batch.frames.store import FrameStore
from landmark_batch.job import job_from_dict, load_job
from landmark_batch.scene import city_scene, demo
from landmark_batch.scene.store import BlockStore, is_block_store
from tests.commands.conftest import Outcome, Run
from tests.ports import free_port


def refused(run: Run, *words: str, message: str) -> None:
    outcome = run(*words)
    assert outcome.code == 2, outcome.text
    assert message in outcome.err, outcome.text
    assert outcome.err.count("\n") <= 3


def test_convert_says_what_it_wrote(park: Path, run: Run) -> None:
    outcome = run("convert", "park.th", "scene.zarr", "--blocks", "3x2", "--precision", "fp16")
    assert outcome.code == 0, outcome.text
    assert "6 blocks (3 x 2) of" in outcome.out
    assert "in fp16" in outcome.out
    assert "scene.zarr/" in outcome.out
    store = BlockStore.open(park.parent / "scene.zarr")
    assert (store.division, store.precision) == ((3, 2), "fp16")
    told = run("info", "scene.zarr")
    assert told.code == 0
    assert "block store" in told.out
    assert "3 x 2 cut out of one grid blocks" in told.out
    assert json.loads(run("info", f"file://{park.parent / 'scene.zarr'}", "--json").out)["store"]["precision"] == "fp16"


def test_a_store_renders_the_same_frames(park: Path, rendered: tuple[Path, Outcome], run: Run, inline: None) -> None:
    assert run("convert", "park.th", "scene.zarr", "--blocks", "2x2").code == 0
    park.write_text(park.read_text().replace("park.th", "scene.zarr"))
    assert load_job(park).scene.checkpoint == park.parent / "scene.zarr"
    outcome = run("render", "park.toml")
    assert outcome.code == 0, outcome.text
    ours, theirs = FrameStore.open(park.parent / "park.zarr"), FrameStore.open(rendered[0] / "park.zarr")
    for frame in ours.finished():
        assert np.array_equal(ours.read("rgb", frame), theirs.read("rgb", frame))


def test_a_store_on_the_command_line(park: Path, run: Run) -> None:
    assert run("convert", "park.th", "scene.zarr").code == 0
    assert run("new", "scene.zarr", "--cameras", "transforms.json").code == 0
    job = load_job(park.parent / "scene-frames.toml")
    assert job.scene.checkpoint == park.parent / "scene.zarr"
    assert job.store_path == park.parent / "scene-frames.zarr"
    outcome = run("plan", "scene.zarr", "--cameras", "transforms.json", "--device", "cpu")
    assert outcome.code == 0, outcome.text


def test_what_convert_refuses(park: Path, run: Run) -> None:
    assert run("convert", "park.th", "scene.zarr").code == 0
    refused(run, "convert", "park.th", "scene.zarr", message="scene.zarr exists")
    refused(run, "convert", "park.th", "transforms.json", "--force", message="is no block store")
    refused(run, "convert", "scene.zarr", "other.zarr", message="a block store, not a checkpoint")
    refused(run, "convert", "nowhere.th", "other.zarr", message="no such checkpoint")
    refused(run, "convert", "park.th", "other.zarr", "--blocks", "3", message="--blocks '3'")
    refused(run, "convert", "park.th", "other.zarr", "--threads", "0", message="--threads 0")
    refused(run, "convert", "park.th", "other.zarr", "--edit", "new", message="missing")
    refused(run, "convert", "park.th", "other.zarr", "--plane-division", "2x2", message="plane_division")
    refused(run, "info", f"http://127.0.0.1:{free_port()}/\x00", message="cannot read it")
    assert sorted(item.name for item in park.parent.glob("*.zarr")) == ["scene.zarr"]
    assert run("convert", "park.th", "scene.zarr", "--force").code == 0


@pytest.mark.parametrize("url", ["https://host/a/scene.zarr", "s3://bucket/scene.zarr", "memory://scene.zarr"])
def test_a_job_keeps_a_url_as_it_is(tmp_path: Path, url: str) -> None:
    path = tmp_path / "far.toml"
    path.write_text(f'[scene]\ncheckpoint = "{url}"\n')
    job = load_job(path)
    assert job.scene.checkpoint == url
    assert job_from_dict(json.loads(job.model_dump_json())).scene.checkpoint == url
    assert load_job(path, ["scene.checkpoint=near.zarr"]).scene.checkpoint == Path.cwd() / "near.zarr"


def test_the_demo_as_a_store(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.SIZES, "small", replace(demo.SIZES["small"], steps=20))
    monkeypatch.setattr(city_scene, "FIT_POINTS", 4000)
    tiny = ("--blocks", "2x1", "--fine", "32", "--frames", "2", "--width", "16", "--height", "12")
    outcome = run("demo", "city", *tiny, "--format", "store", "--precision", "fp16", "--jobs", "1")
    assert outcome.code == 0, outcome.text
    assert "city-scene.zarr/" in outcome.out
    job = load_job(tmp_path / "city" / "city.toml")
    assert job.scene.checkpoint is not None
    assert is_block_store(job.scene.checkpoint)
    assert job.scene.checkpoint != job.store_path
    assert run("demo", "city").out.startswith("city: the city there is kept")
    refused(run, "demo", "other", *tiny, "--precision", "fp16", message="a checkpoint is float32")
    refused(run, "demo", "other", *tiny, "--format", "store", "--jobs", "0", message="jobs = 0")
