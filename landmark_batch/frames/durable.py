"""Bytes that outlive a power cut: temporary name, fsync, rename, fsync of the directory. An object is whole and lasting by itself."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from landmark_batch.errors import DiskFullError, StoreError
from landmark_batch.object_path import ObjectPath, StorePath

from .layout import PARTIAL
from .process import writer_tag

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def step(name: str) -> None:
    """Marks the end of a durable step. Tests replace it to die exactly here."""


def store_error(error: OSError, path: StorePath) -> StoreError:
    """What an OSError means to the user of a store: a full disk, no permission, or its own words."""
    if isinstance(path, ObjectPath):
        what = f"{error.filename or path}: {error.strerror or error}"
        return StoreError(what, remedy="see who else uses this store, then run the same command again: finished frames stay")
    if error.errno in _FULL:
        free = _free_bytes(path)
        left = "" if free is None or error.errno != errno.ENOSPC else f", {free / 1e6:.1f} MB free"
        what, remedy = no_space(error)
        return DiskFullError(
            f"{path}: {what} ({error.strerror}{left})", remedy=f"{remedy} and run the same command again: finished frames stay"
        )
    if error.errno in _DENIED:
        return StoreError(f"{path}: not writable ({error.strerror})", remedy="check its permissions, or write elsewhere with -o NEW.zarr")
    return StoreError(f"{path}: {error.strerror or error}", remedy="check the disk, then run the same command again: finished frames stay")


def no_space(error: OSError) -> tuple[str, str]:
    """What a write beyond the space there is means, and the beginning of its remedy."""
    if error.errno == errno.EFBIG:
        return "a file would be larger than files may be here", "raise the limit (`ulimit -f`)"
    if error.errno == errno.EDQUOT:
        return "the disk quota is used up", "make space"
    return "the disk is full", "make space"


def _free_bytes(path: Path) -> int | None:
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """os.write until everything is written (a full disk may take a part first, then raise)."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def write_new(path: StorePath, data: bytes | bytearray | memoryview | tuple[bytes | bytearray | memoryview, ...]) -> None:
    """Create `path` of these bytes, or of several parts one after another, and fsync it.

    Raises FileExistsError; a failed write leaves nothing.
    """
    if isinstance(path, ObjectPath):
        path.put(b"".join(data) if isinstance(data, tuple) else bytes(data), over=None)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            for part in data if isinstance(data, tuple) else (data,):
                write_all(descriptor, part)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def sync_directory(path: StorePath) -> None:
    """fsync a directory, so that the names in it last. File systems that know no such thing keep names by themselves."""
    if isinstance(path, ObjectPath):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def sync_directories(paths: Iterable[StorePath]) -> None:
    for path in sorted(set(paths), key=str):
        sync_directory(path)


def replace_file(path: StorePath, data: bytes) -> None:
    """Write `path` so that a reader, or a power cut, sees the old content or the new, never a mixture. Raises StoreError."""
    if isinstance(path, ObjectPath):
        path.replace_bytes(data)
        return
    temporary = path.with_name(f"{path.name}.{writer_tag('file')}{PARTIAL}")
    try:
        write_new(temporary, data)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise store_error(error, path) from error


def sync_tree(root: Path) -> None:
    """fsync every file and directory under `root`, bottom up."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            descriptor = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


def remove_tree(path: StorePath) -> None:
    """Remove a folder and everything in it, as far as that goes."""
    if isinstance(path, ObjectPath):
        with contextlib.suppress(StoreError):
            path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)
