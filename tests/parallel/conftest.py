"""Four rank processes for all calm tests; tests that end processes start their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from landmark_batch.parallel.shape import GroupShape
from tests.parallel import tasks
from tests.parallel.ranks import Ranks

Grouped = Callable[[GroupShape], AbstractContextManager[Ranks]]
_epochs = itertools.count(1)


@contextmanager
def group_of(ranks: Ranks, shape: GroupShape, *, whole: bool = True, **limits: float | str) -> Iterator[Ranks]:
    """ranks 0..size-1 in a group; left afterwards if it is whole then."""
    port = ranks.call(0, tasks.open_rendezvous)
    members = range(shape.size)
    names = ("patience", "timeout", "idle", "device")
    defaults: tuple[float | str, ...] = (60.0, 60.0, 120.0, "cpu")
    arguments = [limits.get(name, value) for name, value in zip(names, defaults, strict=True)]
    for answer in ranks.all(members, tasks.join, port, shape, next(_epochs), *arguments):
        answer.get()
    yield ranks
    if whole:
        for answer in ranks.all(members, tasks.leave):
            answer.get()


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    processes = Ranks(4)
    yield processes
    processes.close()


@pytest.fixture
def own_ranks() -> Iterator[Ranks]:
    processes = Ranks(4)
    yield processes
    processes.close()


@pytest.fixture
def group(ranks: Ranks) -> Grouped:
    return lambda shape: group_of(ranks, shape)
