"""FrameStore: a flight's frames as a Zarr v3 group, with a ledger that says which of them stand."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import StoreError, UnreadableError
from landmark_batch.object_path import StorePath

from .arrays import Array, open_array
from .create import create_store
from .definition import StoreDefinition, is_store, load_definition
from .done import discard_frames, write_done
from .encode import frame_decoder
from .fence import Fence, change_fence
from .fingerprint import FrameSettings
from .layout import StoreLayout, layout_of
from .ledger import LedgerIndex
from .records import FrameRecord
from .saved_settings import settings_file
from .sealed import DamagedError, read_sealed
from .spec import OutputSpec, StoreInfo, StoreSpec
from .staging import staged_store
from .writer import CommitReceipt, FrameWriter, ledger_log

if TYPE_CHECKING:
    from .owner import StoreOwner

__all__ = ["CommitReceipt", "FrameRecord", "FrameSettings", "FrameStore", "FrameWriter", "OutputSpec", "StoreInfo", "StoreSpec"]

_log = logging.getLogger(__name__)
# What zarr and its codecs raise for bytes that are not what was written; they have no common base.
DECODE_ERRORS = (OSError, ValueError, RuntimeError, LookupError, TypeError, AssertionError, BufferError, MemoryError, AttributeError)


class FrameStore:
    """An open store. Opening takes no lock and writes nothing; a reader may look on while a job writes.

    Those who change it hold a StoreOwner; workers write through `writer`.
    """

    def __init__(self, layout: StoreLayout, definition: StoreDefinition) -> None:
        self.layout = layout
        self.index = LedgerIndex(layout.ledger)
        self._set(definition)

    def _set(self, definition: StoreDefinition) -> None:
        self.definition = definition
        self._arrays: dict[str, Array] = {}

    @property
    def path(self) -> StorePath:
        return self.layout.root

    @property
    def spec(self) -> StoreSpec:
        return self.definition.spec

    @property
    def info(self) -> StoreInfo:
        return self.definition.info

    @property
    def name(self) -> str:
        return self.info.name

    # -- making and opening

    @classmethod
    def create(
        cls, path: StorePath | str, spec: StoreSpec, flight: Flight, settings: FrameSettings, *, info: StoreInfo | None = None
    ) -> Self:
        """Make an empty store; it appears at `path` whole or not at all. Parents are created.

        info: default name from the path, fps from the flight.
        Raises StoreError if there is anything at `path` (an empty directory may be), or it cannot be written.
        """
        layout = layout_of(path)
        return cls(layout, create_store(layout, spec, flight, settings, info))

    @classmethod
    def open(cls, path: StorePath | str) -> Self:
        """Open for reading. Raises StoreError if there is none, it is foreign, or both of its descriptions are damaged."""
        layout = layout_of(path)
        return cls(layout, load_definition(layout))

    @classmethod
    def open_or_create(
        cls, path: StorePath | str, spec: StoreSpec, flight: Flight, settings: FrameSettings, *, info: StoreInfo | None = None
    ) -> Self:
        """The store at `path` if it holds frames of the job's size and dtypes, else a new one. Raises StoreError as `create`, `require`."""
        path = layout_of(path).root
        if is_store(path):
            store = cls.open(path)
        else:
            try:
                return cls.create(path, spec, flight, settings, info=info)
            except StoreError:
                if not is_store(path):  # else: another process was quicker
                    raise
                store = cls.open(path)
        store.require(spec)
        return store

    def require(self, spec: StoreSpec) -> None:
        """Raises StoreError if pixels of `spec` cannot go into this store."""
        reason = self.spec.difference(spec)
        if reason is not None:
            raise StoreError(
                f"{self.path}: {reason}", remedy="another size or dtype is another store: -o NEW.zarr, or change the job to match"
            )

    def reload(self) -> None:
        """Read the description again, after an owner changed the flight."""
        self._set(load_definition(self.layout))

    # -- reading

    def finished(self, frames: Iterable[int] | None = None) -> dict[int, FrameRecord]:
        """{frame: record} of every frame (of `frames`) that stands, ascending. Reads only what was appended since the last call."""
        found, count = self.index.refresh().finished(frames), self.spec.frames
        if found and next(reversed(found)) >= count:
            found = {frame: record for frame, record in found.items() if frame < count}
        return found

    def standing(self) -> set[int]:
        """Frames that stand: the keys of `finished`, without its records."""
        count = self.spec.frames
        return {frame for frame in self.index.refresh().standing() if frame < count}

    def record(self, frame: int) -> FrameRecord | None:
        """The record of one frame if it stands, without making the whole table."""
        return self.index.refresh().record(frame) if 0 <= frame < self.spec.frames else None

    def done(self) -> NDArray[np.bool_]:
        """[F] bool: the array `done` as other readers see it: the ledger's word as of the owner's last `refresh_done`."""
        return np.asarray(self.array("done")[...], dtype=np.bool_)

    def array(self, name: str) -> Array:
        """The Zarr array of an output or coordinate, for reading, whatever state the zarr.json files are in."""
        found = self._arrays.get(name)
        if found is None:
            found = self._arrays[name] = open_array(staged_store(self.path, read_only=True, metadata=self.definition.metadata), name)
        return found

    def chunk_file(self, output: str, frame: int) -> StorePath:
        return self.layout.chunk(output, frame // self.spec.frames_per_shard)

    def read(self, output: str, frame: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Pixels of one frame, [H, W] or [H, W, C], in the store's dtype; whether it is recorded is not asked.

        into: an array of that shape and dtype, without gaps, that may be written and returned: new memory takes time.
        Raises StoreError if the frame is outside the flight, not there, or its file is damaged; UnreadableError where this user may not
        read it; ConfigError for an unknown output.
        """
        self.spec.output(output)
        if not 0 <= frame < self.spec.frames:
            raise StoreError(f"{self.path}: frame {frame} is outside the flight of {self.spec.frames} frames")
        file = self.chunk_file(output, frame)
        try:
            if not file.is_file():
                raise StoreError(
                    f"{file}: {output} of frame {frame} is not there", remedy="`landmark-batch render` renders what is missing"
                )
            array = self.array(output)
            if isinstance(file, Path) and (decode := frame_decoder(array)) is not None:
                return decode(file, into)
            return np.asarray(array[frame])
        except PermissionError as error:
            raise unreadable(file, error) from error
        except DECODE_ERRORS as error:
            raise StoreError(
                f"{file}: {output} of frame {frame} is damaged ({error})", remedy="`landmark-batch verify`, then render again"
            ) from error

    def flight(self) -> Flight:
        """The cameras of the store, as its coordinates hold them. Raises StoreError if they are damaged."""
        try:
            extra = read_sealed(self.layout.flight)
            pose, lens, time_ = (np.asarray(self.array(name)[...], dtype=np.float64) for name in ("pose", "intrinsics", "time"))
            return Flight(pose, lens, self.spec.width, self.spec.height, time_, tuple(extra["names"]), extra["fps"], extra["source"])
        except DECODE_ERRORS as error:
            raise StoreError(f"{self.path}: its coordinates are damaged ({error})", remedy="run the render again: it mends them") from error

    def settings(self, digest: str | None = None) -> FrameSettings | None:
        """Settings by their digest (default: those it is being rendered with), None if unknown or damaged."""
        chosen = self.definition.settings if digest is None else digest
        try:
            found = FrameSettings(read_sealed(settings_file(self.layout, chosen))["settings"])
        except (OSError, DamagedError, LookupError):
            return None
        return found if found.digest == chosen else None

    def measured_bytes_per_frame(self) -> float | None:
        """Mean bytes on disk of a finished frame over all outputs, None before the first. For 'how much will the rest take'."""
        records = self.finished().values()
        if not records:
            return None
        return sum(sum(record.sizes.values()) for record in records) / len(records) / self.spec.frames_per_shard

    # -- writing

    def writer(self, worker: str, attempt: int = 0, epoch: int = 0, *, group: str = "", generation: int | None = None) -> FrameWriter:
        """A writer for this process. generation: of the job (`StoreOwner.generation`); default: the store's at this moment.

        Raises StoreError if the fence is damaged.
        """
        return FrameWriter(self.layout, self.definition, worker=worker, attempt=attempt, epoch=epoch, group=group, generation=generation)

    def fence(self, min_epoch: int, *, group: str = "") -> None:
        """From now on refuse commits of `group` from epochs below `min_epoch`. Raises StoreError."""

        def raise_epoch(fence: Fence) -> Fence:
            return replace(fence, epochs={**fence.epochs, group: max(min_epoch, fence.epochs.get(group, 0))})

        change_fence(self.layout, raise_epoch)

    def refresh_done(self) -> int:
        """Write `done` from the ledger; returns how many frames stand. For the owner. Raises StoreError."""
        return int(write_done(self.layout, self.definition, index=self.index).sum())

    def discard(self, frames: Iterable[int], reason: str) -> None:
        """Make frames missing, durably; their pixels stay until overwritten. For the owner. Raises StoreError."""
        chosen = sorted(set(frames))
        if chosen:
            discard_frames(
                self.layout, self.definition, ledger_log(self.layout.ledger, "owner"), chosen, reason, at=time.time(), index=self.index
            )

    def repair(self, flight: Flight, settings: FrameSettings, *, owner: StoreOwner | None = None) -> list[str]:
        """Rewrite damaged metadata, coordinates, settings and ledger lines; returns what was wrong. See `repair.repair_store`."""
        from .repair import repair_store

        return repair_store(self, flight, settings, owner=owner)


def unreadable(file: StorePath, error: PermissionError) -> UnreadableError:
    """Of a file that this user may not read: that is no damage."""
    return UnreadableError(f"{file} cannot be read: {error.strerror or error}", remedy="change its permissions, or ask whoever wrote it")
