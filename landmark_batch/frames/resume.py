"""What a job finds in a store: frames that are done, missing, moved to another place in the flight, or of other settings."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import xxhash

from landmark_batch.cameras.flight import Flight
from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import FramesDifferError, StoreError
from landmark_batch.object_client import ObjectStoreError
from landmark_batch.object_path import ObjectPath, StorePath

from .fence import read_fence
from .fingerprint import FrameSettings, flight_fingerprints, frame_fingerprint, settings_difference
from .inventory import check_frame
from .layout import StoreLayout, chunk_name, file_sizes
from .records import FrameRecord
from .sealed import DamagedError, read_sealed
from .store import FrameStore


@dataclass(frozen=True)
class ResumePlan:
    """A job's flight against a store's frames. Nothing is changed by making one; `adopt` carries it out.

    frames: length of the flight. finished: frames the store holds. done: in place, as the job wants them.
    moved: (old, new) of finished frames that stand elsewhere in the flight now. missing: to be rendered.
    differing: finished frames, by their index in the store, that the job would replace or drop; reasons: why.
    damaged: recorded frames whose files are not what was written (or share a file with one); those in the flight are missing too.
    """

    frames: int
    finished: int
    done: tuple[int, ...]
    missing: tuple[int, ...]
    differing: tuple[int, ...]
    moved: tuple[tuple[int, int], ...]
    damaged: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def to_render(self) -> tuple[int, ...]:
        """All frames to render once the differing ones are given up: missing and replaced."""
        kept = {*self.done, *(new for _, new in self.moved)}
        return tuple(frame for frame in range(self.frames) if frame not in kept)

    def describe(self) -> str:
        """'1180 of 1200 finished frames differ: sampling.samples 256 → 128'; empty if none does."""
        if not self.differing:
            return ""
        return f"{len(self.differing)} of {self.finished} finished frames differ: {', '.join(self.reasons)}"

    def error(self, path: StorePath) -> FramesDifferError:
        return FramesDifferError(f"{path}: {self.describe()}", remedy="--update replaces them, -o NEW.zarr keeps them")


@dataclass(frozen=True)
class StoreState:
    """By what it is known that a store holds what it held. generation: of its fence. definition, damaged: digests of these files.

    ledger: (name, bytes) of its logs. Every commit and discard lengthens a log, every job and discard raises the generation.
    """

    generation: int
    definition: str
    damaged: str
    ledger: tuple[tuple[str, int], ...]


def state_of(layout: StoreLayout) -> StoreState | None:
    """The state of a store now; None where it is damaged or in the midst of a change of flight. Reads three small files and sizes."""
    try:
        generation = read_fence(layout).generation  # first: what changes after this shows in it or in the ledger
        if layout.journal.exists():
            return None
        definition = xxhash.xxh3_128_hexdigest(layout.definition.read_bytes())
        damaged = xxhash.xxh3_128_hexdigest(layout.damaged.read_bytes()) if layout.damaged.exists() else ""
        return StoreState(generation, definition, damaged, tuple(sorted(_log_sizes(layout.ledger).items())))
    except (OSError, StoreError):
        return None


def _log_sizes(folder: StorePath) -> dict[str, int]:
    if isinstance(folder, ObjectPath):
        return dict(folder.sizes())
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def stands(before: StoreState | None, layout: StoreLayout) -> bool:
    """Whether nothing has changed in a store since, but that the caller has taken it (which raises its generation once)."""
    return before is not None and state_of(layout) == replace(before, generation=before.generation + 1)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, and the state of the store in which that holds. store: with its ledger read."""

    store: FrameStore
    resume: ResumePlan
    state: StoreState | None

    @classmethod
    def make(cls, store: FrameStore, flight: Flight, settings: FrameSettings) -> Self:
        """Raises as `compare`."""
        state = state_of(store.layout)
        return cls(store, compare(store, flight, settings), state)


def compare(store: FrameStore, flight: Flight, settings: FrameSettings) -> ResumePlan:
    """Match every finished frame with the flight by fingerprint. Changes nothing; a job makes its plan after it has taken the store.

    Reads ledger, settings and file sizes, and pixels only of frames under suspicion: those `verify` found damaged.
    Raises StoreError if the flight is of another size than the store.
    """
    store.reload()
    spec, count = store.spec, len(flight)
    if (flight.width, flight.height) != (spec.width, spec.height):
        raise StoreError(
            f"{store.path}: it holds frames of {spec.width}×{spec.height}, {flight.source} asks for {flight.width}×{flight.height}",
            remedy="another size is another store: -o NEW.zarr",
        )
    finished = store.finished()
    damaged = _damaged(store, finished)
    whole = {frame: record for frame, record in finished.items() if frame not in damaged}
    prints = flight_fingerprints(settings, flight)
    done = {frame for frame, record in whole.items() if frame < count and record.fingerprint == prints[frame]}
    moved: list[tuple[int, int]] = []
    if spec.frames_per_shard == 1:
        moved = _moves({frame: record for frame, record in whole.items() if frame not in done}, prints, done)
    else:
        unit = spec.frames_per_shard
        broken = {frame // unit for frame in range(count) if frame not in done}
        shared = {frame for frame in done if frame // unit in broken}  # their file is written again with their neighbours
        done -= shared
        damaged |= shared
    kept = done | {old for old, _ in moved}
    differing = sorted(frame for frame in whole if frame not in kept and frame not in damaged)
    filled = done | {new for _, new in moved}
    missing = [frame for frame in range(count) if frame not in filled and frame not in set(differing)]
    reasons = _reasons(store, {frame: whole[frame] for frame in differing}, flight, settings, filled)
    return ResumePlan(
        count, len(finished), tuple(sorted(done)), tuple(missing), tuple(differing), tuple(moved), tuple(sorted(damaged)), tuple(reasons)
    )


def _moves(spare: Mapping[int, FrameRecord], prints: list[str], done: set[int]) -> list[tuple[int, int]]:
    places: dict[str, deque[int]] = defaultdict(deque)
    for frame in sorted(spare):
        places[spare[frame].fingerprint].append(frame)
    return [(places[print_].popleft(), new) for new, print_ in enumerate(prints) if new not in done and places.get(print_)]


# -- damage


def _damaged(store: FrameStore, finished: Mapping[int, FrameRecord]) -> set[int]:
    """Recorded frames with a file missing or of another size, and of those under suspicion the ones with other pixels."""
    wrong = set()
    for name in store.spec.names:
        sizes = file_sizes(store.path / name)
        unit = store.spec.frames_per_shard
        wrong |= {frame for frame, record in finished.items() if sizes.get(chunk_name(name, frame // unit)) != record.sizes.get(name)}
    suspects = [finished[frame] for frame in _suspects(store, finished) if frame not in wrong]
    return wrong | {record.frame for record in damaged_records(store, suspects)}


def _suspects(store: FrameStore, finished: Mapping[int, FrameRecord]) -> list[int]:
    """Frames `verify` found damaged; every frame where its list is lost, or a line that made frames missing: then an older record may
    have come to light.
    """
    if store.index.refresh().damaged() and not _holds_all_discards(store):
        return list(finished)
    try:
        return [frame for frame in read_sealed(store.layout.damaged)["frames"] if frame in finished]
    except FileNotFoundError:
        return []
    except (OSError, DamagedError, LookupError):
        return list(finished)


def _holds_all_discards(store: FrameStore) -> bool:
    """Whether the damage to the ledger can only be to lines about frames that stand; see `ledger`."""
    try:
        return read_fence(store.layout).discards == store.index.discards
    except ObjectStoreError:
        raise
    except StoreError:
        return False


def damaged_records(store: FrameStore, records: Iterable[FrameRecord]) -> list[FrameRecord]:
    """Those of `records` whose pixels are not what was written, by digest, in threads."""

    def is_wrong(record: FrameRecord) -> bool:
        return any(check_frame(store, record, name) is not None for name in store.spec.names)

    chosen = list(records)
    if not chosen:
        return []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [record for record, wrong in zip(chosen, pool.map(is_wrong, chosen), strict=True) if wrong]


# -- words


def _reasons(
    store: FrameStore, differing: Mapping[int, FrameRecord], flight: Flight, settings: FrameSettings, filled: set[int]
) -> list[str]:
    """Why these finished frames differ: settings first, then poses and lenses, then frames that the flight no longer has."""
    by_settings: dict[str, list[int]] = defaultdict(list)
    cameras, gone = [], []
    for frame, record in differing.items():
        if frame >= len(flight) or frame in filled:
            gone.append(frame)
            continue
        old = settings if record.settings == settings.digest else store.settings(record.settings)
        if old is None or old.digest != settings.digest:
            by_settings[record.settings].append(frame)
        if old is not None:
            old = replace(old, contents=settings.contents)
        if old is not None and frame_fingerprint(old, flight.c2w[frame], flight.intrinsics[frame]) != record.fingerprint:
            cameras.append(frame)
    reasons = []
    for digest, frames in by_settings.items():
        known = store.settings(digest)
        lines = ["rendered with settings that are not recorded"] if known is None else settings_difference(known.values, settings.values)
        where = "" if len(frames) == len(differing) else f" (frames {format_frame_ranges(frames)})"
        reasons.append(", ".join(lines) + where)
    reasons += _camera_reasons(store, cameras, flight)
    if gone:
        reasons.append(f"{_frames(gone)} no longer in the flight")
    return reasons


def _camera_reasons(store: FrameStore, frames: list[int], flight: Flight) -> list[str]:
    try:
        held = store.flight()
        lens = [frame for frame in frames if np.array_equal(held.c2w[frame], flight.c2w[frame])]
        blocks = [frame for frame in lens if np.array_equal(held.intrinsics[frame], flight.intrinsics[frame])]
    except (StoreError, IndexError):
        lens, blocks = [], []
    kinds = (("pose", set(frames) - set(lens)), ("lens", set(lens) - set(blocks)), ("blocks of the scene in sight", set(blocks)))
    return [f"{what} of {_frames(sorted(chosen))}" for what, chosen in kinds if chosen]


def _frames(frames: list[int]) -> str:
    return f"frame{'s' if len(frames) > 1 else ''} {format_frame_ranges(frames)}"
