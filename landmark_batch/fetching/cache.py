"""BlockCache: store -> host buffers -> slots of a device, along a future that is known. Rendering waits only for what is not there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore
from landmark_batch.scene.weights import SceneWeights

from .block_reader import BlockReader
from .block_sets import AnySets
from .copies import SlotCopies
from .host_tier import HostTier
from .peer_copies import LEAST_BYTES
from .shared_reads import SharedReads
from .slot_plan import EMPTY, Load, SlotPlan
from .slots import SlotTables
from .stats import FetchStats

RELEASE_SECONDS = 2.0  # that other ranks may take to let go of tables
PLAN_FRAMES = 64  # planned beyond the frame at hand with every hold, as long as few loads are waiting


class BlockCache:
    """The blocks of a scene that a device needs just now, in `slots` slots.

    `expect` says which blocks the frames to come need; `hold` makes the blocks of one of them present. What is loaded and what it
    replaces follow Belady's plan of the whole future, so that the number of loads is the least for that order however fast the disk
    is; reads and copies run ahead of rendering as far as slots are free. One thread uses a cache.

    stats: counters so far, those of the device as far as it has come.
    """

    def __init__(
        self,
        store: BlockStore,
        device: torch.device | str,
        *,
        slots: int,
        host_bytes: int | None,
        precision: str,
        shard: ChannelShard | None = None,
        pad: bool = False,
        threads: int = 4,
        base: SceneWeights | None = None,
        shared: SharedReads | None = None,
    ) -> None:
        """precision: 'fp32' or 'fp16', of the tables. shard: the channels they hold. pad: fill channels up to whole groups of eight,
        for the CUDA kernels. host_bytes: of buffers in host memory, None for as many as slots. threads: that read. base: what
        `store.base(shard)` returned, if it was called already. shared: with whom what is read is shared, and on GPUs what is
        copied into slots; closed with the cache.

        Raises ConfigError for host_bytes in which no block fits, CheckpointError or StoreError for a store that cannot be read,
        torch.OutOfMemoryError, ValueError without slots.
        """
        if slots < 1:
            raise ValueError(f"{slots} slots: at least one")
        self.device = torch.device(device)
        self._counted = FetchStats()
        base = store.base(shard) if base is None else base
        self._blocks = store.blocks
        with self._on_device():
            reader = BlockReader(store, base, precision=precision, shard=shard, pad=pad, stats=self._counted, shared=shared)
            self.tables = SlotTables(store, reader, self.device, slots)
            pinned = self.device.type == "cuda"
            self._host = HostTier(reader, host_bytes=host_bytes, slots=slots, pinned=pinned, threads=threads, stats=self._counted)
            board = None
            if shared is not None and pinned and reader.moved_bytes >= LEAST_BYTES:
                board = shared.board(shard.size if shard is not None else 1, store.blocks)
            self._copies = SlotCopies(self._host, self.tables, reader.moved_bytes, self._counted, board)
        self._counted.raise_to(slot_bytes=self.tables.slot_bytes)
        self._content = [EMPTY] * slots
        self._held_at = [0] * slots  # when its block was held last, by slot
        self._holds = 0  # of blocks, one after another
        self._position = -1
        self._holding = False
        self._plan = SlotPlan([], slots)

    @property
    def capacity(self) -> int:
        """Slots."""
        return self.tables.count

    @property
    def stats(self) -> FetchStats:
        self._copies.settle()
        return self._counted

    def expect(self, sets: AnySets) -> None:
        """The block sets of the frames to come, in order, from now on; position 0 comes next. What is in slots stays as long as it is
        of use, and reading begins at once.
        """
        self._plan = SlotPlan(sets, self.capacity)
        self._host.forget_errors()
        self._position = -1
        self._plan.restart(0, self._content)
        if not self._holding:
            with self._on_device():
                self._go_on(0, ())

    @contextmanager
    def hold(self, blocks: Sequence[int], position: int | None = None) -> Iterator[None]:
        """All of `blocks` are in slots, and `tables.slots` tells exactly these, for what the current stream does inside.

        Of blocks that are needed equally late those leave first that were held longest ago; of one hold, in the order of `blocks`.

        position: of the expected frames; None: the next. The same again: another pass over that frame, or parts of it. Frames before
        it are over. Blocks that were not expected are loaded when they are asked for.
        Raises ValueError for more blocks than slots, or no such block; CheckpointError or StoreError, naming block and file, for one
        that cannot be read: asked for again, it is read again.
        """
        if self._holding:
            raise RuntimeError("a hold ends before the next begins")
        wanted = sorted(set(blocks))
        if len(wanted) > self.capacity:
            raise ValueError(f"{len(wanted)} blocks at once in {self.capacity} slots")
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self._blocks:
            raise ValueError(f"blocks {wanted[0]} to {wanted[-1]} of {self._blocks}")
        with self._on_device():
            places = self._enter(wanted, blocks, self._position + 1 if position is None else position)
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            with self._on_device():
                self._copies.release(places.values())
        with self._on_device():
            self._go_on(self._position, wanted)

    def in_order(self, blocks: Sequence[int], position: int, *, last: bool) -> list[int]:
        """Blocks of the expected frame at `position` that take turns in the slots, in an order that loads few: as `Fetcher.in_order`."""
        present = set(self._content)
        uses = self._plan.uses_after(position, blocks)
        rank = {block: (-uses[block] if last else uses[block], block) for block in blocks}
        order = sorted(blocks, key=lambda block: (block not in present, rank[block]))
        return sorted(order[: self.capacity], key=rank.__getitem__) + order[self.capacity :]  # as they leave

    def resize(self, slots: int) -> None:
        """Other slots instead, with nothing in them; the future stays. `tables.slots` stays where it is, the tables do not.

        Raises torch.OutOfMemoryError, with no slots then: call it again with fewer.
        """
        if slots < 1 or self._holding:
            raise ValueError(f"{slots} slots{' inside a hold' if self._holding else ': at least one'}")
        with self._on_device():
            until = time.monotonic() + (RELEASE_SECONDS if self._copies.shared else 0.0)
            self._copies.finish()
            self._content, self._held_at = [EMPTY] * slots, [0] * slots
            while True:
                try:
                    self.tables.allocate(slots)
                    break
                except torch.OutOfMemoryError:
                    if time.monotonic() >= until:
                        raise
                time.sleep(RELEASE_SECONDS / 100)
                torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]  # of tables that the last peer has let go of
            self._copies.follow()
        self._counted.raise_to(slot_bytes=self.tables.slot_bytes)
        self._plan.restart(self._position + 1, self._content)

    def close(self) -> None:
        """End the threads. A read that takes long ends by itself later, in memory of its own."""
        self._host.close()
        self._copies.close()

    def _enter(self, wanted: list[int], order: Sequence[int], position: int) -> dict[int, int]:
        self._copies.settle()
        present = set(self._content)
        self._counted.add(hits=sum(block in present for block in wanted))
        stale = bool(self._plan.queue) and self._plan.queue[0].position < position  # of a frame of which only parts were asked for
        if stale or position not in (self._position, self._position + 1) or self._plan.cursor < position:
            self._plan.restart(position, self._content)
        self._look_ahead(position)
        if not self._is_planned(wanted, position):
            self._plan.restart(position, self._content)
            self._plan.demand(position, wanted, self._held_at)
            self._look_ahead(position)
        self._go_on(position, wanted)
        waited = 0.0
        while waiting := self._waiting(position, wanted):
            start = time.perf_counter()
            try:
                self._copies.wait(waiting)
            finally:
                waited += time.perf_counter() - start
            self._go_on(position, wanted)
        if waited:
            self._counted.add(stalls=1, stall_seconds=waited)
        self._position = position
        at = {block: slot for slot, block in enumerate(self._content)}
        places = {block: at[block] for block in wanted}
        for block in order:
            self._holds += 1
            self._held_at[places[block]] = self._holds
        self._copies.join(places.values())
        self.tables.show(places)
        return places

    def _look_ahead(self, position: int) -> None:
        self._plan.extend(position, PLAN_FRAMES, self._host.buffers + self.capacity)

    def _is_planned(self, wanted: Collection[int], position: int) -> bool:
        """Whether the plan brings these blocks in time, into slots that hold none of them."""
        present = set(self._content)
        coming = {load.block: load for load in self._plan.queue if load.position <= position}
        return all(self._content[coming[block].slot] not in wanted if block in coming else block in present for block in wanted)

    def _go_on(self, position: int, wanted: Collection[int]) -> None:
        """Read what comes next, and copy what is read into slots that are free: those that no frame from `position` on reads before."""
        self._look_ahead(position)
        self._read_ahead(position, wanted)
        rest: deque[Load] = deque()
        for load in self._plan.queue:
            free = load.after < position and self._content[load.slot] not in wanted
            if free and self._copies.start(load.block, load.slot):
                self._content[load.slot] = load.block
                self._counted.add(loads=1)
            else:
                rest.append(load)
        self._copies.flush()
        if len(rest) < len(self._plan.queue):
            self._plan.queue = rest
            self._look_ahead(position)
            self._read_ahead(position, wanted)

    def _read_ahead(self, position: int, wanted: Collection[int]) -> None:
        urgent = self._waiting(position, wanted)
        order = [block for block in self._plan.order(self._host.buffers) if block not in urgent]
        self._host.request([*urgent, *order], self._plan.need)

    def _waiting(self, position: int, wanted: Collection[int]) -> list[int]:
        """Those of the wanted blocks that are still to be loaded."""
        return [load.block for load in self._plan.queue if load.position <= position and load.block in wanted]

    def _on_device(self) -> torch.cuda.device | nullcontext[None]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
