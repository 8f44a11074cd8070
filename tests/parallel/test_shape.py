"""Which workers form a group."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark_batch.errors import ConfigError
from landmark_batch.parallel.shape import Candidate, GroupShape, check_worker_count, form_groups, natural_key

HOSTS = st.lists(st.integers(0, 9), min_size=0, max_size=6)  # free workers of each host
SHAPES = st.builds(GroupShape, st.integers(1, 4), st.integers(1, 4))


def workers(*counts: int) -> list[Candidate]:
    return [Candidate(f"tcp://{host}:{i}", f"w{i}", f"node{host}") for host, count in enumerate(counts) for i in range(count)]


def rows_of(group: tuple[Candidate, ...], shape: GroupShape) -> list[tuple[Candidate, ...]]:
    return [group[start : start + shape.tensor] for start in range(0, shape.size, shape.tensor)]


@given(HOSTS, SHAPES, st.randoms(use_true_random=False))
def test_as_many_groups_as_there_are_workers_for(counts: list[int], shape: GroupShape, shuffle: random.Random) -> None:
    candidates = workers(*counts)
    groups, spare = form_groups(candidates, shape)
    assert len(groups) == len(candidates) // shape.size and len(spare) == len(candidates) % shape.size
    assert all(len(group) == shape.size for group in groups)
    assert Counter([*spare, *(worker for group in groups for worker in group)]) == Counter(candidates)
    mixed = list(candidates)
    shuffle.shuffle(mixed)
    assert form_groups(mixed, shape) == (groups, spare)


@given(HOSTS, SHAPES)
def test_a_row_spans_hosts_only_when_no_host_has_enough(counts: list[int], shape: GroupShape) -> None:
    candidates = workers(*counts)
    groups, _ = form_groups(candidates, shape)
    rows = [row for group in groups for row in rows_of(group, shape)]
    whole = [row for row in rows if len({worker.host for worker in row}) == 1]
    if len(whole) < len(rows):
        left = Counter(worker.host for worker in candidates)
        left.subtract(worker.host for row in whole for worker in row)
        assert max(left.values()) < shape.tensor


@given(HOSTS, SHAPES)
def test_one_hosts_groups_come_first(counts: list[int], shape: GroupShape) -> None:
    groups, _ = form_groups(workers(*counts), shape)
    alone = [len({worker.host for worker in group}) == 1 for group in groups]
    assert sum(alone) >= sum(count // shape.size for count in counts)
    assert alone[: sum(count // shape.size for count in counts)] == [True] * sum(count // shape.size for count in counts)


def test_ranks_are_in_natural_order() -> None:
    candidates = [Candidate(f"a{i}", f"gpu{i}", host) for host in ("node10", "node9") for i in (10, 2, 1, 0)]
    groups, spare = form_groups(candidates, GroupShape(2, 2))
    assert [[(w.host, w.name) for w in group] for group in groups] == [
        [(host, name) for name in ("gpu0", "gpu1", "gpu2", "gpu10")] for host in ("node9", "node10")
    ]
    assert spare == [] and natural_key("w2a") < natural_key("w10") < natural_key("x")


def test_rests_of_hosts_make_groups_of_whole_rows() -> None:
    groups, spare = form_groups(workers(6, 3, 2), GroupShape(2, 2))
    assert [[w.host for w in group] for group in groups] == [["node0"] * 4, ["node0"] * 2 + ["node2"] * 2] or [
        [w.host for w in group] for group in groups
    ] == [["node0"] * 4, ["node1"] * 2 + ["node0"] * 2]
    assert len(spare) == 3


@pytest.mark.parametrize(
    ("count", "nearest"), [(6, "use 4 or 8"), (3, "use 4"), (0, "use 4"), (1, "use 4"), (5, "use 4 or 8"), (11, "use 8 or 12")]
)
def test_counts_that_do_not_divide(count: int, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_worker_count(count, GroupShape(2, 2), "GPUs")
    assert caught.value.message.endswith(nearest)
    assert "groups of 4 (tensor_parallel 2 x data_parallel 2)" in caught.value.message and f"{count} GPU" in caught.value.message


def test_counts_that_divide() -> None:
    for count in (4, 8, 12):
        check_worker_count(count, GroupShape(2, 2))
    check_worker_count(7, GroupShape())


def test_ranks_of_a_shape() -> None:
    shape = GroupShape(3, 2)
    assert [(shape.data_index(rank), shape.tensor_index(rank)) for rank in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    with pytest.raises(ConfigError, match="data_parallel = 0"):
        GroupShape(1, 0)
