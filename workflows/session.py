"""RenderSession: a scene, a store and a writer held by one worker process for one run of a job. Renders and commits chunks.

This is where frames and model meet: the renderer knows no store, the store no renderer.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import CameraError, ConfigError, LandmarkError
from landmark_batch.frames.fingerprint import frame_fingerprint
from landmark_batch.frames.jpegxl import require_compressor
from landmark_batch.frames.writer import FrameWriter, PendingCommit
from landmark_batch.object_path import ObjectPath, StorePath
from landmark_batch.workflows.ahead import GROUP_AHEAD, Cameras, FramesAhead, Turns, frames_ahead
from landmark_batch.workflows.in_hand import frames_at_once, most_at_once
from landmark_batch.workflows.opened import OpenedRun, open_snapshot, open_timeline
from landmark_batch.workflows.order import PAUSE_FILE, STOP_FILE, is_set
from landmark_batch.workflows.picture_makers import picture_makers
from landmark_batch.workflows.pipeline import FramePipeline
from landmark_batch.workflows.ranges import COMMIT, mark, on_track, span
from landmark_batch.workflows.renderers import CLOSED, FrameRenderer, RenderedFrame, device_of, open_renderer, route_of

if TYPE_CHECKING:
    from landmark_batch.model.runtime import KernelSource
    from landmark_batch.model.timeline import Timeline

logger = logging.getLogger(__name__)


class SetupError(Exception):
    """A worker could not open the job. error: why; our own errors as they are, others as their text (they may not travel)."""

    def __init__(self, error: BaseException) -> None:
        self.error = error if isinstance(error, LandmarkError) else RuntimeError(describe(error))
        super().__init__(self.error)


class GroupLostError(Exception):
    """The group that was rendering cannot go on: this process is to end. Its cause says why."""


class ChunkError(Exception):
    """A chunk's own failure, as text that travels whatever the original was. The worker's log holds the whole of it."""


class RenderSession:
    """What `render_chunk` works with. Several threads may call `render`: one chunk is rendered while those before it are being committed,
    unless the job says `parallel.overlap = false`: then nothing is done beside anything else, with the same pixels.

    chunk: what is being rendered now, '' while idle. broken: a CUDA error other than out-of-memory has left this process's
    context unusable.
    """

    def __init__(
        self,
        folder: StorePath,
        opened: OpenedRun,
        renderer: FrameRenderer,
        *,
        worker: str,
        device: str,
        group: str = "",
        epoch: int = 0,
        timeline: Timeline | None = None,
        pipeline: FramePipeline | None = None,
    ) -> None:
        snapshot = opened.snapshot
        self.device = device
        self.runtime = str(snapshot.settings.get("model.runtime", snapshot.renderer["kind"]))
        self.frames_done = 0
        self.chunk = ""
        self.broken = False
        self._timeline = timeline
        self._group = group
        self._epoch = epoch
        self._hands = 0
        self._turns: Turns[list[int]] = Turns()  # by the frames that are rendered in one
        self._folder = folder
        self._settings = opened.settings
        self._generation = snapshot.generation
        self._store = opened.store
        self._renderer = renderer
        overlap = snapshot.render_job().parallel.overlap
        spec = opened.store.spec
        ahead = GROUP_AHEAD if group else frames_ahead(spec.width * spec.height)
        self._frames = FramesAhead(renderer, ahead=ahead if overlap else 0)
        self._worker = worker
        self._poses = opened.poses
        self._lenses = opened.lenses
        self._writers: list[FrameWriter] = []
        self._resting: dict[int, list[FrameWriter]] = {}  # by attempt: those that commit nothing now
        self._hiring = threading.Lock()
        self._alone: AbstractContextManager[object] = nullcontext() if overlap else threading.Lock()
        self._pipeline = pipeline or pipeline_of(opened, device, None)

    @classmethod
    def open(cls, folder: StorePath, worker: str, kernels: KernelSource | None = None) -> Self:
        """Read a run's snapshot, open its store, load its scene. Raises LandmarkError kinds as these do."""
        started = time.perf_counter()
        opened = open_snapshot(folder)
        require_compressor(opened.store.spec.compressor)
        snapshot = opened.snapshot
        timeline = open_timeline(snapshot, worker)
        device = device_of(snapshot.renderer, snapshot.device)
        pipeline = pipeline_of(opened, device, kernels)  # before the scene is read
        with ExitStack() as stack:
            stack.callback(pipeline.close)
            job = snapshot.render_job()
            renderer, device = open_renderer(
                snapshot.renderer, job, device, snapshot.threads, kernels=kernels, route=lambda: route_of(folder)
            )
            stack.pop_all()
        logger.info("run %s opened in %.1f s on %s", snapshot.run, time.perf_counter() - started, device)
        return cls(folder, opened, renderer, worker=worker, device=device, timeline=timeline, pipeline=pipeline)

    @property
    def busy(self) -> bool:
        """A chunk is in hand, rendered or being written."""
        return self._hands > 0

    def load(self) -> dict[str, float]:
        """How full and how busy it is, for whoever looks on; see FramePipeline.load. files_waiting: of commits, not yet written."""
        return {**self._pipeline.load(), "files_waiting": sum(writer.waiting for writer in list(self._writers))}

    def close(self) -> None:
        with self._turns.turn([]):
            self._frames.drop()
            for writer in self._writers:
                writer.close()
            self._writers.clear()
            self._resting.clear()
            self._pipeline.close()
            close = getattr(self._renderer, "close", None)
            if close is not None and not self._group:  # a group's is closed by its member
                close()
            self._renderer = CLOSED
            self._frames = FramesAhead(CLOSED, ahead=0)
            if self._timeline is not None:
                self._timeline.close()

    def _breaks_device(self, error: BaseException) -> bool:
        if self.device != "cuda":
            return False
        import torch

        return isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "CUDA" in str(error)

    def render(self, chunk: str, frames: Sequence[int], attempt: int, begun: Callable[[], None] | None = None) -> dict[str, Any]:
        """Render those of `frames` that do not stand yet and commit them. begun: called when its rendering begins. Returns the receipt:

        frames, digests ({output: one a frame}), skipped (frames that stood already), began and ended (time.time() of its rendering),
        seconds (with its commit), stages (seconds by name), busy (share of its rendering's time in which the renderer worked), queue
        (most frames that waited to be copied, most sets of arrays in use), counters, bytes, host, pid, device; or {'stopped': True} when
        the job has been told to stop before this chunk began.

        stages: check; render; quantise (rounding; from a GPU its launch alone); copy (from a GPU, by a thread beside rendering);
        wait (rendering stood still because copies or the writer were behind); encode and write (seconds of the writers' threads over
        their number, mostly beside rendering).
        Raises LandmarkError kinds (PixelError for NaN, DiskFullError, ...), ChunkError for anything else.
        """
        self._hands += 1
        try:
            with self._alone:
                return self._render(chunk, frames, attempt, begun)
        except GroupLostError:
            raise
        except Exception as error:
            logger.exception("chunk %s failed", chunk)
            self.broken = self.broken or self._breaks_device(error)
            known = isinstance(error, LandmarkError)
            failure = error if known else ChunkError(f"chunk {chunk} on {self._worker}: {describe(error)}")
        finally:
            self._hands -= 1
        failure.__cause__ = failure.__context__ = None  # what it came from may not travel; the log has it
        raise failure

    def _render(self, chunk: str, frames: Sequence[int], attempt: int, begun: Callable[[], None] | None) -> dict[str, Any]:
        stages: defaultdict[str, float] = defaultdict(float)
        counters: Counter[str] = Counter()
        digests: dict[str, list[str]] = {name: [] for name in self._store.spec.names}
        size = 0
        started = time.perf_counter()
        prints = {frame: frame_fingerprint(self._settings, self._poses[frame], self._lenses[frame]) for frame in frames}
        todo = self._missing(frames, prints)
        parts = list(self._parts(todo))
        stages["check"] = time.perf_counter() - started
        began = ended = turns = told = 0.0
        queue = {"frames": 0, "chunks": 0}
        for i, part in enumerate(parts or [[]]):
            with ExitStack() as stack:
                commit = stack.enter_context(self._commit(part, attempt, prints)) if part else None
                with self._turn(chunk, part):
                    if i == 0 and is_set(self._folder, STOP_FILE, PAUSE_FILE):
                        self._frames.drop()
                        return {"stopped": True}
                    if i == 0 and begun is not None:
                        begun()
                    began, before = began or time.time(), time.perf_counter()
                    filled = self._pipeline.fill(len(part), self._rendered(part), stages, counters, commit) if commit is not None else None
                    ended, turns = time.time(), turns + time.perf_counter() - before
                if commit is None or filled is None:  # all frames stand
                    continue
                stack.enter_context(filled)
                filled.finish()
                seconds, told = stages["render"] - told, stages["render"]
                with on_track(COMMIT), span("commit"):
                    receipt = commit.finish(seconds=seconds)
            queue = {"frames": max(queue["frames"], filled.most), "chunks": max(queue["chunks"], filled.chunks)}
            stages["encode"] += receipt.encode_seconds
            stages["write"] += receipt.write_seconds - receipt.encode_seconds
            size += receipt.bytes
            self.frames_done += len(part)
            for name in digests:
                digests[name] += receipt.digests[name]
        return {
            "frames": list(todo),
            "skipped": [frame for frame in frames if frame not in set(todo)],
            "digests": digests,
            "began": began,
            "ended": ended,
            "seconds": time.perf_counter() - started,
            "stages": dict(stages),
            "busy": min(1.0, stages["render"] / turns) if parts else 0.0,
            "queue": queue,
            "counters": dict(counters),
            "bytes": size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": self.device,
        }

    @contextmanager
    def _turn(self, chunk: str, frames: list[int]) -> Iterator[None]:
        with self._turns.turn(frames):
            self.chunk = chunk
            try:
                yield
            finally:
                self.chunk = ""

    def _missing(self, frames: Sequence[int], prints: dict[int, str]) -> list[int]:
        """Frames that the ledger does not have as the job wants them. It is only read where pixel files lie already."""
        names = self._store.spec.names
        if not any(self._store.chunk_file(names[0], frame).exists() for frame in frames):
            return list(frames)
        finished = self._store.finished(frames)
        standing = {frame for frame in frames if frame in finished and finished[frame].fingerprint == prints[frame]}
        missing = [frame for frame in frames if frame not in standing]
        return self._whole_files(missing, frames)

    def _whole_files(self, missing: Sequence[int], frames: Sequence[int]) -> list[int]:
        """With several frames in one file, all of them are written together."""
        spec = self._store.spec
        if spec.frames_per_shard == 1:
            return list(missing)
        wanted = {other for frame in missing for other in spec.shard_of(frame)}
        return [frame for frame in frames if frame in wanted]

    def _parts(self, frames: Sequence[int]) -> Iterator[list[int]]:
        """Frames committed together: as many as COMMIT_BYTES hold, in whole files."""
        spec = self._store.spec
        unit, most = spec.commit_unit, most_at_once(spec)
        groups: dict[int, list[int]] = {}
        for frame in frames:
            groups.setdefault(frame // unit, []).append(frame)
        part: list[int] = []
        for group in groups.values():
            if part and len(part) + len(group) > most:
                yield part
                part = []
            part += group
        if part:
            yield part

    def _cameras(self, frames: Sequence[int]) -> Cameras:
        spec = self._store.spec
        return (
            (frame, (self._poses[frame], tuple(float(value) for value in self._lenses[frame]), spec.width, spec.height)) for frame in frames
        )

    def _following(self) -> Cameras | None:
        """Of the chunk that is rendered after the one whose turn it is, once that is known."""
        coming = self._turns.next()
        return self._cameras(coming) if coming else None

    def _rendered(self, frames: Sequence[int]) -> Iterator[tuple[int, RenderedFrame]]:
        try:
            yield from self._frames.frames(self._cameras(frames), self._following)
        except (CameraError, ConfigError):
            raise  # found before the group was asked
        except Exception as error:
            if not self._group:
                raise
            raise GroupLostError(f"group {self._group} cannot render frames {format_frame_ranges(frames)}") from error

    @contextmanager
    def _commit(self, frames: Sequence[int], attempt: int, prints: dict[int, str]) -> Iterator[PendingCommit]:
        """By a writer that nobody else has: a writer's commits come one after another."""
        with self._hiring:
            resting = self._resting.setdefault(attempt, [])
            if not resting:
                writer = self._store.writer(self._worker, attempt, self._epoch, group=self._group, generation=self._generation)
                writer.tell = mark
                self._writers.append(writer)
                resting.append(writer)
            chosen = resting.pop()
        try:
            with chosen.begin(frames, [prints[frame] for frame in frames]) as commit:
                yield commit
        finally:
            with self._hiring:
                resting.append(chosen)


def pipeline_of(opened: OpenedRun, device: str, kernels: KernelSource | None) -> FramePipeline:
    """For a run's frames from this kind of device, with memory that it begins to take beside the caller."""
    job, spec = opened.snapshot.render_job(), opened.store.spec
    files = spec.frames_per_shard == 1 and not isinstance(opened.store.path, ObjectPath)
    makers = picture_makers(opened.snapshot.pictures, (spec.height, spec.width), kernels) if device == "cuda" and files else None
    pipeline = FramePipeline(spec, overlap=job.parallel.overlap, pinned=device == "cuda", files=files, makers=makers)
    pipeline.prepare(frames_at_once(job.output.chunk_frames, device, spec))
    return pipeline


def nothing_rendered() -> dict[str, Any]:
    """The receipt of a chunk that needs no task: its frames stand already or belong to others."""
    numbers = {"began": 0.0, "ended": 0.0, "seconds": 0.0, "bytes": 0}
    return {"frames": [], "skipped": [], "digests": {}, "stages": {}, "counters": {}, **numbers}


def describe(error: BaseException) -> str:
    """Kind and message of an error in one text that travels."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
