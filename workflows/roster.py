"""Roster: which workers of a cluster render and are running, asked for often and at little cost."""

from __future__ import annotations

from distributed import Client

from landmark_batch.parallel.shape import Candidate
from landmark_batch.workflows.worker import DRIVER_RESOURCE


class Roster:
    """Keeps what is known of each address: the scheduler's whole list, with every worker's metrics, is only asked for when one has come."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, Candidate | None] = {}  # None: it drives jobs

    def running(self) -> dict[str, Candidate]:
        """By address. Raises OSError while the scheduler does not answer."""
        running = self._client.sync(self._client.scheduler.ncores_running)
        if not running.keys() <= self._known.keys():
            workers = self._client.sync(self._client.scheduler.identity)["workers"]
            self._known = {
                address: None
                if DRIVER_RESOURCE in (info.get("resources") or {})
                else Candidate(address, str(info["name"]), str(info.get("host", "")))
                for address, info in workers.items()
            }
        self._known = {address: self._known[address] for address in running if address in self._known}
        return {address: worker for address, worker in self._known.items() if worker is not None}
