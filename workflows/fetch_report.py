"""FetchReport: what dynamic fetching of a flight moves, in which order of chunks, beside what other ways would move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from landmark_batch.fetching.block_sets import FlatSets, block_sets
from landmark_batch.fetching.schedule import FLIGHT, ChunkOrder, order_chunks
from landmark_batch.fetching.window import WindowTraffic, window_traffic
from landmark_batch.scene.weights import Box


class FlightNeeds(FlatSets, Protocol):
    """Block sets of frames and about how many samples each renders (`FlightBlocks`)."""

    @property
    def samples(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class FetchReport:
    """A flight's fetching in numbers.

    order: chosen for the chunks, with each group's plan. frames, chunks: to render. blocks_mean, blocks_max: of a frame.
    working_set: different blocks that the frames need, of scene_blocks. slots: of each group. block_bytes: of a slot.
    window: LandMark's reactive window over the same frames in flight order, by one group. loads, demand: blocks moved by all groups
    together in that order, and by exact demand fetching; unlike the order's own, by regions of crowded frames where these are rendered
    so. sampled: both are estimates from stretches of the flight.
    """

    order: ChunkOrder
    frames: int
    chunks: int
    groups: int
    blocks_mean: float
    blocks_max: int
    working_set: int
    scene_blocks: int
    slots: int
    block_bytes: int
    window: WindowTraffic
    loads: int
    demand: int
    sampled: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; bytes and loads are those of all groups together."""
        order, window = self.order, self.window
        return {
            "frames": self.frames,
            "chunks": self.chunks,
            "groups": self.groups,
            "blocks_mean": self.blocks_mean,
            "blocks_max": self.blocks_max,
            "working_set": self.working_set,
            "working_set_bytes": self.working_set * self.block_bytes,
            "scene_blocks": self.scene_blocks,
            "slots": self.slots,
            "block_bytes": self.block_bytes,
            "order": order.name,
            "orders": dict(order.candidates),
            "frames_in_passes": order.passes,
            "loads": self.loads,
            "bytes": self.loads * self.block_bytes,
            "demand_loads": self.demand,
            "demand_bytes": self.demand * self.block_bytes,
            "sampled": self.sampled,
            "landmark": {
                "window": list(window.window),
                "slots": window.slots,
                "refills": window.refills,
                "loads": window.loads,
                "bytes": window.loads * self.block_bytes,
                "fresh_loads": window.fresh,
                "dropped": window.dropped,
                "short_frames": window.short_frames,
            },
        }

    def describe(self) -> str:
        """A table for people, a few aligned lines."""
        order, window, about = self.order, self.window, "about " if self.sampled else ""
        each = f" in each of {self.groups} groups" if self.groups > 1 else ""
        rows = [
            ("blocks", f"{self.blocks_mean:.1f} a frame on average, {self.blocks_max} at most"),
            ("needed", f"{self.working_set} of {self.scene_blocks} blocks, {_bytes(self.working_set * self.block_bytes)}"),
            ("slots", f"{self.slots}{each}, {_bytes(self.slots * self.block_bytes)}"),
            *([("crowded", self._describe_crowded())] if order.passes else []),
            ("order", self._describe_order()),
            ("moved", about + self._moved(self.loads)),
            ("demand", f"{about}{self._moved(self.demand)}: each block when its frame comes, in flight order"),
            ("LandMark", f"{self._moved(window.loads)}: {self._describe_window()}"),
        ]
        return "\n".join(["fetching", *(f"  {name:9} {text}" for name, text in rows)])

    def _moved(self, loads: int) -> str:
        times = f", {loads / self.loads:.2f} x" if self.loads and loads != self.loads else ""
        return f"{loads} block{'s' * (loads != 1)}, {_bytes(loads * self.block_bytes)}{times}"

    def _describe_crowded(self) -> str:
        return f"{self.order.passes} of {self.frames} frames need more blocks than there are slots: rendered part by part, or in passes"

    def _describe_order(self) -> str:
        found = self.order.candidates
        whole = "; crowded frames counted whole" if self.order.passes else ""
        if len(found) == 1:
            return f"{self.order.name}: " + ("no block is moved twice" if self.order.loads <= self.working_set else "as the job asks")
        if self.order.name == FLIGHT:
            return f"{FLIGHT}: no other moves fewer ({', '.join(f'{name} {loads}' for name, loads in found.items())}{whole})"
        others = ", ".join(f"{name} {loads}" for name, loads in found.items() if name != self.order.name)
        return f"{self.order.name}: {found[self.order.name]} blocks ({others}{whole})"

    def _describe_window(self) -> str:
        window = self.window
        across, along = window.window
        text = f"a window of {across} x {along} blocks, loaded whole {window.refills} times ({window.fresh} blocks were not in the last)"
        text += f", in two buffers of {window.slots} slots together"
        if window.short_frames:
            text += f"; {window.short_frames} frames would lack about {100 * window.dropped:.2g} % of all samples"
        return text


def describe_fetching(
    needs: FlightNeeds,
    chunks: Sequence[Sequence[int]],
    positions: NDArray[np.float64],
    *,
    aabb: Box,
    division: tuple[int, int],
    block_bytes: int,
    slots: int,
    groups: int = 1,
    costs: Sequence[float] | None = None,
) -> FetchReport:
    """Choose the order of the chunks and say what it moves.

    needs: blocks and samples of F frames. chunks: rows of `needs` to render, in flight order. positions: [F, 2 or 3] of the
    cameras, scene units. aabb, division: the scene's box, its blocks along x and y. block_bytes: of one block in a slot. slots: of
    each group. costs: of every chunk, any unit, to balance the groups' ranges by; default its samples.
    Raises ValueError for slots < 1 or groups < 1.
    """
    low, high = (np.asarray(corner[:2], dtype=np.float64) for corner in aabb)
    places = (np.asarray(positions, dtype=np.float64)[:, :2] - low) / (high - low) * division  # [F, 2] in blocks
    rows = np.asarray([row for chunk in chunks for row in chunk], dtype=np.int64)
    sets = block_sets(needs)
    wanted = sets.take(rows)
    counts = wanted.counts
    centres = np.asarray([places[list(chunk)].mean(axis=0) for chunk in chunks]).reshape(-1, 2)
    cost = [float(needs.samples[list(chunk)].sum()) for chunk in chunks] if costs is None else costs
    order = order_chunks(sets, chunks, centres, cost, slots, groups)
    return FetchReport(
        order=order,
        frames=len(rows),
        chunks=len(chunks),
        groups=groups,
        blocks_mean=float(counts.mean()) if len(counts) else 0.0,
        blocks_max=int(counts.max(initial=0)),
        working_set=len(np.unique(wanted.ids)),
        scene_blocks=division[0] * division[1],
        slots=slots,
        block_bytes=block_bytes,
        window=window_traffic(wanted, places[rows], division, isqrt(slots), needs.samples[rows]),
        loads=order.loads,
        demand=order.demand,
    )


def _bytes(count: int) -> str:
    """In the unit that fits: 950 bytes, 1.2 MB, 34 GB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
