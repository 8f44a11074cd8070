"""Ranks that fetch blocks for the CUDA kernels' ops, here their references: in threads of one process, in passes, by regions or whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from landmark_batch.fetching.choice import FetchChoice
from landmark_batch.fetching.fetcher import Fetcher
from landmark_batch.fetching.flight_blocks import FlightBlocks
from landmark_batch.fetching.route import Route
from landmark_batch.kernels import fused
from landmark_batch.kernels.reference.field import sample_blocks
from landmark_batch.parallel import part, share, tensor_frame
from landmark_batch.parallel.orders import render_order
from landmark_batch.parallel.parts import FusedTensorPart, RayPart, Sums
from landmark_batch.parallel.regions import RegionRule
from landmark_batch.parallel.shape import GroupShape
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore
from tests.fetching.flights import HEIGHT, LENS, POSES, WIDTH, make_settings, route_of, write_store
from tests.fetching.short_memory import room_for
from tests.kernels.conftest import one_thread
from tests.parallel.test_stages import Board, BoardChannel

__all__ = ["one_thread"]

CPU = torch.device("cpu")
FLIGHT = (1, 2)  # steep, flat
TENSOR, DATA = GroupShape(2, 1), GroupShape(1, 2)
CHANNELS = {"density_channels": 16, "appearance_channels": 16}  # whole octets a rank: slots are only filled up to them on a GPU


def with_zeros(tables: list[Tensor]) -> list[Tensor]:
    """A slot of zeros at the end."""
    return [torch.cat([table, torch.zeros_like(table[:1])]) for table in tables]


@pytest.fixture
def kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the CUDA kernels make of a sample in an absent block: 0, and a count in the status."""
    march, features = fused.march_density, fused.features

    def march_density(*given: Any, **cut: Any) -> Any:
        *before, box, division, slots, planes, lines, resolutions, basis, capacity = given
        if slots is None:
            return march(*given, **cut)
        filled = slots.where(slots >= 0, planes[0].shape[0])
        found = march(*before, box, division, filled, with_zeros(planes), with_zeros(lines), resolutions, basis, capacity, **cut)
        count = min(capacity, int(found[6][0]))
        block = sample_blocks(given[0], found[0][:count], found[1][:count], box, division, cut=bool(cut))
        found[6][2] = ((block >= 0) & (slots[block.clamp(min=0)] < 0)).sum()
        return found

    def all_features(rays: Tensor, rows: Tensor, count: int, *given: Any, **cut: Any) -> Tensor:
        box, division, slots, planes, lines, *rest = given
        if slots is not None:
            slots, planes, lines = slots.where(slots >= 0, planes[0].shape[0]), with_zeros(planes), with_zeros(lines)
        found: Tensor = features(rays, rows, count, box, division, slots, planes, lines, *rest, **cut)
        return found

    monkeypatch.setattr(fused, "march_density", march_density)
    monkeypatch.setattr(fused, "features", all_features)
    monkeypatch.setattr(share, "MACRO", (8, 4))
    monkeypatch.setattr(tensor_frame, "BATCH_RAYS", 300)  # two batches a frame


@pytest.fixture(scope="module", params=["blocks", "cut"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("fused"), request.param, **CHANNELS)[1]


def fly(path: Path, folder: Path, slots: int, *, short: bool = False, shape: GroupShape = TENSOR) -> list[list[Sums]]:
    """The sums of each of two ranks, frame by frame. slots: 0 for the whole scene. short: one block is foreseen for each frame."""
    store, board = BlockStore.open(path), Board(2)
    settings = make_settings(store, runtime="torch")

    def rank(index: int) -> list[Sums]:
        torch.set_num_threads(1)
        shard = ChannelShard(index, 2) if shape.tensor > 1 else None
        channel = BoardChannel(board, index, 2)
        group: Any = SimpleNamespace(
            rank=index, membership=SimpleNamespace(shape=shape, data_index=shape.data_index(index)), tensor=channel
        )
        fetcher = None
        if slots:
            count = len(POSES)
            flight = FlightBlocks(np.arange(count + 1), np.zeros(count, np.int32), np.ones(count, np.int64), np.arange(count))
            own = folder / f"{index}"
            own.mkdir(exist_ok=True)
            route = Route(flight) if short else route_of(store, settings, own, list(FLIGHT))
            choice = FetchChoice("dynamic", "test", slots, 2 * store.block_bytes("fp32"))
            fetcher = Fetcher(store, settings, CPU, choice, route, shard=shard)
        weights = fetcher.base if fetcher is not None else load_scene(path, shard=shard)
        kind = FusedTensorPart if shape.tensor > 1 else RayPart
        part = kind(group, weights, settings, CPU, 1, fetcher, None)
        try:
            with torch.inference_mode():
                return [part.render(render_order(1, 1, POSES[i], LENS, WIDTH, HEIGHT, frame=i)) for i in FLIGHT]
        except BaseException:
            board.barrier.abort()
            raise
        finally:
            part.close()

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(rank, index) for index in range(2)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]


@pytest.mark.usefixtures("one_thread", "kernels_of_a_gpu")
def test_any_number_of_slots_gives_the_bits_of_the_whole_scene(store: Path, tmp_path: Path) -> None:
    """Also where only one block of a frame was foreseen: it is met without passes, and then takes passes."""
    resident = fly(store, tmp_path, 0)
    assert sum(sums.counters["coloured"] for sums in resident[0]) > 100
    for slots, short in ((1, False), (2, True)):
        for found, wanted in zip(fly(store, tmp_path, slots, short=short), resident, strict=True):
            for got, want in zip(found, wanted, strict=True):
                for name in ("rgb", "depth", "alpha"):
                    assert torch.equal(getattr(got, name), getattr(want, name)), (name, slots, short)
                for name in ("rays", "survived", "coloured"):
                    assert got.counters[name] == want.counters[name]
            assert sum(got.counters["fetch_loads"] for got in found) >= 6


@pytest.mark.parametrize("shape", [TENSOR, DATA], ids=["TP 2", "DP 2"])
@pytest.mark.usefixtures("one_thread", "kernels_of_a_gpu")
def test_regions_give_the_bits_of_the_whole_scene(store: Path, tmp_path: Path, shape: GroupShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares of rays that regions cut, regions in which a rank has no ray, regions in passes; buffers that must grow in one."""
    resident = fly(store, tmp_path, 0, shape=shape)
    monkeypatch.setattr(part, "region_rule", lambda *_: RegionRule((4, 4), 16))
    monkeypatch.setattr(tensor_frame, "LEAST_ROOM", 16)
    seen: list[bool] = []
    for kind in (FusedTensorPart, RayPart):

        def sums(self: Any, order: Any, region: Any = None, render: Any = kind.sums) -> Sums:
            found: Sums = render(self, order, region)
            seen.append(found.alpha.shape[0] > 0)
            return found

        monkeypatch.setattr(kind, "sums", sums)
    for found, wanted in zip(fly(store, tmp_path, 4, shape=shape), resident, strict=True):
        for got, want in zip(found, wanted, strict=True):
            for name in ("rgb", "depth", "alpha"):
                assert torch.equal(getattr(got, name), getattr(want, name)), name
            assert {name: got.counters[name] for name in ("rays", "samples", "survived", "coloured")} == {
                name: want.counters[name] for name in ("rays", "samples", "survived", "coloured")
            }
            assert got.counters["fetch_loads"] > 0
    assert len(seen) > 8, "frames were cut"
    assert shape == DATA or not all(seen), "a tensor rank without a ray takes part"


@pytest.mark.usefixtures("one_thread", "kernels_of_a_gpu")
def test_data_ranks_out_of_memory_take_fewer_slots(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of the old tables is left when others are made."""
    resident = fly(store, tmp_path, 0, shape=DATA)
    with room_for(2) as kept:
        found = fly(store, tmp_path, 4, shape=DATA)
    for frames, wanted in zip(found, resident, strict=True):
        for got, want in zip(frames, wanted, strict=True):
            for name in ("rgb", "depth", "alpha"):
                assert torch.equal(getattr(got, name), getattr(want, name)), name
    told = sorted(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert told == [f"rank {rank}: out of GPU memory with 4 slots: 2 from here on, with the same pixels" for rank in range(2)]
    assert kept == [0, 0]
