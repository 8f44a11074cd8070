"""BlockStore: a scene in blocks, opened from a folder or a URL; every chunk that is read is checked against its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import CheckpointError, StoreError
from landmark_batch.scene.location import SceneLocation, as_location
from landmark_batch.scene.mask import StoredMask
from landmark_batch.scene.shard import WHOLE, ChannelShard, cut_channels, cut_columns
from landmark_batch.scene.store_layout import (
    ROOT,
    ArrayNote,
    BlockTable,
    LineTable,
    StoreHead,
    block_bytes,
    block_digest,
    chunk_key,
    digests_shape,
    is_store_folder,
    mark_of,
    mask_bytes,
    read_head,
)
from landmark_batch.scene.store_source import FolderSource, Retry, Source, TransientError, open_source, read_piece
from landmark_batch.scene.weights import AlphaMask, SceneConfig, SceneWeights

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BlockStore", "BlockTable", "is_block_store", "open_if_store"]

T = TypeVar("T")

_AGAIN = "copy the store again, or convert the checkpoint again"


def is_block_store(location: SceneLocation) -> bool:
    """Whether a block store lies there: a local folder with its zarr.json, or a URL behind which one is found.

    Raises StoreError for a URL that does not answer, CheckpointError for one that nothing installed here can read.
    """
    place = as_location(location)
    if isinstance(place, Path):
        return is_store_folder(place)
    try:
        return mark_of(_read(open_source(place), Retry(), ROOT)) is not None
    except FileNotFoundError:
        return False


def open_if_store(location: SceneLocation) -> BlockStore | None:
    """The store behind a URL or in a local folder; None for a path where none lies, which may be a checkpoint.

    Raises as `BlockStore.open`.
    """
    place = as_location(location)
    return None if isinstance(place, Path) and not is_store_folder(place) else BlockStore.open(place)


class BlockStore:
    """A scene of which each block can be read alone. Methods may be called from several threads, and it may be pickled.

    config: of the whole scene. division: (x, y) of the stored blocks, block = column * division[1] + row; of a cut scene (config.layout
    'single') it is the store's own. precision: 'fp32' or 'fp16', of planes and lines as stored.
    tables: density planes by level, then app planes by level: shape of ONE block's stored plane.
    extents: (h0, w0, h1, w1, ...) of the whole planes by level, where they are cut; else empty.
    """

    def __init__(self, location: SceneLocation, source: Source, retry: Retry, head: StoreHead) -> None:
        self.location = location
        self.head = head
        self.config: SceneConfig = head.config
        self.division: tuple[int, int] = head.division
        self.blocks: int = head.blocks
        self.precision = head.precision
        self.tables: tuple[BlockTable, ...] = head.tables()
        self.extents: tuple[int, ...] = tuple(size for h, w, _ in head.config.level_sizes() for size in (h, w)) if head.cut else ()
        self.base_digest: str = head.base_digest()
        self._source = source
        self._retry = retry
        self._slots = {table: number for number, table in enumerate(self.tables)}

    @classmethod
    def open(cls, location: SceneLocation, *, attempts: int = 5, delay: float = 0.25, timeout: float = 60.0) -> BlockStore:
        """Read the store's head. attempts, delay: of remote reads, see Retry. timeout: seconds without a byte (HTTP).

        Raises CheckpointError (no store there, damaged, of another version) or StoreError (a remote one that does not answer).
        """
        place = as_location(location)
        source, retry = open_source(place, timeout=timeout), Retry(attempts, delay)
        where = str(place)
        try:
            text = _read(source, retry, ROOT)
        except FileNotFoundError:
            raise CheckpointError(f"{where}: no block store (it has no {ROOT})", remedy="check the path or URL") from None
        except OSError as error:
            raise CheckpointError(f"{where}: cannot read it: {error.strerror or error}", remedy="check it and its permissions") from None
        return cls(place, source, retry, read_head(text, where))

    @cached_property
    def origins(self) -> NDArray[np.int32] | None:
        """[blocks, levels, 2] = first column and row of each block's plane in the whole plane; None where blocks have their own."""
        note = self.head.origins
        return None if note is None else self._array("origins", note, np.dtype("<i4"))

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """sha256 (hex) of each block's planes and, in a multi-block scene, lines, from what was recorded when they were written."""
        return tuple(block_digest(rows.tobytes()) for rows in self._digests)

    @cached_property
    def _digests(self) -> NDArray[np.uint8]:
        shape = digests_shape(self.head)
        found = np.empty(shape, np.uint8)
        self._fill("digests", chunk_key("digests", 3), found, None)
        return found

    def block_bytes(self, precision: str, shares: int = 1) -> int:
        """Bytes of one block in memory: planes and lines in 'fp32' or 'fp16', of one of `shares` channel shares."""
        return block_bytes(self.head, 4 if precision == "fp32" else 2, shares)

    def where(self, block: int, table: BlockTable) -> str:
        """The file or URL of a block's plane."""
        return self._source.where(table.key(block))

    def read_plane(self, block: int, table: BlockTable) -> NDArray[Any]:
        """[h, w, C] as stored, checked against its digest. Raises as `read_plane_into`."""
        found = np.empty(table.shape, self.head.dtype)
        self.read_plane_into(block, table, found)
        return found

    def read_plane_into(self, block: int, table: BlockTable, into: NDArray[Any]) -> None:
        """Read a plane into a contiguous array [h, w, C] of the stored dtype, which may be pinned memory.

        Raises CheckpointError naming block and file where it is missing, of another length or not what was written, StoreError where a
        remote one cannot be read; `into` then holds garbage. ValueError for an array that does not fit, IndexError for no such block.
        """
        if into.shape != table.shape or into.dtype != self.head.dtype or not into.flags.c_contiguous:
            raise ValueError(f"{table.array} is {table.shape} {self.head.dtype}, not {into.shape} {into.dtype}")
        self._fill(f"block {block}", table.key(block), into, self._digest_of(block, table))

    @property
    def local(self) -> bool:
        """Whether it lies in a folder: `plane_rows` reads it."""
        return isinstance(self._source, FolderSource)

    def plane_rows(self, block: int, table: BlockTable, spare: Callable[[], NDArray[Any]]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Read a plane of a local store some rows at a time: (first row, rows [n, w, C] of the stored dtype).

        spare: gives contiguous arrays [n, w, C] to read them into; what lay in an array may be in use until it is given again.
        Raises as `read_plane_into`, after the last rows where their bytes are not what was written: whoever took them has garbage.
        """
        assert isinstance(self._source, FolderSource)
        key, what, digest = table.key(block), f"block {block}", self._digest_of(block, table)
        row_bytes = table.width * table.channels * self.head.dtype.itemsize
        seen, first, count = hashlib.sha256(), 0, 0
        with self._named(f"{self._source.where(key)} ({what})"), self._source.open(key) as file:
            while first < table.height:
                rows = spare()[: table.height - first]
                view = rows.reshape(-1).view(np.uint8).data
                count += read_piece(file.readinto, view)
                if count < (first + len(rows)) * row_bytes:
                    break
                seen.update(view)
                yield first, rows
                first += len(rows)
            else:
                count += len(file.read(1))
        wrong = _wrong(count, table.height * row_bytes, seen.digest() == digest)
        if wrong:
            raise self._damage(what, key, wrong)

    def _digest_of(self, block: int, table: BlockTable) -> bytes:
        if not 0 <= block < self.blocks:
            raise IndexError(f"block {block} of {self.blocks}")
        return bytes(self._digests[block, self._slots[table]].tobytes())

    def base(self, shard: ChannelShard | None = None) -> SceneWeights:
        """Everything but planes: decoder, embedding, mask, and lines [blocks, n, C] ([1, n, C] of a cut scene) in float32.

        Planes have no rows ([0, h, w, C]). shard: the share of the channels that lines and bases are cut to. Raises as
        `read_plane_into`.
        """
        import torch

        share, config, head = shard or WHOLE, self.config, self.head
        density, appearance = config.density_channels, config.appearance_channels
        widths = {"density": share.span(density)[2], "app": share.span(appearance)[2]}
        planes = {kind: tuple(torch.empty((0, t.height, t.width, widths[kind])) for t in self.tables if t.kind == kind) for kind in widths}
        lines = {
            kind: tuple(self._lines(table, number, share) for number, table in enumerate(head.line_tables()) if table.kind == kind)
            for kind in widths
        }
        decoder = {name: torch.from_numpy(self._array(f"decoder/{name}", note, np.dtype("<f4"))) for name, note in head.decoder.items()}
        basis_density = decoder.get("basis_density")
        return SceneWeights(
            config=config,
            density_planes=planes["density"],
            density_lines=lines["density"],
            app_planes=planes["app"],
            app_lines=lines["app"],
            basis_mat=cut_columns(decoder["basis_mat"], appearance, share),
            basis_density=None if basis_density is None else cut_columns(basis_density, density, share),
            embedding=decoder.get("embedding"),
            mlp_weights=(decoder["mlp.0.weight"], decoder["mlp.2.weight"], decoder["mlp.4.weight"]),
            mlp_biases=(decoder.get("mlp.0.bias"), decoder.get("mlp.2.bias"), decoder.get("mlp.4.bias")),
            mask=self.mask(),
            warnings=head.notes,
            shard=shard,
        )

    def mask(self) -> AlphaMask | None:
        """The scene's occupancy as the renderer takes it, None without. Raises as `read_plane_into`."""
        import torch

        mask = self.stored_mask()
        return None if mask is None else AlphaMask(torch.from_numpy(mask.volume()), mask.aabb)

    def stored_mask(self) -> StoredMask | None:
        """The scene's occupancy, None without. Raises as `read_plane_into`."""
        note, size, box = self.head.mask, self.config.mask_size, self.head.mask_box
        if note is None or size is None or box is None:
            return None
        if note.shape != (mask_bytes(size),):
            raise CheckpointError(f"{self._source.where('mask')}: {note.shape} bytes for {size} voxels", remedy=_AGAIN)
        return StoredMask(self._array("mask", note, np.dtype(np.uint8)), size, box)

    def _lines(self, table: LineTable, number: int, share: ChannelShard) -> Tensor:
        import torch

        rows = 1 if self.head.cut else self.blocks
        values = np.empty((rows, table.length, table.channels), self.head.dtype)
        if self.head.cut:
            self._fill(table.array, table.key, values, bytes.fromhex(self.head.lines[table.array].sha256))
        else:
            self._fill(table.array, table.key, values, None)
            for block in range(rows):
                if hashlib.sha256(values[block]).digest() != self._digests[block, len(self.tables) + number].tobytes():
                    raise self._damage(f"block {block}", table.key, "its bytes are not those that were written")
        return cut_channels(torch.from_numpy(values).float(), table.channels, share)

    def _array(self, name: str, note: ArrayNote, dtype: np.dtype[Any]) -> NDArray[Any]:
        found = np.empty(note.shape, dtype)
        self._fill(name, chunk_key(name, len(note.shape)), found, bytes.fromhex(note.sha256))
        return found

    def _fill(self, what: str, key: str, into: NDArray[Any], digest: bytes | None) -> None:
        """Read a value into an array and check it; a remote one that comes damaged is read a second time."""
        view = into.reshape(-1).view(np.uint8).data
        if not view.nbytes:
            return
        left = 1 if self._source.remote and self._retry.attempts > 1 else 0

        def read() -> None:
            nonlocal left
            count = self._source.read_into(key, view)
            same = count == view.nbytes and (digest is None or hashlib.sha256(view).digest() == digest)
            wrong = _wrong(count, view.nbytes, same)
            if wrong and left:
                left -= 1
                raise TransientError(wrong)
            if wrong:
                raise self._damage(what, key, wrong)

        where = f"{self._source.where(key)} ({what})"
        with self._named(where):
            self._retry.run(read, where)

    @contextmanager
    def _named(self, where: str) -> Iterator[None]:
        """Errors of a read tell of what."""
        try:
            yield
        except FileNotFoundError:
            raise CheckpointError(f"{where}: missing", remedy=_AGAIN) from None
        except OSError as error:
            raise StoreError(f"{where}: cannot read it: {error.strerror or error}", remedy="check it and its permissions") from None

    def _damage(self, what: str, key: str, wrong: str) -> CheckpointError:
        return CheckpointError(f"{self._source.where(key)} ({what}): damaged: {wrong}", remedy=_AGAIN)


def _wrong(count: int, written: int, same: bool) -> str:
    """What is wrong with a value of `count` bytes, '' where nothing is. written: bytes it had. same: whether its digest is that of then."""
    if count != written:
        return f"{f'{count} bytes' if count < written else 'more bytes'} where {written} were written"
    return "" if same else "its bytes are not those that were written"


def _read(source: Source, retry: Retry, key: str) -> bytes:
    return retry.run(lambda: source.read(key), source.where(key))
