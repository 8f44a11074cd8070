"""SlotTables: the blocks that a device holds, by slot, and the list that tells kernels which slot a block sits in."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from landmark_batch.scene.store import BlockStore

from .block_reader import BlockReader

STAGES = 8  # changes of the list that can be on their way before another buffer is made


class SlotTables:
    """Tables of `count` slots on a device.

    density_planes[i], app_planes[i]: [S, h, w, C];  density_lines[i], app_lines[i]: [S, n, C];  i = dim * R + res, in the reader's
    precision and channels. slots [blocks] int64: slot of a block, -1 absent; it never moves in memory. origins [blocks, levels, 2]
    int32 on the device and extents (h0, w0, h1, w1, ...): of a cut scene, else None and (). division: blocks along x and y.
    `allocate` fills the four lists anew in place.
    """

    def __init__(self, store: BlockStore, reader: BlockReader, device: torch.device, count: int) -> None:
        """Raises torch.OutOfMemoryError where the device cannot hold them."""
        self.device = device
        self.division: tuple[int, int] = store.division
        self.extents: tuple[int, ...] = store.extents
        self.density_planes: list[Tensor] = []
        self.app_planes: list[Tensor] = []
        self.density_lines: list[Tensor] = []
        self.app_lines: list[Tensor] = []
        self.count = 0
        self._reader = reader
        self._shown: dict[int, int] = {}  # what `slots` tells, or will when the device comes to it
        self._staging: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        with torch.inference_mode(False), torch.no_grad():
            self.slots = torch.full((store.blocks,), -1, dtype=torch.int64, device=device)
            self.origins = None if store.origins is None else torch.from_numpy(store.origins).to(device)
        if device.type == "cuda":
            self._staging.extend(self._stage() for _ in range(STAGES))
        self.allocate(count)

    @property
    def slot_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(table.numel() * table.element_size() for table in self._tables())

    def allocate(self, count: int) -> None:
        """Give the tables back and make such of `count` slots, with nothing in them."""
        self.free()
        made: dict[str, list[Tensor]] = {"density_planes": [], "app_planes": [], "density_lines": [], "app_lines": []}
        with torch.inference_mode(False), torch.no_grad():  # tables outlive the mode of whoever makes them
            for table in self._reader.tables:
                made[table.name].append(torch.zeros((count, *table.shape), dtype=self._reader.dtype, device=self.device))
            for name, tables in made.items():
                getattr(self, name).extend(tables)
            self._reader.fill_lines(self._tables())
        self.count = count

    def free(self) -> None:
        """Give the tables' memory back."""
        self.show({})
        for group in (self.density_planes, self.app_planes, self.density_lines, self.app_lines):
            group.clear()
        self.count = 0

    @property
    def moved(self) -> Sequence[Tensor]:
        """The tables [S, ...] that a block brings something into, in the order of the reader's."""
        return self._tables()[: self._reader.moved]

    def views(self, slot: int) -> list[Tensor]:
        """What a block brings into that slot, in the order of the reader's tables."""
        return [table[slot] for table in self.moved]

    def show(self, places: Mapping[int, int]) -> None:
        """Let `slots` tell exactly these blocks, {block: slot}; on a GPU for what the current stream does from here on.

        Does not wait for the device: the numbers travel from a pinned buffer that is used again when its copy is over.
        """
        if places == self._shown:
            return
        self._shown = dict(places)
        wanted = np.full(len(self.slots), -1, np.int64)
        for block, slot in places.items():
            wanted[block] = slot
        if self.device.type != "cuda":
            with torch.no_grad():
                self.slots.copy_(torch.from_numpy(wanted))
            return
        if not is_over(self._staging[0][1]):
            self._staging.appendleft(self._stage())
        staged, event = self._staging.popleft()
        staged.numpy()[:] = wanted
        with torch.cuda.device(self.device), torch.no_grad():
            self.slots.copy_(staged, non_blocking=True)
            event.record(torch.cuda.current_stream(self.device))
        self._staging.append((staged, event))

    def _stage(self) -> tuple[Tensor, torch.cuda.Event]:
        """A pinned buffer for the list, and the event of its last copy."""
        with torch.inference_mode(False):
            return torch.empty(len(self.slots), dtype=torch.int64, pin_memory=True), new_event()

    def _tables(self) -> Sequence[Tensor]:
        return [*self.density_planes, *self.app_planes, *self.density_lines, *self.app_lines]


def new_event(*, timed: bool = False) -> torch.cuda.Event:
    """A mark in a stream's work. timed: two of them tell what the device took between."""
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]
    return event


def is_over(event: torch.cuda.Event) -> bool:
    """Whether the device has passed it. Does not wait."""
    return bool(event.query())  # type: ignore[no-untyped-call]
