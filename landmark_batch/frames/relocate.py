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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import StoreError
from landmark_batch.object_path import ObjectPath, at_once

from . import durable
from .definition import StoreDefinition, load_definition
from .done import discard_frames, write_done
from .layout import MOVING, StoreLayout, chunk_index, chunk_name, entry_names, file_sizes
from .ledger import LedgerIndex
from .records import FrameRecord, record_lines
from .sealed import DamagedError, read_sealed, seal
from .skeleton import write_skeleton
from .spec import StoreInfo, StoreSpec
from .writer import ledger_log

_log = logging.getLogger(__name__)
_WORKER = "relocate"
_DESCRIPTION = str(StoreLayout(Path()).definition)  # below a root
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
    _forget_rebuilt(layout)
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
    _forget_rebuilt(layout)
    write_done(layout, definition)


def _forget_rebuilt(layout: StoreLayout) -> None:
    if isinstance(layout.rebuilt, ObjectPath):
        layout.rebuilt.remove_tree(layout.rebuilt / _DESCRIPTION)
    elif isinstance(layout.rebuilt, Path):
        shutil.rmtree(layout.rebuilt, ignore_errors=True)


Rename = Callable[[str, str], None]


@contextlib.contextmanager
def _folder(layout: StoreLayout, name: str) -> Iterator[tuple[Rename, set[str]]]:
    """(what renames in an output's folder, the file names in it, of up to 100,000); the folder is synced at the end."""
    folder = layout.root / name
    if isinstance(folder, ObjectPath):
        objects = folder
        yield lambda source, target: (objects / source).replace(objects / target), set(entry_names(folder))
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield lambda source, target: os.replace(source, target, src_dir_fd=descriptor, dst_dir_fd=descriptor), set(os.listdir(descriptor))  # noqa: PTH208
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(layout: StoreLayout, name: str, rename: Rename, pairs: Sequence[tuple[str, str]], step: str) -> None:
    """Rename files of an output's folder; objects, each copied and deleted, many at once."""

    def one(pair: tuple[str, str]) -> None:
        rename(*pair)
        durable.step(step)

    if isinstance(layout.root, ObjectPath):
        at_once(one, pairs)
    else:
        for pair in pairs:
            one(pair)


def _move_out(layout: StoreLayout, names: Sequence[str], moves: Sequence[tuple[int, int]]) -> None:
    for name in names:
        with _folder(layout, name) as (rename, present):
            pairs = [(chunk_name(name, old), chunk_name(name, new) + MOVING) for old, new in moves]
            _move(layout, name, rename, [pair for pair in pairs if pair[0] in present and pair[1] not in present], "out")


def _move_in(layout: StoreLayout, names: Sequence[str], moves: Sequence[tuple[int, int]]) -> None:
    for name in names:
        with _folder(layout, name) as (rename, present):
            targets = [chunk_name(name, new) for _, new in moves]
            _move(layout, name, rename, [(target + MOVING, target) for target in targets if target + MOVING in present], "in")


def _remove_beyond(layout: StoreLayout, spec: StoreSpec) -> None:
    """Chunk files past the end of the flight."""
    for name in spec.names:
        indices = ((entry, chunk_index(entry)) for entry in entry_names(layout.root / name))
        beyond = [entry for entry, index in indices if index is not None and index * spec.frames_per_shard >= spec.frames]
        for entry in beyond:
            (layout.root / name / entry).unlink(missing_ok=True)
        durable.sync_directory(layout.root / name)
    durable.step("trimmed")


def _install(layout: StoreLayout, definition: StoreDefinition) -> StoreDefinition:
    """Put the rebuilt files in place, the description last. Without `rebuilt/store.json` they are in place already."""
    last = StoreLayout(layout.rebuilt).definition
    if not last.exists():
        return load_definition(layout)
    if isinstance(layout.root, Path):
        _install_files(layout.root, layout.root / str(StoreLayout(Path()).rebuilt))
    else:
        _install_objects(layout.root, layout.root / str(StoreLayout(Path()).rebuilt))
    durable.sync_directory(layout.hidden)
    durable.step("described")
    return load_definition(layout)


def _install_files(root: Path, rebuilt: Path) -> None:
    last = rebuilt / _DESCRIPTION
    folders = set()
    for source in sorted(path for path in rebuilt.rglob("*") if path.is_file() and path != last):
        target = root / source.relative_to(rebuilt)
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        folders.add(target.parent)
        durable.step("installed")
    durable.sync_directories(folders)
    last.replace(root / _DESCRIPTION)


def _install_objects(root: ObjectPath, rebuilt: ObjectPath) -> None:
    last = rebuilt / _DESCRIPTION
    for source in rebuilt.tree():
        if source != last:
            source.replace(root / source.below(rebuilt))
            durable.step("installed")
    last.replace(root / _DESCRIPTION)


def _those_there(layout: StoreLayout, records: Sequence[FrameRecord]) -> list[FrameRecord]:
    """Records whose every file arrived with its size."""
    sizes = {name: file_sizes(layout.root / name) for name in (records[0].sizes if records else ())}
    return [
        record for record in records if all(sizes[name].get(chunk_name(name, record.frame)) == size for name, size in record.sizes.items())
    ]
