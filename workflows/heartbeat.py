"""How often a worker says that it lives: Dask's own pace, twice a second for each of a few, costs a scheduler more than a job's chunks."""

from __future__ import annotations

from distributed import Worker


class CalmWorker(Worker):  # type: ignore[misc]
    """A Dask worker that beats no oftener than `least_seconds` once it has registered; more workers, less often, as Dask has it."""

    least_seconds = 1.0

    async def heartbeat(self) -> None:
        await super().heartbeat()
        beat = self.periodic_callbacks["heartbeat"]
        beat.callback_time = max(beat.callback_time, 1000 * self.least_seconds)


class DriverWorker(CalmWorker):
    """Drives jobs and renders none: there is nothing to be seen of it."""

    least_seconds = 5.0
