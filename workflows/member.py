"""GroupMember: this process as one rank of a render group, for one epoch. It lives and dies with its group.

Whatever goes wrong in a collective, the process tells why and ends: its sockets close, so that its peers, hung or not, end too. Their
nannies bring all of them back fresh, and the driver forms a new group. Nothing is repaired inside a process.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landmark_batch.errors import GroupError, LandmarkError
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.opened import open_snapshot, open_timeline
from landmark_batch.workflows.ranges import RENDER, on_track
from landmark_batch.workflows.session import RenderSession, describe, pipeline_of
from landmark_batch.workflows.slot_limit import SlotLimit

if TYPE_CHECKING:
    from landmark_batch.model.runtime import KernelSource
    from landmark_batch.model.timeline import Timeline
    from landmark_batch.parallel.group import RenderGroup, Rendezvous
    from landmark_batch.parallel.renderer import GroupRenderer

logger = logging.getLogger(__name__)

CRASH_EXIT = 70  # this process failed: what it was doing is held against the chunk
AFTER_GROUP_EXIT = 75  # it ends because its group does, or because it was told to
RENDEZVOUS_SECONDS = 60.0
COLLECTIVE_SECONDS = 1800.0  # of one exchange, unless the job says; the driver's own watch is closer
_TOLD_SECONDS = 0.5  # for the last word to leave before the process does


@dataclass(frozen=True)
class JoinOrder:
    """A place in a group. host, port: of the leader's meeting place. timeout: seconds of one exchange, 0 = COLLECTIVE_SECONDS."""

    run: str
    group: str
    epoch: int
    rank: int
    tensor: int
    data: int
    host: str = ""
    port: int = 0
    timeout: float = 0.0

    def describe(self) -> str:
        return f"group {self.group}, epoch {self.epoch}, rank {self.rank} of {self.tensor * self.data}"


def meeting_place(host: str) -> Rendezvous:
    """Open the store at which the ranks of a group meet. Raises GroupError."""
    from landmark_batch.parallel.group import Rendezvous

    return Rendezvous.open(host, RENDEZVOUS_SECONDS)


class GroupMember:
    """A rank. Its thread forms the group, loads this rank's share and, on all but the leader, serves until the group ends.

    session: gets the leader's RenderSession. tell: word to the driver, a message in plain values. left: it is in the group no more.
    """

    def __init__(
        self,
        order: JoinOrder,
        folder: StorePath,
        label: str,
        kernels: KernelSource,
        *,
        tell: Callable[[dict[str, Any]], None],
        session: ThreadFuture[RenderSession],
        rendezvous: Rendezvous | None,
    ) -> None:
        self.order = order
        self.left = False
        self._folder = folder
        self._limit = SlotLimit(folder)
        self._label = label
        self._kernels = kernels
        self._tell = tell
        self._session = session
        self._rendezvous = rendezvous
        self._renderer: GroupRenderer | None = None
        self._group: RenderGroup | None = None
        self._timeline: Timeline | None = None
        self._state = "forming"
        self._formed = self._closing = False
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"group {order.group}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def shown(self) -> dict[str, Any]:
        order = self.order
        role = "leader" if order.rank == 0 else "follower"
        return {"group": order.group, "epoch": order.epoch, "rank": order.rank, "role": role, "state": self._state}

    def _run(self) -> None:
        try:
            self._join()
            if self.order.rank == 0:
                with self._turn:
                    self._formed = True
                    closing = self._closing
                if closing:  # the job ended, or was paused, while the group was forming
                    self._end()
                else:
                    self._tell({"group": self.order.group, "epoch": self.order.epoch, "ready": True})
                return
            self._state = "serving"
            assert self._renderer is not None
            with on_track(RENDER):
                self._renderer.serve()
            self._leave()
        except BaseException as error:  # noqa: BLE001  told, and the process ends
            self.fence(error, "")

    def _join(self) -> None:
        import torch

        from landmark_batch.parallel.group import Membership, RenderGroup
        from landmark_batch.parallel.shape import GroupShape
        from landmark_batch.workflows.group_renderer import open_group_renderer
        from landmark_batch.workflows.renderers import route_of

        order, started = self.order, time.perf_counter()
        opened = open_snapshot(self._folder)  # before any meeting: what is wrong here is told as it is
        snapshot = opened.snapshot
        self._timeline = open_timeline(snapshot, self._label)
        device = "cuda" if snapshot.device == "cuda" or (snapshot.device == "auto" and torch.cuda.is_available()) else "cpu"
        group = RenderGroup.form(
            Membership(order.run, order.group, order.epoch, order.rank, GroupShape(order.tensor, order.data)),
            order.host,
            order.port,
            device=torch.device(device),
            rendezvous_timeout=RENDEZVOUS_SECONDS,
            timeout=order.timeout or COLLECTIVE_SECONDS,
            rendezvous=self._rendezvous,
        )
        self._group = group
        group.watch(lambda error: self.fence(error, ""))
        self._state = "loading"
        pipeline = pipeline_of(opened, device, self._kernels) if order.rank == 0 else None  # before the scene is read
        self._renderer = open_group_renderer(
            snapshot,
            device,
            group,
            outputs=opened.store.spec.outputs,
            kernels=self._kernels,
            route=lambda: route_of(self._folder),
            limit=self._limit,
        )
        group.control.gather(torch.zeros(1), [1] * group.membership.shape.size).wait()  # the leader waits until all have loaded
        logger.info("%s: formed and loaded in %.1f s on %s", order.describe(), time.perf_counter() - started, device)
        if order.rank == 0:
            session = RenderSession(
                self._folder,
                opened,
                self._renderer,
                worker=self._label,
                device=device,
                group=f"{order.run}/{order.group}",
                epoch=order.epoch,
                pipeline=pipeline,
            )
            self._session.set_result(session)

    def fence(self, error: BaseException, chunk: str) -> None:
        """Tell why and end this process; returns only where that takes a moment. chunk: that was being rendered."""
        if self.left:
            return
        lost = isinstance(error, GroupError)  # a peer's failure, or a silence: whoever caused it tells
        fewer = self._fewer_slots(error)
        level = logging.INFO if fewer else logging.ERROR
        logger.log(level, "%s fails%s", self.order.describe(), f" on chunk {chunk}" if chunk else "", exc_info=error)
        self._state = "failed"
        message: dict[str, Any] = {
            "group": self.order.group,
            "epoch": self.order.epoch,
            "rank": self.order.rank,
            "host": socket.gethostname(),
            "failed": describe(error),
            "own": not lost,
            "fewer": fewer,
            "chunk": chunk,
            "setup": self._renderer is None or (self.order.rank == 0 and not self._session.done()),
        }
        if isinstance(error, LandmarkError):
            message |= {"kind": type(error).__name__, "message": error.message, "remedy": error.remedy or ""}
        self._tell(message)
        end_process(AFTER_GROUP_EXIT if lost or fewer else CRASH_EXIT, "its group cannot go on", after=_TOLD_SECONDS)
        threading.Event().wait()  # nothing of the group may go on meanwhile

    def _fewer_slots(self, error: BaseException) -> str:
        """Out of GPU memory: note for the groups to come that they take fewer slots. Returns that in words, '' for any other error."""
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            return ""
        try:
            return self._limit.halve((self._renderer.slots if self._renderer is not None else 0) or self._limit.taken)
        except Exception:  # nothing may keep a rank from telling that it fails, and from ending
            logger.exception("cannot note that fewer slots are to be taken")
            return ""

    def close(self) -> None:
        """The group's orderly end, by its leader; the others follow. One that is still forming ends once it has formed. Safe to call
        twice.
        """
        with self._turn:
            ends = self._formed and not self._closing
            self._closing = True
        if ends:
            self._end()

    def _end(self) -> None:
        if self._session.done() and self._session.exception() is None:
            self._session.result().close()
        self._leave()

    def _leave(self) -> None:
        self.left = True
        self._state = "left"
        renderer, self._renderer = self._renderer, None
        group, self._group = self._group, None
        if renderer is not None:
            renderer.close()
        if group is not None:
            group.close()
        if self._timeline is not None:
            self._timeline.close()
        forget_memory()


def import_all() -> None:
    """Import what forming a group needs; torch alone takes seconds."""
    import landmark_batch.parallel.group
    import landmark_batch.parallel.renderer
    import landmark_batch.scene.checkpoint  # noqa: F401


def forget_memory() -> None:
    """Give back what this process keeps of a GPU's memory though nothing is in it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def end_process(code: int, reason: str, *, after: float = 0.0) -> None:
    """End this process, however stuck its threads are."""
    logger.warning("this process ends: %s", reason)

    def end() -> None:
        time.sleep(after)
        logging.shutdown()
        os._exit(code)

    threading.Thread(target=end, name="end of process", daemon=True).start()
