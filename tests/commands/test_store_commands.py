"""status, verify, export, evaluate: what they say of a store that was really rendered, for people and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from landmark_batch.commands.status import recent_speed
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.records import FrameRecord
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.video_codec import available_encoders
from tests.commands.conftest import FRAMES, Run

ROOT = Path(__file__).resolve().parents[2]


def test_status_of_a_finished_store(store: Path, run: Run) -> None:
    outcome = run("status", "park.zarr")
    assert outcome.code == 0
    assert f"{FRAMES} of {FRAMES} done (100.0%)" in outcome.out
    assert "missing      none" in outcome.out
    assert "32x24, rgb uint8" in outcome.out
    assert "by nobody" in outcome.out
    assert "runtime      torch" in outcome.out
    assert "precision    fp32" in outcome.out
    found = json.loads(run("status", "park.zarr", "--json").out)
    assert (found["done"], found["frames"], found["missing"], found["missing_frames"]) == (FRAMES, FRAMES, 0, "")
    assert found["settings"]["sampling.samples"] == 16
    assert found["bytes"] > FRAMES * 500
    assert sum(found["workers"].values()) == FRAMES
    assert found["last_commit"] == pytest.approx(time.time(), abs=600)


def test_status_of_a_store_with_gaps_says_what_is_to_come(store: Path, run: Run) -> None:
    with StoreOwner.acquire(store) as owner:
        FrameStore.open(store).discard([1, 2, 4], "test")
        found = json.loads(run("status", "park.zarr", "--json").out)
        assert found["missing_frames"] == "1-2,4"
        assert found["bytes_to_come"] > 0
        assert len(found["written_by"]) == 1
        assert f"process {owner.id.partition('-')[0]}" in found["written_by"][0]
    outcome = run("status", "park.zarr")
    assert f"{FRAMES - 3} of {FRAMES} done (50.0%)" in outcome.out
    assert "missing      1-2,4" in outcome.out
    assert "to come" in outcome.out
    assert "by nobody" in outcome.out


@pytest.mark.usefixtures("inline", "park")
def test_status_names_frames_of_other_settings(store: Path, run: Run) -> None:
    assert json.loads(run("status", "park.zarr", "--json").out)["mixed"] == []
    assert "mixed" not in run("status", "park.zarr").out
    outcome = run("render", "park.toml", "--samples", "8", "--frames", "0-1", "--update")
    assert outcome.code == 0, outcome.text
    found = json.loads(run("status", str(store), "--json").out)
    assert found["mixed"] == [{"frames": f"2-{FRAMES - 1}", "differ": ["sampling.samples 8 → 16"]}]
    assert f"mixed        2-{FRAMES - 1} differ: sampling.samples 8 → 16" in run("status", "park.zarr").out


def record(frame: int, at: float, *, seconds: float = 0.5, worker: str = "w0") -> FrameRecord:
    return FrameRecord(frame, "f", {"rgb": "d"}, {"rgb": 1}, seconds, 0, worker, at, "here", 1, 0, 1, "s")


def test_the_speed_is_that_of_the_last_ten_minutes() -> None:
    assert recent_speed({}) is None
    assert recent_speed({0: record(0, 5.0, seconds=0.0)}) is None
    assert recent_speed({0: record(0, 5.0)}) == pytest.approx(2.0)
    chunks = {frame: record(frame, 100.0 + 4.0 * (frame // 8)) for frame in range(80)}
    assert recent_speed(chunks) == pytest.approx(2.0)
    resumed = {**chunks, 80: record(80, 90_000.0, seconds=10.0), 81: record(81, 90_010.0, seconds=10.0)}
    assert recent_speed(resumed) == pytest.approx(0.1)
    assert recent_speed({**chunks, 80: record(80, 90_000.0, seconds=4.0)}) == pytest.approx(0.25)


def test_a_pause_does_not_count_as_slow() -> None:
    chunks = {frame: record(frame, 100.0 + 4.0 * (frame // 8)) for frame in range(80)}
    again = {**chunks, **{frame: record(frame, 300.0 + 4.0 * (frame // 8)) for frame in range(8)}}
    assert recent_speed(again) == pytest.approx(2.0)
    slow = {frame: record(frame, 100.0 * frame, seconds=60.0) for frame in range(4)}
    assert recent_speed(slow) == pytest.approx(4 / 360), "between chunks of a minute it was no pause"


def test_workers_that_commit_together_are_no_burst() -> None:
    first = {frame: record(frame, 100.0 + 1e-3 * (frame // 8), seconds=1.25, worker=f"w{frame // 8}") for frame in range(16)}
    assert recent_speed(first) == pytest.approx(1.6, rel=1e-3)  # two chunks of 8 frames in 10 s, not 8 frames in 1 ms


def test_the_speed_of_chunks_that_take_hours() -> None:
    hours = {8 * n + k: record(8 * n + k, 7200.0 * (n + 1), seconds=900.0) for n in range(6) for k in range(8)}
    assert recent_speed(hours) == pytest.approx(8 / 7200)


def test_verify_finds_and_discards_damage(store: Path, run: Run) -> None:
    assert run("verify", "park.zarr").code == 0
    file = FrameStore.open(store).chunk_file("rgb", 2)
    file.write_bytes(file.read_bytes()[:-3])
    found = run("verify", "park.zarr", "--json")
    assert found.code == 3
    report = json.loads(found.out)
    assert (report["ok"], report["frames"], report["checked"]) == (False, [2], FRAMES)
    discarded = run("verify", "park.zarr", "--discard-damaged")
    assert discarded.code == 3
    assert "frame 2 is missing now: the next `landmark-batch render` mends it" in discarded.out
    assert run("verify", "park.zarr").code == 0
    assert json.loads(run("status", "park.zarr", "--json").out)["missing_frames"] == "2"


def test_export_images(store: Path, run: Run, tmp_path: Path) -> None:
    words = ["export", "images", "park.zarr", "--pattern", "f_{frame}.{ext}", "--start-number", "1001"]
    outcome = run(*words, "--frames", "0-3x2")
    assert outcome.code == 0, outcome.text
    assert sorted(path.name for path in (tmp_path / "park" / "rgb").iterdir()) == ["f_1001.png", "f_1003.png"]
    assert "2 rgb images written" in outcome.out.splitlines()[-1]
    picture = np.asarray(Image.open(tmp_path / "park" / "rgb" / "f_1003.png"))
    assert np.array_equal(picture, FrameStore.open(store).read("rgb", 2))
    again = json.loads(run(*words, "--frames", "0-3", "--json").out)
    assert (again["written"], again["unchanged"]) == ([1, 3], [0, 2])
    assert run("export", "images", "park.zarr", "out", "--format", "jpeg").code == 0
    assert len(list((tmp_path / "out").glob("*.jpg"))) == FRAMES


def test_export_images_by_compiled_code(store: Path, run: Run, tmp_path: Path, png_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the folder that is named: the same pixels, in other bytes."""
    monkeypatch.setenv("LANDMARK_BATCH_KERNELS", str(tmp_path))  # nothing is there
    assert run("export", "images", "park.zarr", "plain").code == 0
    monkeypatch.setenv("LANDMARK_BATCH_KERNELS", str(png_library.parent))
    assert run("export", "images", "park.zarr", "compiled").code == 0
    frames = FrameStore.open(store)
    for number in range(FRAMES):
        one, other = (tmp_path / folder / f"park.{number:05d}.png" for folder in ("plain", "compiled"))
        assert one.read_bytes() != other.read_bytes()
        for path in (one, other):
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), frames.read("rgb", number))
    assert f"{FRAMES} up to date" in run("export", "images", "park.zarr", "plain").out, "they show the same"


def test_export_refuses_what_the_store_cannot_give(store: Path, run: Run) -> None:
    for words, message in (
        (["images", "park.zarr", "--output", "depth"], "depth"),
        (["images", "park.zarr", "--bit-depth", "16"], "--allow-8bit"),
        (["video", "park.zarr", "--pix-fmt", "yuv420p10le"], "--allow-8bit"),
        (["video", "park.zarr", "--codec", "libx999"], "libx999"),
        (["video", "park.zarr", "--frames", "0-99"], "outside the flight"),
        (["images", "park.zarr", "--pattern", "same.png"], "same.png"),
    ):
        outcome = run("export", *words)
        assert outcome.code == 2
        assert message in outcome.err
    assert run("export", "images", "park.zarr", "--bit-depth", "16", "--allow-8bit").code == 0


@pytest.mark.parametrize("codec", ["libsvtav1", "libx265"])
def test_encoders_print_nothing_beside_the_film(store: Path, codec: str) -> None:
    """They write to the process's standard error themselves."""
    if codec not in available_encoders():
        pytest.skip(f"no {codec} here")
    command = [sys.executable, "-m", "landmark_batch.cli", "export", "video", str(store), "--codec", codec]
    environment = {name: value for name, value in os.environ.items() if name != "SVT_LOG"} | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert (said.returncode, said.stderr) == (0, "")
    assert codec in said.stdout


def test_export_video_prints_its_rate_and_refuses_gaps(store: Path, run: Run, tmp_path: Path) -> None:
    outcome = run("export", "video", "park.zarr", "film.mp4", "--fps", "12")
    assert outcome.code == 0, outcome.text
    assert f"film: {FRAMES} frames of 32x24, 0.5 s at 12 fps" in outcome.out
    assert (tmp_path / "film.mp4").is_file()
    report = json.loads(run("export", "video", "park.zarr", "--json").out)
    assert report["fps"] == "6"
    with StoreOwner.acquire(store):
        FrameStore.open(store).discard([4], "test")
    gap = run("export", "video", "park.zarr", "gap.mp4")
    assert gap.code == 2
    assert "1 of the 6 frames wanted are not finished: 4" in gap.err
    assert not (tmp_path / "gap.mp4").exists()


def test_evaluate_against_photographs(store: Path, run: Run, tmp_path: Path) -> None:
    photos = tmp_path / "data" / "photos"
    photos.mkdir(parents=True)
    frames = FrameStore.open(store)
    for i in (0, 2):
        picture = frames.read("rgb", i).astype(np.int16)
        Image.fromarray(np.clip(picture + (5 if i else 0), 0, 255).astype(np.uint8)).save(photos / f"{i:03d}.png")
    outcome = run("evaluate", "park.zarr", "--dataset", "data", "-o", "scores.json")
    assert outcome.code == 0, outcome.text
    assert "PSNR dB" in outcome.out
    assert "4 frames without a photograph: 1,3-5" in outcome.out
    found = json.loads((tmp_path / "scores.json").read_text())
    assert [(item["frame"], item["identical"]) for item in found["frames"]] == [(0, True), (2, False)]
    assert 30 < found["frames"][1]["psnr"] < 60
    assert json.loads(run("evaluate", "park.zarr", "--dataset", "data", "--json").out)["frames"] == found["frames"]


def test_evaluate_without_a_match_is_bad_input(store: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    outcome = run("evaluate", "park.zarr", "--dataset", "data")
    assert outcome.code == 2
    assert "none of its 6 frames has a photograph" in outcome.err
    assert run("evaluate", "park.zarr", "--dataset", "none").code == 2
