"""Tiles over tensor ranks: what one of them takes, and how several are in flight.

A tile (or a batch of rays, see `fused_tensor`) is a generator that yields each exchange it needs, not yet started, and gets what was
received. So that ranks wait little, two banks of tiles take turns: while one bank's exchanges run, the other bank computes. The order
of exchanges follows from the tiles alone, never from time, and is the same on all ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.errors import GroupError
from landmark_batch.model.pool import TilePool
from landmark_batch.model.profile import mark
from landmark_batch.model.sampling import Samples
from landmark_batch.model.tiles import Tile

from .channel import Pending
from .exchange import TensorExchange, digest, pack_flags, packed_sizes, sum_in_rank_order, unpack_flags
from .share import owned_rays, tile_pixels
from .stages import TensorStages

Step = Callable[[], Pending]


@dataclass(frozen=True)
class OwnedRays:
    """Sums of the rays of a tile that this rank owns: rgb [R, 3] before the background, depth [R], alpha [R]; survived and coloured
    samples of theirs.
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor
    survived: int
    coloured: int


Result = TypeVar("Result")
TileSteps = Generator[Step, Tensor, OwnedRays]


def tile_steps(stages: TensorStages, exchange: TensorExchange, pose: Tensor, lens: Tensor, width: int, tile: Tile) -> TileSteps:
    """One tile. pose [3, 4], lens [4]: as for pixel_rays. Raises GroupError where ranks have sampled the tile differently."""
    size, rank = exchange.size, exchange.rank
    rays = pixel_rays(pose, lens, stages.settings.pixel_center, tile_pixels(tile, width, stages.device), width)
    first, last = owned_rays(tile.rays, rank, size)
    own = rays[first:last]

    samples, partial = stages.march_density(rays)
    bounds = _bounds(samples.ray, [owned_rays(tile.rays, r, size)[0] for r in range(size)], len(samples))
    header = torch.cat([digest(samples.ray, samples.t), torch.tensor(bounds, device=stages.device)])
    headers = (yield lambda: exchange.share(header, [header.shape[0]] * size)).view(size, -1)
    if not bool((headers == header).all()):
        raise differing_samples(tile, headers)
    start, stop = bounds[rank], bounds[rank + 1]
    mine = Samples(samples.ray[start:stop] - first, samples.t[start:stop], samples.delta[start:stop])
    if len(samples) == 0:
        return no_samples(own)

    received = yield lambda: exchange.partial_sums(partial, bounds)
    weighed = stages.weigh(sum_in_rank_order(received, size), mine, last - first)
    flags = pack_flags(weighed.coloured, len(mine))
    coloured = unpack_flags((yield lambda: exchange.share(flags, packed_sizes(bounds))), bounds)

    features = own.new_zeros(0, stages.config.app_dim)
    if coloured.shape[0]:
        part = stages.appearance(rays, samples.select(coloured))
        shares = _bounds(coloured, bounds[:-1], coloured.shape[0])
        features = sum_in_rank_order((yield lambda: exchange.partial_sums(part, shares)), size)
    if len(mine) == 0:
        return no_samples(own)
    rgb, depth, alpha = stages.finish(own, mine, weighed, features)
    return OwnedRays(rgb, depth, alpha, len(mine), int(weighed.coloured.shape[0]))


@dataclass
class _Lane(Generic[Result]):
    """A tile in flight."""

    index: int
    steps: Generator[Step, Tensor, Result]
    pending: Pending | None = None
    received: Tensor | None = None
    done: Result | None = None
    started: bool = False

    def advance(self) -> Step | None:
        """Compute up to the next exchange, or to the end."""
        try:
            if not self.started:
                self.started = True
                return next(self.steps)
            assert self.received is not None
            return self.steps.send(self.received)
        except StopIteration as end:
            self.done = end.value
            return None


def run_tiles(
    steps: Sequence[Callable[[], Generator[Step, Tensor, Result]]], pool: TilePool, running: Callable[[], AbstractContextManager[None]]
) -> tuple[list[Result], float]:
    """Run tiles, two banks of as many as the pool computes at once; results in their order, and seconds spent waiting for others.

    running: what a thread computes in, `TensorStages.running`.
    """

    def advance(lane: _Lane[Result]) -> Step | None:
        with running():
            return lane.advance()

    results: dict[int, Result] = {}
    waiting: Iterator[_Lane[Result]] = (_Lane(index, begin()) for index, begin in enumerate(steps))
    banks: list[list[_Lane[Result]]] = [[], []]
    waited = 0.0
    while len(results) < len(steps):
        for bank in banks:
            while len(bank) < max(1, pool.threads) and (lane := next(waiting, None)) is not None:
                bank.append(lane)
            begin = time.perf_counter()
            for lane in bank:
                if lane.pending is not None:
                    lane.received, lane.pending = lane.pending.wait(), None
            end = time.perf_counter()
            if bank:
                mark("exchange", begin, end)
            waited += end - begin
            for lane, step in zip(bank, pool.map(advance, bank), strict=True):
                if step is not None:
                    lane.pending = step()
                elif lane.done is not None:
                    results[lane.index] = lane.done
            bank[:] = [lane for lane in bank if lane.done is None]
    return [results[index] for index in range(len(steps))], waited


def _bounds(ascending: Tensor, starts: Sequence[int], count: int) -> list[int]:
    """Index of the first element not below each of starts, and count at the end."""
    places: list[int] = torch.searchsorted(ascending, torch.tensor(starts, dtype=ascending.dtype, device=ascending.device)).tolist()
    return [*places, count]


def differing_samples(tile: Tile, headers: Tensor) -> GroupError:
    """The error for headers [ranks, n], the number of samples last, that are not the same."""
    place = f"the tile at column {tile.left}, row {tile.top}"
    return GroupError(
        f"tensor ranks sampled {place} differently: {[int(n) for n in headers[:, -1]]} samples, or others",
        remedy="give every rank the same scene, job and version, on machines of one kind",
    )


def no_samples(rays: Tensor) -> OwnedRays:
    """The sums of rays [R, 6] that meet nothing."""
    count = rays.shape[0]
    return OwnedRays(rays.new_zeros(count, 3), rays.new_zeros(count), rays.new_zeros(count), 0, 0)
