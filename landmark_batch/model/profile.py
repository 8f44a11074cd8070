"""Named ranges of time: where a frame spends its time, on the host and on its device.

Code that works says `with span("march", device):`. Where nobody records, that is one look at a global. A `Recorder` that is entered
gets every range of every thread of the process: `StageTimes` sums them, `landmark_batch.model.timeline.Timeline` writes them down.
On a CUDA device a range is measured twice: on the host (what launching took) and by events on the stream (what the device took).
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Self

import torch

NOTHING: AbstractContextManager[None] = nullcontext()
SETTLE = 256  # device ranges waiting for their events, before those that are over are looked up
AT_ONCE = 16  # of them that are looked up before another thread gets its turn
_current: Recorder | None = None


class _Thread(threading.local):
    unseen = False


_thread = _Thread()


@dataclass(frozen=True)
class Range:
    """begin: seconds since the epoch. seconds: its length. thread: the host thread's name, or that of its track. device: 'cuda:0', with
    the stream where that is not the device's first one; None = on the host. kernel: what the device itself said it ran.
    """

    name: str
    begin: float
    seconds: float
    thread: str
    device: str | None = None
    kernel: bool = False


def span(name: str, device: torch.device | None = None) -> AbstractContextManager[None]:
    """A range of that name, for a recorder if there is one. device: whose current stream does the work; measured there too if CUDA."""
    recorder = _current
    return NOTHING if recorder is None or _thread.unseen else recorder.span(name, device)


@contextmanager
def unseen() -> Iterator[None]:
    """Spans of this thread are not recorded meanwhile: what is captured into a graph has no time of its own."""
    before, _thread.unseen = _thread.unseen, True
    try:
        yield
    finally:
        _thread.unseen = before


def mark(name: str, begin: float, end: float) -> None:
    """A range of this thread that is over. begin, end: time.perf_counter()."""
    recorder = _current
    if recorder is not None:
        recorder.mark(name, begin, end)


def on_track(name: str) -> AbstractContextManager[None]:
    """Ranges of this thread count as those of the thread of that name meanwhile: work that goes from thread to thread stays together."""
    return NOTHING if _current is None else _Track(name)


def recording() -> bool:
    """Whether ranges are recorded just now."""
    return _current is not None


def stepwise() -> bool:
    """Whether each step of the frame that begins now is to be recorded. Ask once a frame."""
    recorder = _current
    return recorder is not None and recorder.stepwise()


class Recorder(ABC):
    """Entered, it gets the ranges of all threads of this process until it is left; the one before it then goes on.

    settle_after: device ranges that wait for their events before the thread that adds one looks them up.
    """

    settle_after = SETTLE

    def __init__(self) -> None:
        self._offset = time.time() - time.perf_counter()
        self._before: Recorder | None = None
        self._lock = threading.Lock()
        self._waiting: dict[torch.device, deque[_DeviceRange]] = {}
        self._anchors: dict[torch.device, tuple[torch.cuda.Event, float]] = {}
        self._streams: dict[tuple[torch.device, int], str] = {}

    def stepwise(self) -> bool:
        """Whether it wants every step of the next frame, though launching them one by one takes longer."""
        return True

    @abstractmethod
    def receive(self, found: Range) -> None:
        """A range is over. Called under a lock, from any thread."""

    def __enter__(self) -> Self:
        global _current
        self._before, _current = _current, self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Receive what the device still has to finish, then record no more. May be called again."""
        global _current
        if _current is self:
            _current = self._before
        self.settle()

    def span(self, name: str, device: torch.device | None = None) -> AbstractContextManager[None]:
        return _Span(self, name, device if device is not None and device.type == "cuda" else None)

    def mark(self, name: str, begin: float, end: float) -> None:
        with self._lock:
            self.receive(Range(name, self._offset + begin, end - begin, _this_thread()))

    def settle(self, *, wait: bool = True) -> None:
        """Receive ranges of devices that are over; wait: for all."""
        with self._lock:
            devices = list(self._waiting.items())
            for device, waiting in devices:
                if wait and waiting:
                    torch.cuda.synchronize(device)
        for device, waiting in devices:
            more = True
            while more:
                with self._lock:
                    more = self._settle(device, waiting, AT_ONCE)

    def _settle(self, device: torch.device, waiting: deque[_DeviceRange], most: int) -> bool:
        """Receive up to so many that are over; whether there may be more of them."""
        for _ in range(most):
            if not waiting or not waiting[0].end.query():  # type: ignore[no-untyped-call]
                return False
            found = waiting.popleft()
            event, at = self._anchors[device]
            begin = at + event.elapsed_time(found.begin) * 1e-3
            seconds = found.begin.elapsed_time(found.end) * 1e-3
            self.receive(Range(found.name, begin, seconds, found.thread, self._place(device, found.stream)))
            if not waiting or begin - at > 1:  # elapsed_time is a float32: short distances are exact
                self._anchors[device] = (found.end, begin + seconds)
        return True

    def _place(self, device: torch.device, stream: int) -> str:
        """A device's streams by the order in which they came, the default one by the device's name alone."""
        if not stream:
            return str(device)
        others = sum(known == device for known, _ in self._streams)
        return self._streams.setdefault((device, stream), f"{device} side stream {others + 1}")

    def anchor(self, device: torch.device) -> None:
        """Tie the clock of a device to the host's, once."""
        with self._lock:
            if device not in self._anchors:
                event = _event(device)
                event.synchronize()
                self._anchors[device] = (event, time.time())
                self._waiting[device] = deque()

    def _end(self, name: str, begin: float, device_range: _DeviceRange | None, device: torch.device | None) -> None:
        end = time.perf_counter()
        with self._lock:
            self.receive(Range(name, self._offset + begin, end - begin, _this_thread()))
            if device_range is None or device is None:
                return
            waiting = self._waiting[device]
            waiting.append(device_range)
            if len(waiting) >= self.settle_after:
                self._settle(device, waiting, len(waiting))


class StageTimes(Recorder):
    """Seconds by name, for what is done while it is entered: of the device where a range has one, else of the host, over all threads."""

    def __init__(self) -> None:
        super().__init__()
        self._host: defaultdict[str, list[float]] = defaultdict(list)
        self._device: defaultdict[str, list[float]] = defaultdict(list)

    def receive(self, found: Range) -> None:
        (self._host if found.device is None else self._device)[found.name].append(found.seconds)

    def totals(self) -> dict[str, float]:
        """Sums by name, in the order in which names first came."""
        self.settle()
        return {name: sum(self._device.get(name, seconds)) for name, seconds in self._host.items()}


def medians(frames: list[dict[str, float]]) -> dict[str, float]:
    """The median of each name over frames; a frame that lacks it counts 0."""
    names = dict.fromkeys(name for frame in frames for name in frame)
    return {name: median([frame.get(name, 0.0) for frame in frames]) for name in names}


@dataclass(frozen=True)
class _DeviceRange:
    name: str
    begin: torch.cuda.Event
    end: torch.cuda.Event
    thread: str
    stream: int


class _Span(AbstractContextManager[None]):
    __slots__ = ("_begin", "_device", "_event", "_name", "_recorder")

    def __init__(self, recorder: Recorder, name: str, device: torch.device | None) -> None:
        self._recorder, self._name, self._device = recorder, name, device
        self._event: torch.cuda.Event | None = None

    def __enter__(self) -> None:
        if self._device is not None:
            self._recorder.anchor(self._device)
            self._event = _event(self._device)
        self._begin = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        measured = None
        if self._device is not None and self._event is not None and error is None:
            measured = _DeviceRange(self._name, self._event, _event(self._device), _this_thread(), _stream(self._device))
        self._recorder._end(self._name, self._begin, measured, self._device)


def _event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _stream(device: torch.device) -> int:
    """The current stream; 0 is the device's default one."""
    return int(torch.cuda.current_stream(device).cuda_stream)


_tracks = threading.local()


class _Track(AbstractContextManager[None]):
    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._before: str | None = getattr(_tracks, "name", None)
        _tracks.name = self._name

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _tracks.name = self._before


def _this_thread() -> str:
    return getattr(_tracks, "name", None) or threading.current_thread().name
