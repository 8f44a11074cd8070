"""Copies that two processes share by CUDA's interprocess handles: on two GPUs, seen by both or each by one, and on a single one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fetching.gpu_peer_tasks import BYTES, leave, load_blocks, look, memory_left, memory_soon, open_rank, refuse
from tests.gpu_pairs import WAYS, gpus_of
from tests.parallel.ranks import Ranks

pytestmark = pytest.mark.gpu

LONG = 400_000_000  # clock cycles: some tenths of a second
PATIENCE = 20.0


@pytest.fixture(params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ranks]:
    """Two processes that share, with three slots each."""
    devices, hide = gpus_of(request.param)
    (tmp_path / "memory").mkdir()
    processes = Ranks(2)
    for answer in processes.all(range(2), open_rank, tmp_path / "memory", devices, hide, 3):
        answer.get()
    yield processes
    processes.close()


def test_ranks_in_step_copy_half_each_and_a_late_one_nothing(pair: Ranks) -> None:
    for loads in ([(0, 0), (1, 1), (2, 2)], [(3, 1), (4, 0)]):
        counts = [answer.get() for answer in pair.all(range(2), load_blocks, loads, PATIENCE)]
        for first, second in zip(*counts, strict=True):
            assert first[0] + second[0] == BYTES and abs(first[0] - second[0]) <= 2
            assert (first[1], second[1]) == (second[0], first[0])
    assert pair.call(0, load_blocks, 0, [(5, 2)], 0.0) == [(BYTES, 0)]
    assert pair.call(1, load_blocks, 1, [(5, 0)], PATIENCE) == [(0, BYTES)]


def test_no_slot_is_overwritten_while_a_peer_reads_it(pair: Ranks) -> None:
    """More loads than a lane has events, the reader's device late."""
    for number in range(40):
        old, new = number % 4, 4 + number % 4
        assert pair.call(0, load_blocks, 0, [(old, 0)], 0.0) == [(BYTES, 0)]
        assert pair.call(1, load_blocks, 1, [(old, 1)], PATIENCE, LONG if number % 10 == 0 else 1000) == [(0, BYTES)]
        assert pair.call(0, load_blocks, 0, [(new, 0)], 0.0, 1) == [(BYTES, 0)], "its host does not wait"
        pair.call(1, look, 1, [(old, 1)])
        pair.call(0, look, 0, [(new, 0)])


def test_a_reader_waits_for_what_is_still_being_copied(pair: Ranks) -> None:
    for number in range(8):
        pair.send(0, load_blocks, 0, [(number, number % 3)], 0.0)
        pair.send(1, load_blocks, 1, [(number, (number + 1) % 3)], PATIENCE)
        (copied, pulled), (other, taken) = (pair.receive(rank).get()[0] for rank in range(2))
        assert copied + pulled == other + taken == BYTES


@pytest.mark.parametrize("way", ["shared", "refused", "not yet met"])
def test_memory_goes_back_when_all_have_left(pair: Ranks, way: str) -> None:
    if way == "refused":
        pair.call(1, refuse, 1)
    if way != "not yet met":
        counts = [answer.get() for answer in pair.all(range(2), load_blocks, [(0, 0)], PATIENCE if way == "shared" else 0.01)]
        assert any(pulled for ((_, pulled),) in counts) == (way == "shared")
    for answer in pair.all(range(2), leave):
        answer.get()
    assert [answer.get() for answer in pair.all(range(2), memory_left)] == [0, 0]


def test_memory_of_who_leaves_goes_back_while_the_others_do_nothing(pair: Ranks) -> None:
    """As when one rank makes fewer slots, being out of memory."""
    counts = [answer.get() for answer in pair.all(range(2), load_blocks, [(0, 0)], PATIENCE)]
    assert any(pulled for ((_, pulled),) in counts)
    pair.call(0, leave, 0)
    assert pair.call(0, memory_soon, 0) == 0
    assert pair.call(1, load_blocks, 1, [(1, 1)], 0.01) == [(BYTES, 0)]
