"""A process group whose failures are GroupError. Built without torch's global world: a process may be in groups of several
jobs, and in one group after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor

from landmark_batch.errors import GroupError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

c10d: Any = torch.distributed  # what is in it depends on the build; its stubs leave half of it out


class Pending:
    """A started exchange. `wait` returns what was received; on CUDA the current stream waits for it, not the host."""

    def __init__(self, channel: Channel, work: Any, received: Tensor, sent: object) -> None:
        self._channel, self._work = channel, work
        self._received: Tensor = received
        self._sent: object = sent  # must live as long as it is being sent

    def arrived(self) -> bool:
        """Whether `wait` need not wait: all is there, or the exchange has failed."""
        return self._work is None or bool(self._work.is_completed())

    def wait(self) -> Tensor:
        """What was received. Raises GroupError where the exchange failed or is late."""
        if self._work is not None:
            self._channel.finish(self._work)
            self._work = None
        self._sent = None
        return self._received


class Channel:
    """The ranks of one process group. backend: of torch.distributed, None for a group of one.

    name: for messages. timeout: seconds that an exchange may take. All ranks make the same calls in the same order.
    """

    def __init__(self, name: str, backend: Any, rank: int, size: int, *, timeout: float, device: torch.device) -> None:
        self.name, self.rank, self.size, self.device = name, rank, size, device
        self._backend = backend
        self._timeout = timedelta(seconds=timeout)

    def broadcast(self, tensor: Tensor) -> Pending:
        """rank 0's tensor to all, in place. Returns at once; leave the tensor alone until `wait`."""
        if self._backend is None:
            return Pending(self, None, tensor, tensor)
        options = c10d.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = 0, 0, self._timeout
        return Pending(self, self._start(self._backend.broadcast, [tensor], options), tensor, tensor)

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Pending:
        """rows [N, ...]: sent[r] of them go to rank r, in order; received[r] rows come from rank r. Returns at once."""
        rows = rows.contiguous()
        if self._backend is None:
            return Pending(self, None, rows, rows)
        result = rows.new_empty(sum(received), *rows.shape[1:])
        work = self._start(self._backend.alltoall_base, result, rows, list(received), list(sent), self._all_to_all())
        return Pending(self, work, result, rows)

    def swap(self, parts: Sequence[Tensor], rows: int) -> Pending:
        """parts[r] to rank r, over NCCL: they are spread over memory and never joined. Every rank sends this one `rows` rows.

        Gives [size, rows, ...]. Nothing is copied from this rank to itself: its own rows of the result are left unwritten.
        """
        result = parts[0].new_empty(self.size, rows, *parts[0].shape[1:])
        sent, received = list(parts), list(result.unbind(0))
        sent[self.rank] = received[self.rank] = parts[0].new_empty(0)
        work = self._start(self._backend.alltoall, received, sent, self._all_to_all())
        return Pending(self, work, result, (sent, received))

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Pending:
        """counts[r] rows of every rank to rank 0, in the order of ranks; nothing to the others."""
        everything = list(counts) if self.rank == 0 else [0] * self.size
        return self.exchange(rows, [rows.shape[0]] + [0] * (self.size - 1), everything)

    def finish(self, work: Any, *limit: timedelta) -> None:
        """Wait for a started call of the process group. limit: where the call itself has none."""
        try:
            work.wait(*limit)
        except RuntimeError as error:
            raise self._error(error) from error

    def send(self, tensor: Tensor, rank: int, limit: float) -> None:
        """tensor to one rank; blocks until it is taken, at most `limit` seconds."""
        if self._backend is not None:
            self.finish(self._start(self._backend.send, [tensor], rank, 0), timedelta(seconds=limit))

    def receive(self, tensor: Tensor, rank: int) -> None:
        """Fill tensor with what one rank sends; blocks."""
        if self._backend is not None:
            self.finish(self._start(self._backend.recv, [tensor], rank, 0), self._timeout)

    def close(self) -> None:
        """Let go of the process group: its sockets close once no call is in it any more."""
        backend, self._backend = self._backend, None
        if backend is not None and self.device.type == "cuda":
            backend.abort()

    def _all_to_all(self) -> Any:
        options = c10d.AllToAllOptions()
        options.timeout = self._timeout
        return options

    def _start(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RuntimeError as error:
            raise self._error(error) from error

    def _error(self, error: RuntimeError) -> GroupError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return GroupError(
            f"{self.name}: rank {self.rank} of {self.size} lost the others or waited past {self._timeout.total_seconds():g} s: {reason}",
            remedy="the log of the rank that ended first says why",
        )


def open_channel(
    name: str,
    store: Store,
    ranks: Iterable[int],
    rank: int,
    *,
    address: str,
    device: torch.device,
    connect: float,
    timeout: float,
    urgent: bool = False,
) -> Channel:
    """The channel of `ranks` (of the group, ascending) for `rank`, one of them. Blocks until all of them have come.

    store: the same for all, of this channel alone. address: of this host, on which gloo listens. device: of what is exchanged:
    NCCL for CUDA, gloo for a CPU. connect: seconds until all must have come. timeout: seconds for each exchange afterwards. urgent: on
    CUDA, exchanges go before other work that waits for the device.
    """
    members = list(ranks)
    place, size = members.index(rank), len(members)
    if size == 1:
        return Channel(name, None, 0, 1, timeout=timeout, device=device)
    backend: Any
    if device.type == "cuda":
        options = c10d.ProcessGroupNCCL.Options(is_high_priority_stream=urgent)
        options._timeout = timedelta(seconds=timeout)
        backend = c10d.ProcessGroupNCCL(store, place, size, options)
    else:
        gloo = c10d.ProcessGroupGloo._Options()
        gloo._timeout = timedelta(seconds=connect)
        gloo._threads = 2
        gloo._devices = [c10d.ProcessGroupGloo.create_device(hostname=address)]
        backend = c10d.ProcessGroupGloo(store, place, size, gloo)
    return Channel(name, backend, place, size, timeout=timeout, device=device)
