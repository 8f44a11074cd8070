"""Frames of a store as image files, in parallel; files that already show the same pixels are left alone."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from landmark_batch.errors import ConfigError
from landmark_batch.kernels.png import PngLibrary

from .definition import is_store
from .depth_range import depth_range
from .image_files import KEY, OUTPUT, ImageLabel, read_label
from .image_names import image_paths
from .image_processes import BUILD_PATIENCE, ImageProcesses
from .image_settings import ImageSettings
from .outfile import make_folder, remove_leftovers, sync_folders
from .source import FrameSource, select_frames

_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
_LATE = 2.0  # seconds that another host's clock, or a file system's, may be behind


@dataclass(frozen=True)
class ImageReport:
    """written, unchanged, missing: frame indices. bytes: written. near, far: of colour-mapped depth, scene units. first: one path."""

    folder: Path
    output: str
    format: str
    written: tuple[int, ...]
    unchanged: tuple[int, ...]
    missing: tuple[int, ...]
    bytes: int
    seconds: float
    near: float | None = None
    far: float | None = None
    first: Path | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "folder": str(self.folder), "first": None if self.first is None else str(self.first)}


def joined(reports: Sequence[ImageReport]) -> ImageReport:
    """One report of an export that came in parts, at least one. What is still missing, near, far and notes are the last part's."""
    written = {frame for report in reports for frame in report.written}
    unchanged = {frame for report in reports for frame in report.unchanged}
    return replace(
        reports[-1],
        written=tuple(sorted(written)),
        unchanged=tuple(sorted(unchanged - written)),
        bytes=sum(report.bytes for report in reports),
        seconds=sum(report.seconds for report in reports),
        first=next((report.first for report in reports if report.first is not None), None),
    )


class ImageExporter:
    """Writes frames of `source` as images into `folder`. Safe to run again: only what changed is written. Close it, or use `with`.

    workers: images made at the same time; None = one a core, at most 16. Threads, each with a process once there are many frames of a
    store. processes: those, to share with other exporters; None = its own, with `library`, the compiled code for PNGs.
    Raises ConfigError before anything is read or written: an output the source lacks, 16 bits from uint8, a bad pattern.
    """

    def __init__(
        self,
        source: FrameSource,
        folder: Path,
        settings: ImageSettings | None = None,
        *,
        workers: int | None = None,
        processes: ImageProcesses | None = None,
        library: PngLibrary | None = None,
    ) -> None:
        self.source = source
        self.folder = Path(folder)
        if (inside := next((place for place in (self.folder, *self.folder.absolute().parents) if is_store(place)), None)) is not None:
            raise ConfigError(f"{self.folder}: images have no place in a frame store ({inside})", remedy="name another folder")
        self.settings = settings or ImageSettings()
        self.notes = tuple(self.settings.check_source(source))
        self.workers = max(1, workers if workers is not None else min(16, len(os.sched_getaffinity(0))))
        self.processes = processes or ImageProcesses(self.workers, library=library)
        self._cleared: set[Path] = set()
        self._expected: frozenset[int] = frozenset()
        self._since = 0.0
        self._paths = image_paths(
            self.folder,
            self.settings.pattern,
            range(source.frames),
            name=source.name,
            output=self.settings.output,
            ext=self.settings.ext,
            start_number=self.settings.start_number,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.processes.close(BUILD_PATIENCE if error is None else 0.0)

    def close(self) -> None:
        """End its processes, also those it shares. A second call does nothing."""
        self.processes.close()

    def expect(self, frames: Iterable[int]) -> None:
        """Whoever renders these frames from now on may write their files, too: they count as written."""
        self._expected, self._since = frozenset(frames), time.time()

    def clear(self) -> None:
        """Remove what processes that have ended since left half done in its folders."""
        for folder in self._cleared:
            remove_leftovers(folder)

    def path(self, frame: int) -> Path:
        """The file of a frame."""
        return self._paths[frame]

    def export(
        self,
        frames: Iterable[int] | None = None,
        *,
        allow_missing: bool = False,
        force: bool = False,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> ImageReport:
        """Write `frames` (None = the whole flight). progress: called with (done, all).

        force: write also those whose file is up to date or shows another output.
        stop: asked before each frame; once it is true no further one is begun, and the report tells of those that were.
        A colour-mapped depth without near and far takes percentiles over the frames of this very call.
        Raises StoreError naming unfinished frames unless allow_missing, DiskFullError or ConfigError if a file cannot be written or
        shows another output; what was written until then stays.
        """
        started = time.perf_counter()
        selection = select_frames(self.source, frames, allow_missing=allow_missing)
        near, far = self._range(selection.ready)
        digests = {frame: selection.digests[frame][self.settings.output] for frame in selection.ready}
        folders = {self._paths[frame].parent for frame in selection.ready} | {self.folder}
        for folder in sorted(folders):
            make_folder(folder)
            if folder not in self._cleared:  # once: looking through 100,000 files takes longer than writing a few
                remove_leftovers(folder)
                self._cleared.add(folder)
        sizes = self._run(digests, near, far, force, progress, stop or (lambda: False))
        sync_folders(folders)
        written = tuple(frame for frame in sorted(sizes) if sizes[frame] is not None)
        report = ImageReport(
            folder=self.folder,
            output=self.settings.output,
            format=self.settings.format,
            written=written,
            unchanged=tuple(frame for frame in sorted(sizes) if sizes[frame] is None),
            missing=selection.missing,
            bytes=sum(size or 0 for size in sizes.values()),
            seconds=time.perf_counter() - started,
            near=near,
            far=far,
            first=self._paths[selection.ready[0]],
            notes=self.notes,
        )
        _log.info("%s: %d images written, %d unchanged, %d missing", self.folder, len(written), len(report.unchanged), len(report.missing))
        return report

    def _range(self, frames: tuple[int, ...]) -> tuple[float | None, float | None]:
        if not self.settings.is_mapped:
            return None, None
        return depth_range(self.source, frames, near=self.settings.near, far=self.settings.far, percentiles=self.settings.percentiles)

    def _run(
        self,
        digests: dict[int, str],
        near: float | None,
        far: float | None,
        force: bool,
        progress: Progress | None,
        stop: Callable[[], bool],
    ) -> dict[int, int | None]:
        """{frame: bytes written, or None if its file was up to date}. At most two frames a thread are in hand."""
        results: dict[int, int | None] = {}
        waiting = iter(digests)
        hand: dict[Future[int | None], int] = {}
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="images")
        try:
            while True:
                while len(hand) < 2 * self.workers and not stop() and (frame := next(waiting, None)) is not None:
                    hand[pool.submit(self._one, frame, digests[frame], near, far, force)] = frame
                if not hand:
                    return results
                for future in wait(hand, return_when=FIRST_COMPLETED).done:
                    frame = hand.pop(future)
                    results[frame] = future.result()
                    if progress is not None:
                        progress(len(results), len(digests))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _one(self, frame: int, digest: str, near: float | None, far: float | None, force: bool) -> int | None:
        source, settings, path = self.source, self.settings, self._paths[frame]
        key = settings.key(digest, near, far, source.metres_per_unit)
        there = {} if force else read_label(path, settings.format)
        if there.get(KEY) == key:
            return self._bytes_of_others(frame)
        if there.get(OUTPUT, settings.output) != settings.output:
            raise ConfigError(
                f"{path} shows {there[OUTPUT]}: {settings.output} would replace it",
                remedy="name another folder, have {output} in the pattern, or replace it with --force",
            )
        pose = source.pose(frame) if settings.format == "exr" else None
        label = ImageLabel(source.name, frame, settings.output, digest, key, near, far, source.metres_per_unit, pose)
        return self.processes.write(source, path, settings, label)

    def _bytes_of_others(self, frame: int) -> int | None:
        """Of a file that is up to date: its size, if another wrote it of late for this export."""
        if frame not in self._expected:
            return None
        try:
            there = self._paths[frame].stat()
        except OSError:  # it went since its label was read
            return None
        return there.st_size if there.st_mtime >= self._since - _LATE else None
