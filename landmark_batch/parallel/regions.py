"""Frames that need more blocks than a rank has slots: where they are cut, the same on all ranks, and what a rank renders of a region."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from landmark_batch.fetching import regions
from landmark_batch.model.blocks import FrameRegion
from landmark_batch.model.settings import RenderSettings
from landmark_batch.model.tiles import WARP_TILE, tile_side

from .shape import GroupShape


@dataclass(frozen=True)
class RegionRule:
    """unit: columns and rows of pixels, of which regions are multiples. rays: of a frame that go through passes together, about.
    times: how often they do.
    """

    unit: tuple[int, int]
    rays: int
    times: int = 1

    def passes(self, rays: int) -> int:
        """How often a rectangle of so many rays of a frame goes through passes."""
        return self.times * -(-rays // self.rays)


def region_rule(shape: GroupShape, settings: RenderSettings, device_type: str) -> RegionRule:
    """For the ranks of a group of this shape; a renderer of one rank is a group of one."""
    if settings.runtime == "fused" and device_type == "cuda":  # the rays of each tensor rank go through passes of their own
        return RegionRule(WARP_TILE, regions.PASS_RAYS * shape.data, shape.tensor)
    unit = tile_side(settings.samples, device_type)
    # over tensor ranks each tile goes through passes of its own
    return RegionRule(unit, (regions.PASS_RAYS if shape.tensor == 1 else unit[0] * unit[1]) * shape.data)


def places_inside(pixels: Tensor, width: int, region: FrameRegion) -> Tensor:
    """Indices [Q] int64 of those of pixels [P] (row * width + column) that lie in a region, ascending."""
    row = torch.div(pixels, width, rounding_mode="floor")
    column = pixels - row * width
    inside = (column >= region.left) & (column < region.right) & (row >= region.top) & (row < region.bottom)
    return inside.nonzero().view(-1)


class Rendered(Protocol):
    """rgb [Q, 3] before the background, depth [Q], alpha [Q] of pixels. counters; seconds by stage."""

    @property
    def rgb(self) -> Tensor: ...
    @property
    def depth(self) -> Tensor: ...
    @property
    def alpha(self) -> Tensor: ...
    @property
    def counters(self) -> Mapping[str, int]: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...


def join_regions(
    pixels: Tensor, width: int, parts: Iterable[tuple[FrameRegion, Rendered]]
) -> tuple[Tensor, Tensor, Tensor, dict[str, int], dict[str, float]]:
    """rgb [P, 3], depth [P], alpha [P], counters and seconds of pixels [P], of what was rendered of them in each region, in their order."""
    rgb, depth, alpha = (torch.empty(pixels.shape[0], *more, device=pixels.device) for more in ((3,), (), ()))
    counters: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for region, found in parts:
        places = places_inside(pixels, width, region)
        rgb[places], depth[places], alpha[places] = found.rgb, found.depth, found.alpha
        counters |= {name: counters.get(name, 0) + count for name, count in found.counters.items()}
        seconds |= {name: seconds.get(name, 0.0) + value for name, value in found.seconds.items()}
    return rgb, depth, alpha, counters, seconds
