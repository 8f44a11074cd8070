"""A flight that changed: finished frames move to their new places, arrays take their new length, coordinates their new values.

Everything that must survive is written down before anything moves: the new metadata and coordinates whole in `rebuilt/`, then
`journal.json` with the moves and the records of what moves. From then on the change can only go forward: each step below may
be cut short anywhere, and `recover` does it again from the top without harm. While it lasts the frames concerned are
unrecorded, so that whoever looks on never takes a frame for another.

  1 `done` and the ledger give up every frame that moves or is void
  2 out: each file that moves, to a name of its own;  the journal notes that all are out
  3 in: each to its new place;  files past the new end of the flight go
  4 metadata and coordinates from `rebuilt/`, store.json last
  5 the ledger records the moved frames at their places;  the journal goes
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import StoreError

from . import durable
from .definition import StoreDefinition, load_definition
from .done import discard_frames, write_done
from .layout import MOVING, StoreLayout, chunk_index, chunk_name, file_sizes
from .ledger import LedgerIndex
from .records import FrameRecord, record_lines
from .sealed import DamagedError, read_sealed, seal
from .skeleton import write_skeleton
from .spec import StoreInfo, StoreSpec
from .writer import ledger_log

_log = logging.getLogger(__name__)
_WORKER = "relocate"
_LINES = 1000  # of the ledger, written and synced together


@dataclass(frozen=True)
class _Journal:
    """moves: (old, new) frames. void: frames that lose their record. phase: 'out' until every file that moves is out, then 'in'."""

    moves: tuple[tuple[int, int], ...]
    void: tuple[int, ...]
    records: tuple[FrameRecord, ...]
    phase: str = "out"

    def save(self, layout: StoreLayout) -> None:
        values = {
            "moves": self.moves,
            "void": self.void,
            "records": [record._asdict() for record in self.records],
            "phase": self.phase,
        }
        durable.replace_file(layout.journal, seal(values))

    @classmethod
    def load(cls, layout: StoreLayout) -> _Journal:
        values = read_sealed(layout.journal)
        moves = tuple((int(old), int(new)) for old, new in values["moves"])
        return cls(moves, tuple(values["void"]), tuple(FrameRecord(**record) for record in values["records"]), values["phase"])


def restructure(
    layout: StoreLayout,
    definition: StoreDefinition,
    flight: Flight,
    settings: str,
    *,
    info: StoreInfo | None = None,
    moves: Sequence[tuple[int, int]] = (),
    void: Iterable[int] = (),
) -> None:
    """Give the store a new flight: every metadata and coordinate file is written anew, frames move, void ones lose their record.

    moves: (old, new) of finished frames, each old and each new once; only with frames_per_shard = 1. settings: digest.
    For the owner alone, inside `StoreOwner.restructuring`. Raises StoreError; what has begun is finished by the next `recover`.
    """
    if moves and definition.spec.frames_per_shard > 1:
        raise StoreError(f"{layout.root}: frames of a sharded store cannot move")
    finished = LedgerIndex(layout.ledger).refresh().finished()
    spec = dataclasses.replace(definition.spec, frames=len(flight))
    shutil.rmtree(layout.rebuilt, ignore_errors=True)
    write_skeleton(layout.rebuilt, spec, info or definition.info, flight, settings)
    durable.sync_directory(layout.hidden)
    durable.step("rebuilt")
    lost = {frame for frame in finished if frame >= len(flight)} | set(void)
    _Journal(tuple(moves), tuple(sorted(lost)), tuple(finished[old] for old, _ in moves)).save(layout)
    durable.step("journal")
    recover(layout)


def recover(layout: StoreLayout) -> None:
    """Finish a change of flight that was cut short; nothing to do without a journal. For the owner alone. Raises StoreError."""
    try:
        journal = _Journal.load(layout)
    except FileNotFoundError:
        return
    except (DamagedError, KeyError, TypeError, ValueError) as error:
        _log.warning("%s: damaged (%s): frames that were being moved are rendered again", layout.journal, error)
        layout.journal.unlink()
        return
    definition = load_definition(layout)
    try:
        for name in definition.spec.names:
            (layout.root / name).mkdir(exist_ok=True)
        _forward(layout, definition, journal)
    except OSError as error:
        raise durable.store_error(error, layout.root) from error


def _forward(layout: StoreLayout, definition: StoreDefinition, journal: _Journal) -> None:
    log = ledger_log(layout.ledger, _WORKER)
    names = definition.spec.names
    touched = {*journal.void, *(old for old, _ in journal.moves), *(new for _, new in journal.moves)}
    generation = discard_frames(layout, None, log, touched, "the flight changed", at=time.time())
    if journal.phase == "out":
        _move_out(layout, names, journal.moves)
        journal = dataclasses.replace(journal, phase="in")
        journal.save(layout)
        durable.step("phase")
    _move_in(layout, names, journal.moves)
    definition = _install(layout, definition)
    _remove_beyond(layout, definition.spec)
    moved = [record._replace(frame=new, generation=generation) for record, (_, new) in zip(journal.records, journal.moves, strict=True)]
    lines = record_lines(sorted(_those_there(layout, moved), key=lambda record: record.frame))
    for start in range(0, len(lines), _LINES):
        log.append_all(lines[start : start + _LINES])
        durable.step("recorded")
    layout.journal.unlink()
    durable.sync_directory(layout.hidden)
    durable.step("forgotten")
    shutil.rmtree(layout.rebuilt, ignore_errors=True)
    write_done(layout, definition)


@contextlib.contextmanager
def _folder(layout: StoreLayout, name: str) -> Iterator[tuple[int, set[str]]]:
    """(descriptor of an output's folder, the file names in it, of up to 100,000); the folder is synced at the end."""
    descriptor = os.open(layout.root / name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor, set(os.listdir(descriptor))  # noqa: PTH208
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_out(layout: StoreLayout, names: Sequence[str], moves: Sequence[tuple[int, int]]) -> None:
    for name in names:
        with _folder(layout, name) as (descriptor, present):
            for old, new in moves:
                source, target = chunk_name(name, old), chunk_name(name, new) + MOVING
                if source in present and target not in present:
                    os.rename(source, target, src_dir_fd=descriptor, dst_dir_fd=descriptor)
                    durable.step("out")


def _move_in(layout: StoreLayout, names: Sequence[str], moves: Sequence[tuple[int, int]]) -> None:
    for name in names:
        with _folder(layout, name) as (descriptor, present):
            for _, new in moves:
                target = chunk_name(name, new)
                if target + MOVING in present:
                    os.replace(target + MOVING, target, src_dir_fd=descriptor, dst_dir_fd=descriptor)
                    durable.step("in")


def _remove_beyond(layout: StoreLayout, spec: StoreSpec) -> None:
    """Chunk files past the end of the flight."""
    for name in spec.names:
        for entry in os.listdir(layout.root / name):  # noqa: PTH208  names only, of up to 100,000 files
            index = chunk_index(entry)
            if index is not None and index * spec.frames_per_shard >= spec.frames:
                (layout.root / name / entry).unlink(missing_ok=True)
        durable.sync_directory(layout.root / name)
    durable.step("trimmed")


def _install(layout: StoreLayout, definition: StoreDefinition) -> StoreDefinition:
    """Put the rebuilt files in place, the description last. Without `rebuilt/store.json` they are in place already."""
    last = StoreLayout(layout.rebuilt).definition
    if not last.exists():
        return load_definition(layout)
    folders = set()
    for source in sorted(path for path in layout.rebuilt.rglob("*") if path.is_file() and path != last):
        target = layout.root / source.relative_to(layout.rebuilt)
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        folders.add(target.parent)
        durable.step("installed")
    durable.sync_directories(folders)
    last.replace(layout.definition)
    durable.sync_directory(layout.hidden)
    durable.step("described")
    return load_definition(layout)


def _those_there(layout: StoreLayout, records: Sequence[FrameRecord]) -> list[FrameRecord]:
    """Records whose every file arrived with its size."""
    sizes = {name: file_sizes(layout.root / name) for name in (records[0].sizes if records else ())}
    return [
        record for record in records if all(sizes[name].get(chunk_name(name, record.frame)) == size for name, size in record.sizes.items())
    ]
