"""What rank processes do in tests of groups that fetch blocks."""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from landmark_batch.fetching import cache, peer_copies, regions
from landmark_batch.fetching import fetcher as fetching
from landmark_batch.fetching.choice import FetchChoice
from landmark_batch.fetching.fetcher import Fetcher
from landmark_batch.fetching.flight_blocks import FlightBlocks
from landmark_batch.fetching.route import Route
from landmark_batch.model import tiles
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.renderer import Renderer
from landmark_batch.parallel import renderer as renderer_module
from landmark_batch.parallel.group import RenderGroup
from landmark_batch.parallel.part import Part
from landmark_batch.parallel.parts import open_part
from landmark_batch.parallel.renderer import GroupRenderer
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore
from landmark_batch.workflows.group_renderer import shared_reads
from tests.fetching.flights import HEIGHT, LENS, POSES, WIDTH, make_settings, route_of
from tests.fetching.short_memory import Told, room_for
from tests.parallel.tasks import _kept

TILE = 2**13  # CPU_SAMPLES: six tiles a frame

Frame = tuple[dict[str, NDArray[np.float32]], dict[str, int]]


@dataclass(frozen=True)
class Flown:
    """Poses of `flights.POSES` over a store, in their order. slots: 0 holds the whole scene, without fetching.

    foresight: 'route' knows every frame's blocks, 'short' names one block for each, 'none' looks at each camera as it comes.
    scale: frames have as many times the rows and columns of `flights`. host: blocks that a rank's host memory holds; ranks share what
    they read from four on. cut: frames that need more blocks than there are slots are cut into regions, else they go through passes whole.
    pass_rays: what goes through passes together where that is cut; 0 for as much as usual. peers: seconds that GPUs wait for others that
    copy the same blocks, however small; 0 for as usual, which leaves blocks as small as these alone.
    """

    store: Path
    slots: int
    poses: tuple[int, ...]
    foresight: str = "route"
    settings: dict[str, Any] = field(default_factory=lambda: {"runtime": "torch"})
    threads: int = 1
    device: str = "cpu"
    in_flight: int = 1
    scale: int = 1
    host: int = 2
    cut: bool = True
    pass_rays: int = 0
    peers: float = 0.0

    def view(self, index: int) -> tuple[NDArray[np.float64], list[float], int, int]:
        """c2w, intrinsics, width, height."""
        return POSES[index], [value * self.scale for value in LENS], WIDTH * self.scale, HEIGHT * self.scale


def fly(rank: int, cases: list[Flown]) -> list[list[Frame]]:
    """All frames of all cases, on the leader; the others serve."""
    found = []
    for case in cases:
        small = mock.patch.object(cache, "LEAST_BYTES", 0) if case.peers else nullcontext()
        with small:
            renderer = _group_renderer(rank, case)
        frames: list[Frame] = []
        patience = mock.patch.object(peer_copies, "PATIENCE", case.peers or peer_copies.PATIENCE)
        whole = nullcontext() if case.cut else mock.patch.object(fetching, "frame_regions", return_value=[])
        with whole, patience, mock.patch.object(regions, "PASS_RAYS", case.pass_rays or regions.PASS_RAYS):
            if rank == 0:
                waiting: deque[Any] = deque()
                for index in case.poses:
                    waiting.append(renderer.begin(*case.view(index), frame=index))
                    while len(waiting) >= case.in_flight:
                        frames.append(_finished(waiting.popleft()))
                frames += [_finished(pending) for pending in waiting]
            else:
                renderer.serve()
            renderer.close()
        for thread in threading.enumerate():
            if thread.name.startswith("landmark-fetch"):
                thread.join(20)  # of a read that was under way
                assert not thread.is_alive(), "a closed group fetches on"
        found.append(frames)
    return found


def fly_short(rank: int, case: Flown, failing: int, room: int) -> tuple[list[Frame], int, list[str], list[int]]:
    """The frames of a case, on the leader, where one rank has no room for more than a few slots. And of each rank: its slots in the end,
    its warnings, and how many of the tables it gave back were still had by somebody then.
    """
    told = Told()
    logging.getLogger("landmark_batch").addHandler(told)
    parts: list[Part] = []
    opened = mock.patch.object(renderer_module, "open_part", lambda *given: parts.append(open_part(*given)) or parts[0])
    try:
        with room_for(room if rank == failing else case.slots) as kept, opened:
            frames = fly(rank, [case])[0]
    finally:
        logging.getLogger("landmark_batch").removeHandler(told)
    assert parts[0].fetcher is not None
    return frames, parts[0].fetcher.capacity, told.lines, kept


def fly_alone(case: Flown) -> list[Frame]:
    """The frames of a case by a renderer of one rank that holds the whole scene."""
    tiles.CPU_SAMPLES = TILE
    store = BlockStore.open(case.store)
    settings, weights = make_settings(store, **case.settings), load_scene(case.store)
    renderer: Any
    if (settings.runtime, case.device) == ("fused", "cuda"):
        renderer = FusedRenderer(weights, settings, case.device)
    else:
        renderer = Renderer(weights, settings, case.device, threads=case.threads)
    outputs = [renderer.render(*case.view(index)) for index in case.poses]
    return [(output.numpy(), output.counters) for output in outputs]


def _finished(pending: Any) -> Frame:
    output = pending.finish()
    return output.numpy(), output.counters


def _group_renderer(rank: int, case: Flown) -> GroupRenderer:
    tiles.CPU_SAMPLES = TILE
    group: RenderGroup = _kept["group"]
    shape = group.membership.shape
    shard = ChannelShard(shape.tensor_index(rank), shape.tensor) if shape.tensor > 1 else None
    device = torch.device(case.device, rank) if case.device == "cuda" else torch.device(case.device)
    store = BlockStore.open(case.store)
    settings = make_settings(store, **case.settings)
    if not case.slots:
        return GroupRenderer(group, load_scene(case.store, shard=shard), settings, device, threads=case.threads)
    block = store.block_bytes(settings.precision)
    choice, shared = shared_reads(FetchChoice("dynamic", "test", case.slots, case.host * block), block, group)
    fetcher = Fetcher(store, settings, device, choice, _route(rank, case, store, settings), shard=shard, shared=shared)
    return GroupRenderer(group, fetcher.base, settings, device, threads=case.threads, fetcher=fetcher)


def _route(rank: int, case: Flown, store: BlockStore, settings: Any) -> Route | None:
    if case.foresight == "none":
        return None
    if case.foresight == "short":
        count = len(POSES)
        return Route(FlightBlocks(np.arange(count + 1), np.zeros(count, np.int32), np.ones(count, np.int64), np.arange(count)))
    folder = case.store.parent / f"rank{rank}"
    folder.mkdir(exist_ok=True)
    return route_of(store, settings, folder, list(case.poses), case.scale)
