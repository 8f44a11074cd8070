"""Segments of a film: packets of one run of an encoder, in a checksummed file that no container has touched.

A segment begins with a key frame and refers to nothing outside it (closed GOP), so that segments follow one another in a film as they
are. A file is: magic, packets, sealed index, length of the index, magic.
It is complete only with its end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import xxhash
from av.codec.context import Flags

from landmark_batch.errors import ConfigError

from .encoder_threads import usual_scheduling
from .outfile import output_file
from .sealed import DamagedError, seal, unseal
from .video_codec import EncoderPlan, configure_encoder

SUFFIX = ".segment"
_MAGIC = b"LBFILM01"
_END = struct.Struct("<Q8s")
_GLOBAL_HEADER = 0x40  # FFmpeg's AVFMT_GLOBALHEADER: the container wants the codec's headers once, outside the packets


@dataclass(frozen=True)
class SegmentIndex:
    """frames: pictures in it. headers: the codec's own, for the container. packets: (pts, bytes, is key frame) in decoding order, pts in
    frames from 0.

    digest: xxh3_128 of all packets.
    """

    frames: int
    headers: bytes
    packets: tuple[tuple[int, int, bool], ...]
    digest: str

    @property
    def delay(self) -> int:
        """Frames by which decoding must begin before showing, so that no packet is decoded after its time."""
        return max(0, *(position - pts for position, (pts, *_) in enumerate(self.packets)))


def write_segment(path: Path, plan: EncoderPlan, pictures: Iterable[av.VideoFrame]) -> None:
    """Encode pictures, in the plan's size and pixel format, as one segment; memory does not grow with their number.

    Raises ConfigError if the encoder loses a frame, av.FFmpegError if it fails, DiskFullError or ConfigError if the file cannot be
    written; then there is none.
    """
    with output_file(path) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC)
        context: Any = av.Codec(plan.codec, "w").create("video")
        configure_encoder(context, plan)
        if av.ContainerFormat(plan.container, "w").flags & _GLOBAL_HEADER:
            context.flags |= Flags.global_header
        with usual_scheduling():
            context.open()
        packets: list[tuple[int, int, bool]] = []
        digest, frames = xxhash.xxh3_128(), 0
        for picture in chain(pictures, [None]):  # None: all that the encoder still holds
            if picture is not None:
                picture.pts, picture.time_base = frames, 1 / plan.rate
                frames += 1
            for packet in context.encode(picture):
                data = bytes(packet)
                digest.update(data)
                file.write(data)
                packets.append((packet.pts, len(data), bool(packet.is_keyframe)))
        if not frames or sorted(packet[0] for packet in packets) != list(range(frames)) or not packets[0][2]:
            raise ConfigError(f"{path}: {plan.codec} made {len(packets)} packets of {frames} frames", remedy="try another codec or preset")
        headers = bytes(context.extradata or b"").hex()
        index = seal({"frames": frames, "headers": headers, "packets": packets, "digest": digest.hexdigest()})
        file.write(index + _END.pack(len(index), _MAGIC))


def read_index(path: Path) -> SegmentIndex:
    """Raises DamagedError for a file that is no whole segment, OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        try:
            file.seek(-_END.size, 2)
            length, magic = _END.unpack(file.read())
            file.seek(-_END.size - length, 2)
            values = unseal(file.read(length))
            packets = tuple((int(pts), int(count), bool(key)) for pts, count, key in values["packets"])
            index = SegmentIndex(int(values["frames"]), bytes.fromhex(values["headers"]), packets, str(values["digest"]))
        except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
            raise DamagedError(f"{path}: no whole film segment ({error})") from error
    if magic != _MAGIC or size != len(_MAGIC) + sum(packet[1] for packet in packets) + length + _END.size:
        raise DamagedError(f"{path}: no whole film segment")
    return index


def read_packets(path: Path, index: SegmentIndex, *, first: int, rate: Fraction, delay: int = 0) -> Iterator[Any]:
    """The packets as FFmpeg's, their times shifted so that the segment begins with frame `first` of a film.

    delay: of the whole film, at least this segment's. Decoding times are counted, one a packet: what encoders say of them does not fit
    together over seams, and is wrong for a few frames from x265.
    Raises DamagedError after the last one if they are not those that were written, OSError.
    """
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        file.seek(len(_MAGIC))
        for position, (pts, size, is_key) in enumerate(index.packets):
            data = file.read(size)
            digest.update(data)
            packet = av.Packet(data)
            packet.time_base = 1 / rate
            packet.pts, packet.dts, packet.duration, packet.is_keyframe = first + pts, first + position - delay, 1, is_key
            yield packet
    if digest.hexdigest() != index.digest:
        raise DamagedError(f"{path}: its packets are not those that were written")


def is_whole(path: Path, frames: int) -> bool:
    """Whether a segment of so many frames stands there undamaged. Reads all of it."""
    try:
        index = read_index(path)
        return index.frames == frames and all(packet.size >= 0 for packet in read_packets(path, index, first=0, rate=Fraction(1)))
    except (OSError, DamagedError):
        return False
