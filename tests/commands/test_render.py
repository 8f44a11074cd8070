"""render, from the command to the last frame: what it writes, says, resumes, refuses; and Ctrl-C on a real process."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from landmark_batch.cameras.formats import load_flight
from landmark_batch.frames import durable
from landmark_batch.frames.owner import StoreOwner
from landmark_batch.frames.png import encode_png, read_png_text
from landmark_batch.frames.store import FrameStore
from landmark_batch.kernels.png import packer
from landmark_batch.workflows import session
from tests.commands.conftest import FRAMES, Outcome, Run

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_render_ends_with_the_paths_and_sizes_it_wrote(rendered: tuple[Path, Outcome]) -> None:
    folder, outcome = rendered
    assert outcome.code == 0, outcome.text
    assert f"rendering {FRAMES} frames in" in outcome.err
    assert "1 worker, runtime torch" in outcome.err
    assert f"{FRAMES} frames rendered in" in outcome.out
    assert f"film: {FRAMES} frames of 32x24, 1.0 s at 6 fps" in outcome.out
    listed = outcome.out.partition("wrote\n")[2].splitlines()
    assert [re.split(r"\s{2,}", line.strip())[0] for line in listed] == [
        f"{folder}/park.zarr/",
        f"{folder}/park/rgb/",
        f"{folder}/park.mp4",
        f"{folder}/park.log",
    ]
    assert f"{FRAMES} of {FRAMES} frames" in listed[0]
    assert f"{FRAMES} written, 0 up to date" in listed[1]
    assert all(re.search(r"\d (B|KiB|MiB)", line) for line in listed)


def test_frames_images_film_and_log_are_there(rendered: tuple[Path, Outcome]) -> None:
    folder, _ = rendered
    assert len(FrameStore.open(folder / "park.zarr").finished()) == FRAMES
    assert sorted(path.name for path in (folder / "park" / "rgb").iterdir()) == [f"park.{i:05d}.png" for i in range(FRAMES)]
    assert (folder / "park.mp4").stat().st_size > 1000
    log = (folder / "park.log").read_text()
    assert log.count("ChunkDone") >= 1
    frames = [frame for line in log.splitlines() if "ChunkDone" in line for frame in json.loads(line.partition("ChunkDone ")[2])["frames"]]
    assert sorted(frames) == list(range(FRAMES))


def test_again_there_is_nothing_to_render(store: Path, park: Path, run: Run) -> None:
    outcome = run("render", "park.toml")
    assert outcome.code == 0, outcome.text
    assert f"nothing to render: {FRAMES} frames stand" in outcome.err
    assert "park.zarr/" in outcome.out


def test_other_settings_are_refused_with_what_differs_and_the_remedy(store: Path, park: Path, run: Run) -> None:
    outcome = run("render", "park.toml", "--samples", "8")
    assert outcome.code == 2
    assert (
        f"{FRAMES} of {FRAMES} finished frames differ: sampling.samples 16 → 8; --update replaces them, -o NEW.zarr keeps them"
        in outcome.err
    )
    assert len(FrameStore.open(store).finished()) == FRAMES


def test_another_size_is_another_store(store: Path, park: Path, run: Run) -> None:
    outcome = run("render", "park.toml", "--width", "16")
    assert outcome.code == 2
    assert "-o NEW.zarr" in outcome.err


@pytest.mark.usefixtures("inline")
def test_a_damaged_frame_is_found_and_mended_by_the_next_render(store: Path, park: Path, run: Run) -> None:
    file = FrameStore.open(store).chunk_file("rgb", 3)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    found = run("verify", "park.zarr")
    assert found.code == 3
    assert "rgb of frame 3" in found.out
    assert "1 damaged" in found.out
    assert "frame 3 will be rendered again: the next `landmark-batch render` mends it" in found.out
    assert json.loads(run("status", "park.zarr", "--json").out)["damaged_frames"] == "3"
    mended = run("render", "park.toml")
    assert mended.code == 0, mended.text
    assert "1 frame rendered" in mended.out
    assert f"; {FRAMES - 1} stood already" in mended.out
    checked = run("verify", "park.zarr")
    assert checked.code == 0
    assert f"{FRAMES} frames checked, all as they were written" in checked.out


@pytest.mark.usefixtures("inline")
def test_a_film_of_one_frame_has_a_length_and_a_note_is_said_once(park: Path, run: Run) -> None:
    words = ("--frames", "2", "--width", "33", "--height", "25", "--set", "video.fps=24", "--video")
    outcome = run("render", "park.toml", *words)
    assert outcome.code == 0, outcome.text
    assert "film: 1 frame of 34x26, 0.04 s at 24 fps (job)" in outcome.out
    assert outcome.text.count("needs even sizes") == 1


@pytest.mark.usefixtures("inline")
def test_a_full_disk_stops_the_job_and_it_goes_on_when_there_is_space(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = durable.write_new
    written: list[Path] = []

    def full_after_two(path: Path, data: bytes | memoryview) -> None:
        if "/rgb/" in str(path):
            written.append(path)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, data)

    monkeypatch.setattr(durable, "write_new", full_after_two)
    outcome = run("render", "park.toml", "--set", "output.chunk_frames=1")
    assert outcome.code == 2
    assert "the disk is full" in outcome.err
    assert json.loads(run("status", "park.zarr", "--json").out)["done"] == 2
    monkeypatch.setattr(durable, "write_new", original)
    outcome = run("render", "park.toml")
    assert outcome.code == 0, outcome.text
    assert f"{FRAMES - 2} frames rendered" in outcome.out


@pytest.mark.usefixtures("inline")
def test_a_frame_that_cannot_be_rendered_leaves_the_job_incomplete(park: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = session.frame_fingerprint

    def none_for_frame_2(settings: Any, c2w: Any, lens: Any) -> str:
        if np.array_equal(c2w, load_flight(park.parent / "transforms.json").c2w[2]):
            raise ValueError("not this one")
        return original(settings, c2w, lens)

    monkeypatch.setattr(session, "frame_fingerprint", none_for_frame_2)
    outcome = run("render", "park.toml", "--set", "output.chunk_frames=1", "--video", "--png")
    assert outcome.code == 3
    assert f"1 of {FRAMES} frames are missing" in outcome.err
    assert "not this one" in outcome.err
    assert f"note: no film: 1 of {FRAMES} frames are missing: 2" in outcome.out
    assert f"{FRAMES - 1} of {FRAMES} frames" in outcome.out
    assert not (park.parent / "park.mp4").exists()
    assert len(list((park.parent / "park" / "rgb").glob("*.png"))) == FRAMES - 1


@pytest.mark.usefixtures("inline")
def test_the_newest_frame_lies_beside_the_store_unless_it_is_not_wanted(park: Path, run: Run) -> None:
    picture = park.parent / "park.latest.jpg"
    plain = run("render", "park.toml", "--no-latest", "--frames", "0")
    assert plain.code == 0, plain.text
    assert not picture.exists()
    outcome = run("render", "park.toml", "--order", "coarse-to-fine")
    assert outcome.code == 0, outcome.text
    with Image.open(picture) as image:
        assert image.size == (32, 24)
    assert not (park.parent / "park").exists(), "no other export was asked for"
    refused = run("render", "park.toml", "--order", "backwards")
    assert refused.code == 2
    assert "coarse-to-fine" in refused.err


def test_a_store_that_another_job_writes_is_refused_with_its_name(store: Path, park: Path, run: Run) -> None:
    with StoreOwner.acquire(store):
        outcome = run("render", "park.toml")
    assert outcome.code == 2
    assert "is being written by another job: host" in outcome.err
    assert f"process {os.getpid()}, started" in outcome.err


@pytest.fixture
def long_park(park: Path) -> Path:
    """The job with the flight repeated to 300 frames, each of its own."""
    cameras = json.loads((park.parent / "transforms.json").read_text())
    frames = cameras["frames"]
    longer = []
    for i in range(300):
        frame = json.loads(json.dumps(frames[i % len(frames)]))
        frame["transform_matrix"][2][3] += 1e-4 * i
        longer.append(frame)
    (park.parent / "transforms.json").write_text(json.dumps({**cameras, "frames": longer}))
    return park


def test_ctrl_c_stops_after_the_chunk_in_hand_and_says_how_to_go_on(long_park: Path) -> None:
    folder = long_park.parent
    settings = ["--set", "output.chunk_frames=2", "--samples", "128"]  # long enough that it is not over before it is interrupted
    words = [sys.executable, "-m", "landmark_batch.cli", "render", str(long_park), "--no-dashboard", *settings]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    try:
        log = folder / "park.log"
        deadline = time.monotonic() + 180
        while not (log.is_file() and "ChunkDone" in log.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no chunk in 180 seconds"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group gets it
        out, err = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 130, err
    assert "stopping after the chunks in hand" in err
    assert f"landmark-batch render {long_park} --no-dashboard {' '.join(settings)}" in err
    assert "Traceback" not in out + err
    assert "worker died" not in err, "workers do not take the Ctrl-C for theirs"
    done = len(FrameStore.open(folder / "park.zarr").finished())
    assert 0 < done < 300
    assert done % 2 == 0, "whole chunks"
    assert f"stopped: {done} of 300 frames stand" in err
    assert f"{done} of 300 frames" in out


@pytest.mark.usefixtures("inline")
def test_pngs_beside_a_render_are_made_by_compiled_code(park: Path, run: Run, png_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDMARK_BATCH_KERNELS", str(png_library.parent))
    outcome = run("render", "park.toml", "--frames", "0", "--png")
    assert outcome.code == 0, outcome.text
    path = park.parent / "park" / "rgb" / "park.00000.png"
    pixels = FrameStore.open(park.with_suffix(".zarr")).read("rgb", 0)
    assert path.read_bytes() == encode_png(pixels, read_png_text(path), packer=packer(png_library))
