"""PNGs of frames that whoever renders them writes beside their files: a GPU has filtered and deflated their rows already.

The export that asked for them finds them up to date. What is missing, for whatever reason, it makes itself: nothing here fails a frame.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import LandmarkError
from landmark_batch.object_path import ObjectPath, StorePath

from .image_files import KEY, OUTPUT, ImageLabel, read_label
from .image_names import image_paths
from .image_settings import ImageSettings
from .outfile import make_folder, output_file, temporary_name
from .png import write_png_stream
from .spec import StoreSpec

_log = logging.getLogger(__name__)

STREAM = "rgb"  # the output whose pictures are made
HEAD = struct.Struct("<iIii")  # before a stream: its bytes, its rows' adler32, whether it did not fit, nothing
_ROOM = 0.75  # of a picture's bytes, for its stream: rendered ones take 0.4; those that do not fit are made by the export


@dataclass(frozen=True)
class PictureOrder:
    """What is asked of those who render. folder: of the files. mark: a file in it, which shows that a host sees the same folder.

    name: of the job. pattern, start_number: of ImageSettings.
    """

    folder: str
    mark: str
    name: str
    pattern: str
    start_number: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the constructor's arguments."""
        return asdict(self)

    @property
    def is_seen(self) -> bool:
        """Whether this host sees the folder, and the export goes on."""
        return (Path(self.folder) / self.mark).is_file()

    def path(self, frame: int) -> Path:
        """The file of a frame."""
        settings = self._settings
        named = {"name": self.name, "output": STREAM, "ext": settings.ext, "start_number": self.start_number}
        return image_paths(Path(self.folder), self.pattern, [frame], **named)[frame]  # type: ignore[arg-type]

    def label(self, frame: int, digest: str) -> ImageLabel:
        """What an export would write into the file of a frame of this digest."""
        return ImageLabel(self.name, frame, STREAM, digest, self._settings.key(digest, None, None, None))

    @property
    def _settings(self) -> ImageSettings:
        return ImageSettings(output=STREAM, pattern=self.pattern, start_number=self.start_number)


class Picture(NamedTuple):
    """A frame's, for whoever has its stream. frame: index in the flight. height, width: pixels."""

    order: PictureOrder
    frame: int
    height: int
    width: int


def can_be_ordered(store: StorePath, spec: StoreSpec, settings: ImageSettings) -> bool:
    """Whether those who render frames of a store can make these images: 8-bit PNGs of opaque 8-bit colours."""
    if isinstance(store, ObjectPath) or spec.frames_per_shard > 1 or settings.output != STREAM or STREAM not in spec.names:
        return False
    output = next(output for output in spec.outputs if output.name == STREAM)
    plain = settings.format == "png" and settings.bit_depth == 8 and settings.png_compression == "deflate"
    return plain and (output.dtype, output.channels) == ("uint8", 3)


def order_pictures(folder: Path, name: str, settings: ImageSettings) -> PictureOrder:
    """Make the folder and its mark, which `withdraw` removes. Raises LandmarkError where that cannot be."""
    folder = folder.absolute()
    make_folder(folder)
    mark = temporary_name(folder / "mark")
    with output_file(mark) as temporary:
        temporary.touch()
    return PictureOrder(str(folder), mark.name, name, settings.pattern, settings.start_number)


def withdraw(order: PictureOrder) -> None:
    """No more are wanted. Safe to call twice."""
    (Path(order.folder) / order.mark).unlink(missing_ok=True)


def stream_bytes(height: int, width: int) -> int:
    """Of an array that a GPU writes a frame's stream into, its head first."""
    return HEAD.size + int(_ROOM * 3 * height * width + 1024) // 4 * 4


def write_picture(picture: Picture, digest: str, stream: NDArray[np.uint8]) -> bool:
    """Write the PNG of a frame of this digest, unless it is there or the stream is of no use. stream: as `png_stream` leaves it.

    Returns whether it was written; an error is told in the log and left to the export, which meets it too.
    """
    length, checksum, overfull, _ = HEAD.unpack(stream[: HEAD.size].tobytes())
    if not length or overfull:
        return False
    try:
        path, label = picture.order.path(picture.frame), picture.order.label(picture.frame, digest)
        there = read_label(path, "png")
        if there.get(KEY) == label.key or there.get(OUTPUT, STREAM) != STREAM:
            return False
        make_folder(path.parent)
        with output_file(path) as temporary, temporary.open("wb") as file:
            data = stream[HEAD.size : HEAD.size + length].data
            write_png_stream(file, picture.height, picture.width, data, checksum, label.text())
    except (LandmarkError, OSError, ValueError) as error:
        _log.info("frame %d: its PNG is left to the export: %s", picture.frame, error)
        return False
    return True
