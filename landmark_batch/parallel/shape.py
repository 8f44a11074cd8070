"""The shape of a render group, and which workers form one. No torch: a driver that never renders imports this."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from landmark_batch.errors import ConfigError


@dataclass(frozen=True)
class GroupShape:
    """tensor: ranks that share the channels of a scene. data: ranks (rows of tensor ranks) that share the rays of a frame.

    rank = data_index * tensor + tensor_index, so that the tensor ranks of a row are neighbours. Raises ConfigError below 1.
    """

    tensor: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        for name, value in (("tensor_parallel", self.tensor), ("data_parallel", self.data)):
            if value < 1:
                raise ConfigError(f"parallel.{name} = {value}: at least 1", remedy=f"leave parallel.{name} out, or set 1 or more")

    @property
    def size(self) -> int:
        """Ranks of a group."""
        return self.tensor * self.data

    def tensor_index(self, rank: int) -> int:
        return rank % self.tensor

    def data_index(self, rank: int) -> int:
        return rank // self.tensor

    def describe(self) -> str:
        """'tensor_parallel 2 x data_parallel 2'."""
        return f"tensor_parallel {self.tensor} x data_parallel {self.data}"


@dataclass(frozen=True)
class Candidate:
    """A free worker. address: of the worker, unique. name: as its user sees it. host: workers of one host share memory and GPUs' links."""

    address: str
    name: str
    host: str


def form_groups(candidates: Sequence[Candidate], shape: GroupShape) -> tuple[list[tuple[Candidate, ...]], list[Candidate]]:
    """As many groups as the candidates make, each in the order of its ranks, and the candidates left over.

    First the groups that one host makes alone; then groups of whole tensor rows, from as few hosts as possible; a tensor row spans
    hosts only when no host has `shape.tensor` free workers left. The result depends on the candidates alone, not on their order.
    """
    free: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: (natural_key(c.host), natural_key(c.name), c.address)):
        free.setdefault(candidate.host, []).append(candidate)

    groups = [tuple(part) for workers in free.values() for part in _take(workers, shape.size)]
    rows = [part for workers in sorted(free.values(), key=len, reverse=True) for part in _take(workers, shape.tensor)]
    while len(rows) >= shape.data:
        groups.append(tuple(worker for row in rows[: shape.data] for worker in row))
        del rows[: shape.data]

    single = [worker for workers in sorted(free.values(), key=len, reverse=True) for worker in workers]
    if len(rows) * shape.tensor + len(single) >= shape.size:
        count = shape.size - len(rows) * shape.tensor
        groups.append(tuple([worker for row in rows for worker in row] + single[:count]))
        rows, single = [], single[count:]
        while len(single) >= shape.size:
            groups.append(tuple(single[: shape.size]))
            del single[: shape.size]
    spare = [worker for row in rows for worker in row] + single
    return groups, spare


def check_worker_count(count: int, shape: GroupShape, what: str = "workers") -> None:
    """Raises ConfigError naming the nearest counts where `count` workers do not divide into groups. what: 'workers', 'GPUs'."""
    size = shape.size
    if count >= size and count % size == 0:
        return
    below = count // size * size
    nearest = f"{below} or {below + size}" if below else f"{size}"
    noun = what[:-1] if count == 1 and what.endswith("s") else what
    raise ConfigError(
        f"{count} {noun} {'does' if count == 1 else 'do'} not divide into groups of {size} ({shape.describe()}): use {nearest}",
        remedy=f"use {nearest} {what}, or other values of parallel.tensor_parallel and parallel.data_parallel",
    )


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which 'node9' comes before 'node10'."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", text) if part)


def _take(workers: list[Candidate], count: int) -> list[list[Candidate]]:
    """Cut as many runs of `count` off the front of `workers` as it has."""
    parts = []
    while len(workers) >= count:
        parts.append(workers[:count])
        del workers[:count]
    return parts
