"""The compiled CPU kernels, in processes of their own: once loaded, their ops would serve every later test of this one.

Each test here runs a set of tests with the library loaded: parity with the reference (compiled/check_*.py), and the tests of the
reference itself, which the compiled ops have to pass as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from landmark_batch.kernels import build
from tests.conftest import libraries

__all__ = ["libraries"]  # benchmarks take it from here

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
OPS = ("march", "rays", "field", "compositing", "decoding", "weighing", "ops", "cut")  # the tests of the reference, tests/kernels/test_*.py
SETS = {
    "ops": [f"tests/kernels/compiled/check_{name}.py" for name in ("march", "field", "cut", "shading", "weigh")]
    + [f"tests/kernels/test_{name}.py" for name in OPS],
    "frames": ["tests/kernels/compiled/check_frames.py", "tests/model/test_exactness.py", "tests/model/test_reference_frames.py"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SETS)
def test_with_the_library_loaded(name: str, libraries: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.kernels.compiled.plugin", "-p", "no:cacheprovider", *SETS[name]]
    environment = {**os.environ, "LANDMARK_TEST_KERNELS": str(libraries)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert " passed" in last or " skipped" in last, last


def test_every_set_of_checks_is_run() -> None:
    named = {path for paths in SETS.values() for path in paths}
    assert {f"tests/kernels/compiled/{path.name}" for path in (HERE / "compiled").glob("check_*.py")} <= named
    assert all((ROOT / path).is_file() for path in named)


def test_the_library_of_another_torch_is_refused(libraries: Path, tmp_path: Path) -> None:
    copy = build.export(build.status("cpu", prebuilt=libraries), tmp_path)
    facts = copy.with_suffix(".json")
    assert build.status("cpu", prebuilt=tmp_path).usable
    facts.write_text(facts.read_text().replace('"torch": "', '"torch": "1.'))
    found = build.load("cpu", prebuilt=tmp_path)
    assert not found.loaded and "built for torch 1." in found.reason
