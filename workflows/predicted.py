"""What a store's frames were predicted to take, kept beside what they took. No torch, no scene."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.frames.layout import StoreLayout
from landmark_batch.object_path import StorePath, whole_file

if TYPE_CHECKING:
    from landmark_batch.frames.records import FrameRecord

logger = logging.getLogger(__name__)

_FILE = "predicted.npy"  # [frames] float32 seconds of one worker, NaN where nothing was predicted


def keep_prediction(store: StorePath, count: int, frames: Sequence[int], seconds: NDArray[np.float64]) -> None:
    """Write down what frames are expected to take; what was kept of others stays. For the store's owner.

    count: frames of the store. seconds: [count]. A disk that refuses it is no error.
    """
    kept = read_prediction(store, count)
    values = np.full(count, np.nan, dtype=np.float32) if kept is None else kept
    chosen = np.asarray(frames, dtype=np.int64)
    values[chosen] = seconds[chosen]
    try:
        write_array(StoreLayout(store).hidden / _FILE, values)
    except OSError as error:
        logger.info("%s: the predicted time is not kept: %s", store, error)


def read_prediction(store: StorePath, count: int) -> NDArray[np.float32] | None:
    """[count] seconds of one worker, NaN where nothing was predicted; None where the store holds none."""
    try:
        with (StoreLayout(store).hidden / _FILE).open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if found.dtype != np.float32 or found.ndim != 1:
        return None
    values = np.full(count, np.nan, dtype=np.float32)
    values[: len(found)] = found[:count]
    return values


def compare_prediction(store: StorePath, count: int, finished: Mapping[int, FrameRecord]) -> dict[str, Any] | None:
    """Predicted against actual of the finished frames for which there was a prediction, JSON-ready; None where there was none.

    frames: how many these are. predicted, actual: seconds of rendering, over all workers. to_come: predicted, of frames that are missing.
    """
    values = read_prediction(store, count)
    if values is None:
        return None
    known = np.isfinite(values)
    done = [frame for frame in finished if known[frame]]
    missing = known.copy()
    missing[list(finished)] = False
    return {
        "frames": len(done),
        "predicted": float(values[done].sum(dtype=np.float64)),
        "actual": float(sum(finished[frame].seconds for frame in done)),
        "to_come": float(values[missing].sum(dtype=np.float64)),
    }


def write_array(file: StorePath, values: NDArray[Any]) -> None:
    """A .npy, whole or not at all. Raises OSError."""
    with whole_file(file) as stream:
        np.save(stream, values, allow_pickle=False)
