"""FrameChunk: the unit of work, retry and commit. Pure integers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from landmark_batch.errors import ConfigError

_RANGE = re.compile(r"^(\d+)(?:-(\d+)(?:x(\d+))?)?$")


@dataclass(frozen=True)
class FrameChunk:
    """Frames of a flight that one task renders and commits together.

    id: stable name, made of the first and last frame and the count, so that a log line can be found again.
    frames: indices in the camera file, ascending.
    """

    frames: tuple[int, ...]

    @property
    def id(self) -> str:
        return f"{self.frames[0]:06d}-{self.frames[-1]:06d}+{len(self.frames)}"


def split_frames(frames: Iterable[int], chunk_frames: int) -> list[FrameChunk]:
    """Cut frames (any order, duplicates dropped) into chunks of at most `chunk_frames`, ascending.

    Chunks are aligned to multiples of `chunk_frames` of the frame index, so that the same frame falls into the same
    chunk whatever is already done.
    Raises ConfigError for chunk_frames < 1.
    """
    if chunk_frames < 1:
        raise ConfigError(f"chunk_frames = {chunk_frames}: at least 1 frame a chunk", remedy="set output.chunk_frames to 1 or more")
    groups: dict[int, list[int]] = {}
    for frame in sorted(set(frames)):
        groups.setdefault(frame // chunk_frames, []).append(frame)
    return [FrameChunk(tuple(group)) for group in groups.values()]


def parse_frame_ranges(text: str, count: int) -> list[int]:
    """'0-239', '0-239x10', '3,5-10' (inclusive, x = step) -> ascending frame indices below `count`.

    Raises ConfigError naming the part that is malformed, reversed, of step 0 or outside 0..count-1.
    """
    frames: set[int] = set()
    for part in text.split(","):
        match = _RANGE.match(part.strip())
        if match is None:
            raise ConfigError(f"frames = {text!r}: cannot read {part.strip()!r}", remedy="write ranges as 0-239, 0-239x10 or 3,5-10")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        step = int(match[3]) if match[3] is not None else 1
        if step < 1:
            raise ConfigError(f"frames = {text!r}: step 0 in {part.strip()!r}", remedy="a step is 1 or more")
        if last < first:
            raise ConfigError(f"frames = {text!r}: {part.strip()!r} ends before it starts", remedy=f"write {last}-{first}")
        if last >= count:
            raise ConfigError(
                f"frames = {text!r}: frame {last} is outside the flight of {count} frames",
                remedy=f"frames are counted from 0: the last one is {count - 1}",
            )
        frames.update(range(first, last + 1, step))
    return sorted(frames)


def format_frame_ranges(frames: Sequence[int]) -> str:
    """[3, 5, 6, 7] -> '3,5-7': the shortest text that `parse_frame_ranges` reads back."""
    parts: list[str] = []
    ordered = sorted(set(frames))
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
            a, b = ordered[start], ordered[i - 1]
            parts.append(str(a) if a == b else f"{a}-{b}")
            start = i
    return ",".join(parts)
