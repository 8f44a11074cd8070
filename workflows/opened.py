"""A run as a worker finds it: its snapshot, its store, the proof that this host sees what the others see, its trace."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import CheckpointError, LandmarkError
from landmark_batch.frames.fingerprint import FrameSettings
from landmark_batch.frames.store import FrameStore
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.snapshot import JobSnapshot, read_snapshot

if TYPE_CHECKING:
    from landmark_batch.model.timeline import Timeline

_SAME_PATHS = "every worker needs the store and the scene at the same paths, on a shared file system"


@dataclass(frozen=True)
class OpenedRun:
    """A run as a worker finds it. poses: [F, 3, 4] camera to world; lenses: [F, 4] fl_x, fl_y, cx, cy in pixels.

    settings: what frames' fingerprints cover beside these.
    """

    snapshot: JobSnapshot
    store: FrameStore
    settings: FrameSettings
    poses: NDArray[np.float64]
    lenses: NDArray[np.float64]


def open_timeline(snapshot: JobSnapshot, worker: str) -> Timeline | None:
    """The trace of this process, recording from now on, where the run asks for one. Raises ConfigError where it cannot be written."""
    if not snapshot.renderer.get("profile"):
        return None
    from landmark_batch.model.timeline import Timeline, trace_path

    timeline = Timeline(trace_path(Path(snapshot.log), worker.rpartition("/")[2]), worker)
    timeline.__enter__()
    return timeline


def prove_scene(snapshot: JobSnapshot) -> None:
    """Raises CheckpointError naming host and path where the scene here is not the job's."""
    job = snapshot.render_job()
    if not snapshot.scene or job.scene.checkpoint is None:
        return
    from landmark_batch.scene.identity import scene_digest

    host = socket.gethostname()
    try:
        found = scene_digest(job.scene.checkpoint, edit=job.scene.edit, edit_block=job.scene.edit_block)
    except LandmarkError as error:
        raise CheckpointError(f"worker host {host}: {error.message}", remedy=_SAME_PATHS) from None
    if found != snapshot.scene:
        raise CheckpointError(
            f"worker host {host}: {job.scene.checkpoint} is another scene than the job's (digest {found[:12]}, not {snapshot.scene[:12]})",
            remedy=_SAME_PATHS,
        )


def open_snapshot(folder: StorePath) -> OpenedRun:
    """A run's snapshot and store, and the proof that this host sees what the others see.

    Raises StoreError or CheckpointError naming host and path where it does not.
    """
    snapshot, arrays = read_snapshot(folder)
    prove_scene(snapshot)
    contents: dict[bytes, bytes] = {}
    if "seen_by" in arrays:
        contents = {key.tobytes(): value.tobytes() for key, value in zip(arrays["seen_by"], arrays["seen_content"], strict=True)}
    settings = FrameSettings(snapshot.settings, contents)
    return OpenedRun(snapshot, FrameStore.open(snapshot.store), settings, arrays["c2w"], arrays["intrinsics"])
