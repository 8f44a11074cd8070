"""Modules that every command compiles anew: found in real processes, with and without bytecode."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from landmark_batch.workflows.bytecode import advice, without_bytecode

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import sys, mine; from landmark_batch.workflows.bytecode import without_bytecode; print(*without_bytecode([mine, sys, None]))"


def test_a_module_without_bytecode_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("value = 1\n")
    said = []
    for keep in (False, True, True):
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONPYCACHEPREFIX": str(tmp_path / "cache")}
        environment["PYTHONDONTWRITEBYTECODE"] = "" if keep else "1"
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=True)
        said.append(done.stdout.split())
    assert said == [["1", "1"], ["0", "1"], ["0", "1"]]  # a built-in module has no file


@pytest.mark.parametrize("name", ["closed", "x" * 300], ids=["closed", "too long"])
def test_a_folder_that_cannot_be_searched_has_no_bytecode(tmp_path: Path, name: str) -> None:
    if name == "closed":
        (tmp_path / name).mkdir(mode=0)
        if os.access(tmp_path / name, os.X_OK):
            pytest.skip("this user may search every folder")
    (tmp_path / "mine.py").write_text("value = 1\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONPYCACHEPREFIX": str(tmp_path / name)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["1", "1"], "")


def test_what_is_told() -> None:
    missing, count = without_bytecode()
    assert 0 <= missing <= count and count > 100
    assert advice(10, 100) is None
    told = advice(11, 100)
    assert told is not None and told.startswith("11 of 100 Python modules have no bytecode") and "python -m compileall" in told
