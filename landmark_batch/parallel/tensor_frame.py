"""Whole frames in the fused mixed mode: few large batches, two of them in flight, one look at the device a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.errors import GroupError
from landmark_batch.model.pool import TilePool

from .exchange import TensorExchange
from .fused_tensor import Batch, BatchSums, FusedTensorStages, batch_steps
from .share import ray_batches
from .tensor import run_tiles

PADDED = True  # exchange capacities, not counts: the host never waits inside a frame
BATCHES = 2  # of a frame large enough: while one is exchanged, the other is computed; more cost more in launches than they hide
BATCH_RAYS = 2**17  # fewer do not fill a GPU
MEMORY_SHARE = 0.25  # of the free memory, for the batches in flight
CPU_MEMORY = 2**30
IN_FLIGHT = 2
SLACK = 1.125  # room for samples above what the last frame needed
FRAME_SIZES = 4
MOST_SAMPLES = 2**31 - 1  # that an op marches at once
USED = 0.8  # of the room; where less is needed, it shrinks
LEAST_ROOM = 1024
LEAST = 0.125  # samples a ray


@dataclass
class _Need:
    """Samples and coloured samples a ray for which there is room. All tensor ranks learn the same, so all have the same."""

    samples: float = 16.0
    coloured: float = 8.0

    def rows(self, rays: int) -> tuple[int, int]:
        return max(LEAST_ROOM, int(rays * self.samples)), max(LEAST_ROOM, int(rays * self.coloured))

    def learn(self, most: Sequence[tuple[int, int, int]], *, partly: bool = False) -> bool:
        """Whether the frame has to be rendered again. most: of each batch the rays of its largest share, and the most samples and
        coloured samples of a share. Room that a frame does not use is given back, unless it was a part of one.
        """
        short = any(found > self.rows(rays)[0] for rays, found, _ in most)
        unlisted = any(coloured > self.rows(rays)[1] for rays, _, coloured in most)
        samples, coloured = (SLACK * max((share[i] / max(1, share[0]) for share in most), default=0.0) for i in (1, 2))
        if short or (samples < self.samples * USED and not partly):
            self.samples = max(samples, LEAST)
        if unlisted or (coloured < self.coloured * USED and not short and not partly):  # a short list of samples has too few coloured ones
            self.coloured = max(coloured, LEAST)
        return short or unlisted


class TensorFrames:
    """Renders the rays of a row of tensor ranks. All of the row make the same calls.

    padded: exchanges have fixed lengths and the host does not wait inside a frame; otherwise it waits twice a batch, and exchanges are
    as long as needed. batches: of a frame large enough for them. memory: bytes for batches, None for a share of the device's. Pixels
    depend on none of these.
    """

    def __init__(
        self,
        stages: FusedTensorStages,
        exchange: TensorExchange,
        *,
        padded: bool = PADDED,
        batches: int = BATCHES,
        memory: int | None = None,
    ) -> None:
        self._stages, self._exchange = stages, exchange
        self._padded, self._wanted = padded, batches
        self._need = _Need()
        self._limit, self._memory = memory, 0
        self._pool = TilePool(0)
        self._places = lru_cache(maxsize=FRAME_SIZES * exchange.size)(ray_batches)
        self._pixels = lru_cache(maxsize=FRAME_SIZES)(self._cut)

    def render(
        self, pose: Tensor, lens: Tensor, width: int, pixels: tuple[Tensor, ...], shares: int, *, partly: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, int]]:
        """rgb [P, 3] before the background, depth [P], alpha [P] of the rays this rank owns, and counters of them.

        pose [3, 4], lens [4]: as for pixel_rays. pixels: row * width + column [P] int64 of each tensor rank, of `shares` in all (see
        `ray_shares`); the same tensors for every whole frame of a size. partly: they are a part of one.
        Raises GroupError where ranks have sampled differently.
        """
        stages, rank = self._stages, self._exchange.rank
        if not self._memory:
            self._memory = self._agree()
        while True:
            cut = self._pixels(pixels, width, shares, self._batches(sum(own.shape[0] for own in pixels)))
            rays = [max(own.shape[0] for own in part) for part in cut]
            batches = [Batch(part, *self._need.rows(count)) for part, count in zip(cut, rays, strict=True)]
            begin = [partial(batch_steps, stages, self._exchange, pose, lens, width, batch, padded=self._padded) for batch in batches]
            done, _ = run_tiles(begin, self._pool, stages.running)
            table: list[list[int]] = torch.stack([part.status for part in done]).tolist()  # waits for the frame
            if any(row[3] for row in table):
                raise _differing_ranks()
            if any(row[2] for row in table):
                raise kernels.AbsentBlockError(f"{sum(row[2] for row in table)} samples lie in blocks that are not in memory")
            if not self._need.learn([(count, row[0], row[1]) for count, row in zip(rays, table, strict=True)], partly=partly):
                break
        sums = self._joined(done, pixels[rank], self._places(pixels[rank], width, shares, len(cut)))
        counters = {"survived": sum(row[4] for row in table), "coloured": sum(row[5] for row in table)}
        return (*sums, counters)

    def _cut(self, pixels: tuple[Tensor, ...], width: int, shares: int, count: int) -> list[tuple[Tensor, ...]]:
        """Pixels of each owner, of each batch."""
        owned = [[own[places] for places in self._places(own, width, shares, count)] for own in pixels]
        return list(zip(*owned, strict=True))

    def _joined(self, done: Sequence[BatchSums], pixels: Tensor, places: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of all batches in the order of this rank's pixels."""
        if len(done) == 1:
            return done[0].rgb, done[0].depth, done[0].alpha
        count = pixels.shape[0]
        rgb, depth, alpha = (done[0].alpha.new_empty(count, *more) for more in ((3,), (), ()))
        for part, rows in zip(done, places, strict=True):
            rgb[rows], depth[rows], alpha[rows] = part.rgb, part.depth, part.alpha
        return rgb, depth, alpha

    def _batches(self, rays: int) -> int:
        """Batches of so many rays of the row: the same number on all tensor ranks."""
        settings, config, size = self._stages.settings, self._stages.config, self._exchange.size
        need = self._need
        ray = 64 + 20 * need.samples + (8 * config.app_dim + 48) * need.coloured  # bytes
        most = min(self._memory / IN_FLIGHT / ray, size * (MOST_SAMPLES // settings.samples), settings.rays_per_batch or rays)
        wanted = 1 if settings.rays_per_batch else min(self._wanted, -(-rays // BATCH_RAYS))
        return max(1, wanted, -(-rays // max(1, int(most))))

    def _agree(self) -> int:
        """Bytes for batches: of the rank that has the fewest. Raises GroupError where ranks would sample other rays' samples."""
        device = self._stages.device
        wanted = self._limit
        if wanted is None:
            free = CPU_MEMORY
            if device.type == "cuda":
                free = torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
            wanted = int(free * MEMORY_SHARE)
        with self._stages.running():
            own = torch.cat([self._stages.identity(), torch.tensor([wanted], device=device)])
            received = self._exchange.swap([own] * self._exchange.size, 2).wait()
            received[self._exchange.rank] = own
            table: list[list[int]] = received.tolist()
        if any(row[0] != table[0][0] for row in table):
            raise _differing_ranks()
        return max(1, min(row[1] for row in table))


def _differing_ranks() -> GroupError:
    return GroupError(
        "tensor ranks sampled the frame differently: they hold other masks, or run other kernels",
        remedy="give every rank the same scene, job and version, on machines of one kind",
    )
