"""The wheel: one top-level name, everything in it, nothing else; built by hatchling itself, without network."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from landmark_batch import __version__

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "workflows", "configs")
JUNK = (".pyc", ".pyo", ".so", ".o", ".a", ".cubin", ".ptx", ".d", ".ninja", ".log", ".zarr", ".th")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    program = f"import hatchling.build as b; print(b.build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


def test_the_wheel_has_one_top_level_name_and_its_metadata(wheel: Path, names: list[str]) -> None:
    assert wheel.name == f"landmark_batch-{__version__}-py3-none-any.whl"
    assert {name.split("/")[0] for name in names} == {"landmark_batch", f"landmark_batch-{__version__}.dist-info"}


def test_every_source_and_job_file_is_in_the_wheel_once(names: list[str]) -> None:
    library = {str(file.relative_to(ROOT)) for file in (ROOT / "landmark_batch").rglob("*") if _belongs(file)}
    beside = {f"landmark_batch/{file.relative_to(ROOT)}" for folder in FOLDERS for file in (ROOT / folder).rglob("*") if _belongs(file)}
    expected = library | beside | {"landmark_batch/cli.py"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert len(names) == len(set(names))
    assert {"landmark_batch/py.typed", "landmark_batch/configs/demo_cpu.toml", "landmark_batch/workflows/render.py"} <= expected


def test_nothing_built_is_in_the_wheel(names: list[str]) -> None:
    assert not [name for name in names if name.endswith(JUNK) or "__pycache__" in name]


def _belongs(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts and not file.name.endswith(JUNK)


def test_the_entry_point_and_the_requirements(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as file:
        info = f"landmark_batch-{__version__}.dist-info"
        assert "landmark-batch = landmark_batch.cli:main" in file.read(f"{info}/entry_points.txt").decode()
        metadata = file.read(f"{info}/METADATA").decode()
        assert f"{info}/licenses/LICENSE" in file.namelist()
    for requirement in project["dependencies"]:
        name = requirement.partition(">=")[0]
        assert f"Requires-Dist: {name}>=" in metadata
        assert ">=" in requirement and "<" not in requirement and "==" not in requirement, "ranges stay open"


def test_the_installed_package_runs_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    """The four top-level folders are found inside the package, and a job file that came with it is valid."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    program = (
        "from pathlib import Path\n"
        "import landmark_batch, landmark_batch.cli, landmark_batch.workflows.driver, landmark_batch.kernels\n"
        "from landmark_batch.job import load_job\n"
        "here = Path(landmark_batch.__file__).parent\n"
        f"assert here == Path({str(site)!r}) / 'landmark_batch', here\n"
        "for module in (landmark_batch.cli, landmark_batch.workflows.driver, landmark_batch.kernels):\n"
        "    assert here in Path(module.__file__).parents, module\n"
        "print(load_job(here / 'configs' / 'demo_cpu.toml').name)\n"
        "landmark_batch.cli.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["demo_cpu", f"landmark-batch, version {__version__}"]


@pytest.mark.parametrize(
    "file", sorted({*(ROOT / "configs").glob("*.toml")} - {ROOT / "configs" / "slurm.toml"}), ids=lambda file: file.name
)
def test_job_files_that_come_with_it_are_valid_and_run_here(file: Path) -> None:
    from landmark_batch.job import load_job

    job = load_job(file)
    assert job.scene.checkpoint is not None
    assert job.cameras.file is not None
    assert ROOT / "configs" not in job.store_path.parents, "frames do not go into configs/"
