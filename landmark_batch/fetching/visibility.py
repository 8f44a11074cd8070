"""FrustumBlocks: which blocks the valid samples of a frame can touch, and about how many samples these are.

A sample is valid inside the box, where the mask's value exceeds the threshold, and where the sampler places samples at all. What
hides behind other things counts: a superset of what rendering reads, so that a frame never meets a block that is not there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.model.settings import RenderSettings, dense_step
from landmark_batch.scene.mask import StoredMask, occupancy
from landmark_batch.scene.weights import AlphaMask, SceneConfig

from .occupancy_tree import ROUNDING, OccupancyTree, build_tree, rounding_of
from .sample_count import SampleCounter

Bools = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

logger = logging.getLogger(__name__)

STEEPEST = 1e4  # condition of a camera's axes beyond which every occupied block counts as seen


@dataclass(frozen=True)
class _View:
    """A pyramid of points: normals [P, 3] · (p - origin) ≥ offsets [P]; depth = forward · (p - origin) up to `end`.

    end holds for points above `above` alone, and only points at or below `below` are in.
    """

    normals: Float64
    offsets: Float64
    forward: Float64
    end: float
    above: float
    below: float


class FrustumBlocks:
    """Finds the blocks of frames of one scene with one set of settings. Pickles small: the mask goes as bits.

    division: blocks along x and y, the scene's or, of a scene cut into blocks, the cut's. Time and memory of a frame do not depend
    on its resolution.
    """

    def __init__(
        self, config: SceneConfig, settings: RenderSettings, mask: AlphaMask | StoredMask | None, division: tuple[int, int]
    ) -> None:
        self.config, self.settings, self.mask, self.division = config, settings, mask, division
        mask_box = mask.aabb if mask is not None else config.aabb
        self._step = dense_step(config) if settings.mode == "dense" else 0.0
        self._rounding = rounding_of(config.aabb, settings.aabb, mask_box)
        volume = occupancy(mask) if mask is not None else None
        self.tree: OccupancyTree = build_tree(config, settings.aabb, division, volume, mask_box)
        logger.debug("occupied space: %d boxes in %.1f MB", self.tree.nodes, self.tree.nbytes / 1e6)
        self._counter: SampleCounter | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_counter": None}
        if self.mask is not None and not isinstance(self.mask, StoredMask):
            volume = occupancy(self.mask)
            z, y, x = volume.shape
            state["mask"] = StoredMask(np.packbits(volume), (z, y, x), self.mask.aabb)
        return state

    def blocks(self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> Int32:
        """Blocks, ascending, that a frame's valid samples can touch: never short, some more than are.

        c2w: [3, 4], intrinsics: (fl_x, fl_y, cx, cy) in pixels of a frame of width x height, as the renderer takes them.
        """
        pose = np.asarray(c2w, dtype=np.float32)[:3, :4].astype(np.float64)
        lens = np.asarray(intrinsics, dtype=np.float32).astype(np.float64)
        touched = np.zeros(self.division[0] * self.division[1], dtype=np.bool_)
        if np.linalg.cond(pose[:, :3]) > STEEPEST:
            touched[self.tree.blocks] = True
        else:
            pad = self._rounding + ROUNDING * float(np.abs(pose[:, 3]).max())
            for view in self._views(pose, lens, width, height, pad):
                _descend(self.tree, view, pose[:, 3], pad, touched)
        return np.flatnonzero(touched).astype(np.int32)

    def samples(self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> int:
        """About how many samples of a frame survive box and mask: counted on a sparse grid of its rays. Arguments as `blocks`."""
        if self._counter is None:
            self._counter = SampleCounter(self.config, self.settings, self.mask)
        return self._counter.estimate(c2w, intrinsics, width, height)

    def _views(self, pose: Float64, lens: Float64, width: int, height: int, pad: float) -> Iterator[_View]:
        """The pyramids that hold all samples of a frame which can lie in the box."""
        settings, floor = self.settings, self.config.aabb[0][2]
        axes = pose[:, :3] * [1.0, 1.0, -1.0]
        inward: Float64 = np.asarray(np.linalg.inv(axes), dtype=np.float64)  # rows: t x, t y and t of a point
        x = (np.array([0, width - 1]) - lens[2] + settings.pixel_center) / lens[0]
        y = -(np.array([0, height - 1]) - lens[3] + settings.pixel_center) / lens[1]
        sides = np.concatenate([_between(inward, 0, x), _between(inward, 1, y)])
        forward = inward[2]
        z = pose[2, 3]

        def view(start: float, end: float, *, back: bool = False, above: float = -np.inf, below: float = np.inf) -> _View:
            sign = -1.0 if back else 1.0
            normals = sign * np.concatenate([sides, forward[None]])
            return _View(normals, np.array([0.0, 0.0, 0.0, 0.0, start]), sign * forward, end, above, below)

        near = settings.near
        if settings.mode == "hull":
            # a ray that goes down reaches the floor however far it is, the others end at far
            end, above = settings.far, z
        else:
            reach = (settings.samples - 1) * self._step
            low, high = np.asarray(self.config.aabb)
            inside = bool(((pose[:, 3] > low + pad) & (pose[:, 3] < high - pad)).all())
            end, above = (max(near, 0.0) if inside and near >= 0 else settings.far) + reach, -np.inf
        yield view(max(near, 0.0), end, above=above)
        if near < 0:
            yield view(0.0, -near, back=True)
        if settings.mode == "hull":
            # samples run from near back to the floor where that is closer, or behind the camera: they touch the floor alone
            corners = np.array([[u, v, 1.0] for u in x for v in y]) @ axes.T
            if z + max(near, 0.0) * corners[:, 2].min() <= floor + pad:
                yield view(0.0, np.inf, below=floor)
            if z <= floor + pad:
                yield view(0.0, np.inf, back=True, below=floor)


def _between(inward: Float64, axis: int, bounds: Float64) -> Float64:
    """Normals [2, 3] of min ≤ x ≤ max, x a point's image coordinate on an axis."""
    return np.stack([inward[axis] - bounds.min() * inward[2], bounds.max() * inward[2] - inward[axis]])


def _descend(tree: OccupancyTree, view: _View, origin: Float64, pad: float, touched: Bools) -> None:
    """Mark in `touched` the blocks with a leaf that may meet the view: from the roots down, no further in a block once it is found."""
    reach = np.abs(view.normals).T
    nodes = np.arange(len(tree.blocks))
    blocks = tree.blocks
    for depth, level in enumerate(tree.levels):
        fresh = ~touched[blocks]
        nodes, blocks = nodes[fresh], blocks[fresh]
        if not len(nodes):
            return
        boxes = level.boxes[nodes].astype(np.float64)
        half = (boxes[:, 3:] - boxes[:, :3]) * 0.5
        middle = boxes[:, :3] + half
        middle -= origin
        distance = middle @ view.normals.T
        distance -= view.offsets
        radius = half @ reach
        slack = pad * reach.sum(0)
        met = (distance + radius >= -slack).all(1)
        contained = (distance >= radius).all(1)
        depths, spread = middle @ view.forward, half @ np.abs(view.forward)
        room = pad * float(np.abs(view.forward).sum()) + abs(view.end) * 1e-6 if np.isfinite(view.end) else 0.0
        met &= (depths - spread <= view.end + room) | (boxes[:, 2] <= view.above + pad)
        contained &= (depths + spread <= view.end) | (boxes[:, 5] < view.above)
        met &= boxes[:, 2] <= view.below + pad
        contained &= boxes[:, 5] <= view.below
        if depth == len(tree.levels) - 1:
            touched[blocks[met]] = True
            return
        touched[blocks[met & contained]] = True
        nodes, blocks = nodes[met], blocks[met]
        counts = level.first[nodes + 1] - level.first[nodes]
        ends = np.cumsum(counts)
        children = np.arange(ends[-1] if len(ends) else 0) + np.repeat(level.first[nodes] - (ends - counts), counts)
        nodes, blocks = children, np.repeat(blocks, counts)
