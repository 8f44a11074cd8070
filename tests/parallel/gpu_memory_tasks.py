"""What two rank processes do in tests of a GPU that is out of memory while its slots are open in the other. Importing it touches no GPU."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from landmark_batch.fetching import cache, peer_copies, transit
from landmark_batch.fetching.choice import FetchChoice
from landmark_batch.fetching.fetcher import Fetcher
from landmark_batch.fetching.shared_reads import SharedReads
from landmark_batch.fetching.slots import SlotTables
from landmark_batch.fetching.transit import Offer
from landmark_batch.model.renderer import full_precision
from landmark_batch.parallel.orders import render_order
from landmark_batch.parallel.parts import RayPart
from landmark_batch.parallel.shape import GroupShape
from landmark_batch.scene.store import BlockStore
from tests.fetching.flights import HEIGHT, LENS, POSES, WIDTH, make_settings, route_of
from tests.fetching.short_memory import Told, fill_memory

FLIGHT = (0, 2, 0)
HOST_BLOCKS = 24
BATCH = 2**24  # bytes for the rays in hand
PATIENCE = 20.0
KEPT: dict[str, Any] = {}


def make_settings_of(store: BlockStore) -> Any:
    return make_settings(store, runtime="fused", precision="fp16")


def offer(rank: int, path: Path, root: Path) -> Offer:
    """What this rank gives of its memory for blocks that both read."""
    transit.MEMORY = root
    block = BlockStore.open(path).block_bytes("fp16")
    place, found = transit.make_offer(HOST_BLOCKS * block, block, 2)
    KEPT["root"] = place
    return found


def open_part(rank: int, path: Path, folder: Path, devices: Sequence[int], hide: bool, slots: int, offers: Sequence[Offer]) -> None:
    """After `offer`: a data rank of two. devices: their GPUs; hide: each sees its own alone."""
    device = torch.device("cuda", devices[rank])
    if hide:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(devices[rank])
        device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    own = folder / f"rank{rank}"
    own.mkdir()
    store, shape = BlockStore.open(path), GroupShape(1, 2)
    settings = make_settings_of(store)
    shared = SharedReads.join(KEPT["root"], offers, rank)
    assert shared is not None
    choice = FetchChoice("dynamic", "test", slots, HOST_BLOCKS * store.block_bytes("fp16"))
    with mock.patch.object(cache, "LEAST_BYTES", 0):
        fetcher = Fetcher(store, settings, device, choice, route_of(store, settings, own, [*FLIGHT]), shared=shared)
    group: Any = SimpleNamespace(rank=rank, membership=SimpleNamespace(shape=shape, data_index=rank))
    KEPT["part"] = RayPart(group, fetcher.base, settings, device, 1, fetcher, BATCH)


def render(rank: int, index: int, scale: int, patience: float = 0.001) -> tuple[dict[str, NDArray[np.float32]], dict[str, int]]:
    """This rank's pixels of a frame and what it counted. patience: seconds that it waits for the other, where both load the same blocks."""
    lens, size = [value * scale for value in LENS], (WIDTH * scale, HEIGHT * scale)
    order = render_order(1, 1, POSES[index], lens, *size, frame=index)
    with torch.inference_mode(), full_precision(), mock.patch.object(peer_copies, "PATIENCE", patience):
        sums = KEPT["part"].render(order)
    return {name: getattr(sums, name).cpu().numpy() for name in ("rgb", "depth", "alpha")}, sums.counters


def keep_open(rank: int, seconds: float) -> None:
    """Let go of nothing of the other's for so long. Returns when that has begun."""
    copies = KEPT["part"].fetcher._cache._copies._peers
    assert copies._open, "the other's slots are not open here"
    begun = threading.Event()

    def keep() -> None:
        with copies._lock:
            begun.set()
            time.sleep(seconds)

    threading.Thread(target=keep, daemon=True).start()
    assert begun.wait(10)


def fill(rank: int, scale: int) -> None:
    """Leave no byte of the device, nor any from here on but what the slots give back. scale: of the frames that come then."""
    KEPT["part"].row_pixels(SimpleNamespace(width=WIDTH * scale, height=HEIGHT * scale), None)  # kept for all frames of a size
    KEPT["hogs"] = fill_memory(torch.device("cuda", torch.cuda.current_device()))


def render_full(rank: int, index: int, scale: int) -> tuple[dict[str, NDArray[np.float32]], list[str], int]:
    """`render` after `fill`: the pixels, the warnings, and how often tables were asked for."""
    told, logger, asked = Told(), logging.getLogger("landmark_batch"), list[int]()
    allocate = SlotTables.allocate

    def counted(self: SlotTables, count: int) -> None:
        asked.append(count)
        allocate(self, count)

    logger.addHandler(told)
    try:
        with mock.patch.object(SlotTables, "allocate", counted):
            pixels, _ = render(rank, index, scale)
    finally:
        logger.removeHandler(told)
    return pixels, told.lines, len(asked)


def capacity(rank: int) -> int:
    return int(KEPT["part"].fetcher.capacity)


def close(rank: int) -> None:
    KEPT.pop("part").close()
