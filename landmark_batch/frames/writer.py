"""FrameWriter: pixels of whole frames to disk, then one ledger record. A commit stands whole or not at all."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import StaleWriterError, StoreBusyError, StoreError
from landmark_batch.object_path import StorePath

from . import durable
from .arrays import Array, open_array
from .definition import StoreDefinition
from .encode import FrameEncoder, encoding_threads, frame_encoder
from .encoding_processes import RemoteEncoder, remote_encoders
from .fence import Fence, read_fence
from .layout import StoreLayout
from .ledger import LedgerIndex, LedgerLog
from .pictures import Streams
from .process import this_process, writer_tag
from .records import FrameRecord, frames_line
from .staged_frames import StagedFrames, Tell
from .staging import AnyStage, Stage, make_stage, staged_store

_log = logging.getLogger(__name__)
_logs: dict[tuple[int, StorePath, str], LedgerLog] = {}
_logs_lock = threading.Lock()
_MEETINGS = 5  # of two writers of the same frames, one after another


def ledger_log(directory: StorePath, worker: str) -> LedgerLog:
    """The log of this worker in this process: all its writers share one file, no other process ever does."""
    with _logs_lock:
        place = directory.resolve() if isinstance(directory, Path) else directory
        return _logs.setdefault((os.getpid(), place, worker), LedgerLog(directory, worker))


@dataclass(frozen=True)
class CommitReceipt:
    """What a commit wrote.

    digests: {output: one a frame, in the order of `frames`}. bytes: of the chunk files. write_seconds: of encoding, writing and syncing
    (those of a thread over the number of threads), renaming, recording. encode_seconds: of these, encoding and digests.
    """

    frames: tuple[int, ...]
    digests: Mapping[str, tuple[str, ...]]
    bytes: int
    write_seconds: float
    encode_seconds: float


class PendingCommit:
    """Made by `FrameWriter.begin`. finished: its frames stand."""

    def __init__(self, writer: FrameWriter, frames: list[int], fingerprints: Sequence[str], generation: int) -> None:
        self.finished = False
        self._writer, self._frames, self._fingerprints, self._generation = writer, frames, fingerprints, generation
        self._pixels: Mapping[str, NDArray[Any]] = {}
        self._staged: StagedFrames | None = None

    def take(self, pixels: Mapping[str, NDArray[Any]], streams: Streams | None = None) -> None:
        """The arrays that the frames stand in, or will; as for `FrameWriter.commit`. They are read until `finish` or `abandon` returns.
        streams: of PNGs to be written beside, one a frame.
        """
        self._pixels, self._staged = pixels, self._writer._stage_of(self._frames, pixels, streams)

    def add(self, position: int) -> None:
        """The next frame stands in all arrays: its files are written from now on, beside the caller. From any thread, one at a time."""
        assert self._staged is not None, "pixels that were not taken"
        self._staged.add(position)

    @property
    def waiting(self) -> int:
        """Files of frames that are there, not written yet."""
        return 0 if self._staged is None else self._staged.waiting

    def finish(self, *, seconds: float) -> CommitReceipt:
        """Write what is left, and record all frames. seconds, and errors: as for `FrameWriter.commit`."""
        assert self._staged is not None, "pixels that were not taken"
        writer, frames = self._writer, self._frames
        with writer._as_store_errors():
            after = writer._replaced(frames)
            digests, encoding, files = self._staged.finish()
        began = time.perf_counter()
        sizes = writer._rename(frames, self._pixels)
        writer._fence()
        writer._record.append(writer._line(frames, self._fingerprints, digests, sizes, self._generation, seconds), after=after)
        self.finished = True
        self._staged.recorded()
        durable.step("recorded")
        total = sum({writer._chunk(name, frame): size for name in sizes for frame, size in zip(frames, sizes[name], strict=True)}.values())
        encoding, files = encoding / encoding_threads(), files / encoding_threads()
        return CommitReceipt(tuple(frames), digests, total, encoding + files + time.perf_counter() - began, encoding)

    def abandon(self) -> None:
        """Read nothing any more."""
        if self._staged is not None:
            self._staged.abandon()


class FrameWriter:
    """Writes frames of one store as one worker. Thread-safe: its commits run one after another; take one writer a thread to overlap.

    Made by `FrameStore.writer`. generation: of the job it works for; a commit is refused once that job has ended.
    tell: gets each file's 'encode' and 'write' with begin and end (time.perf_counter()), in the thread that did them.
    """

    def __init__(
        self, layout: StoreLayout, definition: StoreDefinition, *, worker: str, attempt: int, epoch: int, group: str, generation: int | None
    ) -> None:
        self._layout = layout
        self._definition = definition
        self._worker = worker
        self._attempt = attempt
        self._epoch = epoch
        self._group = group
        self._generation = read_fence(layout).generation if generation is None else generation
        self.tell: Tell | None = None
        self._record = ledger_log(layout.ledger, worker)
        self._lock = threading.Lock()
        self._stage: AnyStage | None = None
        self._commit: PendingCommit | None = None  # in hand
        self._arrays: dict[str, Array] = {}
        self._encoders: dict[str, FrameEncoder | None] = {}
        self._remote: dict[str, RemoteEncoder] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove what a failed commit may have left. The writer may be used again."""
        if self._stage is not None:
            self._stage.discard()
        self._stage, self._arrays, self._encoders, self._remote = None, {}, {}, {}

    @property
    def waiting(self) -> int:
        """Files of the commit in hand that are not written yet."""
        commit = self._commit
        return 0 if commit is None else commit.waiting

    def commit(
        self, frames: Sequence[int], pixels: Mapping[str, NDArray[Any]], fingerprints: Sequence[str], *, seconds: float
    ) -> CommitReceipt:
        """Write frames and record them: `begin` and `finish` in one.

        pixels: {output: [n, H, W] or [n, H, W, C]} in the store's dtypes, for every output. fingerprints: one a frame.
        seconds: render time of the chunk. With frames_per_shard > 1 a commit must hold whole shards.
        Raises StoreError for pixels that do not fit, DiskFullError, or StaleWriterError when another job or epoch has taken over:
        in each case nothing is recorded and no temporary file stays.
        """
        with self.begin(frames, fingerprints) as commit:
            commit.take(pixels)
            return commit.finish(seconds=seconds)

    @contextmanager
    def begin(self, frames: Sequence[int], fingerprints: Sequence[str]) -> Iterator[PendingCommit]:
        """A commit whose pixels come one frame after another. Left unfinished, nothing of it stays. Arguments and errors as for `commit`;
        the writer's next one begins when this one is over.
        """
        chosen = [int(frame) for frame in frames]
        self._check(chosen, fingerprints)
        with self._lock:
            commit = None
            try:
                commit = self._commit = PendingCommit(self, chosen, fingerprints, self._fence().generation)
                yield commit
            finally:
                self._commit = None
                if commit is not None:
                    commit.abandon()
                if commit is None or not commit.finished:
                    self.close()

    def _stage_of(self, frames: list[int], pixels: Mapping[str, NDArray[Any]], streams: Streams | None) -> StagedFrames:
        self._check_pixels(frames, pixels)
        with self._as_store_errors():
            return StagedFrames(self._opened(), frames, pixels, self._encoders, self._remote, self._chunk, self.tell, streams)

    def _fence(self) -> Fence:
        fence = read_fence(self._layout)
        fence.check(self._worker, self._generation, self._epoch, self._group)
        return fence

    def _chunk(self, name: str, frame: int) -> StorePath:
        return self._layout.chunk(name, frame // self._definition.spec.frames_per_shard)

    def _replaced(self, frames: list[int]) -> int:
        """Sequence of the newest record of frames that have a file already, -1 for new ones."""
        names, stage = self._definition.spec.names, self._opened()
        if isinstance(stage, Stage):
            old = [frame for frame in frames if any(self._chunk(name, frame).exists() for name in names)]
        else:
            there = set(stage.look(self._chunk(name, frame) for frame in frames for name in names))
            old = [frame for frame in frames if any(self._chunk(name, frame) in there for name in names)]
        return LedgerIndex(self._layout.ledger).refresh().last_sequence(old) if old else -1

    def _check(self, frames: list[int], fingerprints: Sequence[str]) -> None:
        spec, place = self._definition.spec, self._layout.root
        if not frames or any(b <= a for a, b in pairwise(frames)) or frames[0] < 0 or frames[-1] >= spec.frames:
            raise StoreError(f"{place}: cannot commit frames {frames}: ascending indices below {spec.frames}, each once")
        if len(fingerprints) != len(frames):
            raise StoreError(f"{place}: a commit of {len(frames)} frames came with {len(fingerprints)} fingerprints")
        if spec.frames_per_shard > 1:
            partial = sorted({frame for one in frames for frame in spec.shard_of(one)} - set(frames))
            if partial:
                raise StoreError(
                    f"{place}: frames {frames} are part of a shard of {spec.frames_per_shard}: {partial} are missing from this commit",
                    remedy=f"commit whole shards: chunks of work are multiples of {spec.commit_unit} frames",
                )

    def _check_pixels(self, frames: list[int], pixels: Mapping[str, NDArray[Any]]) -> None:
        spec, place = self._definition.spec, self._layout.root
        if set(pixels) != set(spec.names):
            raise StoreError(f"{place}: frames {frames} came with outputs {sorted(pixels)}, the store holds {sorted(spec.names)}")
        for output in spec.outputs:
            array, shape = pixels[output.name], (len(frames), *spec.frame_shape(output.name))
            if array.shape != shape or array.dtype != np.dtype(output.dtype):
                raise StoreError(
                    f"{place}: {output.name} of frames {frames} is {array.dtype} {array.shape}, the store holds {output.dtype} {shape}"
                )

    @contextmanager
    def _as_store_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StaleWriterError(f"{error.filename}: removed under writer {self._worker}: its job has ended") from error
        except OSError as error:
            raise durable.store_error(error, self._layout.root) from error

    def _rename(self, frames: Sequence[int], pixels: Mapping[str, NDArray[Any]]) -> dict[str, list[int]]:
        """Rename the staged files of frames. Returns {output: file size a frame}."""
        with self._as_store_errors():
            encoders = self._encoders
            for name, array in self._arrays.items():
                if encoders[name] is None:  # several frames a file: Zarr joins them
                    for first, last in _runs(frames):
                        array[frames[first] : frames[last] + 1] = pixels[name][first : last + 1]
            durable.step("staged")
            self._fence()
            published = self._publish(self._opened(), frames)
        files = {name: [self._chunk(name, frame) for frame in frames] for name in self._definition.spec.names}
        if any(file not in published for some in files.values() for file in some):
            raise StaleWriterError(f"{self._layout.root}: writer {self._worker} was closed while it wrote frames {list(frames)}")
        durable.step("published")
        return {name: [published[file] for file in some] for name, some in files.items()}

    def _opened(self) -> AnyStage:
        if self._stage is None:
            self._stage = make_stage(self._layout.root, writer_tag(self._worker))
            store = staged_store(self._layout.root, metadata=self._definition.metadata, stage=self._stage)
            self._arrays = {name: open_array(store, name) for name in self._definition.spec.names}
            self._encoders = {name: frame_encoder(array) for name, array in self._arrays.items()}
            self._remote = remote_encoders(self._layout.root, self._definition.metadata, self._encoders)
        return self._stage

    def _publish(self, stage: AnyStage, frames: Sequence[int]) -> dict[StorePath, int]:
        """In an object store another writer of this job, or of a later one, may have written a frame since it was looked at."""
        for _ in range(_MEETINGS):
            try:
                return stage.publish()
            except FileExistsError:
                if isinstance(stage, Stage):
                    raise
                stage.look(self._chunk(name, frame) for frame in frames for name in self._arrays)
                self._fence()
        raise StoreBusyError(f"{self._layout.root}: others write frames {list(frames)} again and again")

    def _line(
        self,
        frames: list[int],
        fingerprints: Sequence[str],
        digests: Mapping[str, tuple[str, ...]],
        sizes: Mapping[str, list[int]],
        generation: int,
        seconds: float,
    ) -> dict[str, Any]:
        me, now = this_process(), time.time()
        records = [
            FrameRecord(
                frame=frame,
                fingerprint=fingerprints[i],
                digests={name: digests[name][i] for name in digests},
                sizes={name: sizes[name][i] for name in sizes},
                seconds=seconds / len(frames),
                attempt=self._attempt,
                worker=self._worker,
                at=now,
                host=me.host,
                pid=me.pid,
                epoch=self._epoch,
                generation=generation,
                settings=self._definition.settings,
            )
            for i, frame in enumerate(frames)
        ]
        return frames_line(records, group=self._group)


def _runs(frames: Sequence[int]) -> list[tuple[int, int]]:
    """[2, 3, 4, 7] -> [(0, 2), (3, 3)]: positions of first and last of each run of neighbours."""
    cuts = [0, *(i for i in range(1, len(frames)) if frames[i] != frames[i - 1] + 1), len(frames)]
    return [(a, b - 1) for a, b in pairwise(cuts)]
