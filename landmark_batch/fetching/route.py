"""Route: in which order a worker renders frames, as far as it knows, and what each of them needs."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landmark_batch.object_path import StorePath, whole_file

from .block_sets import BlockSets
from .flight_blocks import FlightBlocks

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Itinerary:
    """frames [N]: of a job, in the order in which its chunks go out. bounds: where each group's range begins, and N."""

    frames: Int64
    bounds: Int64

    def save(self, path: StorePath) -> None:
        """Write an .npz, whole or not at all. Raises OSError."""
        with whole_file(path) as file:
            np.savez(file, frames=self.frames, bounds=self.bounds)

    @classmethod
    def load(cls, path: StorePath) -> Itinerary:
        """What `save` wrote. Raises OSError, ValueError, KeyError, EOFError or BadZipFile."""
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return cls(file["frames"], file["bounds"])


class Route:
    """seen: blocks of the flight's frames. itinerary: file that may come after its workers and be replaced while the job runs (it is read
    again for a frame that it did not have); None, or not there yet: frames come as they stand in the flight.
    """

    def __init__(self, seen: FlightBlocks, itinerary: StorePath | None = None) -> None:
        self._seen = seen
        self._sets = BlockSets(np.asarray(seen.offsets, np.int64), np.asarray(seen.ids, np.int64))
        self._file = itinerary
        self._is_read = False
        self._order: Int64  # rows of seen
        self._bounds: Int64
        self._place: dict[int, int]  # frame -> position in the order
        self._follow(Itinerary(np.asarray(seen.frames, dtype=np.int64), np.array([0, len(seen)])))
        self._read()

    @classmethod
    def along(cls, seen: FlightBlocks, order: Sequence[int]) -> Route:
        """Frames of the flight in this order, in one range."""
        route = cls(seen)
        route._follow(Itinerary(np.asarray(order, dtype=np.int64), np.array([0, len(order)])))
        return route

    def of(self, frame: int) -> Sequence[int]:
        """Blocks that a frame needs, ascending. Raises KeyError for a frame that the flight does not have."""
        found: list[int] = self._seen.of(frame).tolist()
        return found

    def place(self, frame: int) -> tuple[int, int] | None:
        """(position, end of its range) of a frame in the order; None for a frame that is in no order known."""
        if not self._is_read or frame not in self._place:
            self._read()
        position = self._place.get(frame)
        if position is None:
            return None
        return position, int(self._bounds[np.searchsorted(self._bounds, position, side="right")])

    def ahead(self, start: int, stop: int) -> BlockSets:
        """What the frames at positions start..stop - 1 need."""
        return self._sets.take(self._order[start:stop])

    def _read(self) -> None:
        if self._file is None:
            return
        try:
            self._follow(Itinerary.load(self._file))
            self._is_read = True
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return  # not written yet: the flight's own order

    def _follow(self, itinerary: Itinerary) -> None:
        self._order = np.searchsorted(self._seen.frames, itinerary.frames)
        self._bounds = itinerary.bounds
        self._place = {frame: place for place, frame in enumerate(itinerary.frames.tolist())}
