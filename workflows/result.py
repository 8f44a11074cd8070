"""RenderResult: what a run of a job came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import LandmarkError, RenderIncompleteError, RenderInterrupted
from landmark_batch.object_path import StorePath


@dataclass(frozen=True)
class RenderResult:
    """state: 'complete', 'incomplete' (frames are missing), 'interrupted' or 'detached' (it goes on elsewhere). rendered, skipped:
    frames rendered now, and found standing.

    missing: wanted frames that do not stand. failures: chunk id -> error of chunks that were set aside. seconds: wall time of it all;
    startup_seconds: until the first chunk began; render_seconds: from then to the last receipt. stages: seconds by name, over all
    workers; 'idle' is what passed between their chunks. counters: rays, samples, ... of the rendered frames. worker_seconds: of
    rendering and of waiting between chunks, over all workers. fatal: what ended the job before its time.
    """

    state: str
    wanted: int
    rendered: int
    skipped: int
    missing: tuple[int, ...]
    failures: dict[str, str]
    seconds: float
    startup_seconds: float
    render_seconds: float
    workers: int
    device: str
    store: StorePath
    log: Path | None
    dashboard: str | None
    stages: dict[str, float] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    worker_seconds: float = 0.0
    fatal: LandmarkError | None = field(default=None, compare=False, repr=False)

    @property
    def exit_code(self) -> int:
        return {"complete": 0, "detached": 0, "incomplete": RenderIncompleteError.exit_code, "interrupted": RenderInterrupted.exit_code}[
            self.state
        ]

    def error(self) -> LandmarkError | None:
        """The result as an error that names the missing frames and how to go on; None for a complete job."""
        ranges = format_frame_ranges(self.missing)
        if self.state == "interrupted":
            return RenderInterrupted(
                f"stopped: {self.wanted - len(self.missing)} of {self.wanted} frames stand in {self.store}",
                remedy="the same command goes on with the rest",
            )
        if self.state == "incomplete":
            why = "; ".join(f"chunk {chunk}: {error}" for chunk, error in self.failures.items())
            return RenderIncompleteError(
                f"{len(self.missing)} of {self.wanted} frames are missing in {self.store}: {ranges}" + (f" ({why})" if why else ""),
                remedy=f"the same command tries them again; {self.log} holds the whole errors"
                if self.log
                else "the same command tries them again",
            )
        return None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {**asdict(replace(self, fatal=None)), "store": str(self.store), "log": str(self.log) if self.log else None}
        del values["fatal"]
        values["missing"] = format_frame_ranges(self.missing)
        return values
