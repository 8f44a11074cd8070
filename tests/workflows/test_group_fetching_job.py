"""A job on a real render group whose ranks fetch their channels of blocks, and how tensor ranks agree on what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from landmark_batch.commands.render import _fetched
from landmark_batch.events import ChunkDone, Event
from landmark_batch.fetching.choice import FetchChoice, SceneSize, choose_fetching
from landmark_batch.scene.store import BlockStore
from landmark_batch.workflows import machine
from landmark_batch.workflows.fetch_plan import fetch_report
from landmark_batch.workflows.group_renderer import agreed_choice, shared_reads
from landmark_batch.workflows.plan import make_plan
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.slot_limit import SlotLimit
from tests.workflows.block_jobs import HIGH, SLOTS, block_job, write_flight, write_town
from tests.workflows.conftest import executions, pixels

FRAMES = 8
PAIR = ("parallel.tensor_parallel=2", f"cameras.frames=0-{FRAMES - 2},{HIGH[0]}")  # one of them sees more than two slots hold
MIB = 2**20


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two worker processes: one group of TP 2."""
    from landmark_batch.workflows.cluster import start_cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        cluster = start_cluster(machine.Placement("cpu", 2, (), "CPU"), dashboard=False)
        yield cluster.address
        cluster.close()


@pytest.mark.timeout(240)
def test_a_group_with_two_slots_writes_the_bytes_of_one_with_the_whole_scene(tmp_path: Path, scheduler: str) -> None:
    _, scene = write_town(tmp_path)
    town = 6 * sum(table.height * table.width * table.channels for table in BlockStore.open(scene).tables) * 4
    flight = write_flight(tmp_path)
    events: list[Event] = []
    jobs = {
        mode: block_job(tmp_path / "town.zarr", flight, tmp_path / f"{mode}-frames.zarr", *PAIR, *options)
        for mode, options in (("resident", ("fetching.mode=resident",)), ("dynamic", SLOTS))
    }
    results = {mode: run_render(job, scheduler=scheduler, sinks=[events.append]) for mode, job in jobs.items()}
    for mode, result in results.items():
        assert (result.state, result.rendered) == ("complete", FRAMES)
        assert set(executions(jobs[mode].store_path).values()) == {1}
    assert pixels(jobs["dynamic"].store_path) == pixels(jobs["resident"].store_path)
    assert {event.worker.partition("(")[0] for event in events if isinstance(event, ChunkDone)} == {"g0"}
    assert "fetch_loads" not in results["resident"].counters
    counted = results["dynamic"].counters
    assert counted["fetch_loads"] >= 12, "the six blocks, by each of two ranks"
    read, shared = counted["fetch_bytes_read"], counted["fetch_bytes_shared"]
    assert read >= town and shared > 0
    assert (read + shared) % (town // 6) == 0 and read + shared >= 2 * town, "each rank has had whole blocks, from the store or the other"
    assert "from a neighbour" in _fetched(results["dynamic"])
    assert counted["survived"] == results["resident"].counters["survived"] > 0


@pytest.mark.timeout(240)
def test_a_plan_counts_crowded_frames_as_a_group_renders_them(tmp_path: Path, scheduler: str) -> None:
    """One frame sees all six blocks and has two regions: each rank loads six, seven were it to go through passes."""
    write_town(tmp_path)
    words = ("cameras.frames=24-25", "fetching.gpu_blocks=5", "sampling.samples=512", "cameras.width=96", "cameras.height=64")
    options = (*SLOTS, *words, "parallel.tensor_parallel=2", "parallel.workers=2")
    job = block_job(tmp_path / "town.zarr", write_flight(tmp_path), tmp_path / "frames.zarr", *options)
    found = fetch_report(make_plan(job))
    assert (found.groups, found.order.passes, found.order.loads, found.loads, found.sampled) == (1, 1, 7, 6, False)
    assert run_render(job, scheduler=scheduler).counters["fetch_loads"] == 2 * found.loads


class Told:
    def __init__(self, values: Tensor) -> None:
        self._values = values

    def wait(self) -> Tensor:
        return self._values


@pytest.mark.parametrize(
    ("memory", "others", "limit", "mode", "slots"),
    [
        (100 * MIB, 3, 0, "dynamic", 3),
        (5 * MIB, 7, 0, "dynamic", 4),
        (100 * MIB, 7, 0, "resident", 6),
        (5 * MIB, 2, 0, "dynamic", 2),
        (100 * MIB, 7, 3, "dynamic", 3),
        (5 * MIB, 7, 2, "dynamic", 2),
        (5 * MIB, 1, 2, "dynamic", 1),
        (5 * MIB, 7, 5, "dynamic", 4),
    ],
)
@pytest.mark.parametrize("chosen", [False, True], ids=["by each rank", "by the client"])
def test_tensor_ranks_hold_as_many_blocks_as_the_smallest_of_them(
    memory: int, others: int, limit: int, mode: str, slots: int, chosen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that each look at their own memory; 7 is said by one that holds all six blocks. limit: of this host."""
    monkeypatch.setattr(machine, "own_memory", lambda device: (memory, 64 * MIB))
    job = block_job(tmp_path / "town.zarr", tmp_path / "flight.json", tmp_path / "frames.zarr")
    size = SceneSize(blocks=6, block=MIB, rest=0, batch=0)
    choice = choose_fetching(job.fetching, size, device="cpu", memory=memory, host=64 * MIB)
    spec = {"blocks": {"size": vars(size), "choice": vars(choice) if chosen else None}}
    if limit:
        SlotLimit(tmp_path).halve(2 * limit)

    def exchange(told: Tensor, sent: list[int], received: list[int]) -> Told:
        assert sent == received == [1, 1]
        return Told(torch.tensor([int(told[0]), others]))

    group: Any = SimpleNamespace(tensor=SimpleNamespace(size=2, device=torch.device("cpu"), exchange=exchange))
    found = agreed_choice(spec, job, "cpu", group, SlotLimit(tmp_path))
    assert found is not None
    assert (found.mode, found.slots) == (mode, slots)
    assert mode == "resident" or found.host_bytes >= MIB


@pytest.mark.parametrize(("host", "spare", "left"), [(400, 0, 300), (400, 60, 360), (400, 5000, 400), (50, 5000, 50)])
def test_what_ranks_share_is_taken_from_memory_that_is_spare(host: int, spare: int, left: int) -> None:
    """In MiB; a block has 20 and a quarter is shared, from four blocks on."""
    group: Any = SimpleNamespace(rank=0, membership=SimpleNamespace(shape=SimpleNamespace(size=2)), tell=lambda offer: [offer, offer])
    choice, shared = shared_reads(FetchChoice("dynamic", "test", 4, host * MIB, host_spare=spare * MIB), 20 * MIB, group)
    assert choice.host_bytes == left * MIB
    assert (shared is None) == (host < 80)
    if shared is not None:
        shared.close()
