"""What exported images are like, checked against the store before a frame is read."""

from __future__ import annotations

import json
from dataclasses import dataclass

import xxhash

from landmark_batch.errors import ConfigError

from .colormap import check_colormap
from .depth_range import check_range
from .exr import COMPRESSIONS
from .image_names import DEFAULT_PATTERN, check_pattern
from .picture import MATTES
from .source import FrameSource, output_of

EXTENSIONS = {"png": "png", "jpeg": "jpg", "exr": "exr"}
PNG_COMPRESSIONS = ("deflate", "none")
_REVISION = 1  # raise it when the same pixels and settings are to give other files


@dataclass(frozen=True)
class ImageSettings:
    """Raises ConfigError for values that make no sense together.

    output: 'rgb', 'depth' or 'alpha'. format: 'png', 'jpeg' or 'exr'. bit_depth: of PNG, 8 or 16. quality: of JPEG, 1..100.
    exr_type: 'float16' or 'float32'; None = float16, for depth float32.
    exr_compression: 'piz' (default), 'zip', 'zips', 'rle' or 'none', all lossless; piz is 3 times faster than zip and half the size.
    png_compression: 'deflate' (default) or 'none': large files, a little less work.
    pattern: of file names, with {name}, {frame}, {output}, {ext}. start_number: is added to the frame's index in them.
    matte: 'white' or 'black' under a transparent store's JPEG. colormap: of depth in PNG and JPEG: 'turbo', 'viridis' or 'gray'.
    near, far: ends of the colour map, scene units; None = percentiles of the depth of the frames exported together.
    allow_8bit: write 16-bit PNGs from a uint8 store, whose values are then only 8 bits fine.
    """

    output: str = "rgb"
    format: str = "png"
    bit_depth: int = 8
    quality: int = 95
    exr_type: str | None = None
    exr_compression: str = "piz"
    png_compression: str = "deflate"
    pattern: str = DEFAULT_PATTERN
    start_number: int = 0
    matte: str = "white"
    colormap: str = "turbo"
    near: float | None = None
    far: float | None = None
    percentiles: tuple[float, float] = (1.0, 99.0)
    allow_8bit: bool = False

    def __post_init__(self) -> None:
        if self.format not in EXTENSIONS:
            raise ConfigError(f"image format {self.format!r}: not known", remedy=f"choose one of {', '.join(EXTENSIONS)}")
        if self.bit_depth not in (8, 16):
            raise ConfigError(f"bit depth {self.bit_depth}: PNG holds 8 or 16", remedy="use 8, 16, or the format exr for floats")
        if self.bit_depth == 16 and self.format == "jpeg":
            raise ConfigError("bit depth 16: JPEG holds 8", remedy="choose png or exr")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"JPEG quality {self.quality}: not within 1..100", remedy="95 is visually lossless")
        if self.exr_type not in (None, "float16", "float32"):
            raise ConfigError(f"EXR type {self.exr_type!r}: not known", remedy="choose float16 or float32")
        if self.exr_compression not in COMPRESSIONS:
            raise ConfigError(f"EXR compression {self.exr_compression!r}: not known", remedy=f"choose one of {', '.join(COMPRESSIONS)}")
        if self.png_compression not in PNG_COMPRESSIONS:
            raise ConfigError(f"PNG compression {self.png_compression!r}: not known", remedy=f"choose one of {', '.join(PNG_COMPRESSIONS)}")
        if self.start_number < 0:
            raise ConfigError(f"start number {self.start_number}: below 0")
        if self.matte not in MATTES:
            raise ConfigError(f"matte {self.matte!r}: not known", remedy=f"choose one of {', '.join(MATTES)}")
        check_colormap(self.colormap)
        check_pattern(self.pattern)
        check_range(self.near, self.far, self.percentiles)
        if self.output == "depth" and self.format == "png" and self.bit_depth == 16 and self.colormap != "gray":
            raise ConfigError(
                f"16-bit PNG of depth: colormap {self.colormap!r} has 8 bits", remedy="choose colormap gray, or the format exr"
            )

    @property
    def ext(self) -> str:
        return EXTENSIONS[self.format]

    @property
    def float_type(self) -> str:
        return self.exr_type or ("float32" if self.output == "depth" else "float16")

    @property
    def is_mapped(self) -> bool:
        """True for a depth picture that needs near and far."""
        return self.output == "depth" and self.format != "exr"

    def check_source(self, source: FrameSource) -> list[str]:
        """Whether `source` can give such images. Returns notes for the user.

        Raises ConfigError for an output it lacks, or for 16 bits from a uint8 store without allow_8bit.
        """
        spec = output_of(source, self.output)
        if spec.dtype != "uint8":
            return []
        if self.format == "png" and self.bit_depth == 16 and not self.allow_8bit:
            raise ConfigError(
                f"{source.path}: its {self.output} is uint8, so a 16-bit PNG would hold 8 bits of picture",
                remedy=f"render with output.{self.output} = 'uint16' or 'float16', or say --allow-8bit",
            )
        if self.format == "exr" or (self.format == "png" and self.bit_depth == 16):
            return [f"{self.output} is uint8 in {source.path}: the files have room for more than the 8 bits there are"]
        return []

    def key(self, digest: str, near: float | None, far: float | None, metres_per_unit: float | None) -> str:
        """A digest of all that decides a file's pixels: those of the frame and these settings. Same key, same picture."""
        content: dict[str, object] = {"revision": _REVISION, "digest": digest, "output": self.output, "format": self.format}
        if self.format == "png":
            content["bits"] = self.bit_depth
            if self.png_compression != "deflate":
                content["compression"] = self.png_compression
        elif self.format == "jpeg":
            content |= {"quality": self.quality, "matte": self.matte}
        else:
            content |= {
                "float": self.float_type,
                "compression": self.exr_compression,
                "metres": metres_per_unit if self.output == "depth" else None,
            }
        if self.is_mapped:
            content |= {"colormap": self.colormap, "near": near, "far": far}
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
