"""Frames of a store as a film, through PyAV: encoder checked first, temporary name, fsync, rename."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
from numpy.typing import NDArray

from landmark_batch import __version__
from landmark_batch.errors import ConfigError

from .depth_range import depth_range
from .outfile import FULL_DISK, export_error, make_folder, remove_leftovers, settle, sync_folders, temporary_name
from .read_ahead import read_ahead
from .source import FrameSource, output_of, select_frames
from .video_codec import EncoderPlan, choose_fps, plan_encoder
from .video_frames import FramePreparer
from .video_settings import VideoReport, VideoSettings

__all__ = ["VideoExporter", "VideoReport", "VideoSettings", "export_video"]

_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
_BT709, _SRGB, _RGB, _LIMITED, _FULL = 1, 13, 0, 1, 2  # ISO/IEC 23091-2 code points and FFmpeg's ranges


class VideoExporter:
    """Encodes frames of `source` as they are fed, in the order they are fed.

    fps: an exact number or text; None = `job_fps`, else the camera file's, else 24. Constructing it checks encoder, pixel format, size,
    options and container by opening them once; nothing is read and no file is made. Odd sizes are padded to even ones, where the pixel
    format needs it, by repeating the last row or column (noted in the report).
    Raises ConfigError if this build cannot do it, or for more than 8 bits from a uint8 store without allow_8bit.
    """

    def __init__(
        self,
        source: FrameSource,
        path: Path,
        settings: VideoSettings | None = None,
        *,
        fps: Fraction | float | str | None = None,
        job_fps: float | None = None,
    ) -> None:
        self.source = source
        self.path = Path(path)
        self.settings = settings = settings or VideoSettings()
        spec = output_of(source, settings.output)
        self.fps, self.fps_source = choose_fps(fps, job_fps, source.fps, camera_origin=source.fps_origin if source.fps else "")
        if self.path.is_dir():
            raise ConfigError(f"{self.path}: it is a folder", remedy="name a file, for example flight.mp4")
        self._deep = spec.dtype != "uint8" and settings.output != "depth"
        pix_fmt = settings.pix_fmt or ("rgb48le" if settings.codec == "ffv1" and self._deep else None)
        self.plan: EncoderPlan = plan_encoder(
            self.path,
            width=source.width,
            height=source.height,
            rate=self.fps,
            codec=settings.codec,
            pix_fmt=pix_fmt,
            crf=settings.crf,
            preset=settings.preset,
            threads=settings.threads,
        )
        self.notes = self._check(spec.dtype)
        self.pictures = FramePreparer(self.plan, settings, deep=self._deep)
        self._container: Any = None
        self._stream: Any = None
        self._temporary: Path | None = None
        self._fed: list[int] = []
        self._started = time.perf_counter()

    def _check(self, dtype: str) -> tuple[str, ...]:
        plan, source, output = self.plan, self.source, self.settings.output
        notes = []
        if plan.bits > 8 and not self._deep:
            if not self.settings.allow_8bit:
                raise ConfigError(
                    f"{source.path}: its {output} is {dtype}, so {plan.bits}-bit {plan.codec} {plan.pix_fmt} would hold 8 bits of picture",
                    remedy=f"render with output.{output} = 'uint16' or 'float16', choose an 8-bit pix_fmt, or say --allow-8bit",
                )
            notes.append(f"the film has {plan.bits} bits a component, the picture 8")
        right, below = plan.width - source.width, plan.height - source.height
        if right or below:
            said = [f"{count} {what}{'s' if count > 1 else ''}" for count, what in ((right, "column"), (below, "row")) if count]
            notes.append(f"{plan.pix_fmt} needs even sizes: {' and '.join(said)} repeated, {plan.width}×{plan.height}")
        if source.background == "transparent" and self.settings.output == "rgb":
            notes.append(f"laid over {self.settings.matte}")
        return tuple(notes)

    def prepare(self, pixels: NDArray[Any]) -> av.VideoFrame:
        """Stored pixels of one frame, [H, W(, C)], in the film's size and pixel format. From one thread at a time."""
        return self.pictures.prepare(pixels)

    def feed(self, frame: int, pixels: NDArray[Any] | av.VideoFrame) -> None:
        """Encode the next frame: stored pixels, or what `prepare` made of them. frame: its index, for the report.

        Raises DiskFullError or ConfigError if the film cannot be written; the temporary file is then gone.
        """
        try:
            prepared = pixels if isinstance(pixels, av.VideoFrame) else self.prepare(pixels)
            if self._container is None:
                self._open()
            prepared.pts = len(self._fed)
            prepared.time_base = 1 / self.fps
            for packet in self._stream.encode(prepared):
                self._container.mux(packet)
            self._fed.append(frame)
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise self._failure(error) from error
        except BaseException:
            self.abort()
            raise

    def _open(self) -> None:
        plan = self.plan
        make_folder(self.path.parent)
        remove_leftovers(self.path.parent)
        self._temporary = temporary_name(self.path)
        flags = {"movflags": "+faststart"} if plan.container in ("mp4", "mov") else {}
        self._container = av.open(str(self._temporary), "w", format=plan.container, options=flags)
        self._container.metadata["title"] = self.source.name
        self._container.metadata["comment"] = f"landmark-batch {__version__}"
        self._stream = stream = self._container.add_stream(plan.codec, rate=self.fps, options=dict(plan.options))
        stream.width, stream.height, stream.pix_fmt = plan.width, plan.height, plan.pix_fmt
        stream.time_base = stream.codec_context.time_base = 1 / self.fps
        context = stream.codec_context
        context.thread_count = plan.threads
        context.color_primaries = _BT709
        context.color_trc = _SRGB if plan.is_rgb else _BT709
        context.colorspace = _RGB if plan.is_rgb else _BT709
        context.color_range = _FULL if plan.is_rgb else _LIMITED
        if plan.canonical == "hevc" and plan.container in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # QuickTime plays no other
        self._container.start_encoding()  # makes the file now, not when the encoder has seen enough frames

    def finish(self) -> VideoReport:
        """Write what the encoder still holds, fsync, rename. Raises ConfigError if nothing was fed, else as `feed`."""
        if not self._fed or self._temporary is None:
            self.abort()
            raise ConfigError(f"{self.path}: no frames to make a film of")
        temporary = self._temporary
        try:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
            self._container.close()
            settle(temporary, self.path)
            self._container = self._temporary = None
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error
        finally:
            self.abort()
        sync_folders([self.path.parent])
        plan = self.plan
        report = VideoReport(
            path=self.path,
            frames=tuple(self._fed),
            fps=self.fps,
            fps_source=self.fps_source,
            codec=plan.codec,
            pix_fmt=plan.pix_fmt,
            width=plan.width,
            height=plan.height,
            bytes=self.path.stat().st_size,
            seconds=time.perf_counter() - self._started,
            notes=self.notes,
        )
        _log.info("%s: %d frames, %s fps (%s), %s %s", self.path, len(self._fed), self.fps, self.fps_source, plan.codec, plan.pix_fmt)
        return report

    def abort(self) -> None:
        """Drop the unfinished film; what stood at its path before stays. Harmless after `finish`."""
        container, self._container = self._container, None
        if container is not None:
            with suppress(av.FFmpegError, OSError, ValueError):
                container.close()
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _failure(self, error: Exception) -> Exception:
        code = getattr(error, "errno", None)
        if isinstance(error, OSError) or code in FULL_DISK:
            return export_error(OSError(code, getattr(error, "strerror", None) or str(error)), self.path)
        return ConfigError(f"{self.path}: {self.plan.codec} failed ({error})", remedy="try another codec or pix_fmt")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()


def export_video(
    source: FrameSource,
    path: Path,
    settings: VideoSettings | None = None,
    *,
    fps: Fraction | float | str | None = None,
    job_fps: float | None = None,
    frames: Iterable[int] | None = None,
    progress: Progress | None = None,
) -> VideoReport:
    """Encode `frames` (None = the whole flight), ascending, one after another at a constant rate. A gap is refused and named.

    Reading and colour conversion run ahead of the encoder in their own thread. progress: called with (done, all).
    Raises ConfigError (before anything is read) as VideoExporter, StoreError naming unfinished frames, DiskFullError.
    """
    with VideoExporter(source, path, settings, fps=fps, job_fps=job_fps) as exporter:
        wanted = select_frames(source, frames).ready
        chosen = exporter.settings
        if chosen.output == "depth":
            near, far = depth_range(source, wanted, near=chosen.near, far=chosen.far, percentiles=chosen.percentiles)
            exporter.pictures.range = (near, far)
            exporter.notes = (*exporter.notes, f"depth {near:g} to {far:g} scene units, {chosen.colormap}")
        for done, (frame, picture) in enumerate(read_ahead(wanted, lambda index: exporter.prepare(source.read(chosen.output, index))), 1):
            exporter.feed(frame, picture)
            if progress is not None:
                progress(done, len(wanted))
        return exporter.finish()
