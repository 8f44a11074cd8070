"""How often a worker says that it lives: Dask's own pace, twice a second for each of a few, is for workers that render."""

from __future__ import annotations

from distributed import Worker


class DriverWorker(Worker):  # type: ignore[misc]
    """A Dask worker that drives jobs and renders none: there is little to be seen of it, so it beats no oftener than `least_seconds`
    once it has registered.
    """

    least_seconds = 5.0

    async def heartbeat(self) -> None:
        await super().heartbeat()
        beat = self.periodic_callbacks["heartbeat"]
        beat.callback_time = max(beat.callback_time, 1000 * self.least_seconds)
