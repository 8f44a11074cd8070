"""RenderGroup: the process groups of one render group, formed once and kept for the whole job.

A group lives and dies as one. Nothing here repairs a group: a failure is a GroupError, upon which its caller ends the process, so
that its sockets close, the other ranks fail too, and all come back under a new epoch.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from landmark_batch.errors import GroupError

from .channel import Channel, c10d, open_channel
from .shape import GroupShape

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

logger = logging.getLogger(__name__)

BACKLOG = 128
GOODBYE_SECONDS = 10.0
POLL = 0.01  # seconds between looks for the other ranks


@dataclass(frozen=True)
class Membership:
    """Which rank of which group a process is. run: the job's name. epoch: counts the times the group was formed."""

    run: str
    group: str
    epoch: int
    rank: int
    shape: GroupShape

    @property
    def tensor_index(self) -> int:
        return self.shape.tensor_index(self.rank)

    @property
    def data_index(self) -> int:
        return self.shape.data_index(self.rank)

    def describe(self) -> str:
        return f"rank {self.rank} of group {self.group} of {self.run}, epoch {self.epoch}"


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a group meet: a store in the leader's process. Keep it as long as the group."""

    host: str
    port: int
    store: TCPStore

    @classmethod
    def open(cls, host: str, timeout: float = 60.0) -> Rendezvous:
        """Listen on a free port of `host` alone (an address of this machine that the other ranks reach). Raises GroupError."""
        try:
            family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise GroupError(f"{host} is no address to meet at: {error}", remedy="give an address that the other ranks reach") from error
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
            port = int(listener.getsockname()[1])
            store = c10d.TCPStore(
                host, port, is_master=True, timeout=timedelta(seconds=timeout), wait_for_workers=False, master_listen_fd=listener.fileno()
            )
        except (OSError, RuntimeError) as error:
            listener.close()
            raise GroupError(f"no rendezvous at {host}: {error}", remedy="start the worker with an address of this machine") from error
        listener.detach()  # the store's now
        return cls(host, port, store)


class RenderGroup:
    """This process's place in a render group. Made by `form`.

    control: all ranks, for orders; the others wait in it between frames. tensor: the tensor ranks of this rank's row. pixels: all
    ranks, for finished pixels. frame: all ranks, for small numbers in host memory.
    """

    def __init__(
        self, membership: Membership, *, control: Channel, tensor: Channel, pixels: Channel, frame: Channel, watch: Channel, store: object
    ) -> None:
        self.membership = membership
        self.control, self.tensor, self.pixels, self.frame = control, tensor, pixels, frame
        self._watch = watch
        self._store = store
        self._watching = self._closed = False

    @classmethod
    def form(
        cls,
        membership: Membership,
        host: str,
        port: int,
        *,
        device: torch.device,
        rendezvous_timeout: float = 60.0,
        timeout: float = 600.0,
        idle_timeout: float = 86400.0,
        rendezvous: Rendezvous | None = None,
    ) -> RenderGroup:
        """Meet the other ranks at host:port and form the group; blocks until all have come.

        device: of this rank's pixels; 'cuda' exchanges through NCCL, 'cpu' through gloo. rendezvous_timeout: seconds until all must
        have come. timeout: seconds that an exchange of a frame may take, and the others to take an order: let them load their scene
        before the first. idle_timeout: seconds they may wait for an order. rendezvous: the leader's own.

        Raises GroupError naming the ranks that did not come or do not fit.
        """
        shape, rank = membership.shape, membership.rank
        store: Store
        try:
            if rendezvous is not None:
                store, address = rendezvous.store, rendezvous.host
            else:
                address = _own_address(host, port)
                patience = timedelta(seconds=rendezvous_timeout)
                store = c10d.TCPStore(host, port, is_master=False, timeout=patience, wait_for_workers=False)
            scope = f"{membership.run}/{membership.group}/{membership.epoch}"
            _meet(c10d.PrefixStore(f"{scope}/meet", store), membership, device, rendezvous_timeout)

            def channel(name: str, ranks: range, where: torch.device, limit: float) -> Channel:
                return open_channel(
                    f"{membership.describe()}, {name}",
                    c10d.PrefixStore(f"{scope}/{name}/{ranks[0]}", store),
                    ranks,
                    rank,
                    address=address,
                    device=where,
                    connect=rendezvous_timeout,
                    timeout=limit,
                    urgent=name == "pixels",  # they are sent while the next frame is rendered
                )

            everyone, row = range(shape.size), membership.data_index * shape.tensor
            host_memory = torch.device("cpu")
            control = channel("control", everyone, host_memory, timeout if rank == 0 else idle_timeout)  # who gives orders never idles
            watch = channel("watch", everyone, host_memory, idle_timeout)
            pixels = channel("pixels", everyone, device, timeout)
            frame = pixels if device.type == "cpu" else channel("frame", everyone, host_memory, timeout)
            tensor = channel("tensor", range(row, row + shape.tensor), device, timeout)
            for data in (pixels, tensor):  # NCCL connects on first use: here, not in the first frame
                ones = [1] * data.size
                data.exchange(torch.zeros(data.size, device=device), ones, ones).wait()
        except (OSError, RuntimeError) as error:
            raise GroupError(
                f"{membership.describe()} could not be formed at {host}:{port} within {rendezvous_timeout:g} s: {_first_line(error)}",
                remedy="see that all ranks run and that their hosts reach each other",
            ) from error
        logger.info("formed %s (%s)", membership.describe(), shape.describe())
        return cls(membership, control=control, tensor=tensor, pixels=pixels, frame=frame, watch=watch, store=rendezvous or store)

    @property
    def rank(self) -> int:
        return self.membership.rank

    @property
    def leader(self) -> bool:
        """Whether this rank gives the orders and gets the frames."""
        return self.membership.rank == 0

    def tell(self, numbers: Sequence[int]) -> list[list[int]]:
        """Whole numbers of this rank to all; returns those of every rank, by rank. Every rank calls it, with as many numbers.

        Raises GroupError.
        """
        ones = [1] * self.frame.size
        rows = torch.tensor([list(numbers)] * self.frame.size, dtype=torch.int64)
        told: list[list[int]] = self.frame.exchange(rows, ones, ones).wait().tolist()
        return told

    def watch(self, lost: Callable[[GroupError], None]) -> None:
        """Have a thread call `lost` once when the next rank's process ends before it has closed the group.

        It notices even while this rank is inside an exchange with others, or waits for a GPU. Every rank of the group has to watch,
        so that a loss goes around: the caller's `lost` ends the process.
        """
        if self._watch.size > 1 and not self._watching:
            self._watching = True
            name = f"landmark-watch-{self.membership.group}-{self.rank}"
            threading.Thread(target=self._look, args=(lost,), name=name, daemon=True).start()

    def close(self) -> None:
        """Leave the group. Call it on every rank once the leader's renderer is closed. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._watching:
            try:
                self._watch.send(torch.ones(1), (self.rank - 1) % self._watch.size, GOODBYE_SECONDS)
            except GroupError:  # that rank is gone already
                pass
        for channel in {id(c): c for c in (self.control, self.tensor, self.pixels, self.frame, self._watch)}.values():
            channel.close()
        self._store = None

    def _look(self, lost: Callable[[GroupError], None]) -> None:
        neighbour = (self.rank + 1) % self._watch.size
        try:
            self._watch.receive(torch.zeros(1), neighbour)
        except GroupError as error:
            if not self._closed:
                reason = f"{self.membership.describe()}: rank {neighbour} has gone"
                lost(GroupError(reason, remedy=error.remedy))


def _meet(store: Store, membership: Membership, device: torch.device, timeout: float) -> None:
    """Wait until all ranks have come; they must agree on what they form."""
    size, rank = membership.shape.size, membership.rank
    mine = {"shape": membership.shape.describe(), "device": device.type, "torch": torch.__version__}
    store.set(f"{rank}", json.dumps(mine))
    deadline = time.monotonic() + timeout
    while not store.check([f"{other}" for other in range(size)]):  # wait() of a store writes its stack to stderr when it fails
        if time.monotonic() > deadline:
            absent = ", ".join(f"{other}" for other in range(size) if not store.check([f"{other}"]))
            raise GroupError(
                f"{membership.describe()} waited {timeout:g} s for its other ranks; absent: {absent}",
                remedy="see the logs of the workers that did not come",
            )
        time.sleep(POLL)
    for other in range(size):
        theirs = json.loads(store.get(f"{other}"))
        for key, value in mine.items():
            if theirs[key] != value:
                raise GroupError(
                    f"{membership.describe()} has {key} {value}, rank {other} has {theirs[key]}",
                    remedy="ranks of one group run the same version of everything",
                )


def _own_address(host: str, port: int) -> str:
    """The address by which this machine reaches host."""
    family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing
        return str(probe.getsockname()[0])


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
