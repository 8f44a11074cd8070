"""Copies that ranks of one host share: real processes and a stand-in for their devices, whose lanes are as late as they like."""

from __future__ import annotations

import inspect
import itertools
import logging
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from landmark_batch.fetching import board as boards
from landmark_batch.fetching import cuda_peers, peer_copies, transit
from landmark_batch.fetching.board import Board
from landmark_batch.fetching.peer_copies import HOST, MISSES, PULL, RETRY, cut
from landmark_batch.fetching.shared_reads import SharedReads
from tests.fetching.peer_tasks import BLOCKS, BYTES, SIZES, SLOTS, content, die_reading, leave, load_blocks, make_rank, open_rank, together
from tests.fetching.sharing_tasks import sharing
from tests.parallel.ranks import Ranks
from tests.workflows.processes import until


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(transit, "MEMORY", folder)
    return folder


@pytest.fixture
def pair(root: Path) -> Iterator[Ranks]:
    """Two processes that share."""
    processes = Ranks(2)
    for answer in processes.all(range(2), open_rank, root):
        answer.get()
    yield processes
    processes.close()


def test_ranks_in_step_copy_half_each_and_a_late_one_nothing(pair: Ranks, root: Path) -> None:
    """Then other blocks, into the same slots and others."""
    for loads in ([(0, 0), (1, 1), (2, 2)], [(3, 1), (4, 0)]):
        counts = [answer.get() for answer in pair.all(range(2), load_blocks, loads)]
        for first, second in zip(*counts, strict=True):
            assert first[0] + second[0] == BYTES and abs(first[0] - second[0]) <= 4
            assert (first[1], second[1]) == (second[0], first[0])
    assert pair.call(0, load_blocks, 0, [(5, 2)], 0.0) == [(BYTES, 0)]
    assert pair.call(1, load_blocks, 1, [(5, 3)]) == [(0, BYTES)]
    assert [answer.get() for answer in pair.all(range(2), leave)] == [[], []]
    assert not list(root.iterdir()), "the last rank removes the folder"


def test_ranks_with_different_blocks_copy_them_whole(pair: Ranks) -> None:
    for number in range(0, 6, 2):
        pair.send(0, load_blocks, 0, [(number, 0)], 0.001)
        pair.send(1, load_blocks, 1, [(number + 1, 0)], 0.001)
        assert [pair.receive(rank).get() for rank in range(2)] == [[(BYTES, 0)], [(BYTES, 0)]]


def test_a_rank_killed_with_the_lock_and_a_claim_holds_up_nobody(pair: Ranks, root: Path) -> None:
    assert pair.call(0, load_blocks, 0, [(0, 0)], 0.0) == [(BYTES, 0)]
    pair.send(1, die_reading, 1, 0)
    pair.processes[1].join(60)
    assert pair.processes[1].exitcode == 1
    assert pair.call(0, load_blocks, 0, [(1, 0), (2, 1)], 0.001) == [(BYTES, 0)] * 2
    assert pair.call(0, leave, 0) == []
    assert not list(root.iterdir()), "nothing is left of the dead one"


def test_no_slot_is_overwritten_while_a_peer_reads_it(root: Path) -> None:
    """Neither host waits; the owner's device does."""
    owner, reader = make_rank(root, 0), make_rank(root, 1)
    with together(owner, reader):
        assert owner.load((0, 0), patience=0) == [(BYTES, 0)]
        gate = reader.device.hold_up(PULL)
        assert reader.load((0, 3)) == [(0, BYTES)]
        assert owner.load((1, 0), patience=0) == [(BYTES, 0)]
        assert not _done(owner.device.settle, 0.2), "it waits for the reader"
        gate.set()
        reader.device.settle()
        owner.device.settle()
        assert reader.load((1, 3)) == [(0, BYTES)]


def test_what_was_overwritten_between_claim_and_confirmation_is_copied_again(root: Path) -> None:
    owner, reader = make_rank(root, 0), make_rank(root, 1)
    with together(owner, reader):
        owner.load((0, 0), (1, 1), patience=0)
        gates = [reader.device.hold_up(lane) for lane in (HOST, PULL)]
        loaded = []
        reader.device.between = lambda: loaded or loaded.append(owner.load((2, 0), patience=0))
        found = reader.load((0, 0), (1, 1), patience=0)
        assert loaded
        owner.device.settle()  # it need not wait
        for gate in gates:
            gate.set()
        reader.device.settle()
        assert found == [(BYTES, 0), (0, BYTES)]


def test_a_load_that_waits_for_kernels_is_not_shared(root: Path) -> None:
    """Neither does it come from peers, nor do they find it; what was in its slot is theirs no more, either."""
    ranks = [make_rank(root, rank) for rank in range(2)]
    with together(*ranks):
        ranks[0].load((0, 0), (1, 1), patience=0)
        assert ranks[1].load((0, 0), share=False) == ranks[0].load((2, 1), share=False) == [(BYTES, 0)]
        assert ranks[1].load((2, 2), (1, 1), patience=0) == [(BYTES, 0)] * 2
        assert ranks[1].load((0, 3)) == [(0, BYTES)]


def test_the_reader_of_a_slot_that_is_still_being_filled_waits_for_it(root: Path) -> None:
    owner, reader = make_rank(root, 0), make_rank(root, 1)
    with together(owner, reader):
        gate = owner.device.hold_up(HOST)
        owner.load((6, 0), patience=0)
        assert reader.load((6, 2)) == [(0, BYTES)]
        assert not _done(reader.device.settle, 0.2)
        gate.set()
        reader.device.settle()


def test_nobody_is_waited_for_who_did_not_come_some_times(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    clock = itertools.count()
    monkeypatch.setattr(peer_copies, "time", SimpleNamespace(sleep=looks.append, monotonic=lambda: float(next(clock))))
    ranks = [make_rank(root, rank) for rank in range(2)]
    with together(*ranks):
        waited = []
        for number in range(RETRY + 1):
            looks.clear()
            ranks[0].load((number % BLOCKS, number % SLOTS), patience=5)
            waited.append(bool(looks))
        assert waited == [True] * MISSES + [False] * (RETRY - MISSES) + [True]


def test_a_peer_out_of_reach_is_said_once_and_left_alone(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    ranks = [make_rank(root, rank) for rank in range(2)]
    with together(*ranks), caplog.at_level(logging.WARNING):
        ranks[0].device.refuses = True
        for block in (0, 1):
            assert ranks[0].load((block, block)) == [(BYTES, 0)]
            assert ranks[1].load((block, block), patience=0) == [(BYTES, 0)], "nobody would wait for its reads"
        assert [record.getMessage() for record in caplog.records] == [
            "blocks are not copied from the GPU of rank 1 of this host: out of reach"
        ]


def test_who_has_left_is_waited_for_no_more(root: Path) -> None:
    ranks = [make_rank(root, rank) for rank in range(2)]
    with together(*ranks):
        ranks[0].load((0, 0), patience=0)
        assert ranks[1].load((0, 0)) == [(0, BYTES)]
        ranks[0].copies.leave()
        assert ranks[1].load((0, 1), (1, 0)) == [(BYTES, 0)] * 2
        assert ranks[1].device.closed == [0] and ranks[0].device.untaken == []
    assert not list(root.iterdir())


def test_who_has_left_is_let_go_of_by_those_who_load_nothing(root: Path) -> None:
    """Its memory is not free before."""
    ranks = [make_rank(root, rank) for rank in range(2)]
    with together(*ranks):
        ranks[0].load((0, 0), patience=0)
        assert ranks[1].load((0, 0)) == [(0, BYTES)] and ranks[1].device.closed == []
        ranks[0].copies.leave()
        until(lambda: ranks[1].device.closed == [0])
        assert ranks[1].load((1, 0)) == [(BYTES, 0)]


def test_messages_that_nobody_took_are_told_and_cannot_be_taken_later(root: Path) -> None:
    ranks = [make_rank(root, rank, 3) for rank in range(3)]
    with together(*ranks):
        ranks[1].load((0, 0), patience=0)
        ranks[0].copies.leave()
        assert ranks[0].device.untaken == [2]
        assert ranks[2].board.take(0) is None and not ranks[2].board.is_here(0)


def test_three_ranks_with_partly_the_same_blocks_get_the_right_bytes(root: Path) -> None:
    """One thread a rank, devices that lag, slots that are taken back all the time."""
    ranks = [make_rank(root, rank, 3) for rank in range(3)]
    flight = [random.Random(number).sample(range(BLOCKS), 3) for number in range(60)]

    def fly(place: int) -> tuple[int, int]:
        own, chance, totals = ranks[place], random.Random(place), [0, 0]
        for blocks in flight:
            wanted = blocks if chance.random() < 0.8 else chance.sample(range(BLOCKS), 3)
            slots = chance.sample(range(SLOTS), 3)
            gate = own.device.hold_up(chance.choice((HOST, PULL)))
            for copied, pulled in own.load(*zip(wanted, slots, strict=True), patience=chance.choice((0, 0.001, 0.005))):
                assert copied + pulled == BYTES
                totals[0] += copied
                totals[1] += pulled
            gate.set()
        own.device.settle()
        return totals[0], totals[1]

    with together(*ranks), ThreadPoolExecutor(3) as pool:
        found = list(pool.map(fly, range(3)))
    assert all(copied and pulled for copied, pulled in found)


def test_there_is_no_board_where_the_host_has_no_room(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(boards.os, "posix_fallocate", full)
    assert Board.open(root, 5, rank=0, ranks=2, blocks=BLOCKS) is None
    assert "No space left" in caplog.text and not list(root.iterdir())


def test_ranks_with_the_same_channels_have_a_board(root: Path) -> None:
    """Of four ranks of one host: with two shares of the channels, two and two."""
    shared: list[SharedReads] = [sharing(root, rank, ranks=4) for rank in range(4)]
    try:
        found = [own.board(2, BLOCKS) for own in shared]
        assert [(board.rank, board.ranks) for board in found if board is not None] == [(0, 2), (0, 2), (1, 2), (1, 2)]
        for board in found:
            assert board is not None
            board.come({})
        assert [board.is_here(1 - board.rank) for board in found if board is not None] == [True] * 4
        assert len(list(root.iterdir())) == 3
        assert shared[0].board(4, BLOCKS) is None, "each its own channels"
        for board in found:
            assert board is not None and board.leave() == board.leave() == []
        assert len(list(root.iterdir())) == 1
    finally:
        for own in shared:
            own.close()


def test_torch_tells_of_a_tensor_what_is_passed_on() -> None:
    """By place: these functions are torch's own, for its own queues."""
    names = list(inspect.signature(rebuild_cuda_tensor).parameters)
    assert len(names) == 15 and (names[0], names[4]) == ("tensor_cls", "storage_cls")
    assert [names[place] for place in (cuda_peers.DTYPE, cuda_peers.DEVICE, cuda_peers.GRAD)] == [
        "dtype",
        "storage_device",
        "requires_grad",
    ]
    assert [names[place] for place in cuda_peers.TOLD] == [
        *("tensor_size", "tensor_stride", "tensor_offset", "storage_handle", "storage_size_bytes", "storage_offset_bytes"),
        *("ref_counter_handle", "ref_counter_offset", "event_handle", "event_sync_required"),
    ]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_are_even_and_leave_nothing_out(parts: int) -> None:
    for sizes in (SIZES, (1, 1), (1000,), (3, 0, 4)):
        found = cut(sizes, parts)
        counts = [sum(piece.stop - piece.start for piece in part) for part in found]
        assert len(found) == parts and max(counts) - min(counts) <= 1
        numbers = [(piece.table, number) for part in found for piece in part for number in range(piece.start, piece.stop)]
        assert numbers == [(table, number) for table, size in enumerate(sizes) for number in range(size)]
    assert all(first != second for first, second in pairwise(content(0)[0].tolist()))


def _done(action: Callable[[], object], seconds: float) -> bool:
    """Whether it is over by then."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
