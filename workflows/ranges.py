"""Named ranges of a worker's threads for its trace, where one is kept. A worker that has no torch keeps none, and needs none."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

RENDER = "render"
COPIES = "copies"
COMMIT = "commit"


def _profile() -> Any:
    """The module that records, once something has imported it: a trace does."""
    return sys.modules.get("landmark_batch.model.profile")


def span(name: str) -> AbstractContextManager[None]:
    """A range of that name."""
    profile = _profile()
    found: AbstractContextManager[None] = profile.span(name) if profile is not None else nullcontext()
    return found


def mark(name: str, begin: float, end: float) -> None:
    """A range that is over. begin, end: time.perf_counter()."""
    profile = _profile()
    if profile is not None:
        profile.mark(name, begin, end)


def on_track(name: str) -> AbstractContextManager[None]:
    """Ranges of this thread stand on the track of that name meanwhile: tasks change their threads, and what they do stays together."""
    profile = _profile()
    found: AbstractContextManager[None] = profile.on_track(name) if profile is not None else nullcontext()
    return found
