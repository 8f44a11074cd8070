"""Ctrl-C: the first one asks the job to stop and says how to go on, a second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import click


class Interrupts:
    """A context manager. stop: set by the first SIGINT or SIGTERM while `graceful`; any other raises KeyboardInterrupt.

    going_on: the command line that continues, for people. does: what it does, 'go on' or 'begin anew'. Outside the main thread nothing
    is installed.
    """

    def __init__(self, going_on: str, *, does: str = "go on") -> None:
        self.stop = threading.Event()
        self.graceful = True
        self._going_on = f"To {does}:\n  {going_on}"
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set() or not self.graceful:
            raise KeyboardInterrupt
        self.stop.set()
        click.echo(f"\nstopping after the chunks in hand; Ctrl-C again stops at once. {self._going_on}", err=True)
