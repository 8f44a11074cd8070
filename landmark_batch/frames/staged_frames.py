"""StagedFrames: files of the frames of one commit, each encoded and written as soon as its pixels are there. Nobody reads them yet."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

from numpy.typing import NDArray

from landmark_batch.object_path import StorePath

from .encode import FrameEncoder, encoding_threads
from .encoding_processes import RemoteEncoder, Written
from .pictures import STREAM, Aside, Picture, Streams, discard, publish, write_picture
from .records import pixel_digest
from .shared_pixels import place
from .staging import AnyStage, Stage

T = TypeVar("T")
Tell: TypeAlias = Callable[[str, float, float], None]  # what, begin and end by time.perf_counter()

_pools: dict[int, WritingThreads] = {}  # by process: a fork has none of its parent's threads
_pools_lock = threading.Lock()


class WritingThreads:
    """Threads that encode and write for all commits of a process: those of an earlier commit come first."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="frame-writer")
        self._lock = threading.Lock()
        self.size, self.given = size, 0

    def submit(self, work: Callable[[str, int], T], name: str, position: int) -> Future[T]:
        """As of an executor."""
        job = self._pool.submit(work, name, position)
        with self._lock:
            self.given += 1  # until it is done, or cancelled
        job.add_done_callback(self._done)
        return job

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self.given -= 1


def writing_threads() -> WritingThreads:
    """Those of this process."""
    with _pools_lock:
        pool = _pools.get(os.getpid())
        if pool is None:
            pool = _pools[os.getpid()] = WritingThreads(encoding_threads())
        return pool


class StagedFrames:
    """Frames on their way into a stage. encoders: of each output; None: another joins its files, here are only digests made.

    remote: the same encoders, of processes, for pixels that these can see. chunk: the file of a frame of an output. tell: as FrameWriter's.
    streams: of which PNGs are written beside.
    """

    def __init__(
        self,
        stage: AnyStage,
        frames: Sequence[int],
        pixels: Mapping[str, NDArray[Any]],
        encoders: Mapping[str, FrameEncoder | None],
        remote: Mapping[str, RemoteEncoder],
        chunk: Callable[[str, int], StorePath],
        tell: Tell | None,
        streams: Streams | None = None,
    ) -> None:
        self._stage, self._frames, self._pixels, self._encoders = stage, frames, pixels, encoders
        self._remote, self._chunk, self._tell, self._streams = remote, chunk, tell, streams
        self._jobs: dict[tuple[str, int], Future[tuple[str, float, float]]] = {}
        self._pictures: list[Aside] = []  # whole, and without their names
        self._given = 0
        self._broken = False  # one has failed: the others are of no use

    def add(self, position: int) -> None:
        """The pixels of the next frame stand in their arrays. In the order of the frames, by one thread at a time."""
        assert position == self._given, f"frame {position} of a commit came in the place of frame {self._given}"
        self._given += 1
        for name in self._encoders:
            self._jobs[name, position] = writing_threads().submit(self._one, name, position)

    @property
    def waiting(self) -> int:
        """Files of frames that are there, not written yet."""
        return sum(not job.done() for job in list(self._jobs.values()))

    def finish(self) -> tuple[dict[str, tuple[str, ...]], float, float]:
        """All that are left, and {output: digest a frame}, seconds of encoding and of files, over all threads. Raises what one raised."""
        for position in range(self._given, len(self._frames)):
            self.add(position)
        try:
            found = {job: self._jobs[job].result() for job in self._jobs}
        except BaseException:
            self.abandon()
            raise
        digests = {name: tuple(found[name, position][0] for position in range(len(self._frames))) for name in self._encoders}
        return digests, sum(times[1] for times in found.values()), sum(times[2] for times in found.values())

    def recorded(self) -> None:
        """The frames stand: their PNGs get their names."""
        if self._streams is not None:
            publish(self._streams.order, self._pictures)
            self._pictures.clear()

    def abandon(self) -> None:
        """Do no more, and wait until nothing is read from the pixels."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        for job in jobs:
            if not job.cancelled():
                job.exception()
        discard(self._pictures)
        self._pictures.clear()
        self._jobs.clear()  # an error knows this object, and they know the error: only the garbage collector would free the pixels

    def _one(self, name: str, position: int) -> tuple[str, float, float]:
        if self._broken:
            return "", 0.0, 0.0
        try:
            return self._write(name, position)
        except BaseException:
            self._broken = True
            raise

    def _write(self, name: str, position: int) -> tuple[str, float, float]:
        frame, final = self._pixels[name][position], self._chunk(name, self._frames[position])
        picture = self._picture(name, position)
        digest, began, between, ended, made = self._elsewhere(name, frame, final, picture) or self._here(name, frame, final, picture)
        if made is not None:
            self._pictures.append(made)
        if self._tell is not None:
            self._tell("encode", began, between)
            self._tell("write", between, ended)
        return digest, between - began, ended - between

    def _picture(self, name: str, position: int) -> tuple[Picture, NDArray[Any]] | None:
        """What makes a frame's PNG, and its stream."""
        if self._streams is None or name != STREAM:
            return None
        order, streams, compiled = self._streams
        return Picture(order, self._frames[position], compiled), streams[position]

    def _elsewhere(self, name: str, frame: NDArray[Any], final: StorePath, picture: tuple[Picture, NDArray[Any]] | None) -> Written | None:
        """By another process; None where none sees the pixels."""
        seen, remote = place(frame), self._remote.get(name)
        if seen is None or remote is None or not isinstance(self._stage, Stage):
            return None
        stream = None if picture is None else place(picture[1])
        beside = None if picture is None or stream is None else (picture[0], stream)
        with self._stage.file(final, absent=True) as temporary:
            try:
                written = remote.write(seen, temporary, beside)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            if written is None:
                temporary.unlink(missing_ok=True)
        return written

    def _here(self, name: str, frame: NDArray[Any], final: StorePath, picture: tuple[Picture, NDArray[Any]] | None) -> Written:
        encoder = self._encoders[name]
        began = time.perf_counter()
        digest, encoded = pixel_digest(frame), encoder(frame) if encoder is not None else None
        between = time.perf_counter()
        if encoded is not None:
            self._stage.write(final, *encoded)
        made = None if picture is None or encoded is None else write_picture(picture[0], digest, picture[1], frame)
        return digest, began, between, time.perf_counter(), made
