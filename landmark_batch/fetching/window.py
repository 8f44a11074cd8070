"""LandMark's own dynamic fetching, simulated: the window around the camera that our plan is compared with.

As InternLandMark/LandMark's MovingArea models do it, read as follows:
- the window is a rectangle of blocks with the camera's block in its middle, kept inside the scene's blocks;
- it is reactive: once the camera is more than 0.51 block away from the middle of the block the window was made for, along x or y,
  a window around the camera's block is wanted; nothing is loaded where that window is the one held (at the scene's edge);
- the new window is loaded whole, from the host, into the second of two buffers, while frames are rendered from the first; they
  change places before the next frame. So fast a link is the best case for what is dropped: in truth it depends on timing;
- a sample whose block is not in the window is dropped; a block that only samples exactly on the scene's far y face can fall into
  (the next column's first, by LandMark's own numbering) has no samples to lose;
- the first window is loaded before the first frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block_sets import AnySets, BlockSets, block_sets

LEAVES_AT = 0.51  # block sides between camera and middle of the window's block that make LandMark load another window
BUFFERS = 2


@dataclass(frozen=True)
class WindowTraffic:
    """What the reactive window moves and drops.

    window: blocks along x and y. refills: windows loaded, the first included. loads: blocks moved, whole windows.
    fresh: of these, blocks that were not in the window before: what a window of slots would move at least.
    dropped: share of the samples lost, a frame's samples taken as even over its blocks. short_frames: frames that lack a block.
    slots: blocks of memory, both buffers.
    """

    window: tuple[int, int]
    refills: int
    loads: int
    fresh: int
    dropped: float
    short_frames: int

    @property
    def slots(self) -> int:
        return BUFFERS * self.window[0] * self.window[1]


def window_traffic(
    sets: AnySets,
    places: NDArray[np.floating[Any]],
    division: tuple[int, int],
    side: int,
    samples: NDArray[np.integer[Any]] | None = None,
) -> WindowTraffic:
    """Fly F frames in their order with a window of side × side blocks (fewer where the scene has fewer).

    sets: blocks of every frame, block = column * division[1] + row. places: [F, 2] cameras in blocks: x from 0 to division[0] over
    the scene's box, y from 0 to division[1]. samples: [F] of every frame, None: all alike. Raises ValueError for side < 1.
    """
    if side < 1:
        raise ValueError(f"side = {side}: a window of at least 1 block")
    flat = block_sets(sets)
    size = np.minimum(side, division)
    most = np.asarray(division) - size
    blocks = np.clip(np.floor(places).astype(np.int64), 0, np.asarray(division) - 1)  # [F, 2]
    corners = np.clip(blocks - size // 2, 0, most)  # [F, 2] first column and row of a window around the camera's block
    used, moves = _follow(np.asarray(places, dtype=np.float64), blocks, corners)
    shared = np.clip(size - np.abs(np.diff(moves, axis=0)), 0, None).prod(axis=1).sum()
    whole = int(size.prod())
    flat = _without_far_faces(flat, division)
    frames = flat.frames
    cell = np.stack([flat.ids // division[1], flat.ids % division[1]], axis=1) - used[frames]
    outside = ((cell < 0) | (cell >= size)).any(axis=1)
    missing = np.bincount(frames, outside, minlength=len(flat))
    weight = np.ones(len(flat)) if samples is None else np.asarray(samples, dtype=np.float64)
    weight = np.where(flat.counts > 0, weight, 0.0)
    lost = float((weight * missing / np.maximum(flat.counts, 1)).sum())
    return WindowTraffic(
        window=(int(size[0]), int(size[1])),
        refills=len(moves),
        loads=len(moves) * whole,
        fresh=len(moves) * whole - int(shared),
        dropped=lost / float(weight.sum()) if weight.any() else 0.0,
        short_frames=int((missing > 0).sum()),
    )


def _follow(
    places: NDArray[np.float64], blocks: NDArray[np.int64], corners: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """([F, 2] corner of the window that each frame is rendered from, [windows loaded, 2] their corners)."""
    if not len(places):
        return corners, corners
    where, wanted, middles = places.tolist(), corners.tolist(), (blocks + 0.5).tolist()
    made_for = [0]  # the frame that asked for each window
    shown = []
    for frame, ((x, y), corner) in enumerate(zip(where, wanted, strict=True)):
        shown.append(made_for[-1])
        middle = middles[made_for[-1]]
        if max(abs(x - middle[0]), abs(y - middle[1])) > LEAVES_AT and corner != wanted[made_for[-1]]:
            made_for.append(frame)
    return corners[shown], corners[made_for]


def _without_far_faces(sets: BlockSets, division: tuple[int, int]) -> BlockSets:
    """Leave out (column, 0) where a frame needs (column - 1, last) but none of the blocks beside (column, 0): a view has no gaps."""
    blocks = division[0] * division[1]
    keys = sets.frames * (blocks + 2 * division[1]) + sets.ids + division[1]

    def beside(step: int) -> NDArray[np.bool_]:
        found = np.minimum(np.searchsorted(keys, keys + step), max(len(keys) - 1, 0))
        return np.asarray(keys[found] == keys + step)

    alone = (sets.ids % division[1] == 0) & beside(-1) & ~beside(-division[1]) & ~beside(division[1]) & ~beside(1)
    alone &= division[1] > 1
    counts = np.bincount(sets.frames[~alone], minlength=len(sets))
    return BlockSets(np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)]), sets.ids[~alone])
