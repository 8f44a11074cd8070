"""Fixtures of every room: the reference data where it is present, the compiled CPU kernels, and that no test loads them by accident."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from tests.object_server import bucket as bucket
from tests.object_server import no_object_store as no_object_store
from tests.object_server import object_server as object_server
from tests.object_server import object_servers as object_servers


def _reference() -> Path | None:
    root = Path(__file__).resolve().parent.parent
    for candidate in (os.environ.get("LANDMARK_BATCH_REFERENCE"), root / "shared" / "reference", root.parent / "shared" / "reference"):
        if candidate and (Path(candidate) / "ckpt").is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Real checkpoints trained by LandMark and frames its own code rendered; skips where they are not."""
    path = _reference()
    if path is None:
        pytest.skip("no reference checkpoints and frames: put them in shared/reference, or name their folder in LANDMARK_BATCH_REFERENCE")
    return path


def _kept(config: pytest.Config) -> Path | None:
    """Folder for kernels in pytest's cache; None with -p no:cacheprovider."""
    cache = getattr(config, "cache", None)
    return Path(cache.mkdir("landmark-kernels")) if cache is not None else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests start clusters come first: at the end, many quick ones keep all processes of a run busy."""
    rooms = ("workflows", "parallel", "commands", "kernels", "benchmarks")
    items.sort(key=lambda item: next((place for place, room in enumerate(rooms) if item.path.parent.name == room), len(rooms)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile the kernels that tests are to find before any test's time runs: a slow machine takes minutes."""
    folder = _kept(session.config)
    if folder is None or session.config.option.collectonly:
        return
    if any("libraries" in getattr(item, "fixturenames", ()) for item in session.items):
        from landmark_batch.kernels import build

        build.build("cpu", cache_dir=folder)  # where that fails, `libraries` says why
    if any("png_library" in getattr(item, "fixturenames", ()) for item in session.items):
        from landmark_batch.kernels import build

        build.build("png", cache_dir=folder)


@pytest.fixture(scope="session")
def libraries(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the compiled CPU kernels, built once and kept in pytest's cache; skips where there is no compiler, never on a failed
    build.
    """
    return _built("cpu", _kept(request.config) or tmp_path_factory.getbasetemp() / "kernels").parent


@pytest.fixture(scope="session")
def png_library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled code for PNGs, as `libraries`."""
    return _built("png", _kept(request.config) or tmp_path_factory.getbasetemp() / "kernels")


def _built(device: str, folder: Path) -> Path:
    from landmark_batch.kernels import build
    from landmark_batch.kernels.toolchain import ToolchainError, find_toolchain

    try:
        find_toolchain(device)
    except ToolchainError as error:
        pytest.skip(str(error))
    found = build.build(device, cache_dir=folder)
    assert found.usable and found.path is not None, found.reason
    return found.path


@pytest.fixture(scope="session", autouse=True)
def _shared_builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The cache folder that tests give to commands and workers keeps its kernels in pytest's cache: compiled once a machine."""
    kept = _kept(request.config)
    if kept is not None:
        folder = tmp_path_factory.getbasetemp() / "cache" / "landmark-batch"
        folder.mkdir(parents=True)
        builds = kept / "kernels"
        builds.mkdir(exist_ok=True)
        (folder / "kernels").symlink_to(builds, target_is_directory=True)


@pytest.fixture(autouse=True)
def _plain_ops_stay_plain() -> Iterator[None]:
    """A test that loads compiled kernels into this process would change the ops of all tests after it: it takes processes of its own,
    or the runtime 'torch'.
    """
    yield
    build = sys.modules.get("landmark_batch.kernels.build")
    if build is not None and "LANDMARK_TEST_KERNELS" not in os.environ:
        assert "cpu" not in build._loaded, "this test loaded the compiled CPU kernels into the tests' own process"


@pytest.fixture(autouse=True)
def usual_scheduling() -> Iterator[None]:
    """No test leaves this thread a real-time one: what it starts later would be, too."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Gives the fork servers that were begun below this process since. Those of other tests are put aside meanwhile."""
    for name in ("_forkserver_address", "_forkserver_alive_fd", "_forkserver_pid"):
        monkeypatch.setattr(getattr(forkserver, "_forkserver"), name, None)  # noqa: B009
    before = _fork_servers()
    return lambda: sorted(_fork_servers() - before)


def _fork_servers() -> set[int]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "multiprocessing.forkserver" in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


@pytest.fixture(autouse=True)
def _any_dashboard_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dashboards of jobs in this process take a free port: those of tests beside it want the usual one, and Dask leaves the socket open
    that it could not have.
    """
    for name in ("cluster", "slurm_cluster"):
        module = sys.modules.get(f"landmark_batch.workflows.{name}")
        if module is not None:
            monkeypatch.setattr(module, "DASHBOARD_PORT", 0)
