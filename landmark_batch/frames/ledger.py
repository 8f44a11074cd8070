"""The ledger: which frames stand. One append-only log a writer, one checksummed JSON line a commit, one index over all logs.

Order. Clocks of hosts disagree, so time decides nothing. The store has a generation counter (`fence`), raised each time a job
takes the store and each time frames are discarded. Of all lines about a frame the greatest
(generation, frames before discards of the same generation, sequence, epoch, log name) holds: a discard takes a fresh
generation, so it voids everything recorded before it and nothing recorded after it. A log counts its lines with `sequence`; a
writer that replaces a file looks up what is recorded of it and counts on from there, so that what replaces is greater. Two
writers that commit a frame at the same moment write the same pixels (rendering is deterministic): any fixed order will do.

Damage. A line counts only if its checksum holds. A torn last line (a writer killed in the act) is a commit that never was; a
damaged line elsewhere leaves its frames unrecorded: they are rendered again. Nothing depends on logs staying as they are cut:
a log may be rewritten without its void or damaged lines (`repair` does) by whoever owns the store alone.

What damage can hide. A frame's file only gets other pixels after its record was discarded, and nobody renders on before that line
lasts. So a lost line of frames never brings an older record to light that its file does not fit; only a lost discard does. The
fence counts discards, each before its line is written: while the ledger holds as many, none is lost, however many lines are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from landmark_batch.errors import StoreError
from landmark_batch.object_client import ObjectStoreError
from landmark_batch.object_path import ObjectPath, StorePath, Version, at_once

from . import durable
from .process import writer_tag
from .records import FrameRecord, Order, line_frames, line_order, line_records
from .sealed import DamagedError, seal, unseal

_log = logging.getLogger(__name__)
SUFFIX = ".log"
_OBJECT_BYTES = 2**18  # of a log that is an object; beyond, another one is begun


class LedgerLog:
    """Appends to the log of one writer. The file is made by its first line and belongs to this object alone. Thread-safe."""

    def __init__(self, directory: StorePath, worker: str) -> None:
        self._directory = directory
        self._worker = worker
        self._lock = threading.Lock()
        self._path: StorePath | None = None
        self._held: tuple[bytes, Version] = (b"", {})  # of a log that is an object: its bytes, and its state
        self._sequence = 0

    @property
    def path(self) -> StorePath | None:
        return self._path

    def append(self, values: Mapping[str, Any], *, after: int = -1) -> None:
        """Write one line and fsync it; its sequence is past `after`. Raises StoreError (DiskFullError): then the line is not there."""
        self.append_all([values], after=after)

    def append_all(self, lines: Sequence[Mapping[str, Any]], *, after: int = -1) -> None:
        """Write lines and fsync them together. Raises as `append`: then none of them is there, unless the process dies in the act."""
        with self._lock:
            first = max(self._sequence, after + 1)
            data = b"".join(seal({**line, "sequence": first + i}) + b"\n" for i, line in enumerate(lines))
            try:
                if isinstance(self._directory, ObjectPath):
                    self._put(self._directory, data)
                elif not isinstance(self._path, Path) or not self._path.exists():
                    self._create(data)
                else:
                    self._extend(self._path, data)
            except OSError as error:
                self._path = None  # whatever state that file is in, the next line starts another one
                raise durable.store_error(error, self._directory) from error
            except ObjectStoreError:
                self._path = None
                raise
            self._sequence = first + len(lines)

    def _put(self, directory: ObjectPath, data: bytes) -> None:
        """A log that is an object is written whole with each line, over its own last state alone; a long one is followed by another."""
        kept, version = self._held
        if isinstance(self._path, ObjectPath) and len(kept) < _OBJECT_BYTES:
            try:
                self._held = (kept + data, self._path.put(kept + data, over=version))
                return
            except FileExistsError:  # the store's owner has rewritten or removed it
                pass
        path = directory / f"{writer_tag(self._worker)}{SUFFIX}"
        self._held = (data, path.put(data, over=None))
        self._path = path

    def _create(self, data: bytes) -> None:
        path = self._directory / f"{writer_tag(self._worker)}{SUFFIX}"
        durable.write_new(path, data)
        durable.sync_directory(self._directory)
        self._path = path

    @staticmethod
    def _extend(path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            before = os.fstat(descriptor).st_size
            try:
                durable.write_all(descriptor, data)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class DamagedLine:
    """file: log name. line: counted from 1. torn: it is the last one and has no end. bytes: its length."""

    file: str
    line: int
    reason: str
    torn: bool
    bytes: int

    def __str__(self) -> str:
        what = "ends within a line" if self.torn else f"line {self.line} is damaged ({self.reason})"
        return f"ledger/{self.file}: {what}: what it recorded is rendered again"


@dataclass
class _Log:
    inode: int
    offset: int = 0
    lines: int = 0
    tail: int = 0


class _Line(NamedTuple):
    """What frames have in common that one line speaks of. text: as it stands in its log, b'' of a line that makes frames missing."""

    order: Order
    text: bytes


class LedgerIndex:
    """All logs of a store, read once and then only where they grew. Thread-safe.

    Keeps lines as they are, 80 bytes a frame: a record takes ten times as much memory, and most who ask only need to know which frames
    stand. Records are kept, once all were asked for, until a line comes.
    """

    def __init__(self, directory: StorePath) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._lines_read = 0
        self._reset()

    def _reset(self) -> None:
        self._logs: dict[str, _Log] = {}
        self._latest: dict[int, _Line] = {}
        self._damaged: list[DamagedLine] = []
        self._finished: dict[int, FrameRecord] | None = None
        self._discards: set[int] = set()  # generations
        self.generation = 0

    @property
    def discards(self) -> int:
        """Times that frames were made missing, as of the last `refresh`."""
        return len(self._discards)

    def refresh(self) -> LedgerIndex:
        """Read what was appended since the last call; a missing folder is an empty ledger. Raises StoreError if it cannot be read."""
        with self._lock:
            try:
                self._refresh()
            except OSError as error:
                raise StoreError(f"{error.filename or self._directory}: cannot read the ledger ({error.strerror})") from error
        return self

    def _refresh(self) -> None:
        found = self._look()
        if any(name not in found or found[name][0] != log.inode or found[name][1] < log.offset for name, log in self._logs.items()):
            self._reset()  # a log was rewritten or removed: start again
        grown = []
        for name, (inode, size) in sorted(found.items()):
            log = self._logs.setdefault(name, _Log(inode))
            if size > log.offset + log.tail or size == 0:
                grown.append((name, log, size))
        if isinstance(self._directory, ObjectPath):
            self._fetch(self._directory, grown)
            return
        for name, log, _ in grown:
            with (self._directory / name).open("rb") as file:
                file.seek(log.offset)
                self._take(name, log, file.read())

    def _look(self) -> dict[str, tuple[int, int]]:
        """{log: (inode, bytes)}; objects have no inode."""
        if isinstance(self._directory, ObjectPath):
            return {name: (0, size) for name, size in self._directory.sizes().items() if name.endswith(SUFFIX)}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            found = {entry.name: entry.stat() for entry in entries if entry.name.endswith(SUFFIX)}
            return {name: (status.st_ino, status.st_size) for name, status in found.items()}
        return {}

    def _fetch(self, directory: ObjectPath, grown: Sequence[tuple[str, _Log, int]]) -> None:
        parts = at_once(lambda item: (directory / item[0]).read_range(item[1].offset, item[2]), grown)
        for (name, log, _), data in zip(grown, parts, strict=True):
            self._take(name, log, data)

    def _take(self, name: str, log: _Log, data: bytes) -> None:
        *lines, tail = data.split(b"\n")
        for line in lines:
            log.lines += 1
            self._lines_read += 1
            log.offset += len(line) + 1
            try:
                self._apply(unseal(line), name, line)
            except DamagedError as error:
                self._damaged.append(DamagedLine(name, log.lines, str(error), torn=False, bytes=len(line)))
            except (KeyError, TypeError, ValueError) as error:
                self._damaged.append(DamagedLine(name, log.lines, f"not a record of this program: {error!r}", torn=False, bytes=len(line)))
        log.tail = len(tail)

    def _apply(self, values: dict[str, Any], writer: str, text: bytes) -> None:
        order = line_order(values, writer)
        recorded = values["kind"] == "frames"
        frames = line_frames(values) if recorded else values["frames"]
        self._finished = None
        if not recorded:
            self._discards.add(order[0])
        self.generation = max(self.generation, order[0])
        latest, line = self._latest, _Line(order, text if recorded else b"")
        for frame in frames:
            known = latest.get(frame)
            if known is None or known.order < order:
                latest[frame] = line

    def finished(self, frames: Iterable[int] | None = None) -> dict[int, FrameRecord]:
        """{frame: its record} of `frames` (default: of all), ascending, as of the last `refresh`. Makes records: see `standing`."""
        with self._lock:
            if self._finished is not None:
                known = self._finished
                return dict(known) if frames is None else {frame: known[frame] for frame in sorted(set(frames)) if frame in known}
            latest = dict(self._latest) if frames is None else {frame: self._latest[frame] for frame in frames if frame in self._latest}
            generation = self._lines_read
        lines = {id(line): line for line in latest.values() if line.text}
        found = {record.frame: record for line in lines.values() for record in _records(line) if latest.get(record.frame) is line}
        found = dict(sorted(found.items()))
        with self._lock:
            if frames is None and generation == self._lines_read:
                self._finished = found
        return dict(found)

    def standing(self, frames: Iterable[int] | None = None) -> set[int]:
        """Those of `frames` (default: of all) that are recorded, as of the last `refresh`."""
        with self._lock:
            latest = self._latest
            return {frame for frame in (latest if frames is None else frames) if frame in latest and latest[frame].text}

    def last_sequence(self, frames: Iterable[int]) -> int:
        """The greatest sequence of what holds of these frames, -1 if nothing is known."""
        with self._lock:
            return max((self._latest[frame].order[2] for frame in frames if frame in self._latest), default=-1)

    def record(self, frame: int) -> FrameRecord | None:
        """The record of one frame, as of the last `refresh`."""
        return self.finished((frame,)).get(frame)

    def damaged(self) -> list[DamagedLine]:
        """Lines that do not count, and logs that end within a line or are empty."""
        with self._lock:
            found = list(self._damaged)
            for name, log in self._logs.items():
                if log.tail or not log.offset:
                    found.append(DamagedLine(name, log.lines + 1, "cut off", torn=True, bytes=log.tail))
        return found


def _records(line: _Line) -> list[FrameRecord]:
    return line_records(unseal(line.text))


def rewrite_damaged(directory: StorePath, damaged: list[DamagedLine]) -> None:
    """Rewrite each log that holds damage with its whole lines only. For whoever owns the store alone. Raises StoreError."""
    for name in sorted({item.file for item in damaged}):
        path = directory / name
        kept = []
        for line in path.read_bytes().split(b"\n"):
            try:
                unseal(line)
            except DamagedError:
                continue
            kept.append(line + b"\n")
        if kept:
            durable.replace_file(path, b"".join(kept))
        else:
            path.unlink(missing_ok=True)
            durable.sync_directory(directory)
        _log.warning("%s: kept %d whole lines", path, len(kept))
