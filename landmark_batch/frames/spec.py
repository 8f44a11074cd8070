"""What a frame store holds: sizes, outputs, dtypes. Plain values; no zarr, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from landmark_batch.errors import ConfigError

DTYPES = ("uint8", "uint16", "float16", "float32")
COMPRESSORS = ("auto", "none", "lz4", "zstd", "jpegxl")
BACKGROUNDS = ("white", "black", "transparent")
_BLOCK = 4096  # bytes of a file-system block: a file takes whole ones
_INODE = 512  # directory entry, inode and ledger record of one frame file, rounded up


@dataclass(frozen=True)
class OutputSpec:
    """One array of the store. name: 'rgb', 'depth' or 'alpha'. channels: 3 or 4 (transparent background) for rgb, else None."""

    name: str
    dtype: str
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ("rgb", "depth", "alpha"):
            raise ConfigError(f"output {self.name!r}: a store holds rgb, depth and alpha")
        if self.dtype not in DTYPES or (self.name == "depth" and self.dtype.startswith("uint")):
            raise ConfigError(
                f"output.{self.name} = {self.dtype!r}: not a dtype of {self.name}", remedy=f"choose one of {', '.join(DTYPES)}"
            )
        if self.channels not in ((3, 4) if self.name == "rgb" else (None,)):
            raise ConfigError(
                f"output.{self.name}: {self.channels} channels", remedy="rgb has 3, or 4 when transparent; depth and alpha have none"
            )

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}" + (" with alpha channel" if self.channels == 4 else "")


@dataclass(frozen=True)
class StoreSpec:
    """Shape of a store. frames: of the whole flight. frames_per_shard: frames in one file, fixed at creation.

    Raises ConfigError for a value that no store can have.
    """

    frames: int
    height: int
    width: int
    outputs: tuple[OutputSpec, ...]
    compressor: str = "auto"
    frames_per_shard: int = 1

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "frames_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: a store has at least 1")
        if not self.outputs or len({output.name for output in self.outputs}) != len(self.outputs):
            raise ConfigError(f"outputs {[output.name for output in self.outputs]}: at least one, each once")
        if self.compressor not in COMPRESSORS:
            raise ConfigError(f"output.compressor = {self.compressor!r}", remedy=f"choose one of {', '.join(COMPRESSORS)}")
        if self.compressor == "jpegxl" and not any(output.dtype.startswith("uint") for output in self.outputs):
            raise ConfigError(
                f"output.compressor = 'jpegxl': no output is uint8 or uint16, but {', '.join(map(str, self.outputs))}",
                remedy="floats are compressed by output.compressor = 'zstd'",
            )

    @property
    def commit_unit(self) -> int:
        """Frames that must be committed together: chunks of work are aligned multiples of this (the last one may end with the flight)."""
        return self.frames_per_shard

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(output.name for output in self.outputs)

    @property
    def bytes_per_frame(self) -> int:
        """Pixels of one frame over all outputs, uncompressed, bytes."""
        return sum(math.prod(self.frame_shape(output.name)) * np.dtype(output.dtype).itemsize for output in self.outputs)

    def output(self, name: str) -> OutputSpec:
        """The output of that name. Raises ConfigError naming those there are."""
        for output in self.outputs:
            if output.name == name:
                return output
        raise ConfigError(f"no output {name!r} in this store", remedy=f"it holds {', '.join(self.names)}")

    def frame_shape(self, name: str) -> tuple[int, ...]:
        """[H, W] or [H, W, C] of one frame."""
        channels = self.output(name).channels
        return (self.height, self.width) if channels is None else (self.height, self.width, channels)

    def shard_of(self, frame: int) -> range:
        """The frames that share a file with `frame`, cut at the flight's end."""
        first = frame - frame % self.frames_per_shard
        return range(first, min(first + self.frames_per_shard, self.frames))

    def disk_bytes(self, frames: int | None = None, *, ratio: float = 1.0) -> int:
        """Bytes that `frames` frames (default: all) take on disk.

        ratio: uncompressed over compressed; 1 is the bound to refuse by, as detailed frames hardly compress. Every file is
        rounded up to blocks, with room for its checksum, directory entry and ledger record.
        """
        count = self.frames if frames is None else frames
        each = 0
        for output in self.outputs:
            pixels = math.prod(self.frame_shape(output.name)) * np.dtype(output.dtype).itemsize
            each += math.ceil((pixels / ratio + 16) / _BLOCK) * _BLOCK + _INODE
        return count * each + self.frames * 200

    def difference(self, job: StoreSpec) -> str | None:
        """Why pixels of `job` cannot go into this store, or None. Flight length, compressor and sharding may differ."""
        if (self.width, self.height) != (job.width, job.height):
            return f"it holds frames of {self.width}×{self.height}, the job renders {job.width}×{job.height}"
        if set(self.outputs) != set(job.outputs):
            held, asked = (", ".join(str(item) for item in spec.outputs) for spec in (self, job))
            return f"it holds {held}, the job renders {asked}"
        return None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoreSpec:
        return cls(**{**values, "outputs": tuple(OutputSpec(**output) for output in values["outputs"])})


@dataclass(frozen=True)
class StoreInfo:
    """What readers of a store want to know and no pixel depends on.

    name: of the job. fps: of playback, None = unknown. metres_per_unit: of scene units, None = unknown.
    background: 'white', 'black' or 'transparent'.
    """

    name: str = "flight"
    fps: float | None = None
    metres_per_unit: float | None = None
    background: str = "white"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
