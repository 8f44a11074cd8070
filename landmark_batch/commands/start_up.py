"""The time before a job's first frame: workers are made ready beside the plan, and the collector of garbage waits."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from landmark_batch.events import Event, JobStarted

if TYPE_CHECKING:
    from landmark_batch.workflows.warm import WarmStart

_THRESHOLDS = (100_000, 50, 100)  # objects made before a collection: imports and the records of a long flight make millions that stay
# As Dask sets them for workers before they start; libraries read them once, when they are imported.
_WORKERS = {
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "6640",
}


class FewCollections:
    """A context manager and a sink: until the job starts, garbage is rarely looked for; what is there then is never looked at again."""

    def __enter__(self) -> Self:
        self._before = gc.get_threshold()
        gc.set_threshold(*_THRESHOLDS)
        return self

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobStarted):
            gc.freeze()
            gc.set_threshold(*self._before)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        gc.unfreeze()
        gc.set_threshold(*self._before)


@contextlib.contextmanager
def warm_workers(flags: Mapping[str, Any]) -> Iterator[WarmStart | None]:
    """While it lasts, a process imports what workers need, where they will be forked here: not on a cluster.

    flags: of `render`. Gives None where there is none.
    """
    elsewhere = flags["scheduler"] is not None or flags["slurm"] is not None or "SLURM_PROCID" in os.environ
    if elsewhere:
        yield None
        return
    from landmark_batch.workflows.warm import WarmStart

    with contextlib.ExitStack() as stack:
        with _environment(_WORKERS):
            warm = stack.enter_context(WarmStart())
        yield warm if warm.running else None


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set what is not set already, for processes that are started meanwhile."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]
