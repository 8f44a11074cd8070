"""BlockReader: one block of a store as a renderer holds it: in the job's precision, its rank's channels, filled up where kernels ask."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.model.field import STORAGE
from landmark_batch.scene.shard import WHOLE, ChannelShard
from landmark_batch.scene.store import BlockStore
from landmark_batch.scene.weights import SceneWeights

from .shared_reads import SharedReads, Source
from .stats import FetchStats

GROUP = 8  # channels of a CUDA kernel's load
ALIGN = 256  # bytes: where a table begins in a buffer


@dataclass(frozen=True)
class Table:
    """One table of a block: [h, w, C] of a plane, [n, C] of a line, in the job's precision. Channels past those of the share are 0."""

    name: str  # density_planes, app_planes, density_lines, app_lines
    level: int
    shape: tuple[int, ...]


class BlockReader:
    """Reads blocks of `store`, from any thread.

    tables: planes of density, planes of appearance, then lines alike; what a slot holds. moved: how many of them, from the first on, a
    block brings with it: all, or the planes only where blocks are cut out of one scene and share their lines.
    """

    def __init__(
        self,
        store: BlockStore,
        base: SceneWeights,
        *,
        precision: str,
        shard: ChannelShard | None,
        pad: bool,
        stats: FetchStats,
        shared: SharedReads | None = None,
    ) -> None:
        """base: of `store.base(shard)`. pad: fill channels up to whole groups of eight. shared: with whom what is read is shared; it is
        closed with the reader.
        """
        self.dtype = STORAGE[precision]
        self.blocks = store.blocks
        self._store = store
        self._stats = stats
        self._shared = shared
        self._share = shard or WHOLE
        self._stored = torch.from_numpy(np.empty(0, np.dtype(np.float32 if store.precision == "fp32" else np.float16)))
        self._lines = (*base.density_lines, *base.app_lines)
        found = []
        for plane in store.tables:
            width = self._share.span(plane.channels)[2]
            found.append(Table(f"{plane.kind}_planes", plane.level, (plane.height, plane.width, _filled(width, pad))))
        for name, lines in (("density_lines", base.density_lines), ("app_lines", base.app_lines)):
            found += [Table(name, level, (line.shape[1], _filled(line.shape[2], pad))) for level, line in enumerate(lines)]
        self.tables: tuple[Table, ...] = tuple(found)
        self.moved = len(store.tables) if store.origins is not None else len(found)
        self._direct = [self._stored.dtype == self.dtype and t.shape == p.shape for t, p in zip(found, store.tables, strict=False)]
        self._scratch = threading.local()
        if shared is not None:
            stats.add(host_peak_bytes=shared.own_bytes)

    @property
    def element(self) -> int:
        """Bytes of a number."""
        return torch.empty((), dtype=self.dtype).element_size()

    @property
    def moved_bytes(self) -> int:
        """Bytes that a block brings."""
        return sum(math.prod(table.shape) for table in self.tables[: self.moved]) * self.element

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a buffer for one block, with its tables aligned."""
        return sum(_aligned(math.prod(table.shape) * self.element) for table in self.tables[: self.moved])

    @property
    def scratch_bytes(self) -> int:
        """Bytes that every reading thread keeps beside: its largest plane as stored, where planes are not read straight into place."""
        element = self._stored.element_size()
        converted = [math.prod(table.shape) * element for table, direct in zip(self._store.tables, self._direct, strict=True) if not direct]
        return max(converted, default=0)

    def views(self, memory: Tensor) -> list[Tensor]:
        """The tables of a block in a buffer [buffer_bytes] uint8."""
        found, start = [], 0
        with torch.inference_mode(False):  # they are written by threads that know of no mode
            for table in self.tables[: self.moved]:
                size = math.prod(table.shape) * self.element
                found.append(memory[start : start + size].view(self.dtype).view(table.shape))
                start += _aligned(size)
        return found

    def read(self, block: int, into: Sequence[Tensor]) -> None:
        """Fill the tables of a block, whose further channels stay as they are. Raises as `BlockStore.read_plane_into`."""
        spans = [self._share.span(table.channels) for table in self._store.tables]
        planes = [number for number, (start, stop, _) in enumerate(spans) if start < stop]
        count: dict[Source, int] = {"store": 0, "neighbour": 0}
        first = len(planes) * self._shared.rank // self._shared.ranks if self._shared is not None else 0
        left = deque([*planes[first:], *planes[:first]])  # neighbours begin with other planes
        untried = len(left)  # what is left after these, another rank was reading
        while left:
            number = left.popleft()
            source = self._fill(block, number, into[number], wait=untried <= 0)
            untried -= 1
            if source == "later":
                left.append(number)
            else:
                count[source] += math.prod(self._store.tables[number].shape) * self._stored.element_size()
        for view, line in zip(into[len(self._store.tables) :], self._lines, strict=False):
            view[..., : line.shape[2]].copy_(line[block])
        self._stats.add(blocks_read=1, bytes_read=count["store"], bytes_shared=count["neighbour"])

    def close(self) -> None:
        """Share no more."""
        if self._shared is not None:
            self._shared.close()

    def fill_lines(self, tables: Sequence[Tensor]) -> None:
        """Lines that all blocks share into every slot of their tables [S, n, C]; nothing where blocks bring their own."""
        if self.moved < len(self.tables):
            for table, line in zip(tables[self.moved :], self._lines, strict=True):
                table[..., : line.shape[2]].copy_(line.to(self.dtype))

    def _fill(self, block: int, number: int, view: Tensor, *, wait: bool) -> Source:
        """Plane `number` of a block, as `SharedReads.fill`."""
        plane = self._store.tables[number]
        if self._direct[number]:
            return self._bring(block, number, view.numpy(), wait=wait)
        whole = self._memory()[: math.prod(plane.shape)].reshape(plane.shape)
        source = self._bring(block, number, whole, wait=wait)
        if source != "later":
            start, stop, _ = self._share.span(plane.channels)
            view[..., : stop - start].copy_(torch.from_numpy(whole)[..., start:stop])
        return source

    def _bring(self, block: int, number: int, whole: NDArray[Any], *, wait: bool) -> Source:
        """A plane as stored [h, w, C]."""
        read = partial(self._store.read_plane_into, block, self._store.tables[number], whole)
        if self._shared is None:
            read()
            return "store"
        content = whole.reshape(-1).view(np.uint8).data
        return self._shared.fill(f"{self._store.digests[block]}.{number}", content, read, wait=wait)

    def _memory(self) -> NDArray[Any]:
        """This thread's own memory for a plane as stored."""
        found: NDArray[Any] | None = getattr(self._scratch, "memory", None)
        if found is None:
            found = self._scratch.memory = np.empty(self.scratch_bytes // self._stored.element_size(), self._stored.numpy().dtype)
            self._stats.add(host_peak_bytes=found.nbytes)
        return found


def _filled(channels: int, pad: bool) -> int:
    return channels + -channels % GROUP if pad else channels


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
