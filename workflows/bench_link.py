"""How fast a scene can come to where it is rendered: no start is faster than its bytes over that link."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.config import load_config
from landmark_batch.scene.identity import scene_parts
from landmark_batch.scene.layout import find_scene_files
from landmark_batch.scene.location import as_location
from landmark_batch.scene.store import BlockStore, BlockTable, open_if_store
from landmark_batch.workflows.machine import Placement, usable_cores
from landmark_batch.workflows.request import RenderRequest, checkpoint_of

READ_SECONDS = 3.0  # of reading: a large scene's rate is known by then
READERS = 16  # threads, at most
SPAN = 2**26  # bytes of a file that a thread reads before it takes others
PIECE = 2**21  # bytes of one read
COPY_BYTES = 2**28
COPIES = 8

Read = Callable[[], int]  # returns bytes


@dataclass(frozen=True)
class SceneLink:
    """stored, held: bytes that a worker reads, and that it puts on its device. reading, copying: bytes/s of either; copying is None on a
    CPU.
    """

    stored: int
    held: int
    reading: float
    copying: float | None = None

    @property
    def seconds(self) -> float:
        """What the slower of the two takes."""
        return max(self._reads, self._copies)

    @property
    def rate(self) -> float:
        """Bytes/s of that one."""
        return self.reading if self._reads >= self._copies or self.copying is None else self.copying

    def describe(self) -> str:
        """'reading is what limits: 8.46 GB take 0.91 s; to the GPU 53.20 GB/s, 8.46 GB take 0.16 s'."""
        reads = f"{self.stored / 1e9:.2f} GB take {self._reads:.2f} s"
        if self.copying is None:
            return f"reading: {reads}"
        copies = f"{self.held / 1e9:.2f} GB take {self._copies:.2f} s"
        if self._reads >= self._copies:
            return f"reading is what limits: {reads}; to the GPU {self.copying / 1e9:.2f} GB/s, {copies}"
        return f"the link to the GPU is what limits: {copies}; reading {self.reading / 1e9:.2f} GB/s, {reads}"

    @property
    def _reads(self) -> float:
        return self.stored / self.reading

    @property
    def _copies(self) -> float:
        return 0.0 if self.copying is None else self.held / self.copying


def scene_link(request: RenderRequest, placement: Placement) -> SceneLink:
    """Measure it for the workers of a placement here. Of a scene that is fetched in blocks, its slots' share of the bytes counts.

    Raises CheckpointError and StoreError where the scene cannot be read.
    """
    stored, reads = scene_reads(request)
    scene, share = request.job.scene, 1.0
    config = load_config(checkpoint_of(request.job), plane_division=scene.plane_division, edit=scene.edit, edit_block=scene.edit_block)
    held = config.grid_parameters(request.job.parallel.tensor_parallel) * (2 if request.precision == "fp16" else 4)
    if _is_fetched(request):
        assert request.fetching is not None and request.blocks is not None
        share = min(1.0, request.fetching.slots / request.blocks.size.blocks)
    copying = copy_rate(f"cuda:{placement.gpus[0]}") if placement.gpus else None
    return SceneLink(round(stored * share), round(held * share), read_rate(reads), copying)


def scene_reads(request: RenderRequest) -> tuple[int, Iterator[Read]]:
    """Bytes of a request's scene where it lies, and what reads all of them, part by part. Raises as `scene_link`.

    Of a store these are its planes: those that a worker reads that holds the scene whole, or all where it is fetched in blocks.
    """
    place = as_location(checkpoint_of(request.job))
    store = open_if_store(place)
    scene = request.job.scene
    if store is None:
        files = find_scene_files(Path(place))
        paths = [path for _, path in scene_parts(files, scene.edit, scene.edit_block)]
    else:
        planes = _planes(store, fetched=_is_fetched(request))
        if not store.local:
            count = sum(math.prod(table.shape) for _, table in planes)
            return count * store.head.dtype.itemsize, (_plane(store, block, table) for block, table in planes)
        paths = [Path(store.where(block, table)) for block, table in planes]
    try:
        sizes = {path: path.stat().st_size for path in paths}
    except OSError as error:
        raise _unreadable(error) from None
    return sum(sizes.values()), (_span(path, start) for path, size in sizes.items() for start in range(0, size, SPAN))


def read_rate(reads: Iterator[Read], seconds: float = READ_SECONDS) -> float:
    """Bytes/s of these, several at a time; those that have not begun after so many seconds are left out."""
    threads = min(READERS, usable_cores())
    started = time.perf_counter()

    def run(read: Read) -> int:
        return read() if time.perf_counter() - started < seconds else 0

    with ThreadPoolExecutor(threads, thread_name_prefix="link") as pool:
        count = sum(pool.map(run, reads))
    return max(1, count) / (time.perf_counter() - started)


def copy_rate(device: str = "cuda") -> float:
    """Bytes/s from pinned host memory to a GPU."""
    import torch

    host = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    there.copy_(host, non_blocking=True)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(COPIES):
        there.copy_(host, non_blocking=True)
    torch.cuda.synchronize(device)
    return COPY_BYTES * COPIES / (time.perf_counter() - started)


def _span(path: Path, start: int) -> Read:
    """Reads a span of a file, or what there is of it, into memory that is used again: what new memory costs is not the link's."""

    def read() -> int:
        memory, count = memoryview(bytearray(PIECE)), 0
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                while count < SPAN and (came := file.readinto(memory[: SPAN - count])):
                    count += came
        except OSError as error:
            raise _unreadable(error) from None
        return count

    return read


def _plane(store: BlockStore, block: int, table: BlockTable) -> Read:
    """Of a remote store: one request a plane, its digest compared."""
    return lambda: int(store.read_plane(block, table).nbytes)


def _planes(store: BlockStore, *, fetched: bool) -> list[tuple[int, BlockTable]]:
    """(block, plane) of all that is read. fetched: block by block, each with all of its planes."""
    from landmark_batch.scene.store_load import planes_read  # imports torch

    return [(block, table) for block in range(store.blocks) for table in store.tables] if fetched else planes_read(store)


def _is_fetched(request: RenderRequest) -> bool:
    return request.fetching is not None and request.fetching.mode == "dynamic"


def _unreadable(error: OSError) -> CheckpointError:
    return CheckpointError(f"{error.filename}: cannot read it: {error.strerror or error}", remedy="check the path and its permissions")
