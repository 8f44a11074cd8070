"""What failures mean: is it a chunk, a worker, one place of the flight, or everything? Pure logic, over numbers and names.

A chunk that fails on two workers is at fault itself. A worker is, when several chunks failed on it alone and others rendered one of
them. Where chunks are set aside one after another, the next ones are taken far from there: a bad place, however many neighbouring
chunks see it, costs the other frames nothing, and only a job in which nothing works anywhere ends early.
"""

from __future__ import annotations

WORKER_FAILURES = 3  # different chunks that failed on a worker alone, none done between, after which it gets no more
APART = 3  # chunks set aside one after another, none rendered between, after which the next ones are taken far away
PROBES = 6  # of those at least, in vain, before the job gives up
HOPELESS = 10  # chunks set aside one after another before it does, or as many as it has rendered if these are more


class Setbacks:
    """Failures and successes of a run's chunks, in the order in which they come. Workers are known by name."""

    def __init__(self) -> None:
        self._failed_on: dict[int, set[str]] = {}
        self._blamed: dict[str, set[int]] = {}  # worker -> chunks that failed there and nowhere else, since it did one
        self._proven: set[str] = set()  # workers of which another has rendered a chunk that failed there
        self._rendered = 0
        self._row = 0
        self._probes: set[int] = set()  # chunks that were taken far away, since one was rendered
        self._vain = 0

    def failed(self, chunk: int, worker: str) -> None:
        """A chunk failed on a worker, or ended it."""
        tried = self._failed_on.setdefault(chunk, set())
        tried.add(worker)
        if len(tried) == 1:
            self._blamed.setdefault(worker, set()).add(chunk)
            return
        for chunks in self._blamed.values():
            chunks.discard(chunk)

    def rendered(self, chunk: int, worker: str) -> None:
        """A chunk stands."""
        self._rendered += 1
        self._row = self._vain = 0
        self._probes.clear()
        self._proven |= self._failed_on.pop(chunk, set()) - {worker}
        self._blamed.pop(worker, None)
        self._proven.discard(worker)

    def taken(self, chunk: int) -> None:
        """A chunk goes out."""
        if self.apart and chunk not in self._failed_on:
            self._probes.add(chunk)

    def set_aside(self, chunk: int) -> None:
        """A chunk gets no further attempt."""
        self._row += 1
        self._vain += chunk in self._probes

    @property
    def suspects(self) -> tuple[str, ...]:
        """Workers that are at fault themselves."""
        return tuple(worker for worker, chunks in self._blamed.items() if worker in self._proven and len(chunks) >= WORKER_FAILURES)

    def failures_of(self, worker: str) -> int:
        """Different chunks that failed on this worker alone since it last did one."""
        return len(self._blamed.get(worker, ()))

    @property
    def apart(self) -> bool:
        """Whether the next chunk is to be taken far from those before."""
        return self._row >= APART

    @property
    def hopeless(self) -> bool:
        """Whether nothing works any more, wherever it was tried."""
        return self._vain >= PROBES and self._row >= max(HOPELESS, self._rendered)

    @property
    def row(self) -> int:
        """Chunks set aside one after another, none rendered between."""
        return self._row
