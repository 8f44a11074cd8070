"""Flights out: a transforms.json that `load_flight` reads back bit for bit, one frame a line, to be edited by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.formats import DEFAULT_FPS
from landmark_batch.cameras.lenses import frame_times
from landmark_batch.errors import CameraError, cannot_write


def write_transforms(flight: Flight, path: Path) -> Path:
    """Write `flight` to `path` (nerfstudio's and LandMark's keys; atomic, an existing file is replaced) and return the path.

    A lens that all frames share stands at the top, else in each frame. fps is kept; times are written where they are not index / fps,
    so that a frame can be inserted by hand.
    Raises CameraError where the file cannot be written, DiskFullError where there is no space.
    """
    path = Path(path)
    text = _text(flight)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error, CameraError) from None
    return path


def _text(flight: Flight) -> str:
    keys = ("fl_x", "fl_y", "cx", "cy")
    shared = bool((flight.intrinsics == flight.intrinsics[0]).all())
    square = bool((flight.intrinsics[:, 0] == flight.intrinsics[:, 1]).all())
    head: dict[str, Any] = {"camera_model": "SIMPLE_PINHOLE" if square else "PINHOLE", "w": flight.width, "h": flight.height}
    if shared:
        head |= dict(zip(keys, flight.intrinsics[0].tolist(), strict=True))
    if flight.fps is not None:
        head["fps"] = flight.fps
    steady = np.array_equal(flight.time, frame_times(len(flight), flight.fps if flight.fps is not None else DEFAULT_FPS))
    frames = []
    for i in range(len(flight)):
        frame: dict[str, Any] = {"file_path": flight.names[i]}
        if not steady:
            frame["time"] = float(flight.time[i])
        if not shared:
            frame |= dict(zip(keys, flight.intrinsics[i].tolist(), strict=True))
        frame["transform_matrix"] = [*flight.c2w[i].tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append(json.dumps(frame))
    top = json.dumps(head, indent=1)[:-2]
    return top + ',\n "frames": [\n  ' + ",\n  ".join(frames) + "\n ]\n}\n"
