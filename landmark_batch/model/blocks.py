"""What a renderer needs to know of a scene whose blocks come and go: the slots they sit in, and who brings them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.scene.weights import SceneWeights

FETCH_COUNTERS = (
    "fetch_loads",
    "fetch_bytes_read",
    "fetch_bytes_shared",
    "fetch_bytes_copied",
    "fetch_bytes_pulled",
    "fetch_stalls",
    "fetch_stall_microseconds",
)


class BlockTables(Protocol):
    """Planes and lines of the blocks in memory, by slot, on the renderer's device and in its precision.

    density_planes[i], app_planes[i]: [S, h, w, C];  density_lines[i], app_lines[i]: [S, n, C];  i = dim * R + res.
    division: blocks along x, y. slots [blocks] int64: the slot of a block, -1 absent; it stays where it is in memory.
    origins [blocks, levels, 2] int32 and extents: of a scene that was cut into blocks, see `kernels.density`; else None, ().
    """

    @property
    def density_planes(self) -> Sequence[Tensor]: ...
    @property
    def density_lines(self) -> Sequence[Tensor]: ...
    @property
    def app_planes(self) -> Sequence[Tensor]: ...
    @property
    def app_lines(self) -> Sequence[Tensor]: ...
    @property
    def division(self) -> Sequence[int]: ...
    @property
    def slots(self) -> Tensor: ...
    @property
    def origins(self) -> Tensor | None: ...
    @property
    def extents(self) -> Sequence[int]: ...


class BlockSource(Protocol):
    """Brings blocks into slots. capacity: how many there are."""

    @property
    def capacity(self) -> int: ...

    def hold(self, blocks: Sequence[int]) -> AbstractContextManager[Any]:
        """All of `blocks`, at most `capacity`, are present while inside; others may be absent."""
        ...

    def in_order(self, blocks: Sequence[int], *, last: bool) -> list[int]:
        """Blocks that take turns in the slots, in the order that loads fewest. last: for the last time that they all do so."""
        ...


class FrameRegion(Protocol):
    """Pixels of rows top..bottom-1 and columns left..right-1 of a frame, and the blocks, ascending, that they can touch."""

    @property
    def left(self) -> int: ...
    @property
    def top(self) -> int: ...
    @property
    def right(self) -> int: ...
    @property
    def bottom(self) -> int: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...


class FrameFetcher(BlockSource, Protocol):
    """A source that knows which blocks frames need. base: the scene without its planes, this rank's channels of it."""

    @property
    def base(self) -> SceneWeights: ...
    @property
    def tables(self) -> BlockTables: ...

    def begin(self, frame: int | None, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> list[int]:
        """A frame comes: the blocks it needs. frame: its number in the flight, None for a camera that is not of it."""
        ...

    def regions(
        self,
        blocks: Sequence[int],
        c2w: NDArray[np.floating],
        intrinsics: Sequence[float],
        width: int,
        height: int,
        unit: tuple[int, int],
        *,
        passes: Callable[[int], int],
        wanted: Callable[[FrameRegion], bool],
    ) -> Iterator[FrameRegion]:
        """The regions that are wanted of the frame that was begun, which needs `blocks`, more than there are slots: one after another.

        unit: columns and rows of pixels, of which regions are multiples. passes: how often so many rays of the frame go through passes.
        The same for every fetcher of as many slots that had the same frames before.
        """
        ...

    def look(self, frame: int | None, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> list[int]:
        """The blocks it really needs, where it met one that was not foreseen."""
        ...

    def shrink(self) -> None:
        """After a device that was out of memory: half the slots, or fewer. What was in them is gone and `tables` hold others; nothing may
        refer to those before. Raises torch.OutOfMemoryError where not even one finds room.
        """
        ...

    def close(self) -> None:
        """Fetch no more."""
        ...

    def counted(self) -> dict[str, int]:
        """What was fetched since the last call, by counter."""
        ...


def cut_arguments(tables: BlockTables | None) -> dict[str, Any]:
    """The keywords of the field's ops that say where a cut scene's planes were cut; none for any other scene."""
    if tables is None or tables.origins is None:
        return {}
    return {"origins": tables.origins, "extents": list(tables.extents)}


def in_passes(blocks: Sequence[int], capacity: int) -> list[list[int]]:
    """Blocks in groups that fit, in their order."""
    return [[*blocks[start : start + capacity]] for start in range(0, len(blocks), capacity)]
