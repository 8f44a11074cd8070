"""Exports that go on while a job renders: images right away, the film segment by segment, joined at the end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import LandmarkError
from landmark_batch.events import ChunkDone, Event
from landmark_batch.frames.export_images import ImageExporter, ImageReport, joined
from landmark_batch.frames.image_processes import BEGIN_BYTES, ImageProcesses
from landmark_batch.frames.latest import LatestPicture, latest_file
from landmark_batch.frames.pictures import PictureOrder, can_be_ordered, order_pictures, remove_made, withdraw
from landmark_batch.frames.source import FrameSource
from landmark_batch.frames.store_source import open_source
from landmark_batch.frames.video_settings import VideoReport
from landmark_batch.job import RenderJob
from landmark_batch.model.runtime import KernelSource
from landmark_batch.workflows.export import image_settings, video_settings
from landmark_batch.workflows.machine import gpus_present

if TYPE_CHECKING:
    from landmark_batch.frames.export_video import VideoExporter

_log = logging.getLogger(__name__)
_BATCH = 64  # frames a thread of a lane takes before the lane looks for others: at a batch's end threads wait for the last one
_BUSY_THREADS = 2  # for images, beside workers that use every core
_NICE = 5  # of processes that make images: rendering goes first
_MANY = 4  # times the work for which they begin: then they do before the first frame is there


@dataclass(frozen=True)
class ExportResult:
    """images: one report an output. video: None if none was asked for or frames are missing; `notes` then says why."""

    images: tuple[ImageReport, ...]
    video: VideoReport | None
    notes: tuple[str, ...] = ()


def renders_on_gpus(job: RenderJob) -> bool:
    """Whether a job on this machine does."""
    asked = job.parallel.device
    return asked == "cuda" or (asked == "auto" and bool(gpus_present(Path("/"))))


def image_threads(job: RenderJob) -> int:
    """For images beside a job on this machine: its GPUs leave most cores free."""
    if not renders_on_gpus(job):
        return _BUSY_THREADS
    return max(_BUSY_THREADS, len(os.sched_getaffinity(0)) * 3 // 4)


class _Lane:
    """A thread that works whenever it is woken, until it is told to end. Its first error ends it and is kept."""

    def __init__(self, name: str, work: Callable[[bool], None]) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._wake = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    def end(self) -> None:
        """Work once more, for the last time, and wait for it."""
        self._end.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            self._wake.wait()
            self._wake.clear()
            last = self._end.is_set()
            try:
                self._work(last)
            except BaseException as error:  # noqa: BLE001 - kept for whoever ends the lane
                self.error = error
                _log.warning("%s: stopped: %s", self._thread.name, error)
                return


class ExportSession:
    """An event sink beside a running render. Make it when the store exists, give it every event, end it with `finish` or `abort`.

    frames: those the job wants, in the film's order. pending: those this run is still to render (their pixels do not count until a
    ChunkDone names them); the others are exported at once. Nothing here can fail the render: errors wait for `finish`.
    A segment of the film is encoded as soon as all its frames stand, whatever the order; segments outlive a crash beside the film, so that
    running again encodes those that are missing and leaves images that are up to date.
    Pictures of depth that need percentiles are written at the end, when all frames are there.
    latest: shows the newest announced frame, at most one a second. images: are closed at the end. pictures: PNGs that those who render
    may write; withdrawn at the end.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        frames: Sequence[int],
        pending: Iterable[int] = (),
        images: Sequence[ImageExporter] = (),
        video: VideoExporter | None = None,
        latest: LatestPicture | None = None,
        pictures: PictureOrder | None = None,
    ) -> None:
        self.pictures = pictures
        self._source = source
        self._wanted = sorted(set(frames))
        self._all = frozenset(self._wanted)
        self._ready = set(self._all) - set(pending)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._images = list(images)
        self._image_done: list[set[int]] = [set() for _ in self._images]
        self._reports: list[list[ImageReport]] = [[] for _ in self._images]
        self._video = video
        self._segments = video.segments(self._wanted) if video is not None else []
        self._lanes = [_Lane("export images", self._export_images)] if self._images else []
        if video is not None:
            self._lanes.append(_Lane("export video", self._export_video))
        self._latest = latest
        self._newest: int | None = None
        self._shown: int | None = None
        self._ending = threading.Event()
        if latest is not None:
            self._lanes.append(_Lane("export latest", self._show_latest))
        for lane in self._lanes:
            lane.start()

    @classmethod
    def of_job(
        cls,
        job: RenderJob,
        *,
        frames: Sequence[int],
        pending: Iterable[int] = (),
        images: bool = False,
        video: bool = False,
        allow_8bit: bool = False,
        latest: bool = True,
        workers: int | None = None,
        kernels: KernelSource | None = None,
    ) -> ExportSession:
        """For a render: with images every output of the store as [images] says, with video rgb as [video] says.

        latest: keep NAME.latest.jpg up to date.
        workers: images made at the same time; None: two, or three quarters of the cores where GPUs render. kernels: see `export_images`.
        Raises StoreError or ConfigError as the exporters do; `check_exports` finds these before a store is made.
        """
        source = open_source(job.store_path)
        workers = image_threads(job) if workers is None else workers
        processes = ImageProcesses(workers, nice=_NICE, library=None if kernels is None else kernels.png_library())
        exporters = [
            ImageExporter(source, job.images_dir / output, settings, workers=workers, processes=processes)
            for output in (source.outputs if images else ())
            for settings in (image_settings(job, output, allow_8bit=allow_8bit),)
        ]
        pending = tuple(pending)
        ordered = [
            exporter
            for exporter in exporters
            if pending and job.parallel.device != "cpu" and can_be_ordered(source.store.path, source.store.spec, exporter.settings)
        ]
        film = None
        if video:
            from landmark_batch.frames.export_video import VideoExporter  # with FFmpeg's libraries, which a job without a film does without

            film = VideoExporter(source, job.video_path, video_settings(job, allow_8bit=allow_8bit), job_fps=job.video.fps)
        picture = LatestPicture(source, latest_file(job.store_neighbour)) if latest else None
        for exporter in ordered:
            exporter.expect(pending)
        pictures = order_pictures(ordered[0].folder, source.name, ordered[0].settings) if ordered else None
        own = len(exporters) > len(ordered) or not renders_on_gpus(job)
        if own and len(pending) * source.store.spec.bytes_per_frame >= _MANY * BEGIN_BYTES:
            processes.begin()
        return cls(source, frames=frames, pending=pending, images=exporters, video=film, latest=picture, pictures=pictures)

    def __call__(self, event: Event) -> None:
        """An EventSink: frames of a ChunkDone are ready. Returns at once."""
        if isinstance(event, ChunkDone):
            self.add(event.frames)

    def add(self, frames: Iterable[int]) -> None:
        """These frames stand in the store now."""
        with self._lock:
            known = [frame for frame in frames if frame in self._all]
            self._ready.update(known)
            self._newest = known[-1] if known else self._newest
        for lane in self._lanes:
            lane.wake()

    def finish(self, *, complete: bool = True) -> ExportResult:
        """Export what is left and end the film. complete: the job reached its end, so every finished frame counts, also those
        that other processes rendered; False: only frames that were there or announced (others may still be those of an older job).

        Without all frames there is no film, only a note that names the gaps. Raises the first error of an export, a LandmarkError or
        a fault of ours.
        """
        if complete:
            finished = self._source.finished()
            with self._lock:
                self._ready = {frame for frame in self._wanted if frame in finished}
        self._end()
        errors = [lane.error for lane in self._lanes if lane.error is not None]
        if errors:
            raise errors[0]
        return self._result()

    def abort(self) -> None:
        """Stop after the frames in hand; images and whole segments of the film stay. For Ctrl-C. Never raises."""
        self._stop.set()
        self._end()

    def _end(self) -> None:
        self._ending.set()
        if self.pictures is not None:
            withdraw(self.pictures)  # before the lanes' last look
        for lane in self._lanes:
            lane.end()
        for exporter in self._images:
            exporter.close()
            exporter.clear()
        if self.pictures is not None:
            remove_made(self.pictures)

    def _result(self) -> ExportResult:
        images = tuple(joined(reports) for reports in self._reports if reports)
        if self._video is None:
            return ExportResult(images, None)
        absent = [frame for frame in self._wanted if frame not in self._ready]
        if absent:
            note = f"no film: {len(absent)} of {len(self._wanted)} frames are missing: {format_frame_ranges(absent)}"
            return ExportResult(images, None, (note,))
        return ExportResult(images, self._video.export(self._wanted, workers=1))

    def _batches(self, done: set[int], size: int) -> Iterable[list[int]]:
        while not self._stop.is_set():
            with self._lock:
                todo = sorted(self._ready - done)[:size]
            if not todo:
                return
            yield todo

    def _export_images(self, last: bool) -> None:
        for number, exporter in enumerate(self._images):
            settings, done = exporter.settings, self._image_done[number]
            if settings.is_mapped and (settings.near is None or settings.far is None):
                if last and not self._stop.is_set() and self._ready:
                    self._reports[number] = [exporter.export(self._ready, stop=self._stop.is_set)]
                continue
            for batch in self._batches(done, _BATCH * exporter.workers):
                self._reports[number].append(exporter.export(batch, stop=self._stop.is_set))
                done.update(batch)

    def _export_video(self, last: bool) -> None:
        video = self._video
        if video is None:
            return
        from landmark_batch.frames.export_video import Stopped

        while not self._stop.is_set():
            with self._lock:
                part = next((part for part in self._segments if self._ready.issuperset(part)), None)
            if part is None:
                return
            finished = self._source.finished(part)
            digests = {frame: finished[frame][video.settings.output] for frame in part}
            with suppress(Stopped):
                video.encode(part, digests, stop=self._stop.is_set)
            self._segments.remove(part)

    def _show_latest(self, last: bool) -> None:
        """A picture that cannot be written is one warning, no failed export."""
        while self._latest is not None and not self._stop.is_set():
            with self._lock:
                frame = self._newest
            if frame is None or frame == self._shown:
                return
            if not last and (pause := self._latest.due()) > 0:
                self._ending.wait(pause)
                if self._ending.is_set():
                    return  # called once more, for the last time
                continue
            try:
                self._latest.show(frame)
            except LandmarkError as error:
                _log.warning("no picture of the newest frame: %s", error)
                self._latest = None
            self._shown = frame
