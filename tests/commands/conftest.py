"""A command line to call, a small scene with cameras and a job file, and one store that was really rendered from it."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from landmark_batch.cameras.paths import orbit_flight
from landmark_batch.cameras.write import write_transforms
from landmark_batch.cli import cli
from landmark_batch.scene.export import save_landmark_checkpoint
from tests.factories import make_scene
from tests.workflows.conftest import InlineCluster

FRAMES = 6
JOB = """\
[scene]
checkpoint = "park.th"
[cameras]
file = "transforms.json"
[sampling]
samples = 16
[model]
runtime = "torch"
[parallel]
device = "cpu"
workers = 1
"""


@dataclass(frozen=True)
class Outcome:
    """code: exit code. out, err: what was printed. text: both."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


Run = Callable[..., Outcome]


def runner() -> CliRunner:
    """A runner that keeps standard output and standard error apart, as click 8.1 does only when told to."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line in tmp_path. No command may end in a traceback; one that fails says so in its own words."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path, env: dict[str, str] | None = None) -> Outcome:
        result = runner().invoke(cli, [str(word) for word in words], env=env, prog_name="landmark-batch")
        outcome = Outcome(result.exit_code, result.stdout, result.stderr)
        assert "--debug" in words or "Traceback" not in outcome.text, outcome.text
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return outcome

    return call


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with park.th, transforms.json and park.toml: 6 frames of 32x24, no args of training."""
    folder = tmp_path_factory.mktemp("scene")
    weights = make_scene(mask=0.5, mask_size=(9, 7, 5), seed=3)
    save_landmark_checkpoint(weights, folder / "park.th")
    flight = orbit_flight(weights.config.aabb, width=32, height=24, frames=FRAMES, fps=6.0)
    cameras = json.loads(write_transforms(flight, folder / "transforms.json").read_text())
    for i, frame in enumerate(cameras["frames"]):
        frame["file_path"] = f"./photos/{i:03d}.png"
    (folder / "transforms.json").write_text(json.dumps(cameras))
    (folder / "park.toml").write_text(JOB)
    return folder


@pytest.fixture
def park(scene: Path, tmp_path: Path) -> Path:
    """A copy of the scene's folder that a test may change: tmp_path / 'park.toml' beside its files."""
    for file in scene.iterdir():
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / "park.toml"


def without_processes(patch: pytest.MonkeyPatch) -> None:
    """Renders run in this process: everything but Dask is real."""
    from landmark_batch.workflows import cluster

    patch.setattr(cluster, "start_cluster", lambda placement, **_: InlineCluster(placement.workers))
    patch.setattr("landmark_batch.commands.render.warm_workers", lambda _: nullcontext())


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured speeds and scene digests of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def rendered(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """(folder, what the command said) of a job that was rendered with images and film: park.zarr, park/rgb, park.mp4, park.log."""
    folder = tmp_path_factory.mktemp("rendered")
    for file in scene.iterdir():
        shutil.copy(file, folder / file.name)
    words = ["render", str(folder / "park.toml"), "--png", "--video"]
    with pytest.MonkeyPatch.context() as patch:
        without_processes(patch)
        result = runner().invoke(cli, words, prog_name="landmark-batch")
    return folder, Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def store(rendered: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A copy of the finished store that a test may change."""
    assert rendered[1].code == 0, rendered[1].text
    return Path(shutil.copytree(rendered[0] / "park.zarr", tmp_path / "park.zarr"))
