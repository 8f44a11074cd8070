"""FrameWriter: pixels of whole frames to disk, then one ledger record. A commit stands whole or not at all."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from .fence import Fence, read_fence
from .layout import StoreLayout
from .ledger import LedgerIndex, LedgerLog
from .process import this_process, writer_tag
from .records import FrameRecord, frames_line, pixel_digest
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

    digests: {output: one a frame, in the order of `frames`}. bytes: of the chunk files. write_seconds: encode, write, sync, record.
    encode_seconds: of these, what encoding and digests took, by their share of the time of the threads.
    """

    frames: tuple[int, ...]
    digests: Mapping[str, tuple[str, ...]]
    bytes: int
    write_seconds: float
    encode_seconds: float


class FrameWriter:
    """Writes frames of one store as one worker. Thread-safe: its commits run one after another; take one writer a thread to overlap.

    Made by `FrameStore.writer`. generation: of the job it works for; a commit is refused once that job has ended.
    waiting: files of the commit in hand that are not written yet. tell: gets each file's 'encode' and 'write' with begin and end
    (time.perf_counter()), in the thread that did them.
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
        self.waiting = 0
        self.tell: Callable[[str, float, float], None] | None = None
        self._record = ledger_log(layout.ledger, worker)
        self._lock = threading.Lock()
        self._stage: AnyStage | None = None
        self._arrays: dict[str, Array] = {}
        self._encoders: dict[str, FrameEncoder | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove what a failed commit may have left. The writer may be used again."""
        if self._stage is not None:
            self._stage.discard()
        self._stage, self._arrays, self._encoders = None, {}, {}

    def commit(
        self, frames: Sequence[int], pixels: Mapping[str, NDArray[Any]], fingerprints: Sequence[str], *, seconds: float
    ) -> CommitReceipt:
        """Write frames and record them.

        pixels: {output: [n, H, W] or [n, H, W, C]} in the store's dtypes, for every output. fingerprints: one a frame.
        seconds: render time of the chunk. With frames_per_shard > 1 a commit must hold whole shards.
        Raises StoreError for pixels that do not fit, DiskFullError, or StaleWriterError when another job or epoch has taken over:
        in each case nothing is recorded and no temporary file stays.
        """
        started = time.perf_counter()
        chosen = [int(frame) for frame in frames]
        self._check(chosen, pixels, fingerprints)
        with self._lock:
            generation = self._fence().generation
            try:
                after = self._replaced(chosen)
                sizes, digests, encoding = self._write(chosen, pixels)
                self._fence()
                self._record.append(self._line(chosen, fingerprints, digests, sizes, generation, seconds), after=after)
            except BaseException:
                self.close()
                raise
        durable.step("recorded")
        total = sum({self._chunk(name, frame): size for name in sizes for frame, size in zip(chosen, sizes[name], strict=True)}.values())
        return CommitReceipt(tuple(chosen), digests, total, time.perf_counter() - started, encoding)

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

    def _check(self, frames: list[int], pixels: Mapping[str, NDArray[Any]], fingerprints: Sequence[str]) -> None:
        spec, place = self._definition.spec, self._layout.root
        if not frames or any(b <= a for a, b in pairwise(frames)) or frames[0] < 0 or frames[-1] >= spec.frames:
            raise StoreError(f"{place}: cannot commit frames {frames}: ascending indices below {spec.frames}, each once")
        if len(fingerprints) != len(frames) or set(pixels) != set(spec.names):
            raise StoreError(
                f"{place}: a commit of {len(frames)} frames came with {len(fingerprints)} fingerprints and outputs {sorted(pixels)}"
            )
        for output in spec.outputs:
            array, shape = pixels[output.name], (len(frames), *spec.frame_shape(output.name))
            if array.shape != shape or array.dtype != np.dtype(output.dtype):
                raise StoreError(
                    f"{place}: {output.name} of frames {frames} is {array.dtype} {array.shape}, the store holds {output.dtype} {shape}"
                )
        if spec.frames_per_shard > 1:
            partial = sorted({frame for one in frames for frame in spec.shard_of(one)} - set(frames))
            if partial:
                raise StoreError(
                    f"{place}: frames {frames} are part of a shard of {spec.frames_per_shard}: {partial} are missing from this commit",
                    remedy=f"commit whole shards: chunks of work are multiples of {spec.commit_unit} frames",
                )

    def _write(
        self, frames: list[int], pixels: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, list[int]], dict[str, tuple[str, ...]], float]:
        """Encode and write all chunk files, then rename them. Returns {output: file size a frame}, {output: digest a frame}, seconds of
        encoding.
        """
        stage = self._opened()
        try:
            digests, encoding = self._stage_files(stage, frames, pixels)
            durable.step("staged")
            self._fence()
            published = self._publish(stage, frames)
        except FileNotFoundError as error:
            raise StaleWriterError(f"{error.filename}: removed under writer {self._worker}: its job has ended") from error
        except OSError as error:
            raise durable.store_error(error, self._layout.root) from error
        durable.step("published")
        return {name: [published[self._chunk(name, frame)] for frame in frames] for name in self._arrays}, digests, encoding

    def _opened(self) -> AnyStage:
        if self._stage is None:
            self._stage = make_stage(self._layout.root, writer_tag(self._worker))
            store = staged_store(self._layout.root, metadata=self._definition.metadata, stage=self._stage)
            self._arrays = {name: open_array(store, name) for name in self._definition.spec.names}
            self._encoders = {name: frame_encoder(array) for name, array in self._arrays.items()}
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

    def _stage_files(
        self, stage: AnyStage, frames: list[int], pixels: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, tuple[str, ...]], float]:
        """Encode, write and fsync, several frames at a time: one a thread is in memory twice. Returns {output: digest a frame}, and the
        seconds that went into encoding and digests.
        """

        def one(name: str, position: int) -> tuple[str, float, float]:
            frame, encoder = pixels[name][position], self._encoders[name]
            began = time.perf_counter()
            digest, encoded = pixel_digest(frame), encoder(frame) if encoder is not None else None
            between = time.perf_counter()
            if encoded is not None:
                stage.write(self._chunk(name, frames[position]), *encoded)
            ended = time.perf_counter()
            if self.tell is not None:
                self.tell("encode", began, between)
                self.tell("write", between, ended)
            return digest, between - began, ended - between

        jobs = [(name, position) for position in range(len(frames)) for name in self._arrays]
        started = time.perf_counter()
        with ThreadPoolExecutor(min(encoding_threads(), len(jobs)), thread_name_prefix="frame-writer") as pool:
            futures = [pool.submit(one, *job) for job in jobs]
            found = {}
            try:
                for self.waiting, (job, future) in zip(range(len(jobs), 0, -1), zip(jobs, futures, strict=True), strict=True):
                    found[job] = future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            finally:
                self.waiting = 0
        wall = time.perf_counter() - started
        encoding, files = sum(times[1] for times in found.values()), sum(times[2] for times in found.values())
        for name, array in self._arrays.items():
            if self._encoders[name] is None:  # several frames a file: Zarr joins them
                for first, last in _runs(frames):
                    array[frames[first] : frames[last] + 1] = pixels[name][first : last + 1]
        digests = {name: tuple(found[name, position][0] for position in range(len(frames))) for name in self._arrays}
        return digests, wall * encoding / max(encoding + files, 1e-9)

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
