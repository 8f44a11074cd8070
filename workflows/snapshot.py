"""JobSnapshot: what workers need to know of a job, written once beside the frames; every worker process reads it itself."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import StoreError
from landmark_batch.frames.durable import remove_tree
from landmark_batch.frames.layout import StoreLayout
from landmark_batch.frames.process import ProcessIdentity, this_process
from landmark_batch.job import RenderJob, job_from_dict
from landmark_batch.object_path import StorePath, as_store_path

if TYPE_CHECKING:
    from landmark_batch.fetching.flight_blocks import FlightBlocks

_FOLDER = "runs"
_JSON = "snapshot.json"
_FLIGHT = "flight.npz"
SEEN_FILE = "seen.npz"  # of a scene in blocks: which of them each frame can see
ROUTE_FILE = "route.npz"  # in which order frames go out


@dataclass(frozen=True)
class JobSnapshot:
    """One run of a job. run: its id. job: the resolved job. settings: what the frames' fingerprints cover beside the pose.

    renderer: which renderer the workers use, 'scene' or one of the benches', and its arguments.
    device: 'cuda' or 'cpu', or 'auto' where each worker looks for itself. threads: of a worker on a CPU.
    generation: of the job that holds the store; commits are refused once it has ended. scheduler: for those who attach, '' for none
    that others reach. scene: content digest that every worker must find at its own place, '' where there is no scene.
    log: of the job; traces lie beside it. pictures: of a PictureOrder, None where no PNGs are asked of workers.
    """

    run: str
    job: dict[str, Any]
    settings: dict[str, Any]
    store: str
    device: str
    threads: int
    generation: int
    scheduler: str | None = None
    scene: str = ""
    log: str = ""
    renderer: dict[str, Any] = field(default_factory=lambda: {"kind": "scene"})
    pictures: dict[str, Any] | None = None
    process: dict[str, Any] = field(default_factory=lambda: this_process().as_dict())
    at: float = field(default_factory=time.time)

    def render_job(self) -> RenderJob:
        return job_from_dict(self.job, source="job snapshot")


def _folder(store: StorePath) -> StorePath:
    return StoreLayout(store).hidden / _FOLDER


def run_folder(store: StorePath, run: str) -> StorePath:
    """Where the snapshot and the steering files of a run lie, inside its store."""
    return _folder(store) / run


def new_run_id() -> str:
    """Eight hexadecimal digits, new for each run of a job."""
    return secrets.token_hex(4)


def write_snapshot(
    snapshot: JobSnapshot, flight: Flight, *, seen: FlightBlocks | None = None, contents: Mapping[bytes, bytes] | None = None
) -> StorePath:
    """Write a run's folder inside its store. Returns the folder. seen, contents: blocks of the flight's frames and what their
    fingerprints say of them (FrameSettings.contents), of a scene in blocks.

    Raises StoreError where it cannot be written."""
    folder = _folder(as_store_path(snapshot.store)) / snapshot.run
    try:
        folder.mkdir(parents=True)
        with (folder / _FLIGHT).open("wb") as file:
            arrays = {"c2w": flight.c2w, "intrinsics": flight.intrinsics, "size": np.array([flight.width, flight.height])}
            if contents:
                keys, values = b"".join(contents), b"".join(contents.values())
                arrays |= {"seen_by": _rows(keys, len(contents)), "seen_content": _rows(values, len(contents))}
            np.savez(file, **arrays)  # type: ignore[arg-type]
        if seen is not None:
            seen.save(folder / SEEN_FILE)
        (folder / _JSON).write_text(json.dumps(asdict(snapshot)), encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot write the job's snapshot: {error}", remedy="check the permissions and the disk of the store"
        ) from None
    return folder


def _rows(data: bytes, count: int) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(count, -1)


def read_snapshot(folder: StorePath) -> tuple[JobSnapshot, Mapping[str, Any]]:
    """What `write_snapshot` wrote: the snapshot and its arrays c2w [F, 3, 4], intrinsics [F, 4], size (width, height), and for a
    scene in blocks seen_by, seen_content [N, bytes] uint8: the keys and values of contents.

    Raises StoreError naming host and folder where it is not to be seen from here.
    """
    try:
        snapshot = JobSnapshot(**json.loads((folder / _JSON).read_text(encoding="utf-8")))
        with (folder / _FLIGHT).open("rb") as file, np.load(file) as arrays:
            return snapshot, {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise StoreError(
            f"worker host {socket.gethostname()} does not see {error.filename}",
            remedy="every worker needs the store and the scene at the same paths, on a shared file system",
        ) from None


def remove_snapshot(folder: StorePath) -> None:
    """Remove a run's folder, and the folder of all runs if it was the last one."""
    remove_tree(folder)
    try:
        if isinstance(folder, Path):
            folder.parent.rmdir()
    except OSError:
        pass  # another run stands in it


def live_snapshots(store: StorePath) -> list[tuple[StorePath, JobSnapshot]]:
    """(folder, snapshot) of the runs that write `store` now, the newest last."""
    found = []
    for folder in _folder(store).glob("*"):
        try:
            snapshot = JobSnapshot(**json.loads((folder / _JSON).read_text(encoding="utf-8")))
            if not ProcessIdentity(**snapshot.process).is_dead():
                found.append((folder, snapshot))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being written, or removed
    return sorted(found, key=lambda item: item[1].at)


def remove_dead_snapshots(store: StorePath) -> None:
    """Remove the folders of runs whose process is certainly dead."""
    for folder in _folder(store).glob("*"):
        try:
            told = json.loads((folder / _JSON).read_text(encoding="utf-8"))
            dead = ProcessIdentity(**told["process"]).is_dead()
        except (OSError, ValueError, KeyError, TypeError):
            dead = True  # cut short while it was written
        if dead:
            remove_snapshot(folder)
