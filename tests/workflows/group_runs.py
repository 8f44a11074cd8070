"""Jobs on a fleet, as tests give, watch and end them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.cameras.paths import orbit_flight
from landmark_batch.cameras.write import write_transforms
from landmark_batch.events import ChunkDone, ChunkFailed, ChunkStarted, Event
from landmark_batch.frames.verify import verify_store
from landmark_batch.job import RenderJob
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.result import RenderResult
from tests.workflows.conftest import BOX, executions, pixels
from tests.workflows.fleet import Fleet
from tests.workflows.processes import until

FRAMES = 60


class Run:
    """A job given to a fleet by a thread of this process. events: all that its client saw, in order."""

    def __init__(self, fleet: Fleet, job: RenderJob, **options: Any) -> None:
        fleet.endings.append(self.end)
        self.job = job
        self.events: list[Event] = []
        self.stop = threading.Event()
        self._outcome: RenderResult | BaseException | None = None
        security = fleet.tls.security() if fleet.tls else None
        self._options = {"scheduler": fleet.address, "security": security, "sinks": [self.events.append], "stop": self.stop, **options}
        self._thread = threading.Thread(target=self._run, name=f"run {job.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = run_render(self.job, **self._options)
        except BaseException as error:  # noqa: BLE001  raised where the result is asked for
            self._outcome = error

    def end(self) -> None:
        self.stop.set()
        until(lambda: self.over, 120, f"{self.job.name} ends")

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def result(self, seconds: float = 300) -> RenderResult:
        """Waits for the end. Raises what the job raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"{self.job.name} has not ended after {seconds:.0f} s: {self.events[-5:]}"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def begun(self) -> list[ChunkStarted]:
        return [event for event in [*self.events] if isinstance(event, ChunkStarted)]

    def done(self) -> list[ChunkDone]:
        return [event for event in [*self.events] if isinstance(event, ChunkDone)]

    def failed(self) -> list[ChunkFailed]:
        return [event for event in [*self.events] if isinstance(event, ChunkFailed)]

    def frames(self) -> int:
        """Recorded so far."""
        return sum(len(event.frames) for event in self.done())

    def until(self, condition: Callable[[Run], Any], seconds: float = 240, what: str = "") -> Any:
        """Wait for a condition of this run; fails at once when the run ends without it."""

        def look() -> Any:
            over = self.over
            found = condition(self)
            assert found or not over, f"{self.job.name} ended before {what or condition}: {self._outcome!r}, {self.events[-5:]}"
            return found

        return until(look, seconds, what or f"{self.job.name}: {condition}; last events {self.events[-5:]}")


def ranks_of(group: str) -> list[str]:
    """'g0(a-w0+a-w1)' -> ['a-w0', 'a-w1'], the leader first."""
    return group.partition("(")[2].rstrip(")").split("+")


def shared_fleet(config: pytest.Config, folders: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet for all tests of a run that leave it as it was: hosts a with two ranks, b and c with one. Complete when it is given."""
    known = config.stash.get(_SHARED, None)
    if known is None:
        known = config.stash[_SHARED] = Fleet(folders.mktemp("fleet"), {"a": 2, "b": 1, "c": 1}, dashboard=True)
        config.add_cleanup(lambda: end_shared_fleet(config))
        known.__enter__()
    known.wait()
    yield known
    known.settle()


_SHARED = pytest.StashKey[Fleet]()


def end_shared_fleet(config: pytest.Config) -> None:
    known = config.stash.get(_SHARED, None)
    if known is not None:
        del config.stash[_SHARED]
        known.__exit__()


def group_jobs(make_job: Callable[..., RenderJob], folder: Path) -> Callable[..., RenderJob]:
    """make('name', tensor, data, *overrides): 60 frames of 64x36, two a chunk, for groups of tensor x data ranks."""
    cameras = write_transforms(orbit_flight(BOX, width=64, height=36, frames=FRAMES, fps=24), folder / "flight.json")

    def make(name: str, tensor: int = 2, data: int = 1, *overrides: str) -> RenderJob:
        return make_job(
            f"name={name}",
            f"cameras.file={cameras}",
            "sampling.samples=160",
            "parallel.workers=0",
            f"parallel.tensor_parallel={tensor}",
            f"parallel.data_parallel={data}",
            "output.chunk_frames=2",
            f"output.store={folder / name}.zarr",
            *overrides,
        )

    return make


def write_job(job: RenderJob, folder: Path) -> Path:
    """The job as a file for `landmark-batch render`."""
    parallel, output, sampling = job.parallel, job.output, job.sampling
    path = folder / f"{job.name}.toml"
    path.write_text(
        f"""name = "{job.name}"
[scene]
checkpoint = "{job.scene.checkpoint}"
[cameras]
file = "{job.cameras.file}"
[sampling]
samples = {sampling.samples}
[model]
runtime = "torch"
[parallel]
device = "cpu"
tensor_parallel = {parallel.tensor_parallel}
data_parallel = {parallel.data_parallel}
[output]
store = "{output.store}"
chunk_frames = {output.chunk_frames}
""",
        encoding="utf-8",
    )
    return path


def calm_pixels(config: pytest.Config, fleet: Fleet, group_job: Callable[..., RenderJob]) -> dict[str, bytes]:
    """Pixel files of all 60 frames, rendered once by groups of TP 2 that nobody disturbs."""
    known = config.stash.get(_CALM, None)
    if known is None:
        job = group_job("calm")
        assert Run(fleet, job).result().state == "complete"
        known = config.stash[_CALM] = pixels(job.store_path)
    return known


_CALM = pytest.StashKey[dict[str, bytes]]()


def check(job: RenderJob, result: RenderResult | None, calm: dict[str, bytes], note: str = "") -> None:
    """All frames, no byte different from the calm run's."""
    assert result is None or (result.state, result.missing) == ("complete", ()), f"{note}: {result}"
    assert executions(job.store_path).keys() == set(range(FRAMES)), note
    assert pixels(job.store_path) == calm, note
    assert verify_store(job.store_path).ok, note
