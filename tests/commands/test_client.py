"""What a command does that renders nothing itself: it does without torch, whose import takes seconds, and one that makes no film without
FFmpeg's libraries.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from landmark_batch.scene.convert import convert_scene
from tests.commands.conftest import FRAMES, JOB

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """\
import shlex, sys
from landmark_batch.cli import cli
for line in sys.stdin.read().splitlines():
    try:
        cli.main(shlex.split(line), prog_name="landmark-batch")
    except SystemExit as end:
        assert not end.code, f"{line}: exit code {end.code}"
    assert "torch" not in sys.modules, line
    assert "av" not in sys.modules, line
"""
COMMANDS = """\
info park.th
plan park.toml --set parallel.device=cpu
plan park.toml -o other.zarr --scheduler tcp://127.0.0.1:1 --set model.runtime=auto
plan park.toml -o other.zarr --scheduler tcp://127.0.0.1:1 --device cuda --set sampling.mode=dense
info blocks.zarr
plan blocks.toml -o other.zarr --scheduler tcp://127.0.0.1:1
plan blocks.toml -o other.zarr
status park.zarr
verify park.zarr
export images park.zarr images
cameras orbit park.th -o orbit.json
new park.th --cameras transforms.json -o again.toml
"""


def test_these_commands_do_without_torch_and_ffmpeg(park: Path, store: Path, tmp_path: Path) -> None:
    convert_scene(tmp_path / "park.th", tmp_path / "blocks.zarr", blocks=(2, 2))
    (tmp_path / "blocks.toml").write_text(JOB.replace("park.th", "blocks.zarr"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        input=COMMANDS,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "orbit.json").is_file() and len(list((tmp_path / "images").rglob("*.png"))) == FRAMES, store
