"""Ops of the mixed mode: ranks that hold shares of the channels render together, with a sum over ranks between the ops.

    march_density   -> samples of all rays, with this rank's share of their density     (sum the shares over the ranks)
    weigh_list      -> composite of the summed densities, list of the coloured samples
    fused.features  -> this rank's share of their features                              (sum the shares over the ranks)
    shade_features  -> colours of the summed features, summed by ray

All ranks march the same rays, so all have the same samples at the same places: a sum over ranks is a sum of equal tensors of
fixed size. Counts stay on the device; each op writes a status that the caller reads when the frame is finished.

status [4] int32: entries of the list that the op makes, 1 if they are more than its capacity (then render again with a larger one),
samples in absent blocks, samples that were looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .library import CUT, NAMESPACE
from .lists import fitted, make_list, unpack_bits

_FIELD = "float[] box, int[] division, Tensor? slots, Tensor[] planes, Tensor[] lines, int resolutions"
SCHEMAS = {
    "march_density": (
        "(Tensor rays, Tensor extent, Tensor base, Tensor slope, float[] crop, Tensor[] occupancy, float[] mask_box, int[] mask_size,"
        f" float mask_threshold, {_FIELD}, Tensor? basis, int capacity, {CUT}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "weigh_list": (
        "(Tensor density, Tensor t, Tensor delta, Tensor found, Tensor offset, str activation, bool nonlinear, float shift, float scale,"
        " float threshold, float stop, int list_capacity) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "shade_features": (
        "(Tensor rays, Tensor list, Tensor status, Tensor found, Tensor offset, Tensor features, Tensor matrices, Tensor biases) -> Tensor"
    ),
}


class Marched(NamedTuple):
    """What `march_density` returns. ray [cap] int32 and t, delta, partial [cap] float32 of each sample, in the order of rays and of
    their samples; found, offset [R] int32: samples of a ray, and where they begin; status [4]: see the module's text.

    delta: distance to the ray's next sample, 0 for its last. partial: the density feature of this rank's channels, before
    activation; 0 in absent blocks and outside. Nothing is written beyond the last sample.
    """

    ray: Tensor
    t: Tensor
    delta: Tensor
    partial: Tensor
    found: Tensor
    offset: Tensor
    status: Tensor


def reference_march_density(
    rays: Tensor,
    extent: Tensor,
    base: Tensor,
    slope: Tensor,
    crop: Sequence[float],
    occupancy: Sequence[Tensor],
    mask_box: Sequence[float],
    mask_size: Sequence[int],
    mask_threshold: float,
    box: Sequence[float],
    division: Sequence[int],
    slots: Tensor | None,
    planes: Sequence[Tensor],
    lines: Sequence[Tensor],
    resolutions: int,
    basis: Tensor | None,
    capacity: int,
    origins: Tensor | None = None,
    extents: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op in plain torch. AbsentBlockError for a sample in an absent block, which the compiled op counts in status[2]."""
    codes = reference.pack_occupancy(unpack_bits(occupancy[0], mask_size), 5) if occupancy else ()
    ray, t, delta = reference.march(rays, extent, base, slope, crop, codes, mask_box, mask_threshold)
    partial = reference.density(rays, ray, t, box, division, slots, planes, lines, resolutions, basis, origins, extents)
    found, offset = _by_ray(ray, rays.shape[0])
    samples = ray.shape[0]
    status = torch.tensor([samples, int(samples > capacity), 0, samples], dtype=torch.int32, device=rays.device)
    ray, t, delta, partial = (fitted(value, capacity) for value in (ray, t, delta, partial))
    return ray, t, delta, partial, found, offset, status


def reference_weigh_list(
    density: Tensor,
    t: Tensor,
    delta: Tensor,
    found: Tensor,
    offset: Tensor,
    activation: str,
    nonlinear: bool,
    shift: float,
    scale: float,
    threshold: float,
    stop: float,
    list_capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op in plain torch, without the early stop: `stop` is not looked at."""
    rays = found.shape[0]
    kept = torch.minimum(found, (density.shape[0] - offset).clamp(min=0)).to(torch.int64)
    ray = torch.arange(rays, dtype=torch.int32, device=found.device).repeat_interleave(kept)
    samples = ray.shape[0]
    turn = torch.arange(samples, device=found.device) - (kept.cumsum(0) - kept).repeat_interleave(kept)
    place = offset.to(torch.int64).repeat_interleave(kept) + turn
    density, t, delta = (values.index_select(0, place) for values in (density, t, delta))
    weights, coloured = reference.composite(density, ray, delta, rays, activation, shift, nonlinear, scale, threshold)
    _, depth, alpha = reference.accumulate(weights, t, ray, coloured, weights.new_zeros(coloured.shape[0], 3), rays)
    seen = ray.index_select(0, coloured)
    rows = make_list(seen, t.index_select(0, coloured), weights.index_select(0, coloured), list_capacity)
    seen_found, seen_offset = _by_ray(seen, rays)
    status = torch.tensor([seen.shape[0], int(seen.shape[0] > list_capacity), 0, samples], dtype=torch.int32, device=found.device)
    return rows, seen_found, seen_offset, alpha, depth, status


def _by_ray(ray: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Samples [count] int32 of each ray and where they begin, for ray [M] ascending."""
    found = torch.bincount(ray.to(torch.int64), minlength=count).to(torch.int32)
    return found, (found.cumsum(0) - found).to(torch.int32)


def _marched_shapes(
    rays: Tensor, extent: object, base: object, slope: object, crop: object, occupancy: object, mask_box: object, mask_size: object,
    mask_threshold: float, box: object, division: object, slots: object, planes: object, lines: object, resolutions: int,
    basis: object, capacity: int, origins: object = None, extents: object = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    lists = [rays.new_empty(capacity, dtype=dtype) for dtype in (torch.int32, torch.float32, torch.float32, torch.float32)]
    return (*lists, *(rays.new_empty(size, dtype=torch.int32) for size in (rays.shape[0], rays.shape[0], 4)))


def _weighed_shapes(density: Tensor, t: Tensor, delta: Tensor, found: Tensor, *rest: object) -> tuple[Tensor, ...]:
    capacity = rest[-1]
    assert isinstance(capacity, int | torch.SymInt)
    rays = found.shape[0]
    return (
        found.new_empty(capacity, 4),
        found.new_empty(rays),
        found.new_empty(rays),
        density.new_empty(rays),
        density.new_empty(rays),
        found.new_empty(4),
    )


def _colour_shape(rays: Tensor, *_: object) -> Tensor:
    return rays.new_empty(rays.shape[0], 3)


for _name, _schema in SCHEMAS.items():
    torch.library.define(f"{NAMESPACE}::{_name}", _schema)
torch.library.impl(f"{NAMESPACE}::march_density", "default", reference_march_density)
torch.library.impl(f"{NAMESPACE}::weigh_list", "default", reference_weigh_list)
torch.library.register_fake(f"{NAMESPACE}::march_density", _marched_shapes)
torch.library.register_fake(f"{NAMESPACE}::weigh_list", _weighed_shapes)
torch.library.register_fake(f"{NAMESPACE}::shade_features", _colour_shape)

march_density = torch.ops.landmark_batch.march_density
weigh_list = torch.ops.landmark_batch.weigh_list
shade_features = torch.ops.landmark_batch.shade_features
