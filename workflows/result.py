"""RenderResult: what a run of a job came to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import LandmarkError, RenderIncompleteError, RenderInterrupted
from landmark_batch.object_path import StorePath

CAUSES = 3  # that an error names
CHUNKS = 4  # of one cause that it names


def describe_failures(failures: Mapping[str, str]) -> list[str]:
    """Chunk id -> error, in few lines: chunks of one cause together, the most frequent one first."""
    causes: dict[str, list[str]] = {}
    for chunk, error in failures.items():
        cause = re.sub(rf"^(ChunkError: )?chunk {re.escape(chunk)} on [^\s:]+: ", "", error).replace(f", chunk {chunk}", "")
        causes.setdefault(cause, []).append(chunk)
    ordered = sorted(causes.items(), key=lambda item: -len(item[1]))
    lines = [f"{_listed(chunks)}: {cause}" for cause, chunks in ordered[:CAUSES]]
    rest = sum(len(chunks) for _, chunks in ordered[CAUSES:])
    return [*lines, f"{_chunks(rest)} for other reasons"] if rest else lines


def _listed(chunks: Sequence[str]) -> str:
    more = f" and {len(chunks) - CHUNKS} more" if len(chunks) > CHUNKS else ""
    return f"chunk{'s' * (len(chunks) != 1)} {', '.join(chunks[:CHUNKS])}{more}"


def _chunks(count: int) -> str:
    return f"{count} more chunk{'s' * (count != 1)}"


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
            why = "; ".join(describe_failures(self.failures))
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
