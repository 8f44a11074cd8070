"""DaskPool: what the driver needs of a cluster: tasks of the job's graph, pinned to one group each, and word of how they ended."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from landmark_batch.events import ChunkStarted
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.crew import Crew
from landmark_batch.workflows.graph import RenderGraph
from landmark_batch.workflows.messages import told_receipt, topic
from landmark_batch.workflows.nanny import EXITS_TOPIC
from landmark_batch.workflows.order import STOP_FILE
from landmark_batch.workflows.outcomes import Failed, Finished, Lost, Message, Refused
from landmark_batch.workflows.session import SetupError, nothing_rendered

GATHER_SECONDS = 30
FIFO_TIMEOUT = "60s"  # chunks that come within it are of one age: jobs of one priority take turns
CAUSE_SECONDS = 0.1  # between two looks for the cause of a loss
Claim = Callable[[Sequence[int]], tuple[Sequence[int], Sequence[int]]]


class DaskPool:
    """The driver's WorkerPool on a cluster: tasks of the job's graph, pinned to the leader of a group, dropped once they ended.

    claim: takes the frames of a chunk for this process; gives those that are its to render and those that stand already.
    priority: of the job's tasks before those of other jobs. turn: called whenever the driver asks for the next word.
    """

    def __init__(
        self,
        client: Client,
        crew: Crew,
        graph: RenderGraph,
        folder: StorePath,
        *,
        claim: Claim | None = None,
        priority: int = 0,
        turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._crew = crew
        self._graph = graph
        self._folder = folder
        self._claim = claim
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()  # None: something befell a group
        self._futures: dict[tuple[int, int], tuple[str, Future]] = {}
        self._standing: dict[tuple[int, int], list[int]] = {}
        self._receipts: dict[tuple[str, int], dict[str, Any]] = {}  # by chunk and attempt: told by workers, of tasks about to end
        self._ended_futures: list[Future] = []  # of tasks that ended, until their release can travel with the next task
        self._unexplained: list[tuple[int, int, str]] = []  # lost tasks whose cause is being found: number, attempt, key
        self._priority = priority
        self._turn = turn
        for name, handler in ((topic(graph.run), self._told), (EXITS_TOPIC, self._exited)):
            client.subscribe_topic(name, handler)

    def refuse(self, error: BaseException) -> None:
        """Workers cannot open the job."""
        self._messages.put(Refused(error))

    def _told(self, event: tuple[float, Mapping[str, Any]]) -> None:
        told = event[1]
        if "receipt" in told:
            self._receipts[str(told["chunk"]), int(told["attempt"])] = told_receipt(told)
            if "begun" in told:
                self._began(told["begun"])
        elif "chunk" in told and "group" not in told:
            self._began(told)
        else:
            self._crew.told(told)
            self._messages.put(None)

    def _began(self, told: Mapping[str, Any]) -> None:
        self._messages.put(ChunkStarted(chunk=str(told["chunk"]), worker=self._crew.name_of(str(told["address"])), at=float(told["at"])))

    def _exited(self, event: tuple[float, Mapping[str, Any]]) -> None:
        self._crew.exited(event[1])
        self._messages.put(None)

    # -- who is there

    def workers(self) -> Mapping[str, str]:
        return self._crew.groups()

    def resting(self) -> frozenset[str]:
        return self._crew.resting()

    def dismiss(self, address: str) -> None:
        self._crew.dismiss(address)

    def replace(self, address: str, reason: str) -> None:
        self._crew.replace(address, reason)

    def exclude(self, address: str, reason: str) -> None:
        self._crew.exclude(address)

    def pause(self, paused: bool) -> None:
        self._crew.pause(paused)

    def coming(self) -> bool:
        return self._crew.forming()

    def lacking(self) -> str:
        return self._crew.lacking()

    # -- tasks

    def submit(self, number: int, attempt: int, address: str) -> None:
        chunk = self._graph.chunks[number]
        leader = self._crew.leader(address)
        if leader is None:
            self._unexplained.append((number, attempt, address))
            return
        frames, standing = self._claim(chunk.frames) if self._claim is not None else (chunk.frames, ())
        self._standing[number, attempt] = list(standing)
        if not frames:
            self._put(number, attempt, nothing_rendered())
            return
        key = self._graph.key(number, attempt)
        whole = attempt == 0 and len(frames) == len(chunk.frames)
        task = self._graph[key] if whole else self._graph.task(number, attempt, frames)
        self._ended_futures.clear()
        future = self._client.submit(*task, key=key, workers=[leader], priority=self._priority, fifo_timeout=FIFO_TIMEOUT)
        self._futures[number, attempt] = (address, future)
        future.add_done_callback(lambda done: self._ended(number, attempt, address, done))

    def _ended(self, number: int, attempt: int, address: str, future: Future) -> None:
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
                told = self._receipts.pop((self._graph.chunks[number].id, attempt), None)
                self._put(number, attempt, future.result(timeout=GATHER_SECONDS) if told is None else told)
        except Exception as error:  # noqa: BLE001  the receipt is gone with its worker: the ledger knows what stands
            self._messages.put(Lost(number, attempt, f"its receipt could not be fetched ({type(error).__name__})", worker_gone=False))

    def _put(self, number: int, attempt: int, receipt: dict[str, Any]) -> None:
        standing = self._standing.pop((number, attempt), [])
        if standing and "skipped" in receipt:
            receipt = {**receipt, "skipped": sorted([*receipt["skipped"], *standing])}
        self._messages.put(Finished(number, attempt, receipt))

    def forget(self, number: int, attempt: int) -> None:
        self._standing.pop((number, attempt), None)
        self._receipts.pop((self._graph.chunks[number].id, attempt), None)
        self._unexplained = [item for item in self._unexplained if item[:2] != (number, attempt)]
        _, future = self._futures.pop((number, attempt), ("", None))
        if future is not None:
            with contextlib.suppress(Exception):
                future.cancel()

    def next(self, timeout: float) -> Message | None:
        self._turn()
        deadline = time.monotonic() + timeout
        while True:
            explained = self._explain()
            if explained is not None:
                return explained
            left = deadline - time.monotonic()
            try:
                message = self._messages.get(timeout=max(0.001, min(left, CAUSE_SECONDS) if self._unexplained else left))
            except queue.Empty:
                if left <= 0:
                    self._ended_futures.clear()
                    return None
                continue
            if message is None:
                continue
            if isinstance(message, Lost) and message.worker_gone:
                key, _ = self._futures.get((message.number, message.attempt), ("", None))
                self._crew.lost(key, message.reason)
                self._unexplained.append((message.number, message.attempt, key))
                continue
            if isinstance(message, Finished | Failed | Lost):
                _, future = self._futures.pop((message.number, message.attempt), ("", None))
                if future is not None:
                    self._ended_futures.append(future)
            return message

    def _explain(self) -> Lost | None:
        """A lost task, once it is known why: one in the hand of a group that ended, and one that could not even be sent."""
        resting = self._crew.ending()
        for (number, attempt), (key, _) in self._futures.items():
            if key in resting and (number, attempt, key) not in self._unexplained:
                self._unexplained.append((number, attempt, key))
        for number, attempt, key in self._unexplained:
            cause = self._crew.cause(key)
            if cause is not None:
                self._unexplained.remove((number, attempt, key))
                return Lost(number, attempt, cause.text, own=cause.own, excused=cause.excused)
        return None

    def hold(self) -> None:
        (self._folder / STOP_FILE).touch()
