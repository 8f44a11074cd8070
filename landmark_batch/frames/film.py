"""Segments joined into a film, packet by packet, nothing encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import av

from landmark_batch.errors import StoreError

from .encoder_threads import usual_scheduling
from .outfile import make_folder, output_file, remove_leftovers, sync_folders
from .sealed import DamagedError
from .video_codec import EncoderPlan, configure_encoder
from .video_segments import read_index, read_packets


def join_segments(path: Path, plan: EncoderPlan, segments: Sequence[Path], *, title: str, comment: str) -> None:
    """Write the film `path`: the frames of all segments in order, at the plan's rate; fsync, rename.

    Raises StoreError for a segment that is damaged or not of this plan, DiskFullError or ConfigError if the film cannot be written, and
    av.FFmpegError. What stood at `path` then stays.
    """
    make_folder(path.parent)
    remove_leftovers(path.parent)
    with output_file(path) as temporary:
        flags = {"movflags": "+faststart"} if plan.container in ("mp4", "mov") else {}
        container = av.open(str(temporary), "w", format=plan.container, options=flags)
        try:
            container.metadata["title"] = title
            container.metadata["comment"] = comment
            stream: Any = container.add_stream(plan.codec, rate=plan.rate, options=dict(plan.options))
            configure_encoder(stream.codec_context, plan)
            stream.time_base = 1 / plan.rate
            with usual_scheduling():
                container.start_encoding()
            _append(container, stream, plan, segments)
            container.close()
        except DamagedError as error:
            raise StoreError(str(error), remedy="remove this file and run the same export again") from error
        finally:
            with suppress(av.FFmpegError, OSError, ValueError):
                container.close()  # harmless when it is closed
    sync_folders([path.parent])


def _append(container: Any, stream: Any, plan: EncoderPlan, segments: Sequence[Path]) -> None:
    headers = bytes(stream.codec_context.extradata or b"")
    indices = [read_index(segment) for segment in segments]
    delay = max(index.delay for index in indices)
    first = 0
    for segment, index in zip(segments, indices, strict=True):
        if index.headers != headers:
            raise DamagedError(f"{segment}: it was encoded with other settings")
        for packet in read_packets(segment, index, first=first, rate=plan.rate, delay=delay):
            packet.stream = stream
            container.mux(packet)
        first += index.frames
