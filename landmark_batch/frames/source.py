"""What exports and measures read: the finished frames of a store, behind the few things they need of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import ConfigError, StoreError

from .spec import OutputSpec

Pixels = NDArray[Any]


class FrameSource(Protocol):
    """Frames that can be read in any order, from several threads.

    name: of the job. path: where they lie, for messages. frames: of the whole flight. outputs: by name. names: F names from the camera
    file. fps: of playback, None = unknown; fps_origin: who said so, 'job' or 'camera file'. background: 'white', 'black' or
    'transparent' (rgb is then premultiplied RGBA, display-referred). metres_per_unit: None if the job does not say.
    """

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def frames(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def outputs(self) -> Mapping[str, OutputSpec]: ...
    @property
    def names(self) -> Sequence[str]: ...
    @property
    def fps(self) -> float | None: ...
    @property
    def fps_origin(self) -> str: ...
    @property
    def background(self) -> str: ...
    @property
    def metres_per_unit(self) -> float | None: ...

    def finished(self, frames: Iterable[int] | None = None) -> Mapping[int, Mapping[str, str]]:
        """{frame: {output: digest of its pixels}} of every frame (of `frames`) that stands now."""
        ...

    def read(self, output: str, frame: int) -> Pixels:
        """[H, W] or [H, W, C] in the output's dtype."""
        ...

    def pose(self, frame: int) -> NDArray[np.float64] | None:
        """[3, 4] camera to world, OpenGL axes, or None if unknown."""
        ...


@dataclass(frozen=True)
class Selection:
    """ready: frames that can be read, ascending. missing: those wanted that are not finished. digests: {frame: {output: digest}}."""

    ready: tuple[int, ...]
    missing: tuple[int, ...]
    digests: Mapping[int, Mapping[str, str]]


def output_of(source: FrameSource, name: str) -> OutputSpec:
    """The output of that name. Raises ConfigError naming those the source has."""
    try:
        return source.outputs[name]
    except KeyError:
        raise ConfigError(f"{source.path}: it holds no {name!r}", remedy=f"choose one of {', '.join(source.outputs)}") from None


def check_frames(source: FrameSource, frames: Iterable[int]) -> list[int]:
    """Ascending, each once. Raises ConfigError for a frame outside the flight or no frame at all."""
    wanted = sorted(set(frames))
    outside = [frame for frame in wanted if not 0 <= frame < source.frames]
    if outside:
        raise ConfigError(
            f"{source.path}: frame {outside[0]} is outside the flight of {source.frames} frames",
            remedy=f"frames are counted from 0: the last one is {source.frames - 1}",
        )
    if not wanted:
        raise ConfigError(f"{source.path}: no frames chosen", remedy="name some, for example --frames 0-23")
    return wanted


def select_frames(source: FrameSource, frames: Iterable[int] | None = None, *, allow_missing: bool = False) -> Selection:
    """The wanted frames (None = the whole flight), sorted into finished and missing.

    Raises StoreError naming the unfinished ones unless allow_missing, or if none is finished; ConfigError as `check_frames`.
    """
    wanted = check_frames(source, range(source.frames) if frames is None else frames)
    digests = source.finished(wanted)
    ready = tuple(frame for frame in wanted if frame in digests)
    missing = tuple(frame for frame in wanted if frame not in digests)
    if missing and (not allow_missing or not ready):
        what = f"{len(missing)} of the {len(wanted)} frames wanted are not finished" if ready else "none of the frames wanted is finished"
        raise StoreError(
            f"{source.path}: {what}: {format_frame_ranges(missing)}",
            remedy="render the rest first" + (f", or choose finished frames with --frames {format_frame_ranges(ready)}" if ready else ""),
        )
    return Selection(ready, missing, digests)
