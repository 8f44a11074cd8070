"""What rank processes do in tests."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from landmark_batch.errors import GroupError
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.kernels import build
from landmark_batch.model import tiles
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.renderer import Renderer
from landmark_batch.parallel import tensor_frame
from landmark_batch.parallel.flight import PendingFrame
from landmark_batch.parallel.group import Membership, RenderGroup, Rendezvous
from landmark_batch.parallel.orders import render_order
from landmark_batch.parallel.parts import FusedTensorPart
from landmark_batch.parallel.renderer import GroupRenderer
from landmark_batch.parallel.shape import GroupShape
from landmark_batch.parallel.tensor_frame import TensorFrames
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.shard import ChannelShard, shard_weights
from landmark_batch.scene.weights import SceneWeights
from tests.factories import make_scene
from tests.model.conftest import POSES, settings_for
from tests.model.test_reference_frames import read_frames, settings_of

HOST = "127.0.0.1"
_kept: dict[str, Any] = {}


@dataclass(frozen=True)
class Case:
    """A scene of the factories, settings, frames (pose, width, height). tile: CPU_SAMPLES, small to have many tiles."""

    scene: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    frames: tuple[tuple[str, int, int], ...] = (("oblique", 37, 29),)
    tile: int = 2**12
    threads: int = 1
    runtime: str = "torch"
    device: str = "cpu"


def lens_of(width: int, height: int) -> tuple[float, float, float, float]:
    return width * 0.7, width * 0.7, width / 2, height / 2


def open_rendezvous(timeout: float = 30.0) -> int:
    torch.set_num_threads(1)
    _kept["rendezvous"] = Rendezvous.open(HOST, timeout)
    return int(_kept["rendezvous"].port)


def join(
    rank: int, port: int, shape: GroupShape, epoch: int, patience: float, timeout: float = 60, idle: float = 120, device: str = "cpu"
) -> None:
    """Form a group and keep it."""
    torch.set_num_threads(1)
    place = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if rank == 0:
        assert _kept["rendezvous"].port == port
    _kept["group"] = RenderGroup.form(
        Membership("tests", "g0", epoch, rank, shape),
        HOST,
        port,
        device=place,
        rendezvous_timeout=patience,
        timeout=timeout,
        idle_timeout=idle,
        rendezvous=_kept["rendezvous"] if rank == 0 else None,
    )


def leave(rank: int) -> None:
    _kept.pop("group").close()


def scene_of(case: Case) -> SceneWeights:
    return make_scene(**case.scene)


def share_of(weights: SceneWeights, rank: int, shape: GroupShape) -> SceneWeights:
    return shard_weights(weights, ChannelShard(shape.tensor_index(rank), shape.tensor)) if shape.tensor > 1 else weights


def renderer_of(rank: int, case: Case, weights: SceneWeights | None = None, outputs: Sequence[OutputSpec] | None = None) -> GroupRenderer:
    group: RenderGroup = _kept["group"]
    tiles.CPU_SAMPLES = case.tile
    weights = scene_of(case) if weights is None else weights
    settings = replace(settings_for(weights.config, **case.settings), runtime=case.runtime)
    place = torch.device(case.device, rank) if case.device == "cuda" else torch.device(case.device)
    share = share_of(weights, rank, group.membership.shape)
    return GroupRenderer(group, share, settings, place, threads=case.threads, outputs=outputs)


def render(rank: int, cases: list[Case]) -> list[list[tuple[dict[str, NDArray[np.float32]], dict[str, int]]]]:
    """All frames of all cases, on the leader; the others serve."""
    results = []
    for case in cases:
        renderer = renderer_of(rank, case)
        frames = []
        if rank == 0:
            for name, width, height in case.frames:
                output = renderer.render(POSES[name], lens_of(width, height), width, height)
                frames.append((output.numpy(), output.counters))
        else:
            renderer.serve()
        renderer.close()
        results.append(frames)
    return results


def render_in_flight(rank: int, case: Case, outputs: tuple[OutputSpec, ...]) -> list[Any]:
    """All frames of a case in the outputs' dtypes, each begun before the one before it is finished; then the first one's floats, and
    one begun and never asked for.
    """
    renderer = renderer_of(rank, case, outputs=outputs)
    if rank:
        renderer.serve()
        renderer.close()
        return []
    views = [(POSES[name], lens_of(width, height), width, height) for name, width, height in case.frames]
    waiting: deque[PendingFrame[Any]] = deque()
    frames: list[Any] = []
    for index, view in enumerate([*views, None]):
        if view is not None:
            waiting.append(renderer.begin(*view))
        if view is None or index:
            frame = waiting.popleft().finish()
            width, height = views[len(frames)][2:]
            into = {}
            for output in outputs:
                shape = (height, width) if output.channels is None else (height, width, output.channels)
                into[output.name] = np.zeros(shape, output.dtype)
            lent = frame.quantised(outputs, frame=len(frames))
            frame.quantised(outputs, frame=len(frames), into=into)
            assert all(np.array_equal(lent[name], array) for name, array in into.items())
            frames.append((into, frame.counters))
    exact = renderer.render(*views[0], floats=True).numpy()
    renderer.begin(*views[0])
    renderer.close()
    return [*frames, exact]


def render_batches(rank: int, case: Case, ways: tuple[tuple[bool, int], ...]) -> list[Any]:
    """All frames of a case by fused kernels over tensor ranks, each way of exchange (padded, batches) twice."""
    results: list[Any] = []
    renderer = renderer_of(rank, case)
    part = renderer._part
    assert isinstance(part, FusedTensorPart)
    tensor_frame.BATCH_RAYS = 1024
    for padded, batches in ways:
        part._frames = TensorFrames(part._frames._stages, part._exchange, padded=padded, batches=batches)
        for name, width, height in (*case.frames, *case.frames):
            order = render_order(1, 1, POSES[name], lens_of(width, height), width, height)
            with renderer._computing():
                sums = part.render(order)
                results.append([value.cpu().numpy() for value in (sums.rgb, sums.depth, sums.alpha)])
    return results


def watch_and_wait(rank: int) -> str:
    """Wait until the watch tells of a loss."""
    lost = threading.Event()
    told: list[str] = []

    def tell(error: GroupError) -> None:
        told.append(error.message)
        lost.set()

    _kept["group"].watch(tell)
    return told[0] if lost.wait(30) else "nothing"


def watch(rank: int) -> None:
    _kept["lost"] = []
    _kept["group"].watch(lambda error: _kept["lost"].append(error.message))


def watched(rank: int) -> list[str]:
    time.sleep(0.2)
    return list(_kept["lost"])


def broadcast(rank: int) -> None:
    """What `count_while_waiting` waits for."""
    _kept["group"].control.broadcast(torch.ones(1)).wait()


def count_while_waiting(rank: int, marker: Path) -> int:
    """Wait for rank 0's broadcast. Returns how often another thread had its turn meanwhile. marker: there when the waiting begins."""
    group: RenderGroup = _kept["group"]
    inside, over = threading.Event(), threading.Event()
    turns: list[bool] = []

    def count() -> None:
        while not over.is_set():
            time.sleep(0.005)
            turns.append(inside.is_set())

    counter = threading.Thread(target=count)
    counter.start()
    work = group.control.broadcast(torch.ones(1))
    inside.set()
    marker.touch()
    work.wait()
    inside.clear()
    over.set()
    counter.join()
    return sum(turns)


def end(rank: int) -> None:
    os._exit(9)


def load_kernels(rank: int, folder: str) -> None:
    """The compiled CPU kernels of a folder, for this process's fused runtime."""
    torch.set_num_threads(1)
    assert build.load("cpu", prebuilt=Path(folder)).loaded


def render_alone(cases: list[Case]) -> list[list[tuple[dict[str, NDArray[np.float32]], dict[str, int]]]]:
    """All frames of all cases by the renderer of one rank."""
    results = []
    for case in cases:
        tiles.CPU_SAMPLES = case.tile
        weights = scene_of(case)
        settings = replace(settings_for(weights.config, **case.settings), runtime=case.runtime)
        kind = FusedRenderer if (case.runtime, case.device) == ("fused", "cuda") else Renderer
        renderer = kind(weights, settings, case.device)
        outputs = [renderer.render(POSES[name], lens_of(w, h), w, h) for name, w, h in case.frames]
        results.append([(output.numpy(), output.counters) for output in outputs])
    return results


def render_checkpoint(rank: int, checkpoint: Path, name: str, reference: Path, width: int, height: int, shape: GroupShape | None) -> Any:
    """The first reference frame's view, smaller, by the group, or by this rank alone; each rank reads its channels of the file."""
    torch.set_num_threads(1)
    tiles.CPU_SAMPLES = 2**18
    meta, arrays = read_frames(reference, name)
    shard = ChannelShard(shape.tensor_index(rank), shape.tensor) if shape is not None and shape.tensor > 1 else None
    weights = load_scene(checkpoint, shard=shard)
    settings = settings_of(meta, weights.config)
    focal = meta["focal"] * width / meta["W"]
    view = (arrays["poses"][0], (focal, focal, width / 2, height / 2), width, height)
    if shape is None:
        return Renderer(weights, settings, threads=1).render(*view).numpy()
    renderer = GroupRenderer(_kept["group"], weights, settings)
    output = renderer.render(*view).numpy() if rank == 0 else renderer.serve()
    renderer.close()
    return output


def three_frames(renderer: GroupRenderer, view: tuple[Any, ...]) -> list[str]:
    """On the leader: two frames in flight, then a third. What came of each: a type's name, or why the third was refused."""
    told = []
    for pending in [renderer.begin(*view), renderer.begin(*view)]:
        try:
            told.append(type(pending.finish()).__name__)
        except Exception as error:  # noqa: BLE001
            told.append(type(error).__name__)
    try:
        renderer.begin(*view).finish()
    except GroupError as error:
        told.append(error.message)
    renderer.close()
    return told
