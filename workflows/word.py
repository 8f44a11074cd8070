"""What a worker says of its chunks, in as few messages as may be: each wakes the scheduler and the job's driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from distributed import Worker

from landmark_batch.workflows.messages import receipt_message

HOLD_SECONDS = 1.0  # that the word of a chunk's beginning may wait for what comes of the one before it


class ChunkWord:
    """topic: on which it is said. Thread-safe.

    A chunk begins when the one before it is rendered; a moment later that one is written too: both travel together, and with Dask's own
    word that the task has ended.
    """

    def __init__(self, worker: Worker, topic: str) -> None:
        self._worker = worker
        self._topic = topic
        self._lock = threading.Lock()
        self._in_hand: set[str] = set()
        self._begun: dict[str, Any] | None = None  # not told yet
        self._receipts: dict[str, dict[str, Any]] = {}  # of tasks about to end, by key

    def tell(self, message: Mapping[str, Any]) -> None:
        """From any thread."""
        self._worker.log_event(self._topic, self._signed(message))

    def _signed(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": str(self._worker.name), "address": self._worker.address, "at": time.time(), **message}

    def begin(self, chunk: str) -> None:
        """A chunk begins: told at once where none is in hand, else with what comes of that one, after HOLD_SECONDS in any case."""
        with self._lock:
            alone = not self._in_hand
            self._in_hand.add(chunk)
        self.tell_begun()  # of another chunk, that has waited until now
        begun = self._signed({"chunk": chunk})
        if alone:
            self._worker.log_event(self._topic, begun)
            return
        with self._lock:
            self._begun = begun
        self._worker.loop.add_callback(self._worker.loop.call_later, HOLD_SECONDS, self.tell_begun)

    def tell_begun(self) -> None:
        """Tell what is held."""
        begun = self._take_begun()
        if begun is not None:
            self._worker.log_event(self._topic, begun)

    def _take_begun(self) -> dict[str, Any] | None:
        with self._lock:
            begun, self._begun = self._begun, None
            return begun

    def receipt(self, key: str, chunk: str, attempt: int, receipt: Mapping[str, Any]) -> None:
        """What has come of a chunk, to be told when its task has ended. Raises TypeError where it does not travel so."""
        self._receipts[key] = receipt_message(chunk, attempt, receipt)

    def end(self, chunk: str) -> None:
        """A chunk is in hand no more, whatever has come of it."""
        with self._lock:
            self._in_hand.discard(chunk)

    def task_ended(self, key: str) -> None:
        """To be called in the worker's event loop as Dask learns of it."""
        message = self._receipts.pop(key, None)
        if message is not None:
            begun = self._take_begun()
            self.tell(message if begun is None else {**message, "begun": begun})
