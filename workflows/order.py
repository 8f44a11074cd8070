"""JobOrder: what the driver of a job is told, as numbers and texts that travel; and the files by which a run is steered.

Steering goes through files in the run's folder inside the store: whoever can write the store can pause, continue or cancel its
job, from any host, without knowing the scheduler.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from landmark_batch.frames.resume import StoreState
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.builds import Build
from landmark_batch.workflows.machine import Placement
from landmark_batch.workflows.request import RenderRequest

if TYPE_CHECKING:
    from landmark_batch.frames.pictures import PictureOrder

STOP_FILE = "stop"  # chunks in hand are finished, no more begun
ABORT_FILE = "abort"  # the driver ends at once, without the chunks in hand
PAUSE_FILE = "pause"  # as stop, but the job waits until the file is gone; workers free their memory meanwhile


@dataclass(frozen=True)
class ExportOrder:
    """What a detached job exports beside its frames; see ExportSession.of_job."""

    images: bool = False
    video: bool = False
    allow_8bit: bool = False
    latest: bool = True

    @property
    def is_anything(self) -> bool:
        return self.images or self.video or self.latest


@dataclass(frozen=True)
class JobOrder:
    """One run of a job, ready to be driven: its store exists and holds nothing that the job would replace.

    run: id. chunk_frames: frames a task. placement: None on a cluster of its own. created, logged: whether the store was made for this
    run and the log was there before it. build: what frames are rendered on, where known. scheduler: address for those who attach.
    pictures: PNGs that workers may make for the exports of the process that gives the order.
    todo, state: the frames that it lacks while its state is this one; state None: they are to be found out.
    patience: seconds to wait for the store, which the process that gave the order, or a driver that died, may still hold.
    started: time.time() when the user asked.
    """

    run: str
    request: RenderRequest
    chunk_frames: int
    placement: Placement | None
    log: Path
    join: bool = False
    created: bool = False
    logged: bool = False
    warnings: tuple[str, ...] = ()
    build: Build | None = None
    scheduler: str | None = None
    dashboard: str | None = None
    exports: ExportOrder | None = None
    pictures: PictureOrder | None = None
    todo: tuple[int, ...] = ()
    state: StoreState | None = None
    patience: float = 10.0
    started: float = field(default_factory=time.time)

    @property
    def store(self) -> StorePath:
        return self.request.job.store_path


def is_set(folder: StorePath, *names: str) -> bool:
    """Whether one of a run's steering files is there."""
    return any((folder / name).is_file() for name in names)
