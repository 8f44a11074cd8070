"""What a film is like, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from landmark_batch.errors import ConfigError

from .colormap import check_colormap
from .depth_range import check_range
from .picture import MATTES


@dataclass(frozen=True)
class VideoSettings:
    """What a film is like; None = the codec's default. Raises ConfigError for values that make no sense.

    codec: FFmpeg's encoder name. crf: quality, lower is better. preset: speed (for prores_ks its profile). pix_fmt: for example
    yuv420p10le. output: 'rgb', 'depth' (colour-mapped) or 'alpha'. matte: 'white' or 'black' under a transparent store.
    near, far, percentiles, colormap: of depth, as in ImageSettings. allow_8bit: encode more than 8 bits from a uint8 store.
    threads: of the encoder, 0 = its own choice. segment_frames: of each part of the film that is encoded by itself and begins with a key
    frame. keep_segments: leave them beside the film, so that a film of changed frames is made of those that did not change.
    """

    codec: str = "libx264"
    crf: int | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    output: str = "rgb"
    matte: str = "white"
    colormap: str = "turbo"
    near: float | None = None
    far: float | None = None
    percentiles: tuple[float, float] = (1.0, 99.0)
    allow_8bit: bool = False
    threads: int = 0
    segment_frames: int = 120
    keep_segments: bool = False

    def __post_init__(self) -> None:
        if self.matte not in MATTES:
            raise ConfigError(f"matte {self.matte!r}: not known", remedy=f"choose one of {', '.join(MATTES)}")
        if self.segment_frames < 1:
            raise ConfigError(f"segment of {self.segment_frames} frames: it has at least 1", remedy="120 is the default")
        check_colormap(self.colormap)
        check_range(self.near, self.far, self.percentiles)


@dataclass(frozen=True)
class VideoReport:
    """frames: encoded, in order. fps and where it came from. width, height: of the film. notes: what a user should know.

    segments: it was encoded in. reused: frames in those that stood from an earlier export.
    """

    path: Path
    frames: tuple[int, ...]
    fps: Fraction
    fps_source: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    segments: int = 1
    reused: int = 0

    @property
    def duration(self) -> float:
        """Seconds of film."""
        return float(len(self.frames) / self.fps)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "path": str(self.path), "fps": str(self.fps), "duration": self.duration}
