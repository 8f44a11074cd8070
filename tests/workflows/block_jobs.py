"""A small scene in six blocks, a flight that jumps over them, and jobs that hold two of the blocks at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch

from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.paths import orbit_flight
from landmark_batch.cameras.write import write_transforms
from landmark_batch.job import RenderJob, job_from_dict
from landmark_batch.scene.convert import convert_scene
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.scene.store import BlockStore
from landmark_batch.scene.weights import SceneWeights
from landmark_batch.workflows.request import RenderRequest, scene_request
from tests.factories import make_scene
from tests.fetching.flights import look_at
from tests.workflows.conftest import BOX

WIDTH, HEIGHT, FRAMES = 24, 16, 26
DIVISION = (2, 3)
HIGH = (12, 25)  # frames that see the whole scene: more blocks than two slots hold
SLOTS = ("fetching.mode=dynamic", "fetching.gpu_blocks=2")


def town(changed: int | None = None) -> SceneWeights:
    """Six blocks of their own planes. changed: one whose density is another."""
    scene = make_scene(seed=3, division=DIVISION)
    if changed is None:
        return scene
    planes = tuple(torch.cat([p[:changed], p[changed : changed + 1] + 0.7, p[changed + 1 :]]) for p in scene.density_planes)
    return replace(scene, density_planes=planes)


def write_town(folder: Path, name: str = "town", changed: int | None = None) -> tuple[Path, Path]:
    """(checkpoint, block store) of `town`; the store replaces one that stands there."""
    (checkpoint,) = save_landmark_checkpoint(town(changed), folder / f"{name}-merged-stack.th")
    convert_scene(checkpoint, folder / f"{name}.zarr", force=True)
    return checkpoint, folder / f"{name}.zarr"


def jumping_flight() -> Flight:
    """Steep views of a block or two each, from block to block across the map, and two of the whole scene."""
    low, high = np.array(BOX[0])[:2], np.array(BOX[1])[:2]
    poses = []
    for frame in range(FRAMES):
        block = (frame // 2 * 5 + frame // 12) % 6
        share = (np.array(divmod(block, DIVISION[1])) + 0.5 + 0.1 * (frame % 2)) / DIVISION
        x, y = (low + share * (high - low)).tolist()
        poses.append(look_at((x, y, 1.3 + frame / 1000), (x + 0.02, y - 0.01, 0.0)))
    for frame in HIGH:
        poses[frame] = look_at((0.1, 0.05, 2.2 + frame / 1000), (0.12, 0.06, 0.0))
    plain = orbit_flight(BOX, width=WIDTH, height=HEIGHT, frames=FRAMES, fps=24)
    lenses = np.tile([60.0, 60.0, WIDTH / 2, HEIGHT / 2], (FRAMES, 1))
    for frame in HIGH:
        lenses[frame, :2] = 18.0
    return replace(plain, c2w=np.stack(poses), intrinsics=lenses)


def write_flight(folder: Path) -> Path:
    return write_transforms(jumping_flight(), folder / "flight.json")


def block_job(scene: Path | str, cameras: Path, store: Path, *overrides: str) -> RenderJob:
    """Two workers on the CPU, chunks of two frames."""
    values = {
        "name": "town",
        "scene": {"checkpoint": str(scene)},
        "cameras": {"file": str(cameras)},
        "sampling": {"samples": 24, "far": 3.0, "near": 0.2},
        "model": {"runtime": "torch"},
        "parallel": {"device": "cpu", "workers": 2},
        "output": {"store": str(store), "chunk_frames": 2},
    }
    return job_from_dict(values, overrides)


def request_of(job: RenderJob) -> RenderRequest:
    from landmark_batch.workflows.machine import describe_machine

    return scene_request(job, "cpu", describe_machine())


def frames_with(job: RenderJob, block: int) -> list[int]:
    """Frames of the job's flight that can see a block."""
    blocks = request_of(job).blocks
    assert blocks is not None
    return [frame for frame in range(FRAMES) if block in blocks.seen.of(frame)]


def plane_file(store: Path, block: int) -> Path:
    """The file of a block's finest appearance plane."""
    opened = BlockStore.open(store)
    return Path(opened.where(block, opened.tables[-1]))


@dataclass
class Server:
    """url: of the folder. busy: paths (their ends) that are answered with 503 so many times. asked: paths, in order."""

    url: str = ""
    busy: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=Lock)

    def refuses(self, path: str) -> bool:
        with self.lock:
            self.asked.append(path)
            for part, left in self.busy.items():
                if path.endswith(part) and left:
                    self.busy[part] = left - 1
                    return True
            return False


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """A folder behind http://127.0.0.1."""
    found = Server()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if found.refuses(self.path):
                self.send_error(503)
            else:
                super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
