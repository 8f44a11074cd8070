"""Frames of a store as a film, through PyAV: encoder checked first, encoded in segments that outlive a crash, joined as they are."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import xxhash

from landmark_batch import __version__
from landmark_batch.errors import ConfigError, LandmarkError

from .depth_range import depth_range
from .film import join_segments
from .outfile import FULL_DISK, export_error, make_folder, remove_leftovers, sync_folders
from .read_ahead import read_ahead
from .source import FrameSource, output_of, select_frames
from .video_codec import EncoderPlan, choose_fps, plan_encoder
from .video_frames import FramePreparer
from .video_segments import SUFFIX, is_whole, write_segment
from .video_settings import VideoReport, VideoSettings

__all__ = ["VideoExporter", "VideoReport", "VideoSettings", "export_video"]

_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
_REVISION = 1  # raise it when the same pixels and settings are to give other segments


class Stopped(Exception):
    """An export was told to stop."""


class VideoExporter:
    """Makes a film of frames of `source`, in segments of `settings.segment_frames` frames.

    Each segment is an encoder run of its own (closed GOP) and a file in the folder FILM.segments beside the film, named by what it shows:
    made again only if a frame of it changed, settings changed or the file is damaged. The film is their packets, one after another.
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
        self._known: dict[Path, bool] = {}  # segments known to be whole: whether an earlier exporter made them

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

    @property
    def folder(self) -> Path:
        """Where the segments lie until the film is joined."""
        return self.path.with_name(f"{self.path.name}.segments")

    def segments(self, frames: Sequence[int]) -> list[tuple[int, ...]]:
        """The film's frames, ascending, cut into segments: all of `segment_frames` frames but the last."""
        size = self.settings.segment_frames
        return [tuple(frames[start : start + size]) for start in range(0, len(frames), size)]

    def segment_file(self, frames: Sequence[int], digests: Mapping[int, str]) -> Path:
        """The file of a segment: named by its first frame and by all that decides its packets. digests: {frame: of its pixels}."""
        plan, chosen = self.plan, self.settings
        content = {
            "revision": _REVISION,
            "build": [av.__version__, sorted(av.library_versions.items())],
            "plan": [plan.codec, plan.container, plan.pix_fmt, plan.width, plan.height, str(plan.rate), dict(plan.options), plan.threads],
            "picture": [chosen.output, chosen.matte, chosen.colormap, chosen.near, chosen.far],
            "digests": [digests[frame] for frame in frames],
        }
        key = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
        return self.folder / f"{frames[0]:06d}.{key}{SUFFIX}"

    def encode(
        self,
        frames: Sequence[int],
        digests: Mapping[int, str],
        *,
        tell: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> bool:
        """Make the segment of these frames, unless it stands. Safe in several threads for different segments.

        tell: called with a number of frames as they are done. stop: asked before each frame; True ends with `Stopped`.
        Returns whether it stood from an earlier export. Raises StoreError for a damaged frame, DiskFullError or ConfigError if it cannot
        be written.
        """
        path = self.segment_file(frames, digests)
        tell = tell or (lambda count: None)
        if path in self._known or is_whole(path, len(frames)):
            tell(len(frames))
            return self._known.setdefault(path, True)
        make_folder(self.folder)
        remove_leftovers(self.folder)
        preparer = FramePreparer(self.plan, self.settings, deep=self._deep)

        def picture(frame: int) -> av.VideoFrame:
            return preparer.prepare(self.source.read(self.settings.output, frame))

        def pictures() -> Generator[av.VideoFrame, None, None]:
            for _, ready in read_ahead(frames, picture):
                if stop is not None and stop():
                    raise Stopped
                yield ready
                tell(1)

        try:
            with closing(pictures()) as shots:
                write_segment(path, self.plan, shots)
        except av.FFmpegError as error:
            raise self._failure(error) from error
        finally:
            self._tidy()
        sync_folders([self.folder])
        self._known[path] = False
        return False

    def _tidy(self) -> None:
        with suppress(OSError):
            self.folder.rmdir()  # only if nothing is in it

    def export(self, frames: Iterable[int] | None = None, *, progress: Progress | None = None, workers: int | None = None) -> VideoReport:
        """Make the segments that are missing, join all into the film, remove them unless `keep_segments`.

        frames: None = the whole flight; they follow one another, ascending, at a constant rate. progress: called with (done, all).
        workers: segments encoded at the same time; None = one for every four cores, at most 4.
        Raises StoreError naming unfinished frames before anything is read, else as `encode`. What stood at the path stays until then.
        """
        started = time.perf_counter()
        selection = select_frames(self.source, frames)
        wanted = selection.ready
        self._choose_range(wanted)
        digests = {frame: selection.digests[frame][self.settings.output] for frame in wanted}
        parts = self.segments(wanted)
        stood = self._encode_all(parts, digests, len(wanted), progress, workers)
        files = [self.segment_file(part, digests) for part in parts]
        try:
            join_segments(self.path, self.plan, files, title=self.source.name, comment=f"landmark-batch {__version__}")
        except av.FFmpegError as error:
            raise self._failure(error) from error
        self._remove(keep=files if self.settings.keep_segments else ())
        plan = self.plan
        _log.info("%s: %d frames, %s fps (%s), %s %s", self.path, len(wanted), self.fps, self.fps_source, plan.codec, plan.pix_fmt)
        return VideoReport(
            path=self.path,
            frames=wanted,
            fps=self.fps,
            fps_source=self.fps_source,
            codec=plan.codec,
            pix_fmt=plan.pix_fmt,
            width=plan.width,
            height=plan.height,
            bytes=self.path.stat().st_size,
            seconds=time.perf_counter() - started,
            notes=self.notes,
            segments=len(parts),
            reused=sum(len(part) for part, there in zip(parts, stood, strict=True) if there),
        )

    def _choose_range(self, frames: Sequence[int]) -> None:
        chosen = self.settings
        if chosen.output == "depth":
            near, far = depth_range(self.source, frames, near=chosen.near, far=chosen.far, percentiles=chosen.percentiles)
            self.settings = replace(chosen, near=near, far=far)
            self.notes = (*self.notes, f"depth {near:g} to {far:g} scene units, {chosen.colormap}")

    def _encode_all(
        self, parts: list[tuple[int, ...]], digests: Mapping[int, str], total: int, progress: Progress | None, workers: int | None
    ) -> list[bool]:
        done, lock, failed = 0, threading.Lock(), threading.Event()

        def tell(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                if progress is not None:
                    progress(done, total)

        most = workers or max(1, min(4, len(os.sched_getaffinity(0)) // 4))
        with ThreadPoolExecutor(min(most, len(parts)), thread_name_prefix="film") as pool:
            futures = [pool.submit(self.encode, part, digests, tell=tell, stop=failed.is_set) for part in parts]
            try:
                for future in as_completed(futures):
                    future.result()
                return [future.result() for future in futures]
            except BaseException:
                failed.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _remove(self, keep: Iterable[Path]) -> None:
        """Remove segments, those of older films too; nothing that is none of ours."""
        kept = set(keep)
        with suppress(OSError):
            for file in self.folder.glob(f"*{SUFFIX}"):
                if file not in kept:
                    file.unlink(missing_ok=True)
        remove_leftovers(self.folder)
        self._known = {file: stood for file, stood in self._known.items() if file in kept}
        self._tidy()

    def _failure(self, error: av.FFmpegError) -> LandmarkError:
        code = getattr(error, "errno", None)
        if isinstance(error, OSError) or code in FULL_DISK:
            return export_error(OSError(code, getattr(error, "strerror", None) or str(error)), self.path)
        return ConfigError(f"{self.path}: {self.plan.codec} failed ({error})", remedy="try another codec or pix_fmt")


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
    """A film of `frames` (None = the whole flight); see VideoExporter. A gap is refused and named.

    Raises ConfigError (before anything is read) as VideoExporter, StoreError naming unfinished frames, DiskFullError.
    """
    return VideoExporter(source, path, settings, fps=fps, job_fps=job_fps).export(frames, progress=progress)
