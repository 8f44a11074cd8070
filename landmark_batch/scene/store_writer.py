"""A block store under construction: chunks in any order, from threads or processes, under a temporary name until all of it stands."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import CheckpointError, DiskFullError
from landmark_batch.scene.store_layout import (
    DTYPES,
    ROOT,
    ArrayNote,
    Precision,
    StoreHead,
    block_bytes,
    chunk_key,
    digests_shape,
    is_store_folder,
    store_metadata,
)
from landmark_batch.scene.weights import Box, SceneConfig

_LOCK = ".writing"  # held by whoever writes into a temporary folder
_NO_SPACE = "free some space or choose another directory"


def write_chunk(root: Path, key: str, parts: Iterable[NDArray[Any]]) -> bytes:
    """Write a chunk of a store from consecutive parts, fsync it, return its sha256. Raises DiskFullError, CheckpointError."""
    path, digest = root / key, hashlib.sha256()
    try:
        with open(path, "wb", buffering=0) as file:  # noqa: PTH123
            for part in parts:
                view = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
                digest.update(view)
                while view.nbytes:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error
    return digest.digest()


def write_error(path: Path, error: OSError) -> CheckpointError | DiskFullError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{path}: the disk is full", remedy=_NO_SPACE)
    return CheckpointError(f"{path}: cannot write it: {error.strerror or error}", remedy="check the directory, its permissions and limits")


class StoreWriter:
    """A context that leaves either the whole store at `target` or nothing.

    parts: (h, w) of a block's plane by level. cut: whole planes cut into blocks, at `origins` [blocks, levels, 2].
    force: replace a block store that stands there. What a killed writer left beside `target` is removed.
    Raises CheckpointError (something else stands there, not writable), DiskFullError before anything is written.
    """

    def __init__(
        self,
        target: Path,
        config: SceneConfig,
        *,
        division: tuple[int, int],
        parts: Sequence[tuple[int, int]],
        precision: Precision,
        origins: NDArray[np.int32] | None = None,
        force: bool = False,
    ) -> None:
        self.target = Path(target)
        self.head = StoreHead(config, origins is not None, division, precision, tuple(parts), {}, {}, None, None, None)
        self.dtype = DTYPES[precision]
        self._origins = origins
        self._force = force
        self._digests = np.zeros(digests_shape(self.head), np.uint8)
        self._lines: dict[str, ArrayNote] = {}
        refuse_target(self.target, force)
        self.root = self.target.with_name(f".{self.target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            need, free = block_bytes(self.head, self.dtype.itemsize) * self.head.blocks, shutil.disk_usage(self.target.parent).free
            if need > free:
                raise DiskFullError(f"{self.target}: needs {need / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free", remedy=_NO_SPACE)
            self.root.mkdir()
            self._lock = os.open(self.root / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            for name in ("density_plane", "density_line", "app_plane", "app_line"):
                for level in range(len(parts)):
                    (self.root / name / str(level)).mkdir(parents=True)
        except OSError as error:
            shutil.rmtree(self.root, ignore_errors=True)
            raise write_error(self.target, error) from error

    def note_plane(self, block: int, number: int, digest: bytes) -> None:
        """Record the digest of a block's plane; number: of its table in `head.tables()`."""
        self._digests[block, number] = np.frombuffer(digest, np.uint8)

    def put_line(self, row: int, number: int, values: NDArray[Any]) -> None:
        """Write a block's line [n, C] (row 0 of a cut scene) in the stored dtype; number: of its table in `head.line_tables()`."""
        table = self.head.line_tables()[number]
        data = np.ascontiguousarray(values, dtype=self.dtype).tobytes()
        path = self.root / table.key
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
            try:
                os.pwrite(descriptor, data, row * len(data))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise write_error(path, error) from error
        digest = hashlib.sha256(data)
        if self.head.cut:
            self._lines[table.array] = ArrayNote((1, table.length, table.channels), digest.hexdigest())
        else:
            self._digests[row, len(self.head.tables()) + number] = np.frombuffer(digest.digest(), np.uint8)

    def finish(
        self,
        decoder: Mapping[str, NDArray[np.float32]],
        mask: NDArray[np.uint8] | None,
        mask_box: Box | None,
        notes: Sequence[str] = (),
    ) -> StoreHead:
        """Write all that blocks share, then give the store its name. decoder: by name. mask: packed bits of [Z, Y, X]."""
        head = StoreHead(
            config=self.head.config,
            cut=self.head.cut,
            division=self.head.division,
            precision=self.head.precision,
            parts=self.head.parts,
            decoder={name: self._put(f"decoder/{name}", np.asarray(values, np.dtype("<f4"))) for name, values in sorted(decoder.items())},
            lines=self._lines,
            mask=None if mask is None else self._put("mask", mask),
            mask_box=mask_box if mask is not None else None,
            origins=None if self._origins is None else self._put("origins", np.asarray(self._origins, np.dtype("<i4"))),
            notes=tuple(notes),
        )
        self._put("digests", self._digests)
        try:
            for name, metadata in store_metadata(head).items():
                folder = self.root / name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / ROOT).write_text(json.dumps(metadata, allow_nan=False), encoding="utf-8")
            for place, _, files in os.walk(self.root):
                for file in files:
                    if file == ROOT or "_line" in place:  # the others are synced when they are written
                        _sync(Path(place, file))
                _sync(Path(place))
            (self.root / _LOCK).unlink()
            self._rename()
        except OSError as error:
            raise write_error(self.target, error) from error
        return head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._lock)
        shutil.rmtree(self.root, ignore_errors=True)

    def _put(self, name: str, values: NDArray[Any]) -> ArrayNote:
        (self.root / name).mkdir(parents=True, exist_ok=True)
        digest = write_chunk(self.root, chunk_key(name, values.ndim), [values])
        return ArrayNote(values.shape, digest.hex())

    def _rename(self) -> None:
        old = None
        if self.target.exists():
            refuse_target(self.target, self._force)
            old = self.root.with_suffix(".old")
            self.target.rename(old)
        self.root.rename(self.target)
        _sync(self.target.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        """Remove temporary folders of this target that nobody writes into any more."""
        for folder in self.target.parent.glob(f".{_literal(self.target.name)}.*.tmp"):
            try:
                descriptor = os.open(folder / _LOCK, os.O_RDWR)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                pass
            finally:
                os.close(descriptor)


def refuse_target(target: Path, force: bool) -> None:
    """Raises CheckpointError where a store must not be written: over anything but a block store, and over that only by force."""
    if not os.path.lexists(target):
        return
    if not is_store_folder(target):
        raise CheckpointError(f"{target} exists and is no block store of a scene", remedy="choose another name")
    if not force:
        raise CheckpointError(f"{target} exists", remedy="--force replaces it, another name keeps it")


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
