"""What tensor ranks exchange: partial sums to the owners of their samples, lists from the owners to all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .channel import Channel, Pending

BITS = 8
MIX = 0x2545F4914F6CDD1D  # any odd number with bits all over


class TensorExchange:
    """Exchanges among the tensor ranks of a data row. Every method starts one exchange and returns at once.

    sent: bytes that left this rank, in all.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.rank, self.size = channel.rank, channel.size
        self.sent = 0

    def partial_sums(self, partial: Tensor, bounds: Sequence[int]) -> Pending:
        """partial [M, ...] of all samples; rank r owns samples bounds[r]..bounds[r + 1]. Gives [size * owned, ...], rank by rank."""
        counts = [stop - start for start, stop in pairwise(bounds)]
        self._count(partial, partial.shape[0] - counts[self.rank])
        return self._channel.exchange(partial, counts, [counts[self.rank]] * self.size)

    def share(self, own: Tensor, counts: Sequence[int]) -> Pending:
        """own [counts[rank], ...] to all: gives those of all ranks, in the order of ranks, [sum of counts, ...]."""
        self._count(own, own.shape[0] * (self.size - 1))
        return self._channel.exchange(torch.cat([own] * self.size), [own.shape[0]] * self.size, counts)

    def swap(self, parts: Sequence[Tensor], rows: int) -> Pending:
        """parts[r] [n, ...] to rank r; `rows` rows come from each: gives [size, rows, ...] as `Channel.swap`."""
        for rank, part in enumerate(parts):
            if rank != self.rank:
                self._count(part, part.shape[0])
        return self._channel.swap(parts, rows)

    def _count(self, rows: Tensor, count: int) -> None:
        self.sent += count * rows[:1].numel() * rows.element_size() if count else 0


def sum_in_rank_order(received: Tensor, size: int) -> Tensor:
    """[size * N, ...] of `partial_sums` -> [N, ...]: the partial sums of rank 0, plus those of rank 1, and so on. Overwrites received."""
    parts = received.view(size, received.shape[0] // size, *received.shape[1:])
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def add_in_rank_order(received: Tensor, own: Tensor, rank: int) -> Tensor:
    """[size, N, ...] of `swap` and this rank's own part [N, ...] -> their sum, that of rank 0 first. Overwrites both."""
    parts = [own if other == rank else part for other, part in enumerate(received.unbind(0))]
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def pack_flags(chosen: Tensor, count: int) -> Tensor:
    """Ascending indices [C] int64 below count -> bits [ceil(count / 8)] uint8."""
    flags = torch.zeros(-(-count // BITS) * BITS, dtype=torch.uint8, device=chosen.device)
    flags[chosen] = 1
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=chosen.device)
    return (flags.view(-1, BITS) * powers).sum(1, dtype=torch.uint8)


def unpack_flags(packed: Tensor, bounds: Sequence[int]) -> Tensor:
    """Bits of all ranks, one after another, each of its own samples bounds[r]..bounds[r + 1] -> indices [C] int64 among all samples."""
    shifts = torch.arange(BITS, dtype=torch.uint8, device=packed.device)
    flags = (packed[:, None] >> shifts & 1).view(-1)
    parts, start = [], 0
    for first, last in pairwise(bounds):
        parts.append(flags[start : start + last - first])
        start += -(-(last - first) // BITS) * BITS
    return torch.cat(parts).nonzero().view(-1)


def packed_sizes(bounds: Sequence[int]) -> list[int]:
    """Bytes of each rank's bits."""
    return [-(-(stop - start) // BITS) for start, stop in pairwise(bounds)]


def digest(ray: Tensor, t: Tensor) -> Tensor:
    """A number [1] int64 that differs, but for chance, where lists of samples differ in a bit or in their order. Exact integers: the
    order of the sum does not matter.
    """
    place = torch.arange(t.shape[0], dtype=torch.int64, device=t.device).mul_(2).add_(1)
    bits = t.view(torch.int32).to(torch.int64).bitwise_and_(0xFFFFFFFF)
    mixed = (ray.to(torch.int64) << 32).bitwise_or_(bits).mul_(MIX)
    return mixed.bitwise_xor_(mixed >> 29).mul_(place).sum().view(1)
