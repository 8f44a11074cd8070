"""How often a process says that it lives and looks at itself: Dask's own pace is for workers that render and are looked at."""

from __future__ import annotations

from distributed import Worker
from distributed.core import Server

_RARELY = ("idle-timeout", "no-workers-timeout", "monitor")  # looks at whether all is idle, and at the machine, that charts are drawn of
_NEVER = ("tick", "ticks", "shift_counters")  # of servers that no page of the dashboard shows
_RARE_SECONDS = 5.0


class DriverWorker(Worker):  # type: ignore[misc]
    """A Dask worker that drives jobs and renders none: there is little to be seen of it, so it beats no oftener than `least_seconds`
    once it has registered.
    """

    least_seconds = 5.0

    async def heartbeat(self) -> None:
        await super().heartbeat()
        beat = self.periodic_callbacks["heartbeat"]
        beat.callback_time = max(beat.callback_time, 1000 * self.least_seconds)


def calm(server: Server, *, shown: bool) -> None:
    """Let a server look at itself less often; to be called in its event loop. shown: pages of the dashboard are about it.

    Heartbeats stay as they are.
    """
    for name in _RARELY:
        look = server.periodic_callbacks.get(name)
        if look is not None:
            look.callback_time = max(look.callback_time, 1000 * _RARE_SECONDS * (1 if shown else 6))
    for name in () if shown else _NEVER:
        look = server.periodic_callbacks.get(name)
        if look is not None:
            look.stop()
