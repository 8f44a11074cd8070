"""`bench fetching` and `plan --fetching` on the CPU: the same bits, figures that belong together, text and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.cli import cli
from landmark_batch.errors import ConfigError
from landmark_batch.job import load_job
from landmark_batch.workflows.bench_fetching import FetchingBench, bench_fetching
from tests.commands.conftest import Outcome, runner
from tests.workflows.block_jobs import FRAMES, write_flight, write_town

JOB = """\
version = 1
name = "town"
[scene]
checkpoint = "{scene}"
[cameras]
file = "flight.json"
[sampling]
samples = 24
near = 0.2
far = 3.0
[model]
runtime = "torch"
[parallel]
device = "cpu"
workers = 1
[fetching]
gpu_blocks = 3
[output]
store = "frames.zarr"
chunk_frames = 2
"""


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with town.toml over town.zarr, and checkpoint.toml over the checkpoint."""
    folder = tmp_path_factory.mktemp("town")
    write_town(folder)
    write_flight(folder)
    (folder / "town.toml").write_text(JOB.format(scene="town.zarr"))
    (folder / "checkpoint.toml").write_text(JOB.format(scene="town-merged-stack.th"))
    return folder


@pytest.fixture(scope="module")
def bench(town: Path) -> FetchingBench:
    return bench_fetching(load_job(town / "town.toml"), frames=12)


def run(*words: str | Path) -> Outcome:
    result = runner().invoke(cli, [str(word) for word in words], prog_name="landmark-batch")
    assert "Traceback" not in result.output
    return Outcome(result.exit_code, result.stdout, result.stderr)


def test_dynamic_and_resident_have_the_same_bits(bench: FetchingBench) -> None:
    assert bench.resident is not None
    assert bench.dynamic.digest == bench.resident.digest
    assert (bench.dynamic.mode, bench.dynamic.slots, bench.resident.mode) == ("dynamic", 3, "resident")
    assert bench.dynamic.frames == bench.resident.frames == 12
    assert bench.dynamic.seconds > 0
    assert bench.ratio == bench.dynamic.rate / bench.resident.rate
    text = bench.describe()
    assert "the same bits" in text
    assert "OTHER BITS" not in text


def test_what_was_moved_is_what_was_planned(bench: FetchingBench) -> None:
    """Frames 0 to 11 need no passes with three slots: loads are those of Belady's plan, fewer than on demand."""
    loads = bench.dynamic.counters["fetch_loads"]
    assert bench.blocks == 6
    assert bench.blocks_max <= 3
    assert loads == bench.planned
    assert 6 <= bench.planned < bench.demand
    assert bench.dynamic.counters["fetch_bytes_copied"] % bench.block_bytes == 0
    assert bench.dynamic.host_blocks >= bench.block_bytes


def test_other_bits_are_said(bench: FetchingBench) -> None:
    from dataclasses import replace

    assert bench.resident is not None
    wrong = replace(bench, resident=replace(bench.resident, digest="other"))
    assert "OTHER BITS" in wrong.describe()


def test_a_scene_that_does_not_fit_is_measured_without_its_other_half(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from landmark_batch.workflows import renderers

    opened = renderers.open_renderer

    def open_dynamic_alone(spec: Any, *args: Any, **more: Any) -> Any:
        if "blocks" not in spec:
            raise RuntimeError("out of memory\nand where")
        return opened(spec, *args, **more)

    monkeypatch.setattr(renderers, "open_renderer", open_dynamic_alone)
    found = bench_fetching(load_job(town / "town.toml"), frames=2)
    assert found.resident is None
    assert found.notes == ("the whole scene was not rendered: out of memory",)
    assert "note      the whole scene was not rendered: out of memory" in found.describe()
    json.dumps(found.as_dict())


def test_what_has_nothing_to_fetch_is_refused(town: Path) -> None:
    with pytest.raises(ConfigError, match="is a checkpoint"):
        bench_fetching(load_job(town / "checkpoint.toml"))
    with pytest.raises(ConfigError, match=r"contradict"):
        bench_fetching(load_job(town / "town.toml", ["fetching.mode=resident"]))


def test_the_commands_text_and_files(town: Path, tmp_path: Path) -> None:
    told = run("bench", "fetching", town / "town.toml", "--frames", "2", "-o", tmp_path / "figures.json", "--json")
    assert told.code == 0, told.text
    values = json.loads(told.out)
    assert values == json.loads((tmp_path / "figures.json").read_text())
    assert values["dynamic"]["digest"] == values["resident"]["digest"]
    assert not (town / "frames.zarr").exists()
    refused = run("bench", "fetching", town / "checkpoint.toml")
    assert refused.code == 2
    assert "landmark-batch convert" in refused.err


def test_plan_prints_blocks_and_what_fetching_moves(town: Path) -> None:
    told = run("plan", town / "town.toml", "--fetching")
    assert told.code == 0, told.text
    assert "blocks    6 of " in told.out
    assert "fetching  dynamic, 3 slots" in told.out
    assert "\nfetching\n" in told.out
    for row in ("needed    6 of 6 blocks", "crowded   2 of 26 frames", "demand", "LandMark"):
        assert row in told.out
    plain = run("plan", town / "town.toml")
    assert "\nfetching\n" not in plain.out


def test_plan_as_json(town: Path) -> None:
    found = json.loads(run("plan", town / "town.toml", "--fetching", "--json").out)
    report = found["fetching_report"]
    assert found["fetching"]["mode"] == "dynamic"
    assert (found["fetching"]["slots"], report["slots"], report["scene_blocks"]) == (3, 3, 6)
    assert report["frames"] == FRAMES
    assert report["bytes"] == report["loads"] * found["fetching"]["block_bytes"]
    assert report["loads"] <= report["demand_loads"]
    assert report["blocks_max"] == found["fetching"]["most_a_frame"] == 6
    assert 0 < report["landmark"]["dropped"] < 1
    assert "fetching_report" not in json.loads(run("plan", town / "town.toml", "--json").out)


def test_plan_of_a_checkpoint_has_nothing_to_report(town: Path) -> None:
    told = run("plan", town / "checkpoint.toml", "--fetching", "--set", "fetching.mode=resident")
    assert told.code == 2
    assert "a checkpoint has no blocks to fetch" in told.err
