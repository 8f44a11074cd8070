"""One frame as one image file, with its stamp: what it shows, of which digest, made with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from landmark_batch import __version__
from landmark_batch.kernels.png import PngPacker

from .colormap import normalise, paint
from .exr import REC709, read_exr_text, write_exr
from .image_settings import ImageSettings
from .jpeg import encode_jpeg, read_jpeg_text
from .outfile import output_file
from .picture import linear_rgb, opaque, straight_bits, to_bits, to_float
from .png import read_png_text, write_png

DIGEST = "landmark-batch digest"
KEY = "landmark-batch export"
OUTPUT = "landmark-batch output"
_READERS = {"png": read_png_text, "jpeg": read_jpeg_text, "exr": read_exr_text}


@dataclass(frozen=True)
class ImageLabel:
    """What is written into a file beside its pixels. name: of the job. frame: index in the flight. digest: of the stored pixels.

    output: what is shown: 'rgb', 'depth' or 'alpha'. key: see ImageSettings.key. near, far: of a colour-mapped depth.
    pose: [3, 4] camera to world, for EXR.
    """

    name: str
    frame: int
    output: str
    digest: str
    key: str
    near: float | None = None
    far: float | None = None
    metres_per_unit: float | None = None
    pose: NDArray[np.float64] | None = None

    def text(self) -> dict[str, str]:
        return {
            "Software": f"landmark-batch {__version__}",
            "Title": f"{self.name} frame {self.frame}",
            OUTPUT: self.output,
            DIGEST: self.digest,
            KEY: self.key,
        }


def read_label(path: Path, format: str) -> dict[str, str]:
    """The text a file of `format` carries, from its header alone. Empty if it is absent, not whole or not readable."""
    try:
        return _READERS[format](path)
    except OSError:
        return {}


def write_image(path: Path, pixels: NDArray[Any], settings: ImageSettings, label: ImageLabel, packer: PngPacker | None = None) -> int:
    """Write one frame's stored pixels as the image `settings` asks for, atomically. Returns its bytes.

    pixels: [H, W] or [H, W, C] as the store has them. packer: of PNGs, see `write_png`. Raises DiskFullError or ConfigError.
    """
    with output_file(path) as temporary:
        if settings.format == "exr":
            write_exr(temporary, *_exr(pixels, settings, label), compression=settings.exr_compression)
        elif settings.format == "png":
            with temporary.open("wb") as file:
                _png(file, pixels, settings, label, packer)
        else:
            temporary.write_bytes(_jpeg(pixels, settings, label))
        return temporary.stat().st_size


def _png(file: BinaryIO, pixels: NDArray[Any], settings: ImageSettings, label: ImageLabel, packer: PngPacker | None) -> None:
    text, srgb = label.text(), True
    if settings.output == "rgb":
        picture = straight_bits(pixels, settings.bit_depth)
    elif settings.output == "alpha":
        picture, srgb = to_bits(pixels, settings.bit_depth), False
    else:
        near, far = _range(label)
        text["Description"] = f"depth {near:g} to {far:g} scene units, {settings.colormap}"
        if settings.colormap == "gray":
            picture, srgb = to_bits(normalise(pixels, near, far), settings.bit_depth), False
        else:
            picture = paint(pixels, near, far, settings.colormap)
    write_png(file, picture, text, srgb=srgb, compress=settings.png_compression != "none", packer=packer)


def _jpeg(pixels: NDArray[Any], settings: ImageSettings, label: ImageLabel) -> bytes:
    if settings.output == "rgb":
        return encode_jpeg(to_bits(opaque(pixels, settings.matte), 8), label.text(), quality=settings.quality)
    if settings.output == "alpha":
        return encode_jpeg(to_bits(pixels, 8), label.text(), quality=settings.quality, srgb=False)
    near, far = _range(label)
    text = {**label.text(), "Description": f"depth {near:g} to {far:g} scene units, {settings.colormap}"}
    return encode_jpeg(paint(pixels, near, far, settings.colormap), text, quality=settings.quality)


def _exr(pixels: NDArray[Any], settings: ImageSettings, label: ImageLabel) -> tuple[Mapping[str, NDArray[Any]], dict[str, Any]]:
    text = label.text()
    attributes: dict[str, Any] = {"software": text["Software"], "imageName": text["Title"]}
    attributes |= {name: text[name] for name in (OUTPUT, DIGEST, KEY)}
    if label.pose is not None:
        attributes["worldToCamera"] = _world_to_camera(label.pose)
    if settings.output == "rgb":
        attributes |= {"chromaticities": REC709, "comments": "linear light, Rec.709 primaries; from display-referred sRGB by IEC 61966-2-1"}
        channels = {"RGBA" if pixels.shape[-1] == 4 else "RGB": linear_rgb(pixels, settings.float_type)}
    elif settings.output == "alpha":
        channels = {"A": to_float(pixels)}
    else:
        metres = label.metres_per_unit
        attributes["comments"] = "depth along the view axis: sum of weight times t"
        attributes["depthUnit"] = "scene units" if metres is None else "metres"
        if metres is not None:
            attributes["metresPerUnit"] = float(metres)
        channels = {"Z": to_float(pixels) * np.float32(1.0 if metres is None else metres)}
    return {name: values.astype(settings.float_type, copy=False) for name, values in channels.items()}, attributes


def _world_to_camera(pose: NDArray[np.float64]) -> NDArray[np.float32]:
    """[4, 4] as OpenEXR stores it: row vectors, point · matrix. Camera axes: x right, y up, looks along −z."""
    full = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    return np.ascontiguousarray(np.linalg.inv(full).T, dtype=np.float32)


def _range(label: ImageLabel) -> tuple[float, float]:
    if label.near is None or label.far is None:
        raise ValueError("a depth picture needs near and far")
    return label.near, label.far
