"""A frame store as a source of exports: only finished frames, each checked against its recorded digest as it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import StoreError
from landmark_batch.object_path import StorePath

from .records import FrameRecord, pixel_digest
from .spec import OutputSpec

if TYPE_CHECKING:
    from landmark_batch.cameras.flight import Flight

    from .store import FrameStore


class StoreSource:
    """A FrameSource. Reading takes no lock; the store may be written meanwhile."""

    def __init__(self, store: FrameStore) -> None:
        self.store = store
        self._records: dict[int, FrameRecord] = {}

    @property
    def name(self) -> str:
        return self.store.name

    @property
    def path(self) -> str:
        return str(self.store.path)

    @property
    def frames(self) -> int:
        return self.store.spec.frames

    @property
    def width(self) -> int:
        return self.store.spec.width

    @property
    def height(self) -> int:
        return self.store.spec.height

    @cached_property
    def outputs(self) -> Mapping[str, OutputSpec]:
        return {output.name: output for output in self.store.spec.outputs}

    @cached_property
    def _flight(self) -> Flight:
        return self.store.flight()

    @property
    def names(self) -> Sequence[str]:
        return self._flight.names

    @property
    def fps(self) -> float | None:
        return self.store.info.fps

    @property
    def fps_origin(self) -> str:
        return "camera file" if self.fps == self._flight.fps else "job"

    @property
    def background(self) -> str:
        return self.store.info.background

    @property
    def metres_per_unit(self) -> float | None:
        return self.store.info.metres_per_unit

    def finished(self, frames: Iterable[int] | None = None) -> Mapping[int, Mapping[str, str]]:
        found = self._records = self.store.finished(frames)
        return {frame: record.digests for frame, record in found.items()}

    def pose(self, frame: int) -> NDArray[np.float64] | None:
        return np.asarray(self._flight.c2w[frame], np.float64)

    def read(self, output: str, frame: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """into: see `FrameStore.read`. Raises StoreError if the frame is not there, damaged, or not the one that is recorded; ConfigError
        for an unknown output.
        """
        known = self._records.get(frame)
        return self.read_recorded(output, frame, None if known is None else known.digests.get(output), into)

    def read_recorded(self, output: str, frame: int, recorded: str | None, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """`read` for who knows what was recorded: the digest of these pixels. The ledger is only read if they have another."""
        pixels = self.store.read(output, frame, into)
        digest = pixel_digest(pixels)
        if digest == recorded:
            return pixels
        record = self.store.record(frame)  # it may have been rendered since
        if record is None:
            raise StoreError(f"{self.path}: frame {frame} is not finished", remedy="`landmark-batch render` renders what is missing")
        if record.digests[output] != digest:
            raise StoreError(
                f"{self.store.chunk_file(output, frame)}: {output} of frame {frame} is not the picture that was recorded",
                remedy="`landmark-batch verify --discard-damaged`, then render again",
            )
        return pixels


def open_source(path: StorePath | str) -> StoreSource:
    """The frame store at `path`. Raises StoreError if there is none or it is foreign."""
    from .store import FrameStore

    return StoreSource(FrameStore.open(path))
