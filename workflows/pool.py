"""DaskPool: what the driver needs of a cluster: tasks of the job's graph, pinned to one worker each, and word of how they ended."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed import Future
from distributed.scheduler import KilledWorker

from landmark_batch.events import ChunkStarted
from landmark_batch.workflows.cluster import RenderCluster
from landmark_batch.workflows.driver import Failed, Finished, Lost, Message
from landmark_batch.workflows.graph import RenderGraph
from landmark_batch.workflows.session import SetupError, nothing_rendered
from landmark_batch.workflows.worker import topic

GATHER_SECONDS = 30
Claim = Callable[[Sequence[int]], tuple[Sequence[int], Sequence[int]]]


class DaskPool:
    """The driver's WorkerPool on a cluster: tasks of the job's graph, pinned to one worker each, dropped once they ended.

    claim: takes the frames of a chunk for this process; gives those that are its to render and those that stand already.
    """

    def __init__(
        self,
        cluster: RenderCluster,
        graph: RenderGraph,
        *,
        stop_file: Path,
        claim: Claim | None = None,
        priority: int = 0,
    ) -> None:
        self._cluster = cluster
        self._graph = graph
        self._stop_file = stop_file
        self._claim = claim
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._futures: dict[tuple[int, int], Future] = {}
        self._standing: dict[tuple[int, int], list[int]] = {}
        self._priority = priority
        cluster.client.subscribe_topic(topic(graph.run), self._begun)

    def _begun(self, event: tuple[float, Mapping[str, Any]]) -> None:
        told = event[1]
        self._messages.put(ChunkStarted(chunk=str(told["chunk"]), worker=str(told["name"]), at=float(told["at"])))

    def workers(self) -> Mapping[str, str]:
        return self._cluster.workers()

    def submit(self, number: int, attempt: int, address: str) -> None:
        chunk = self._graph.chunks[number]
        frames, standing = self._claim(chunk.frames) if self._claim is not None else (chunk.frames, ())
        self._standing[number, attempt] = list(standing)
        if not frames:
            self._put(number, attempt, nothing_rendered())
            return
        whole = attempt == 0 and len(frames) == len(chunk.frames)
        task = self._graph.window([number])[0] if whole else self._graph.task(number, attempt, frames)
        future = self._cluster.client.compute(
            task, workers=[address], allow_other_workers=False, priority=self._priority, optimize_graph=False
        )
        self._futures[number, attempt] = future
        future.add_done_callback(lambda done: self._ended(number, attempt, done))

    def _ended(self, number: int, attempt: int, future: Future) -> None:
        """Runs in a thread of the client's when a task has ended in any way."""
        if future.status == "cancelled":
            return
        try:
            if future.status == "error":
                error = future.exception(timeout=GATHER_SECONDS)
                if isinstance(error, KilledWorker):
                    self._messages.put(Lost(number, attempt, "its process ended (a crash, or killed; by the system if memory ran out)"))
                elif isinstance(error, SetupError):
                    self._messages.put(Failed(number, attempt, error.error, setup=True))
                else:
                    self._messages.put(Failed(number, attempt, error))
            else:
                self._put(number, attempt, future.result(timeout=GATHER_SECONDS))
        except Exception as error:  # noqa: BLE001  the receipt is gone with its worker: the ledger knows what stands
            self._messages.put(Lost(number, attempt, f"its receipt could not be fetched ({type(error).__name__})", worker_gone=False))
        finally:
            self._futures.pop((number, attempt), None)
            future.release()

    def _put(self, number: int, attempt: int, receipt: dict[str, Any]) -> None:
        standing = self._standing.pop((number, attempt), [])
        if standing and "skipped" in receipt:
            receipt = {**receipt, "skipped": sorted([*receipt["skipped"], *standing])}
        self._messages.put(Finished(number, attempt, receipt))

    def forget(self, number: int, attempt: int) -> None:
        self._standing.pop((number, attempt), None)
        future = self._futures.pop((number, attempt), None)
        if future is not None:
            with contextlib.suppress(Exception):
                future.cancel()

    def next(self, timeout: float) -> Message | None:
        try:
            return self._messages.get(timeout=timeout)
        except queue.Empty:
            return None

    def hold(self) -> None:
        self._stop_file.touch()
