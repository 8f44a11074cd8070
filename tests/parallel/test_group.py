"""Forming a group, its limits of time, and how a loss shows. Real processes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from landmark_batch.errors import GroupError
from landmark_batch.parallel.group import Rendezvous
from landmark_batch.parallel.shape import GroupShape
from tests.parallel import failing_tasks, tasks
from tests.parallel.conftest import Grouped, group_of
from tests.parallel.ranks import PATIENCE, Ranks
from tests.parallel.tasks import Case
from tests.ports import free_port

CASE = Case({"mask": 0.6, "division": (2, 1)}, {"samples": 32, "alpha_mask_threshold": 0.4}, (("oblique", 37, 29),))


def test_groups_come_one_after_another_in_the_same_processes(group: Grouped) -> None:
    for shape in (GroupShape(2, 2), GroupShape(1, 2), GroupShape(2, 2)):
        with group(shape) as ranks:
            answers = ranks.all(range(shape.size), tasks.render, [CASE, CASE])
            first, second = answers[0].get()
            assert (first[0][0]["rgb"] == second[0][0]["rgb"]).all()
            assert all(answer.get() == [[], []] for answer in answers[1:])


def test_an_absent_rank_is_named_in_time(own_ranks: Ranks) -> None:
    port = own_ranks.call(0, tasks.open_rendezvous)
    begin = time.monotonic()
    answers = own_ranks.all([0, 1], tasks.join, port, GroupShape(1, 4), 1, 5.0)
    assert time.monotonic() - begin < 40
    for answer in answers:
        assert answer.error == "GroupError" and "waited 5 s" in answer.text and "absent: 2, 3" in answer.text


def test_no_leader_to_meet(own_ranks: Ranks) -> None:
    port = free_port()  # nobody listens on it
    own_ranks.send(1, tasks.join, 1, port, GroupShape(1, 2), 1, 1.5)
    answer = own_ranks.receive(1)
    assert answer.error == "GroupError" and f"could not be formed at 127.0.0.1:{port}" in answer.text


def test_ranks_that_form_different_groups(own_ranks: Ranks) -> None:
    port = own_ranks.call(0, tasks.open_rendezvous)
    own_ranks.send(0, tasks.join, 0, port, GroupShape(1, 2), 1, 20.0)
    own_ranks.send(1, tasks.join, 1, port, GroupShape(2, 1), 1, 20.0)
    for rank in (0, 1):
        answer = own_ranks.receive(rank)
        assert answer.error == "GroupError" and "has shape tensor_parallel" in answer.text


def test_an_address_of_another_machine() -> None:
    with pytest.raises(GroupError, match=r"no rendezvous at 192\.0\.2\.1"):
        Rendezvous.open("192.0.2.1")
    with pytest.raises(GroupError, match="no address to meet at"):
        Rendezvous.open("no.such.host.invalid")


def test_the_rendezvous_listens_on_its_address_alone() -> None:
    rendezvous = Rendezvous.open("127.0.0.1")
    with open("/proc/net/tcp") as table:  # noqa: PTH123
        listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    with open("/proc/net/tcp6") as table:  # noqa: PTH123
        listening += [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{rendezvous.port:04X}")] == [f"0100007F:{rendezvous.port:04X}"]


def test_wrong_poses_reach_no_rank_and_the_group_goes_on(group: Grouped) -> None:
    for shape in (GroupShape(1, 2), GroupShape(2, 1)):
        with group(shape) as ranks:
            answers = ranks.all(range(shape.size), failing_tasks.render_wrong_poses, CASE)
            told = answers[0].get()
            answers[1].get()
        assert told[-1] == "rendered 8 rows" and len(told) == 10
        for message, words in zip(
            told,
            (
                "dtype <U",
                "dtype complex64",
                "shape [2, 4]",
                "shape [2, 3, 4]",
                "NaN",
                "intrinsics",
                "intrinsics",
                "width = 0",
                "width = 8.5",
            ),
            strict=False,
        ):
            assert words in message


@pytest.mark.parametrize(("what", "words"), [("mask", "differently"), ("setting", "other settings")])
def test_ranks_that_differ_never_exchange_other_sizes(own_ranks: Ranks, what: str, words: str) -> None:
    """Another mask shows in the checked header of a tile, another setting in the order."""
    with group_of(own_ranks, GroupShape(2, 1), whole=False) as ranks:
        for rank in (0, 1):
            ranks.send(rank, failing_tasks.render_with_other, rank, CASE, what)
        answer = ranks.receive(1)
        assert answer.error == "GroupError" and words in answer.text
        ranks.processes[1].kill()
        assert ranks.receive(0).error == "GroupError"


@pytest.mark.parametrize(("shape", "failing"), [(GroupShape(2, 1), 1), (GroupShape(2, 1), 0), (GroupShape(2, 2), 3), (GroupShape(2, 2), 1)])
def test_when_a_rank_ends_in_a_frame_all_others_know(own_ranks: Ranks, shape: GroupShape, failing: int) -> None:
    """Also those that share no collective with it: each ends its process upon GroupError, until all know. The limit is 200 s."""
    with group_of(own_ranks, shape, whole=False, timeout=200.0) as ranks:
        for rank in range(shape.size):
            ranks.send(rank, failing_tasks.render_and_fail, rank, CASE, failing, 3)
        begin = time.monotonic()
        for rank in range(shape.size):
            ranks.processes[rank].join(150)
            assert ranks.processes[rank].exitcode == (5 if rank == failing else 7), rank
        assert time.monotonic() - begin < 150


def test_a_silent_rank_is_late(own_ranks: Ranks) -> None:
    """It is alive and does not answer: the timeout of the group ends the wait, not that of its forming nor that of orders."""
    with group_of(own_ranks, GroupShape(2, 1), whole=False, timeout=2.0) as ranks:
        begin = time.monotonic()
        ranks.send(0, failing_tasks.render_with_other, 0, CASE, "nothing")
        answer = ranks.receive(0)
        assert answer.error == "GroupError" and "past 2 s" in answer.text
        assert time.monotonic() - begin < 30


def test_followers_wait_for_orders_longer_than_for_anything_else(own_ranks: Ranks) -> None:
    with group_of(own_ranks, GroupShape(1, 2), timeout=5.0) as ranks:
        ranks.send(1, tasks.render, 1, [CASE])
        time.sleep(7)
        ranks.send(0, tasks.render, 0, [CASE])
        assert len(ranks.receive(0).get()[0]) == 1
        ranks.receive(1).get()


def test_followers_do_not_wait_for_ever(own_ranks: Ranks) -> None:
    with group_of(own_ranks, GroupShape(1, 2), whole=False, idle=1.0) as ranks:
        ranks.send(1, tasks.render, 1, [CASE])
        answer = ranks.receive(1)
        assert answer.error == "GroupError" and "control" in answer.text


def test_a_watch_notices_what_no_collective_does(own_ranks: Ranks) -> None:
    with group_of(own_ranks, GroupShape(1, 4), whole=False) as ranks:
        for rank in (0, 1, 2):
            ranks.send(rank, tasks.watch_and_wait, rank)
        ranks.send(3, tasks.end, 3)
        assert "rank 3 has gone" in ranks.receive(2).get()
        assert not ranks.pipes[1].poll(0.5)  # rank 1 looks at rank 2, which is there
        ranks.processes[2].kill()
        assert "rank 2 has gone" in ranks.receive(1).get()
        ranks.processes[1].kill()
        assert "rank 1 has gone" in ranks.receive(0).get()


def test_a_watch_says_nothing_of_a_group_that_closes(ranks: Ranks) -> None:
    shape = GroupShape(1, 3)
    for _ in range(3):
        with group_of(ranks, shape):
            for answer in ranks.all(range(3), tasks.watch):
                answer.get()
        assert [answer.get() for answer in ranks.all(range(3), tasks.watched)] == [[], [], []]


def test_other_threads_run_while_a_collective_waits(group: Grouped, tmp_path: Path) -> None:
    """A thread that sleeps 5 ms at a time gets its turns: the collective does not hold the interpreter's lock for its second."""
    with group(GroupShape(1, 2)) as ranks:
        ranks.send(1, tasks.count_while_waiting, 1, tmp_path / "waits")
        end = time.monotonic() + PATIENCE
        while not (tmp_path / "waits").exists():
            assert time.monotonic() < end, "rank 1 does not wait"
            time.sleep(0.02)
        time.sleep(1.0)
        ranks.call(0, tasks.broadcast, 0)
        assert ranks.receive(1).get() >= 5
