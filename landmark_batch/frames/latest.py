"""NAME.latest.jpg: one picture beside the store that always shows the newest frame of a render, for a viewer that reloads."""

from __future__ import annotations

import time
from pathlib import Path

from .depth_range import depth_range
from .image_files import ImageLabel, write_image
from .image_settings import ImageSettings
from .outfile import remove_leftovers
from .source import FrameSource

_INTERVAL = 1.0  # seconds between two pictures, at least
_SHARE = 0.05  # of one core's time, at most
_QUALITY = 90


def latest_file(store: Path) -> Path:
    """city.zarr -> city.latest.jpg"""
    return store.with_name(store.name.removesuffix(".zarr") + ".latest.jpg")


class LatestPicture:
    """Replaces the file at `path`, whole or not at all. From one thread at a time.

    Shows rgb; without it alpha; without both depth, coloured over the frame's own range.
    """

    def __init__(self, source: FrameSource, path: Path) -> None:
        self.path = path
        self._source = source
        self._output = next(name for name in ("rgb", "alpha", "depth") if name in source.outputs)
        self._next = 0.0
        remove_leftovers(path.parent)

    def due(self) -> float:
        """Seconds until the next picture may be written: one a second, less often where writing one takes more than 50 ms."""
        return max(0.0, self._next - time.monotonic())

    def show(self, frame: int) -> None:
        """Write a finished frame. Raises StoreError if it cannot be read, DiskFullError or ConfigError if the file cannot be written."""
        started = time.monotonic()
        source, output = self._source, self._output
        near, far = depth_range(source, (frame,), near=None, far=None, percentiles=(1.0, 99.0)) if output == "depth" else (None, None)
        settings = ImageSettings(output, "jpeg", quality=_QUALITY)
        digest = source.finished((frame,))[frame][output]
        label = ImageLabel(source.name, frame, settings.output, digest, settings.key(digest, near, far, source.metres_per_unit), near, far)
        write_image(self.path, source.read(output, frame), settings, label)
        ended = time.monotonic()
        self._next = ended + max(_INTERVAL, (ended - started) / _SHARE)
