"""A frame's pixels between ranks: rounded where they were rendered, gathered as bytes, put in their places on the leader's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landmark_batch.model.begun import Sums
from landmark_batch.model.blocks import FETCH_COUNTERS
from landmark_batch.model.output import on_background
from landmark_batch.model.quantise import STORED, Output, converted

from .parts import COUNTERS, TIMES

ALIGN = 16  # bytes: where an output begins
PLANES = ("rgb", "depth", "alpha")


@dataclass(frozen=True)
class Plane:
    """An output as it is rendered."""

    name: str
    channels: int | None
    dtype: str = "float32"


FLOATS = (Plane("rgb", 3), Plane("depth", None), Plane("alpha", None))


@dataclass(frozen=True)
class Layout:
    """The bytes of some pixels: all values of the first output, those of the next, ..., then numbers about them, float64.

    numbers [NUMBERS]: COUNTERS, TIMES, the largest magnitude of rgb, depth and alpha (NaN where a value is).
    """

    outputs: tuple[Output, ...]

    def size(self, count: int, owners: int = 1) -> int:
        """Bytes of `count` pixels, with the numbers of so many ranks."""
        return self._starts(count)[-1] + -(-owners * NUMBERS * 8 // ALIGN) * ALIGN

    def pack(self, sums: Sums, background: str) -> Tensor:
        """What a rank sends of its pixels: [size] uint8, on their device."""
        planes = {"rgb": on_background(sums.rgb, sums.alpha, background), "depth": sums.depth, "alpha": sums.alpha}
        count, device = sums.alpha.shape[0], sums.alpha.device
        packed = torch.empty(self.size(count), dtype=torch.uint8, device=device)
        for index, output in enumerate(self.outputs):
            joined = [planes[output.name], planes["alpha"]] if output.channels == 4 else [planes[output.name]]
            self.values(packed, index, count).copy_(converted(joined, output))
        known = [sums.counters.get(name, 0) for name in COUNTERS] + [sums.seconds.get(name, 0.0) for name in TIMES]
        numbers = self.numbers(packed, count)
        numbers[0, : len(known)] = torch.tensor(known, dtype=torch.float64).to(device, non_blocking=True)
        largest = [planes[name].abs().amax() if count else sums.alpha.new_zeros(()) for name in PLANES]
        numbers[0, len(known) :] = torch.stack(largest)
        return packed

    def values(self, packed: Tensor, index: int, count: int) -> Tensor:
        """[count, channels], or [count], of an output, in packed."""
        output, start = self.outputs[index], self._starts(count)[index]
        shape = (count,) if output.channels is None else (count, output.channels)
        part = packed[start : start + _bytes(output) * count].view(STORED[output.dtype])
        return part.view(shape)

    def numbers(self, packed: Tensor, count: int, owners: int = 1) -> Tensor:
        """[owners, NUMBERS] float64, in packed."""
        start = self._starts(count)[-1]
        return packed[start : start + owners * NUMBERS * 8].view(torch.float64).view(owners, NUMBERS)

    def assemble(self, parts: Sequence[Tensor], pixels: Sequence[Tensor]) -> Tensor:
        """The whole frame, row by row, from what each rank has sent; pixels: of each rank. Numbers of all ranks follow."""
        count = sum(own.shape[0] for own in pixels)
        frame = parts[0].new_empty(self.size(count, len(parts)))
        numbers = self.numbers(frame, count, len(parts))
        for index in range(len(self.outputs)):
            whole = self.values(frame, index, count)
            for part, own in zip(parts, pixels, strict=True):
                whole[own] = self.values(part, index, own.shape[0])
        for rank, (part, own) in enumerate(zip(parts, pixels, strict=True)):
            numbers[rank] = self.numbers(part, own.shape[0])[0]
        return frame

    def _starts(self, count: int) -> list[int]:
        """Where the outputs begin, and the numbers."""
        starts = [0]
        for output in self.outputs:
            starts.append(starts[-1] + -(-_bytes(output) * count // ALIGN) * ALIGN)
        return starts


NUMBERS = len(COUNTERS) + len(TIMES) + len(PLANES)


def totals(table: Tensor) -> tuple[dict[str, int], dict[str, float]]:
    """Counters and seconds by stage, summed over the ranks of numbers [ranks, NUMBERS]."""
    summed = table.sum(0).tolist()
    counters = {name: int(value) for name, value in zip(COUNTERS, summed, strict=False) if value or name not in FETCH_COUNTERS}
    times = zip(TIMES, summed[len(COUNTERS) : len(COUNTERS) + len(TIMES)], strict=True)
    return counters, {name: value for name, value in times if value > 0}


def _bytes(output: Output) -> int:
    """Of a pixel."""
    return np.dtype(output.dtype).itemsize * (output.channels or 1)
