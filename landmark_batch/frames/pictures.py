"""PNGs of frames that whoever renders them writes beside their files: a GPU has filtered and deflated their rows, or whoever encodes does.

They get their names once the ledger has their frames. The export that asked for them finds them up to date; what is missing, for whatever
reason, it makes itself: nothing here fails a frame, but a slow folder holds up its commit.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import LandmarkError
from landmark_batch.kernels.png import packer
from landmark_batch.object_path import ObjectPath, StorePath

from .image_files import KEY, OUTPUT, ImageLabel, read_label
from .image_names import image_paths
from .image_settings import ImageSettings
from .outfile import aside, make_folder, output_file, temporary_name
from .png import write_png, write_png_stream
from .spec import StoreSpec

_log = logging.getLogger(__name__)

STREAM = "rgb"  # the output whose pictures are made
HEAD = struct.Struct("<iIii")  # before a stream: its bytes, its rows' adler32, whether it did not fit, whether the host makes the PNG
_BY_HOST = HEAD.pack(0, 0, 0, 1)
_ROOM = 0.6  # of a picture's bytes, for its stream: rendered ones take 0.4; those that do not fit are made by the export


@dataclass(frozen=True)
class PictureOrder:
    """What is asked of those who render. folder: of the files. mark: a file in it, which shows that a host sees the same folder.

    name: of the job. pattern, start_number: of ImageSettings. made: how many folders were made for it, from `folder` upwards.
    """

    folder: str
    mark: str
    name: str
    pattern: str
    start_number: int
    made: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the constructor's arguments."""
        return asdict(self)

    @property
    def is_seen(self) -> bool:
        """Whether this process sees the folder, and the export goes on."""
        return os.path.isfile(os.path.join(self.folder, self.mark))  # noqa: PTH113, PTH118  False for any error

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


class Aside(NamedTuple):
    """A PNG that is whole, under another name: paths."""

    temporary: str
    path: str


class Picture(NamedTuple):
    """A frame's, for whoever has its stream. frame: index in the flight. compiled: of Streams."""

    order: PictureOrder
    frame: int
    compiled: Path | None


class Streams(NamedTuple):
    """Of pictures: [n, bytes], a frame's as `png_stream` leaves it, or as `none_yet` or `by_host` do. compiled: code (of `PngLibrary`)
    that makes PNGs where the host is asked for them; ISA-L does where it cannot be loaded.
    """

    order: PictureOrder
    arrays: NDArray[np.uint8]
    compiled: Path | None


def can_be_ordered(store: StorePath, spec: StoreSpec, settings: ImageSettings) -> bool:
    """Whether those who render frames of a store can make these images: 8-bit PNGs of opaque 8-bit colours."""
    if isinstance(store, ObjectPath) or spec.frames_per_shard > 1 or settings.output != STREAM or STREAM not in spec.names:
        return False
    output = next(output for output in spec.outputs if output.name == STREAM)
    plain = settings.format == "png" and settings.bit_depth == 8 and settings.png_compression == "deflate"
    return plain and (output.dtype, output.channels) == ("uint8", 3)


def order_pictures(folder: Path, name: str, settings: ImageSettings) -> PictureOrder | None:
    """Make the folder and its mark, which `remove_made` and `withdraw` remove. None where that cannot be, as the export will tell."""
    folder = folder.absolute()
    try:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        make_folder(folder)
        mark = temporary_name(folder / "mark")
        with output_file(mark) as temporary:
            temporary.touch()
    except (LandmarkError, OSError) as error:
        _log.info("no PNGs are asked of those who render: %s", error)
        return None
    return PictureOrder(str(folder), mark.name, name, settings.pattern, settings.start_number, len(missing))


def withdraw(order: PictureOrder) -> None:
    """No more are wanted. Never raises; safe to call twice."""
    with suppress(OSError):
        (Path(order.folder) / order.mark).unlink(missing_ok=True)


def remove_made(order: PictureOrder) -> None:
    """Remove the folders that were made for it where nothing is in them, once nobody writes there any more. Never raises."""
    folder = Path(order.folder)
    with suppress(OSError):
        for place in (folder, *folder.parents)[: order.made]:
            place.rmdir()


def stream_bytes(height: int, width: int) -> int:
    """Of an array that a GPU writes a frame's stream into, its head first."""
    return HEAD.size + int(_ROOM * 3 * height * width + 1024) // 4 * 4


def none_yet(stream: NDArray[np.uint8]) -> None:
    """No image data is in it: unless some come, the export makes this PNG."""
    stream[: HEAD.size] = 0


def by_host(stream: NDArray[np.uint8]) -> None:
    """Whoever encodes the frame makes its PNG, of its pixels."""
    stream[: HEAD.size] = np.frombuffer(_BY_HOST, np.uint8)


def write_picture(picture: Picture, digest: str, stream: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> Aside | None:
    """Write the PNG of a frame of this digest beside its place, unless it is there or the stream is of no use; `publish` or `discard` it.

    stream: as Streams says. pixels: [H, W, 3]. None where nothing was written; an error is told in the log and left to the export, which
    meets it.
    """
    length, checksum, overfull, host = HEAD.unpack(stream[: HEAD.size].tobytes())
    if not picture.order.is_seen or (not host and (not length or overfull)):
        return None
    try:
        path, label = picture.order.path(picture.frame), picture.order.label(picture.frame, digest)
        if path.exists() and not path.is_file():
            return None
        there = read_label(path, "png")
        if there.get(KEY) == label.key or there.get(OUTPUT, STREAM) != STREAM:
            return None
        make_folder(path.parent)
        with aside(path) as temporary, temporary.open("wb") as file:
            if host:
                write_png(file, pixels, label.text(), packer=packer(picture.compiled))
            else:
                height, width = pixels.shape[:2]
                write_png_stream(file, height, width, stream[HEAD.size : HEAD.size + length].data, checksum, label.text())
            file.flush()
            os.fsync(file.fileno())
    except Exception as error:  # noqa: BLE001  no frame fails for its PNG
        _log.info("frame %d: its PNG is left to the export: %s", picture.frame, error)
        return None
    return Aside(str(temporary), str(path))


def publish(order: PictureOrder, written: Sequence[Aside]) -> None:
    """Give PNGs whose frames are recorded their names, where they are still wanted."""
    left = list(written)
    for each in written if order.is_seen else ():
        try:
            Path(each.temporary).replace(each.path)
            left.remove(each)
        except OSError as error:
            _log.info("%s is left to the export: %s", each.path, error)
    discard(left)


def discard(written: Iterable[Aside]) -> None:
    """Remove PNGs whose frames are not recorded."""
    for temporary, _ in written:
        with suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
