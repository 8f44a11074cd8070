"""Entries of `owners/`: which processes hold a store, and whether they still live. A file that is locked and touched, or an object
that is written anew every few seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from landmark_batch.errors import StoreError
from landmark_batch.object_path import ObjectPath, StorePath, Version

from . import durable
from .layout import StoreLayout, layout_of
from .locks import try_lock
from .process import ProcessIdentity, this_process
from .sealed import DamagedError, read_sealed, seal

_log = logging.getLogger(__name__)
STALE_SECONDS = 60.0


@dataclass(frozen=True)
class OwnerEntry:
    """Another process in `owners/`. process is None if its file cannot be read. started: seconds since 1970."""

    id: str
    process: ProcessIdentity | None
    started: float

    def __str__(self) -> str:
        if self.process is None:
            return f"a process whose entry {self.id} cannot be read"
        when = datetime.fromtimestamp(self.started).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
        return f"host {self.process.host}, process {self.process.pid}, started {when}"


class HeldEntry(Protocol):
    """The entry of this process, from its making to its end."""

    def beat(self) -> None:
        """Say that this process lives. Raises FileNotFoundError where another has removed the entry, OSError, StoreError."""
        ...

    def close(self) -> None:
        """Let go of it; the entry itself is removed by its name."""
        ...


class _LockedFile:
    def __init__(self, file: Path, data: bytes) -> None:
        self._file = file
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            while try_lock(self._descriptor) is False:  # someone looks whether it is free
                time.sleep(0.001)
            durable.write_all(self._descriptor, data)
            os.fsync(self._descriptor)
        except BaseException:
            file.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise

    def beat(self) -> None:
        os.utime(self._file)

    def close(self) -> None:
        os.close(self._descriptor)


class _WrittenObject:
    def __init__(self, file: ObjectPath, data: bytes) -> None:
        self._file, self._data = file, data
        self._version: Version = file.put(data, over=None)

    def beat(self) -> None:
        try:
            self._version = self._file.put(self._data, over=self._version)
        except FileExistsError:
            raise FileNotFoundError(2, "removed by another process", str(self._file)) from None

    def close(self) -> None:
        pass


def entry_file(layout: StoreLayout, id_: str) -> StorePath:
    return layout.owners / f"{id_}.json"


def make_entry(layout: StoreLayout, id_: str) -> HeldEntry:
    """Raises OSError, ObjectStoreError."""
    file = entry_file(layout, id_)
    data = seal({"id": id_, "started": time.time(), **this_process().as_dict()})
    return _WrittenObject(file, data) if isinstance(file, ObjectPath) else _LockedFile(file, data)


def store_owners(path: StorePath | str) -> list[OwnerEntry]:
    """Who writes the store at `path` now; empty if no one does. Only looks: for `status`. Raises StoreError if an entry cannot be read."""
    layout = layout_of(path)
    return [entry for file in _files(layout) if (entry := _read_entry(file, time.time())) is not None]


def live_entries(layout: StoreLayout, mine: str) -> list[OwnerEntry]:
    """Entries of living processes besides `mine`; files of dead ones are removed."""
    files = [file for file in _files(layout) if file.stem != mine]
    if not files:
        return []
    now = _now(layout, mine)
    found = []
    for file in files:
        entry = _read_entry(file, now)
        if entry is not None:
            found.append(entry)
        elif file.exists():
            _log.info("%s: its process is dead, removed", file)
            file.unlink(missing_ok=True)
    return found


def _now(layout: StoreLayout, mine: str) -> float:
    """Seconds since 1970 by the clock of the file server: that of the entry of this process, or of an object written for it."""
    file = entry_file(layout, mine)
    if isinstance(file, ObjectPath):
        clock = file.with_name("clock")
        clock.replace_bytes(f"{mine} {time.time()}".encode())
        return clock.stat().st_mtime
    with contextlib.suppress(FileNotFoundError):
        os.utime(file)
        return file.stat().st_mtime
    return time.time()


def _files(layout: StoreLayout) -> list[StorePath]:
    return sorted(layout.owners.glob("*.json"), key=str)


def _read_object(file: ObjectPath, now: float) -> OwnerEntry | None:
    """As `_read_entry`; no object is locked."""
    try:
        touched = file.stat().st_mtime
        process, started = _identity(file)
    except FileNotFoundError:
        return None
    return OwnerEntry(file.stem, process, started) if _is_live(process, None, now - touched) else None


def _read_entry(file: StorePath, now: float) -> OwnerEntry | None:
    """None if its process is dead, or the file is gone. now: by the clock of the file system."""
    if isinstance(file, ObjectPath):
        return _read_object(file, now)
    try:
        try:
            descriptor = os.open(file, os.O_RDWR)  # some network file systems lock only what may be written
        except PermissionError:
            descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}") from error
    try:
        process, started = _identity(file)
        free = try_lock(descriptor, shared=True)
        return OwnerEntry(file.stem, process, started) if _is_live(process, free, now - os.fstat(descriptor).st_mtime) else None
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _identity(file: StorePath) -> tuple[ProcessIdentity | None, float]:
    """(process, when it started) as an entry says, (None, 0) where it cannot be read."""
    with contextlib.suppress(OSError, DamagedError, KeyError, TypeError):
        values: dict[str, Any] = read_sealed(file)
        process = ProcessIdentity(**{name: values[name] for name in ("host", "pid", "start", "boot", "namespace")})
        return process, float(values["started"])
    return None, 0.0


def _is_live(process: ProcessIdentity | None, free: bool | None, silent: float) -> bool:
    """free: what `try_lock` said of the entry: True means that no one holds it. silent: seconds since its last heartbeat."""
    if process is None or process.is_local:
        if process is not None and process.is_dead():
            return False
        if free is not None:
            return not free
        if process is not None and process.namespace == this_process().namespace:
            return True
    return silent < STALE_SECONDS
