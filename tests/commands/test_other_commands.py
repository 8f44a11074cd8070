"""doctor, info, cameras, preview, demo, bench: what they say and write."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.cameras.formats import load_flight
from landmark_batch.workflows import machine as machines
from landmark_batch.workflows import preview
from landmark_batch.workflows.builds import read_builds
from tests.commands.conftest import FRAMES, Run
from tests.factories import quick_demo

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ("--blocks", "1x1", "--fine", "32", "--frames", "2", "--width", "16", "--height", "12")


def test_doctor_says_what_render_would_use(run: Run) -> None:
    outcome = run("doctor")
    assert outcome.code == 0
    for word in ("python", "torch", "memory", "disk", "encoders", "compilers", "render would use:", "runtime:"):
        assert word in outcome.out
    found = json.loads(run("doctor", "--json").out)
    assert found["render"]["device"] in ("cpu", "cuda")
    assert found["render"]["workers"] >= 1
    assert found["render"]["runtime"] in ("torch", "fused")
    assert "libx264" in found["encoders"]
    assert found["machine"]["cores"] >= 1


def test_doctor_on_a_machine_whose_gpu_torch_cannot_use(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = machines.describe_machine()
    blind = type(plain)(**{**vars(plain), "gpus": (), "gpus_present": 2, "gpu_problem": "the driver is too old"})
    monkeypatch.setattr(machines, "describe_machine", lambda: blind)
    outcome = run("doctor")
    assert outcome.code == 0, "the CPU can render"
    assert "2 present, torch cannot use them: the driver is too old" in outcome.out
    assert "render would stop:" in outcome.out
    assert "cpu (only with --device cpu)" in outcome.out


def test_doctor_where_nothing_can_render(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    outcome = run("doctor")
    assert outcome.code == 2
    assert "torch cannot be imported" in outcome.err
    assert "memory" not in outcome.out
    assert "encoders" in outcome.out


def test_info_says_what_a_checkpoint_holds(park: Path, run: Run) -> None:
    outcome = run("info", "park.th")
    assert outcome.code == 0
    assert "sequential" in outcome.out
    assert "nothing is missing to render it" in outcome.out
    found = json.loads(run("info", "park.th", "--json").out)
    assert found["blocks"] == 1
    assert found["missing"] == []
    assert f"{found['parameters']:,}" in outcome.out


def test_info_verifies_a_checkpoint(park: Path, run: Run) -> None:
    outcome = run("info", "park.th", "--verify")
    assert outcome.code == 0, outcome.text
    assert re.search(r"^park\.th: \d+ records of [\d.]+ \w+ checked \([\d,]+ MB/s\), all as they were written$", outcome.out, re.MULTILINE)
    assert "nothing is missing to render it" in outcome.out
    found = json.loads(run("info", "park.th", "--verify", "--json").out)
    assert (found["blocks"], found["verified"]["ok"], found["verified"]["damaged"]) == (1, True, [])
    file = park.parent / "park.th"
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    data = bytearray(file.read_bytes())
    data[largest.header_offset + largest.file_size // 2] ^= 1
    file.write_bytes(data)
    assert run("info", "park.th").code == 0
    outcome = run("info", "park.th", "--verify")
    assert outcome.code == 3
    assert f"damaged: park.th: record {largest.filename}: its CRC-32 is " in outcome.out
    assert "1 damaged: copy it again" in outcome.out
    outcome = run("info", "park.th", "--verify", "--json")
    assert (outcome.code, json.loads(outcome.out)["verified"]["ok"]) == (3, False)


def test_flights_are_written_and_read_back(park: Path, run: Run, tmp_path: Path) -> None:
    small = ("--width", "64", "--height", "36")
    outcome = run("cameras", "orbit", "park.th", "-o", "orbit.json", "--frames", "12", "--centre", "0.1,0.1", *small)
    assert outcome.code == 0, outcome.text
    assert "12 frames of 64x36, 0.5 s at 24 fps" in outcome.out
    assert len(load_flight(tmp_path / "orbit.json")) == 12
    outcome = run("cameras", "interpolate", "orbit.json", "-o", "smooth.json", "--seconds", "2", "--loop", "--fps", "30")
    assert outcome.code == 0, outcome.text
    assert len(load_flight(tmp_path / "smooth.json")) == 60
    outcome = run("cameras", "survey", "park.th", "-o", "survey.json", "--overlap", "0.5", *small)
    assert outcome.code == 0, outcome.text
    assert len(load_flight(tmp_path / "survey.json")) > 2
    outcome = run("cameras", "survey", "--aabb", "-1,-1,0 1,1,0.5", "-o", "survey.json", "--force", "--overlap", "0.5")
    assert outcome.code == 0, outcome.text
    assert outcome.out.splitlines()[-1].strip().startswith("survey.json")


@pytest.mark.usefixtures("inline")
def test_preview_makes_a_film_of_the_whole_flight(park: Path, run: Run) -> None:
    outcome = run("preview", "park.toml", "--seconds", "20")
    assert outcome.code == 0, outcome.text
    assert f"preview: every frame, {FRAMES} of" in outcome.err
    assert "1.0 s at 6 fps (as long as the flight)" in outcome.out
    assert (park.parent / "park.preview.mp4").is_file()
    assert (park.parent / "park.preview.zarr").is_dir()
    assert not (park.parent / "park.zarr").exists()


@pytest.mark.usefixtures("inline", "park")
def test_a_preview_that_is_stopped_does_not_promise_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = preview.choose_preview

    def stopped(*words: Any) -> preview.PreviewChoice:
        os.kill(os.getpid(), signal.SIGINT)
        return original(*words)

    monkeypatch.setattr(preview, "choose_preview", stopped)
    outcome = run("preview", "park.toml", "--seconds", "20")
    assert outcome.code == 130, outcome.text
    assert "To begin anew:\n  landmark-batch preview park.toml" in outcome.err
    assert outcome.err.rstrip().endswith("to begin anew: landmark-batch preview park.toml --seconds 20")
    assert "go on" not in outcome.text and "goes on" not in outcome.text


def render_demo(folder: Path) -> tuple[str, str]:
    """What `demo city --render` prints and says, run as a user runs it: processes of its own, default runtime."""
    words = [sys.executable, "-m", "landmark_batch.cli", "demo", "city", "--render"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("libraries")
def test_demo_makes_a_city_once_and_renders_it(run: Run, tmp_path: Path) -> None:
    with quick_demo():
        outcome = run("demo", "city", *TINY)
    assert outcome.code == 0, outcome.text
    files = [tmp_path / "city" / name for name in ("city-merged-stack.th", "transforms.json", "city.toml")]
    assert all(file.is_file() for file in files)
    assert "next: landmark-batch preview city/city.toml" in outcome.out
    before = [file.read_bytes() for file in files]
    refused = run("demo", "city", "--seed", "3")
    assert refused.code == 2
    assert "--force makes it anew" in refused.err
    out, err = render_demo(tmp_path)
    assert "the city there is kept" in out
    assert "2 frames rendered" in out
    assert "runtime fused" in err
    assert {build.runtime for build in read_builds(tmp_path / "city" / "city.zarr")} == {"fused"}
    assert (tmp_path / "city" / "city.mp4").is_file()
    assert len(list((tmp_path / "city" / "city" / "rgb").glob("*.png"))) == 2
    assert [file.read_bytes() for file in files] == before
    out, err = render_demo(tmp_path)
    assert "nothing to render: 2 frames stand" in err
    assert "0 written, 2 up to date" in out


def test_bench_prints_one_table(tmp_path: Path) -> None:
    """With real worker processes: what it measures is the time around them."""
    words = [sys.executable, "-m", "landmark_batch.cli", "bench", "--part", "scheduling", "--simulated-frames", "16"]
    words += ["--simulated-seconds", "0.1", "--simulated-chunk", "8"]
    done = subprocess.run([*words, "-o", str(tmp_path / "figures.json")], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "16 frames of 100 ms, chunks of 8, 2 workers" in done.stdout
    assert "bar " in done.stdout
    assert "figures.json" in done.stdout.splitlines()[-1]
    found = json.loads((tmp_path / "figures.json").read_text())
    assert {row["part"] for row in found["rows"]} == {"scheduling"}
    figures = {row["what"].strip(): row["value"] for row in found["rows"]}
    assert figures["everything but rendering"] > 0
    assert "the same for 100,000 frames" in figures
    assert [bar["limit"] for bar in found["bars"]][:1] == [0.01]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json"]


def test_bench_export_prints_one_table(tmp_path: Path, run: Run) -> None:
    words = ("bench", "export", "--width", "64", "--height", "48", "--frames", "2", "--codec", "libx264")
    outcome = run(*words, "-o", "figures.json")
    assert outcome.code == 0, outcome.text
    lines = outcome.out.splitlines()
    assert lines[0].startswith("2 pictures made up of 64×48, ")
    assert lines[1].split()[-1] == "copies"
    assert any(line.startswith("PNG, store to files") for line in lines)
    assert json.loads(run(*words, "--json").out)["frames"] == 2
    assert json.loads((tmp_path / "figures.json").read_text())["rows"][-1]["what"].startswith("film, libx264")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json"]
    assert run("bench", "export", "--frames", "2", "--width", "64", "--height", "48", "--codec", "libfoo").code == 2


def test_bench_of_what_it_does_not_know(park: Path, run: Run) -> None:
    assert run("bench", "--part", "cooking").code == 2
    assert run("bench", "none.toml").code == 2
