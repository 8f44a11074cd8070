"""Jobs of render groups whose ranks are out of GPU memory: groups end, come back with fewer slots, and write the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from landmark_batch.errors import GroupError
from landmark_batch.events import ChunkFailed, Event
from landmark_batch.object_client import ObjectStoreError
from landmark_batch.object_path import ObjectPath, StorePath, as_store_path
from landmark_batch.parallel.shape import Candidate, GroupShape
from landmark_batch.workflows import machine, member
from landmark_batch.workflows.crew import FORMATIONS, Crew
from landmark_batch.workflows.crew_group import CrewGroup
from landmark_batch.workflows.member import GroupMember, JoinOrder
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.slot_limit import SlotLimit
from tests.workflows.block_jobs import block_job
from tests.workflows.conftest import pixels
from tests.workflows.faults import ShortMemory

TENSOR, DATA = ("parallel.tensor_parallel=2",), ("parallel.data_parallel=2",)
FRAMES = "cameras.frames=0-3"


def told(slots: int, left: int) -> str:
    return f"out of GPU memory with {slots} slots: {left} from here on, with the same pixels"


@dataclass
class Pair:
    """Two worker processes. log: what they say."""

    client: Any
    address: str
    log: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    from landmark_batch.workflows.cluster import start_cluster

    log = tmp_path_factory.mktemp("pair") / "workers.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        cluster = start_cluster(machine.Placement("cpu", 2, (), "CPU"), dashboard=False, log=log)
        yield Pair(cluster.client, cluster.address, log)
        cluster.close()


@contextmanager
def short(pair: Pair, fault: ShortMemory) -> Iterator[None]:
    """Workers, those too that come meanwhile, have the fault."""
    pair.client.register_plugin(fault)
    try:
        yield
    finally:
        with suppress(OSError):  # of a process that is about to end: the next one comes without
            pair.client.unregister_worker_plugin(fault.name)


@pytest.fixture(scope="module")
def calm(pair: Pair, town: Path) -> dict[tuple[str, ...], dict[str, bytes]]:
    """The bytes of its frames, by shape of group."""
    found = {}
    for shape in (TENSOR, DATA):
        job = block_job(town / "town.zarr", town / "flight.json", town / f"{shape[0]}.zarr", *shape, FRAMES)
        assert run_render(job, scheduler=pair.address).state == "complete"
        found[shape] = pixels(job.store_path)
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("shape", "options", "fault", "ends"),
    [
        (TENSOR, (), ShortMemory(3, "render", only="w1"), [(6, 3)]),
        (TENSOR, ("fetching.mode=dynamic", "fetching.gpu_blocks=4"), ShortMemory(1, "render"), [(4, 2), (2, 1)]),
        (DATA, ("fetching.mode=dynamic", "fetching.gpu_blocks=5"), ShortMemory(1, "tables"), [(5, 2), (2, 1)]),
    ],
    ids=["one tensor rank, resident", "tensor ranks", "data ranks without tables"],
)
def test_groups_out_of_memory_come_back_with_half_the_slots(
    pair: Pair,
    town: Path,
    calm: dict[tuple[str, ...], dict[str, bytes]],
    tmp_path: Path,
    shape: tuple[str, ...],
    options: tuple[str, ...],
    fault: ShortMemory,
    ends: list[tuple[int, int]],
) -> None:
    """As often as it takes; no chunk is blamed for it, and people read one line for each time."""
    job = block_job(town / "town.zarr", town / "flight.json", tmp_path / "frames.zarr", *shape, FRAMES, *options)
    before = len(pair.log.read_text().splitlines())
    events: list[Event] = []
    with short(pair, fault):
        result = run_render(job, scheduler=pair.address, sinks=[events.append])
    assert (result.state, result.missing) == ("complete", ())
    assert pixels(job.store_path) == calm[shape]
    failed = [event for event in events if isinstance(event, ChunkFailed)]
    assert not any(event.final for event in failed)
    assert [event.error for event in failed] == ([] if fault.way == "tables" else [told(*end) for end in ends])
    said = [line for line in pair.log.read_text().splitlines()[before:] if "WARNING" in line and "out of GPU memory" in line]
    assert [line.partition("slot_limit: ")[2] for line in said] == [told(*end) for end in ends]


@pytest.mark.timeout(240)
def test_one_slot_that_is_too_many_ends_the_job(pair: Pair, town: Path, tmp_path: Path) -> None:
    options = (*TENSOR, FRAMES, "fetching.mode=dynamic", "fetching.gpu_blocks=1")
    job = block_job(town / "town.zarr", town / "flight.json", tmp_path / "frames.zarr", *options)
    with short(pair, ShortMemory(0, "tables")), pytest.raises(GroupError, match="OutOfMemoryError: tables of 1 slots"):
        run_render(job, scheduler=pair.address)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePath:
    """Where a run's folder may lie."""
    return tmp_path if request.param == "folder" else as_store_path(f"{request.getfixturevalue('bucket')}/frames.zarr/run")


def test_the_limit_of_a_host_is_its_own_and_the_least(place: StorePath, caplog: pytest.LogCaptureFixture) -> None:
    near, far = SlotLimit(place, "node"), SlotLimit(place, "node-2")
    (place / "snapshot.json").touch()
    assert (near.most(), far.most()) == (None, None)
    assert near.halve(20) == told(20, 10) and SlotLimit(place, "node").halve(20) == told(20, 10)
    assert far.halve(7) == told(7, 3) and far.halve(3) == told(3, 1)
    assert (near.most(), far.most()) == (10, 1)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [told(20, 10), told(7, 3), told(3, 1)], "one for each time, whoever was first"
    assert near.halve(1) == near.halve(0) == ""


def test_a_limit_that_cannot_be_written_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The failure is then the chunk's, as any other."""
    limit = SlotLimit(tmp_path / "gone")
    assert limit.halve(4) == "" and limit.most() is None
    assert f"{tmp_path / 'gone'}: cannot note that fewer slots are to be taken" in caplog.text


def test_an_object_store_that_does_not_answer_changes_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ObjectStoreError("s3://bucket: HTTP 503")

    monkeypatch.setattr(ObjectPath, "put", refuse)
    limit = SlotLimit(ObjectPath("s3://bucket", "city.zarr/runs/1"))
    assert limit.halve(4) == ""
    assert "HTTP 503" in caplog.text


def test_a_rank_ends_whatever_becomes_of_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    ended: list[int] = []
    monkeypatch.setattr(member, "end_process", lambda code, *_, **__: ended.append(code))
    monkeypatch.setattr(member.threading.Event, "wait", lambda *_: True)
    monkeypatch.setattr(SlotLimit, "halve", lambda *_: 1 / 0)
    order = JoinOrder("run", "g0", 1, 1, 2, 1)
    rank = GroupMember(order, tmp_path, "here", cast(Any, None), tell=told.append, session=cast(Any, None), rendezvous=None)
    rank.fence(torch.OutOfMemoryError("all of it"), "")
    assert [message["own"] for message in told] == [True] and told[0]["fewer"] == "" and ended == [member.CRASH_EXIT]


class NoCluster:
    """A client of a cluster whose workers have all gone."""

    def run(self, function: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("first", [0, 1], ids=["it tells first", "the other tells first"])
def test_groups_that_take_fewer_slots_form_as_often_as_it_takes(tmp_path: Path, first: int) -> None:
    """One that fails otherwise while it forms is told of as ever."""
    refused: list[BaseException] = []
    crew = Crew(NoCluster(), "run", tmp_path, GroupShape(2, 1), fence=lambda *_: None, refuse=refused.append)  # type: ignore[arg-type]
    ranks = Candidate("tcp://a", "a", "node"), Candidate("tcp://b", "b", "node")

    def ends(epoch: int, *messages: dict[str, Any]) -> None:
        group = CrewGroup("g0", epoch, ranks)
        crew._groups[group.key] = group
        for rank, message in enumerate(messages):
            told = {"group": "g0", "epoch": epoch, "rank": rank, "name": ranks[rank].name, "setup": True}
            crew.told({**told, **message})

    short = {"own": True, "failed": "OutOfMemoryError: all of it", "fewer": told(8, 4)}
    lost = {"own": False, "failed": "GroupError: gone", "fewer": ""}
    for epoch in range(3 * FORMATIONS):
        ends(epoch, *((short, lost), (lost, short))[first])
    assert not refused and not crew._groups
    ends(99, {**short, "fewer": ""})
    assert [str(error) for error in refused] == ["rank 0 on a: OutOfMemoryError: all of it"]
    for epoch in range(100, 100 + FORMATIONS):
        ends(epoch, lost)
    assert isinstance(refused[-1], GroupError) and "groups cannot form" in str(refused[-1])
