"""FramePipeline: frames of a chunk from the renderer into arrays that are about to be written. What is not rendering runs beside it.

render (and rounding's launch) in the task's thread → at most COPYING frames → one thread that waits for the device, rounds what came
from a CPU and copies → the chunk's arrays, of which CHUNKS sets exist: one is rendered into while the others are encoded and written.
Where a stage is slow, those before it wait; nothing grows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from landmark_batch.frames.encoding_processes import encoding_processes
from landmark_batch.frames.pictures import Streams
from landmark_batch.frames.spec import StoreSpec
from landmark_batch.workflows.chunk_arrays import PICTURES, ChunkArrays, Pixels
from landmark_batch.workflows.in_hand import CHUNKS
from landmark_batch.workflows.load import LoadMeter
from landmark_batch.workflows.picture_makers import PictureMakers
from landmark_batch.workflows.ranges import COPIES, RENDER, mark, on_track
from landmark_batch.workflows.renderers import RenderedFrame

logger = logging.getLogger(__name__)

COPYING = 2  # frames that are rendered and not yet in their arrays
_NOTICEABLE = 1e-4  # seconds of waiting that a trace shows


class Taker(Protocol):
    """Who gets a chunk's pixels: a `PendingCommit`."""

    def take(self, pixels: Pixels, streams: Streams | None = None) -> None:
        """The arrays that frames will stand in, and the streams of their PNGs."""

    def add(self, position: int) -> None:
        """The next frame stands in them."""

    def abandon(self) -> None:
        """Read nothing from them any more."""


class FilledChunk(AbstractContextManager["FilledChunk"]):
    """Rendered frames of a chunk, the last of them still on their way into its arrays. Left, it gives these back.

    most: frames that were on their way at once. chunks: sets of arrays that were out when it began. begun, rendered, copied: frames that
    the renderer has begun, has given, and that are in their arrays. over: the arrays are another's. streams: of PNGs.
    """

    def __init__(
        self, arrays: ChunkArrays, frames: int, stages: defaultdict[str, float], taker: Taker | None, makers: PictureMakers | None
    ) -> None:
        before = time.perf_counter()
        self._arrays, self._stages = arrays, stages
        self._whole, self.chunks = arrays.take(frames)
        self.pixels: Pixels = {name: values[:frames] for name, values in self._whole.items()}
        streams = self.pixels.pop(PICTURES, None)
        self.streams = None if makers is None or streams is None else makers.streams(streams)
        self.most = self.begun = self.rendered = self.copied = 0
        self.over = False
        self._taker = taker
        self._copies: deque[Future[tuple[str, float]]] = deque()
        self._waited(before)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        wait(self._copies)  # nothing writes into arrays that are another chunk's, and nothing reads them
        if self._taker is not None:
            self._taker.abandon()
        self.over = True
        self._arrays.give(self._whole)

    def add(self, copy: Future[tuple[str, float]]) -> None:
        """A frame is on its way: stage and seconds of what is left of it. Waits for room; raises what earlier ones raised."""
        self._copies.append(copy)
        before = time.perf_counter()
        while len(self._copies) > COPYING or (self._copies and self._copies[0].done()):
            self._take()
        self.most = max(self.most, len(self._copies))
        self._waited(before)

    def _waited(self, since: float) -> None:
        now = time.perf_counter()
        self._stages["wait"] += now - since
        if now - since > _NOTICEABLE:
            mark("wait", since, now)

    def finish(self) -> Pixels:
        """All pixels, once the last ones are there. Raises what a frame raised, the first one's."""
        while self._copies:
            self._take()
        return self.pixels

    def _take(self) -> None:
        stage, seconds = self._copies.popleft().result()
        self._stages[stage] += seconds


class FramePipeline:
    """Fills arrays with frames. One thread at a time may call `fill`; what it returns is the caller's.

    overlap: off, one step is done after the other. pinned: as for ChunkArrays. files: each frame becomes files of its own on a file
    system: other processes can write those of pinned pixels. makers: of PNGs that an export asks for.
    """

    def __init__(self, spec: StoreSpec, *, overlap: bool, pinned: bool, files: bool, makers: PictureMakers | None = None) -> None:
        self._outputs, self._pinned, self._files, self._makers = spec.outputs, pinned, files, makers
        self._arrays = ChunkArrays(spec, most=CHUNKS if overlap else 1, pinned=pinned, shared=files, pictures=makers is not None)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="frame-copies") if overlap else None
        self._filled: tuple[FilledChunk, ...] = ()
        self._frames, self._seconds, self._since = 0, 0.0, 0.0  # rendered so far, and when the renderer began its frame, 0: it has none
        self._meter = LoadMeter()

    def prepare(self, frames: int) -> None:
        """Begin to make the arrays of chunks of so many frames, where that takes long: pinning memory stops a device, too. And begin the
        processes that encode what is in them.
        """
        if self._pinned:
            if self._files:
                encoding_processes()
            if self._makers is not None:
                self._makers.prepare()
            threading.Thread(target=self._arrays.make, args=(frames,), name="frame-arrays", daemon=True).start()

    def load(self) -> dict[str, float]:
        """How full it is: frames_in_flight (begun, and their arrays not free again), chunks_out (sets of arrays in use), copies_waiting
        (rendered frames that are not in their arrays), busy (share of the last seconds in which the renderer worked), frames_per_second.

        For one thread beside those that work: takes no lock, so that its numbers may be of slightly different moments.
        """
        filled = [chunk for chunk in self._filled if not chunk.over]
        since = self._since
        busy, rate = self._meter.read(self._seconds + (time.perf_counter() - since if since else 0.0), self._frames)
        return {
            "frames_in_flight": sum(chunk.begun for chunk in filled),
            "chunks_out": self._arrays.out,
            "copies_waiting": sum(chunk.rendered - chunk.copied for chunk in filled),
            "busy": round(busy, 3),
            "frames_per_second": round(rate, 3),
        }

    def fill(
        self,
        count: int,
        frames: Iterable[tuple[int, RenderedFrame]],
        stages: defaultdict[str, float],
        counters: Counter[str],
        taker: Taker | None = None,
    ) -> FilledChunk:
        """Render `count` frames and have them copied. stages: gets seconds of render, quantise, copy and wait. counters: the frames'.
        taker: gets the arrays, and, with overlap, word of each frame that is there; it has let go of them when they are given back.

        Raises what rendering raises, and PixelError for a frame before, once all copies have ended.
        """
        with on_track(RENDER):
            filled = FilledChunk(self._arrays, count, stages, taker, self._makers)
            self._filled = (*(chunk for chunk in self._filled if not chunk.over), filled)
            try:
                if taker is not None:
                    taker.take(filled.pixels, filled.streams)
                self._fill(filled, frames, stages, counters, taker if self._thread is not None else None)
            except BaseException:
                filled.__exit__(None, None, None)
                raise
            finally:
                self._since = 0.0
        return filled

    def _fill(
        self,
        filled: FilledChunk,
        frames: Iterable[tuple[int, RenderedFrame]],
        stages: defaultdict[str, float],
        counters: Counter[str],
        taker: Taker | None,
    ) -> None:
        self._since = before = time.perf_counter()
        filled.begun = 1
        for i, (frame, rendered) in enumerate(frames):
            between = time.perf_counter()
            mark("frame", before, between)
            self._since, self._seconds, self._frames = 0.0, self._seconds + between - before, self._frames + 1
            filled.rendered = i + 1
            stages["render"] += between - before
            counters.update(rendered.counters)
            asked = None if self._makers is None or filled.streams is None else self._makers.ask(filled.streams, i)
            stage, finish = self._begin(rendered, frame, {name: values[i] for name, values in filled.pixels.items()}, asked)
            stages["quantise"] += time.perf_counter() - between
            filled.add(self._submit(filled, stage, finish, taker))
            filled.begun = min(i + 2, len(next(iter(filled.pixels.values()))))
            self._since = before = time.perf_counter()

    def close(self) -> None:
        """End the thread and let go of the arrays that nobody has."""
        if self._thread is not None:
            self._thread.shutdown()
        if self._makers is not None:
            self._makers.close()
        self._arrays.close()

    def _begin(
        self, rendered: RenderedFrame, frame: int, into: Pixels, stream: NDArray[np.uint8] | None
    ) -> tuple[str, Callable[[], object]]:
        """Begin to round a frame. stream: gets the image data of its PNG. Returns what is left to do, and the name of that stage."""
        begin = getattr(rendered, "quantise_begin", None)
        if begin is None:
            return "quantise", lambda: rendered.quantised(self._outputs, frame=frame, into=into)
        if stream is None or self._makers is None:
            pending = begin(self._outputs, frame=frame, into=into)
            return pending.stage, pending.finish
        pending, made = begin(self._outputs, frame=frame, into=into, picture=stream), self._makers.made

        def finish() -> None:
            pending.finish()
            made(stream)

        return pending.stage, finish

    def _submit(self, filled: FilledChunk, stage: str, finish: Callable[[], object], taker: Taker | None) -> Future[tuple[str, float]]:
        def timed() -> tuple[str, float]:
            before = time.perf_counter()
            with on_track(COPIES):
                finish()
                now = time.perf_counter()
                mark("copy", before, now)
            if taker is not None:
                taker.add(filled.copied)
            filled.copied += 1
            return stage, now - before

        if self._thread is not None:
            return self._thread.submit(timed)
        done: Future[tuple[str, float]] = Future()
        done.set_result(timed())
        return done
