"""Crew: which workers of a cluster render a run, and as which groups, now.

Where a frame is rendered by one worker, every worker is a crew of its own. Where by TP x DP ranks, free workers are formed into groups,
one host's first, under a new epoch each time; a group that loses a rank is ended as a whole, fenced off the store, and formed anew
from what its nannies bring back. The crew lives with the driver: it knows Dask's cluster, not chunks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from distributed import Client

from landmark_batch.errors import GroupError
from landmark_batch.object_path import StorePath
from landmark_batch.parallel.shape import Candidate, GroupShape, form_groups
from landmark_batch.workflows.causes import Cause, Causes, error_of
from landmark_batch.workflows.crew_group import CrewGroup
from landmark_batch.workflows.member import JoinOrder
from landmark_batch.workflows.roster import Roster
from landmark_batch.workflows.worker import (
    RenderWorker,
    end_worker,
    join_group,
    leave_group,
    open_rendezvous,
    plugin_name,
)

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 1.0  # without arrivals, before groups are formed of what is there
FORM_SECONDS = 3700.0  # to form and to load; far beyond what both take themselves
GRACE_SECONDS = 4.0  # for a rank that was told to end, before its nanny ends it
FORGET_SECONDS = 60.0  # a group that ended, though nobody asked for the cause
FORMATIONS = 5  # that fail one after another, before the job gives up


class Crew:
    """fence: told (group, epoch) when commits of older epochs of that group are to be refused. first_epoch: above all that were.

    refuse: told why workers cannot open the job, where that is certain.
    """

    def __init__(
        self,
        client: Client,
        run: str,
        folder: StorePath,
        shape: GroupShape,
        *,
        expected: int = 0,
        timeout: float = 0.0,
        first_epoch: int = 1,
        fence: Callable[[str, int], None],
        refuse: Callable[[BaseException], None],
        log: str = "",
    ) -> None:
        self.client = client
        self.run = run
        self.shape = shape
        self.causes = Causes(log)
        self._folder = folder
        self._expected = expected
        self._timeout = timeout
        self._epoch = first_epoch - 1
        self._fence = fence
        self._refuse = refuse
        self._roster = Roster(client)
        self._present: dict[str, Candidate] = {}
        self._arrived = time.monotonic()
        self._groups: dict[str, CrewGroup] = {}  # by key
        self._doomed: dict[str, float] = {}  # address -> when its nanny is to end it
        self._draining: set[str] = set()
        self._excluded: set[str] = set()  # by name
        self._failed_formations = 0
        self._paused = False
        self._lock = threading.RLock()

    # -- the run on the workers

    def open(self) -> int:
        """Have every worker, now and later, open the run. Returns how many there are."""
        self.client.register_plugin(RenderWorker(self.run, str(self._folder), self.shape.size))
        self.look()
        return len(self._present)

    def close(self) -> None:
        """The workers forget the run and live on."""
        self.dissolve()
        self.client.unregister_worker_plugin(plugin_name(self.run))

    def pause(self, paused: bool) -> None:
        """Workers give their memory back, or open the run again."""
        with self._lock:
            self._paused = paused
        if self.shape.size == 1:
            if paused:
                self.client.unregister_worker_plugin(plugin_name(self.run))
            else:
                self.client.register_plugin(RenderWorker(self.run, str(self._folder)))
        elif paused:
            self.dissolve()

    def dissolve(self) -> None:
        """All groups end in order, their ranks are free."""
        with self._lock:
            groups = [group for group in self._groups.values() if len(group.ranks) > 1 and group.state != "ending"]
        for group in groups:
            self._leave(group)

    # -- who is there

    def groups(self) -> dict[str, str]:
        """Key -> name of all that take chunks or have some in hand."""
        self.look()
        with self._lock:
            return {key: group.name for key, group in self._groups.items() if group.state in ("ready", "ending")}

    def resting(self) -> frozenset[str]:
        """Keys of those that get no more."""
        with self._lock:
            return frozenset(key for key, group in self._groups.items() if group.state == "ending" or self._is_resting(group))

    def ending(self) -> frozenset[str]:
        """Keys of those that are over, whose tasks are lost."""
        with self._lock:
            return frozenset(key for key, group in self._groups.items() if group.state == "ending")

    def _is_resting(self, group: CrewGroup) -> bool:
        return any(rank.address in self._draining or rank.name in self._excluded for rank in group.ranks)

    def leader(self, key: str) -> str | None:
        """Address of the worker that takes a group's tasks; None if it is gone."""
        with self._lock:
            group = self._groups.get(key)
            return group.ranks[0].address if group is not None and group.state == "ready" else None

    def name_of(self, address: str) -> str:
        """How the user knows a worker or the group that it leads."""
        with self._lock:
            found = next((group for group in self._groups.values() if group.ranks[0].address == address), None)
        return found.name if found is not None else address

    def forming(self) -> bool:
        """Whether a group is about to be ready."""
        with self._lock:
            return any(group.state == "forming" for group in self._groups.values())

    def lacking(self) -> str:
        """What is missing for a group to form, in words; '' where none is lacking."""
        with self._lock:
            free, size = len(self._present), self.shape.size
        return f"{free} worker{'s are' if free != 1 else ' is'} there, a group needs {size}" if size > 1 and free < size else ""

    def look(self) -> None:
        """See who is there; end groups that lost a rank, form new ones. While the scheduler does not answer nothing changes."""
        try:
            present = self._roster.running()
        except OSError as error:  # Dask's CommClosedError, and timeouts
            logger.warning("the scheduler does not answer: %s", error)
            return
        now = time.monotonic()
        with self._lock:
            if present.keys() - self._present.keys():
                self._arrived = now
            self._present = present
            self._end_hung(now)
            self._groups = {k: g for k, g in self._groups.items() if g.state != "ending" or now - g.since < FORGET_SECONDS}
            for group in list(self._groups.values()):
                gone = [rank.name for rank in group.ranks if rank.address not in present]
                if gone and group.state != "ending":
                    self._break(group, f"{', '.join(gone)} left the cluster")
                elif group.state == "forming" and now - group.since > FORM_SECONDS:
                    self._break(group, f"it did not form in {FORM_SECONDS:.0f} s")
            if not self._paused:
                self._enlist(now)

    def _enlist(self, now: float) -> None:
        taken = {rank.address for group in self._groups.values() for rank in group.ranks if group.state != "ending"}
        free = [
            worker
            for address, worker in self._present.items()
            if address not in taken | self._doomed.keys() | self._draining and worker.name not in self._excluded
        ]
        if self.shape.size == 1:
            for worker in free:
                group = CrewGroup(worker.name, 0, (worker,), "ready")
                self._groups[group.key] = group
            return
        if len(free) < self.shape.size or (now - self._arrived < SETTLE_SECONDS and len(self._present) != self._expected):
            return
        formed, _ = form_groups(free, self.shape)
        for ranks in formed:
            used = {group.id for group in self._groups.values() if group.state != "ending"}
            number = next(i for i in range(len(used) + 1) if f"g{i}" not in used)
            self._epoch += 1
            group = CrewGroup(f"g{number}", self._epoch, tuple(ranks))
            self._groups[group.key] = group
            logger.info("group %s, epoch %d: forming of %s", group.id, group.epoch, ", ".join(rank.name for rank in ranks))
            threading.Thread(target=self._form, args=(group,), name=f"form {group.id}", daemon=True).start()

    def _form(self, group: CrewGroup) -> None:
        """Word to every rank. What comes of it is told by the leader."""
        try:
            self._fence(group.id, group.epoch)
            order = JoinOrder(self.run, group.id, group.epoch, 0, self.shape.tensor, self.shape.data, timeout=self._timeout)
            leader = group.ranks[0].address
            host, port = self.client.run(open_rendezvous, self.run, order, workers=[leader])[leader]
            for number, rank in enumerate(group.ranks):
                self.client.run(join_group, self.run, replace(order, rank=number, host=host, port=port), workers=[rank.address])
        except Exception as error:  # noqa: BLE001  a rank that is gone, or cannot: a group that could not form is formed anew
            logger.info("group %s, epoch %d: cannot form: %s", group.id, group.epoch, error)
            with self._lock:
                self._break(group, f"it could not form: {error}")

    # -- what befalls groups

    def told(self, message: Mapping[str, Any]) -> None:
        """Word from a rank: its group is ready, it fails, it is to leave."""
        with self._lock:
            if message.get("draining"):
                self._draining.add(str(message["address"]))
                return
            group = next(
                (g for g in self._groups.values() if g.id == message.get("group") and g.epoch == message.get("epoch") and len(g.ranks) > 1),
                None,
            )
            if message.get("ready") and group is not None and group.state == "forming":
                group.state = "ready"
                self._failed_formations = 0
                logger.info("group %s, epoch %d: ready after %.1f s", group.id, group.epoch, time.monotonic() - group.since)
            elif message.get("failed") and group is not None:
                self.causes.report(group.key, message)
                if message.get("own") and message.get("setup") and not message.get("fewer"):
                    self._refuse(error_of(message))
                self._break(group, self.causes.text(group.key) or str(message["failed"]))
            if message.get("fewer"):
                self._failed_formations = 0  # the next group takes fewer slots

    def exited(self, message: Mapping[str, Any]) -> None:
        """Word from a nanny: a worker process has ended."""
        with self._lock:
            for group in self._groups.values():
                if group.has(str(message.get("worker"))):
                    self.causes.exit(group.key, str(message.get("name")), int(message.get("exitcode") or 0))
                    self._break(group, f"process of {message.get('name')} ended")

    def cause(self, key: str) -> Cause | None:
        """Why a group ended, once it is known; None while word may still come."""
        with self._lock:
            group = self._groups.get(key)
            if group is None:
                return Cause(False, "it left the cluster")
            since = group.since if group.state == "ending" else time.monotonic()
            return self.causes.find(key, group.reason, time.monotonic() - since)

    def lost(self, key: str, reason: str) -> None:
        """A group's task is lost with its worker: the group ends."""
        with self._lock:
            if key in self._groups:
                self._break(self._groups[key], reason)

    def replace(self, key: str, reason: str) -> None:
        """End a group that hangs: its nannies start fresh processes."""
        with self._lock:
            group = self._groups.get(key)
            if group is not None:
                self._break(group, reason)
                self._doomed.update({rank.address: time.monotonic() for rank in group.ranks})
                self._end_hung(time.monotonic())

    def exclude(self, key: str) -> None:
        """The rank that failed there, else its leader, is in no group any more."""
        with self._lock:
            group = self._groups.get(key)
            if group is not None:
                culprit = self.causes.rank(key)
                self._excluded.add(group.ranks[culprit if culprit is not None and culprit < len(group.ranks) else 0].name)

    def dismiss(self, key: str) -> None:
        """A group that rests has nothing in hand: its ranks are free."""
        with self._lock:
            group = self._groups.get(key)
            if group is not None and group.state == "ending":
                del self._groups[key]
                return
        if group is not None and len(group.ranks) > 1:
            self._leave(group)

    def _leave(self, group: CrewGroup) -> None:
        try:
            if group.ranks[0].address in self._present:  # else Dask would try to reach it for half a minute
                self.client.run(leave_group, self.run, workers=[group.ranks[0].address])
        except Exception as error:  # noqa: BLE001  it is gone: so is its group
            logger.info("group %s: %s", group.id, error)
        with self._lock:
            self._groups.pop(group.key, None)

    def _break(self, group: CrewGroup, reason: str) -> None:
        """A group is over: older commits are refused, whoever is left of it ends too."""
        if group.state == "ending":
            return
        if group.state == "forming" and len(group.ranks) > 1:
            self._failed_formations += 1
            if self._failed_formations >= FORMATIONS:
                self._refuse(GroupError(f"groups cannot form: {reason}", remedy="the log file says what their ranks met"))
        was_ready = group.state == "ready"
        group.state, group.since, group.reason = "ending", time.monotonic(), reason
        if len(group.ranks) > 1:
            logger.info("group %s, epoch %d ends: %s", group.id, group.epoch, reason)
            left = [rank.address for rank in group.ranks if rank.address in self._present]
            self._doomed.update({address: time.monotonic() + GRACE_SECONDS for address in left})
            threading.Thread(target=self._finish, args=(group, left), name=f"end {group.id}", daemon=True).start()
        if not was_ready:
            self._groups.pop(group.key, None)

    def _finish(self, group: CrewGroup, left: list[str]) -> None:
        try:
            self._fence(group.id, group.epoch + 1)
            if left:
                self.client.run(end_worker, f"group {group.id} has lost a rank", workers=left, wait=False, on_error="ignore")
        except Exception as error:  # noqa: BLE001  a rank that is gone already
            logger.info("group %s: %s", group.id, error)

    def _end_hung(self, now: float) -> None:
        """Ranks that were told to end and are still there are ended by their nannies."""
        self._doomed = {address: at for address, at in self._doomed.items() if address in self._present}
        late = [address for address, at in self._doomed.items() if at <= now]
        if late:
            self._doomed.update(dict.fromkeys(late, now + 60.0))
            threading.Thread(target=self._restart, args=(late,), name="restart workers", daemon=True).start()

    def _restart(self, addresses: list[str]) -> None:
        try:
            self.client.restart_workers(addresses, timeout=60, raise_for_error=False)
        except Exception as error:  # noqa: BLE001  without a nanny, or gone meanwhile
            logger.warning("cannot restart %s: %s", ", ".join(addresses), error)
