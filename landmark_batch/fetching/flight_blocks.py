"""FlightBlocks: the blocks and the cost of every frame of a flight, before the first one is rendered."""

from __future__ import annotations

import multiprocessing
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import ConfigError
from landmark_batch.model.settings import RenderSettings
from landmark_batch.object_path import StorePath, whole_file
from landmark_batch.scene.mask import StoredMask
from landmark_batch.scene.weights import AlphaMask, SceneConfig

from .visibility import FrustumBlocks

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Found: TypeAlias = tuple[list[Int32], list[int]]

WORTH_A_PROCESS = 1000  # poses: less work than a process takes to start
BATCH = 100  # poses a task


@dataclass(frozen=True)
class FlightBlocks:
    """Of F frames, flat. Frame i of them needs ids[offsets[i]:offsets[i + 1]], ascending, and renders about samples[i] samples.

    offsets: [F + 1] int64. ids: int32. samples: [F] int64. frames: [F] int64, the frames' numbers in the flight, ascending.
    """

    offsets: Int64
    ids: Int32
    samples: Int64
    frames: Int64

    def __len__(self) -> int:
        return len(self.samples)

    def of(self, frame: int) -> Int32:
        """Blocks of frame `frame` of the flight. Raises KeyError for a frame that was not asked about."""
        place = int(np.searchsorted(self.frames, frame))
        if place == len(self.frames) or self.frames[place] != frame:
            raise KeyError(frame)
        return self.ids[self.offsets[place] : self.offsets[place + 1]]

    def save(self, path: StorePath) -> None:
        """Write an .npz, whole or not at all. Raises OSError."""
        with whole_file(path) as file:
            np.savez(file, offsets=self.offsets, ids=self.ids, samples=self.samples, frames=self.frames)

    @classmethod
    def load(cls, path: StorePath) -> FlightBlocks:
        """What `save` wrote. Raises ConfigError naming a file that is not."""
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return cls(file["offsets"], file["ids"], file["samples"], file["frames"])
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path}: no table of blocks: {error}", remedy="delete it, it is computed again") from error


def flight_blocks(
    config: SceneConfig,
    settings: RenderSettings,
    mask: AlphaMask | StoredMask | None,
    division: tuple[int, int],
    flight: Flight,
    *,
    frames: Sequence[int] | None = None,
    processes: int = 1,
) -> FlightBlocks:
    """Blocks and sample estimates of a flight's frames (default: all), the same for any number of processes.

    division: as for `FrustumBlocks`. A pose that occurs again is not computed again. Few poses are computed in this process
    whatever `processes` says. Raises ConfigError for a frame that the flight does not have.
    """
    chosen = np.arange(len(flight)) if frames is None else np.unique(np.asarray(frames, dtype=np.int64))
    if len(chosen) and not (chosen[0] >= 0 and chosen[-1] < len(flight)):
        raise ConfigError(f"frames {chosen[0]} to {chosen[-1]} of a flight of {len(flight)}", remedy=f"0 to {len(flight) - 1}")
    cameras = np.concatenate([flight.c2w[chosen].reshape(-1, 12), flight.intrinsics[chosen]], axis=1).astype(np.float32)
    poses, inverse = np.unique(cameras, axis=0, return_inverse=True)
    visible = FrustumBlocks(config, settings, mask, division)
    sets, samples = _compute(visible, poses, flight.width, flight.height, min(processes, len(poses) // WORTH_A_PROCESS))
    inverse = inverse.reshape(-1)
    rows = [sets[place] for place in inverse]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
    ids = np.concatenate([np.zeros(0, dtype=np.int32), *rows])
    return FlightBlocks(offsets, ids, np.array([samples[place] for place in inverse], dtype=np.int64), chosen)


def _compute(visible: FrustumBlocks, poses: NDArray[np.float32], width: int, height: int, processes: int) -> Found:
    if processes <= 1:
        return _batch(visible, poses, width, height)
    sets: list[Int32] = []
    samples: list[int] = []
    parts = [poses[start : start + BATCH] for start in range(0, len(poses), BATCH)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_open, initargs=(visible, width, height)) as pool:
        for some, counts in pool.map(_share, parts):
            sets += some
            samples += counts
    return sets, samples


_opened: list[tuple[FrustumBlocks, int, int]] = []  # of a worker process: what its tasks work with


def _open(visible: FrustumBlocks, width: int, height: int) -> None:
    _opened[:] = [(visible, width, height)]


def _share(poses: NDArray[np.float32]) -> Found:
    visible, width, height = _opened[0]
    return _batch(visible, poses, width, height)


def _batch(visible: FrustumBlocks, poses: NDArray[np.float32], width: int, height: int) -> Found:
    sets, samples = [], []
    for camera in poses:
        c2w, lens = camera[:12].reshape(3, 4), camera[12:].tolist()
        sets.append(visible.blocks(c2w, lens, width, height))
        samples.append(visible.samples(c2w, lens, width, height))
    return sets, samples
