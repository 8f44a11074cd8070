"""The march: all samples of all rays, of which only those inside the box and the occupied mask survive."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .occupancy import BORDER

GROUP = 8  # neighbouring samples of a ray that are tested against a coarse level as one
FULL_BELOW = 0.999  # the trilinear value in a full cell is 1 up to rounding: certainly above such a threshold


def march(
    rays: Tensor,
    extent: Tensor,
    base: Tensor,
    slope: Tensor,
    box: Sequence[float],
    occupancy: Sequence[Tensor],
    mask_box: Sequence[float],
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples t = base[k] + extent[r] * slope[k] of ray r that lie in `box` and where the mask's trilinear value > threshold.

    rays [R, 6], extent [R], base and slope [N]; box and mask_box (x0, y0, z0, x1, y1, z1); occupancy: what `pack_occupancy`
    returns, or empty for no mask. Returns ray [M] int32 ascending, t [M], delta [M]: distance to the ray's next sample of the N,
    0 for the last. Both faces of the box are inside. Coordinates and mask values are formed in LandMark's order of operations
    (align corners, zeros outside); the coarse levels leave out only samples whose value is 0.
    """
    count = base.shape[0]
    groups = -(-count // GROUP)
    padding = groups * GROUP - count
    bases = torch.cat([base, base[-1:].expand(padding + 1)])  # the sample after the last repeats it: delta 0
    slopes = torch.cat([slope, slope[-1:].expand(padding + 1)])
    candidates = _groups_near_mask(rays, extent, bases, slopes, groups, occupancy, mask_box)

    # from here [GROUP, G]: long rows, so that what belongs to a ray is spread over whole vectors
    ray = torch.div(candidates, groups, rounding_mode="floor")
    group = candidates - ray * groups
    t = slopes[:-1].view(groups, GROUP).t().contiguous().index_select(1, group)
    t.mul_(extent.index_select(0, ray)).add_(bases[:-1].view(groups, GROUP).t().contiguous().index_select(1, group))
    places = torch.arange(GROUP, device=rays.device)
    outside = (group * GROUP)[None, :] >= (count - places)[:, None]
    pixels: list[Tensor] = []
    for axis in range(3):
        direction, origin = rays[:, axis + 3].index_select(0, ray), rays[:, axis].index_select(0, ray)
        position = (t * direction).add_(origin)
        outside |= position < box[axis]
        outside |= position > box[axis + 3]
        if occupancy:
            pixels.append(_mask_pixel(position, mask_box[axis], mask_box[axis + 3], occupancy[0].shape[2 - axis] - 3))
    code = _codes(pixels, occupancy[0]) if occupancy else None
    if code is not None:
        outside |= code == 0
    kept = outside.logical_not_().t().contiguous().view(-1).nonzero().view(-1)  # by ray, then by sample
    row = torch.div(kept, GROUP, rounding_mode="floor")
    place = kept - row * GROUP
    where = place * candidates.shape[0] + row
    if code is not None:
        passes = _mask_passes(where, t.view(-1), code.view(-1), [pixel.view(-1) for pixel in pixels], threshold)
        row, place, where = row.index_select(0, passes), place.index_select(0, passes), where.index_select(0, passes)

    survivor = ray.index_select(0, row)
    t = t.view(-1).index_select(0, where)
    following = group.index_select(0, row).mul_(GROUP).add_(place).add_(1)
    after = slopes.index_select(0, following).mul_(extent.index_select(0, survivor)).add_(bases.index_select(0, following))
    return survivor.to(torch.int32), t, after.sub_(t)


def _groups_near_mask(
    rays: Tensor, extent: Tensor, base: Tensor, slope: Tensor, groups: int, occupancy: Sequence[Tensor], mask_box: Sequence[float]
) -> Tensor:
    """Flat indices ray * groups + group, ascending, of the groups of samples that may touch an occupied voxel."""
    if not occupancy:
        return torch.arange(rays.shape[0] * groups, device=rays.device)
    codes, coarse, table = occupancy
    first = (slope[0:-1:GROUP, None] * extent).add_(base[0:-1:GROUP, None])  # [groups, R]
    last = (slope[GROUP - 1 : -1 : GROUP, None] * extent).add_(base[GROUP - 1 : -1 : GROUP, None])
    middle = (first + last).mul_(0.5)
    half = last.sub_(first).abs_().amax(0).mul_(0.5)  # [R]
    scale = [(codes.shape[2 - a] - 4) / (mask_box[a + 3] - mask_box[a]) for a in range(3)]  # voxels a scene unit
    scales = torch.tensor(scale, dtype=rays.dtype, device=rays.device)
    direction = rays[:, 3:] * scales
    offset = (rays[:, :3] - torch.tensor(mask_box[:3], dtype=rays.dtype, device=rays.device)).mul_(scales)
    # a voxel lights what is less than one voxel away; the rest is room for rounding
    reach = direction.abs().amax(-1).mul_(half).mul_(1.001).add_(1.1)
    level = reach.log2().ceil_().clamp_(1, table.shape[0])
    level = torch.where(level < table.shape[0], level, 0).to(torch.int64).clamp_(0, table.shape[0] - 1)
    dtype = torch.int32 if coarse.shape[0] < 2**31 else torch.int64
    shape = table.index_select(0, level).to(dtype).t().contiguous()  # offset, z, y, x: [4, R]
    shrink = torch.exp2(-level.to(rays.dtype))
    stride = torch.ones_like(shape[0])
    cell = shape[0].expand(groups, -1).clone()
    for axis in range(3):
        index = (middle * (direction[:, axis] * shrink)).add_(offset[:, axis] * shrink).add_(BORDER).to(dtype)
        cell += torch.minimum(index.clamp_(min=0), shape[3 - axis] - 1).mul_(stride)
        stride = stride * shape[3 - axis]
    near = coarse.index_select(0, cell.view(-1)).view(cell.shape)
    return near.t().contiguous().view(-1).nonzero().view(-1)


def _mask_pixel(position: Tensor, low: float, high: float, voxels: int) -> Tensor:
    """Voxel coordinate of positions on one axis of the mask: normalised to [-1, 1], then to voxels with align corners."""
    size = torch.tensor([low, high], dtype=position.dtype).diff()
    inverse = (1.0 / size * 2).item()
    return position.sub(low).mul_(inverse).sub_(1).add_(1).mul_(0.5).mul_(voxels - 1)


def _codes(pixels: Sequence[Tensor], codes: Tensor) -> Tensor:
    """The mask's byte for each sample. Whatever is beyond the mask, or NaN, falls into the empty border."""
    dtype = torch.int32 if codes.numel() < 2**31 else torch.int64
    cell = torch.zeros_like(pixels[0], dtype=dtype)
    for axis, pixel in enumerate(pixels):
        index = pixel.floor().to(dtype).add_(BORDER).clamp_(0, codes.shape[2 - axis] - 1)
        cell.add_(index, alpha=math.prod(codes.shape[3 - axis :]))
    return codes.view(-1).index_select(0, cell.view(-1)).view(cell.shape)


def _mask_passes(where: Tensor, t: Tensor, code: Tensor, pixels: Sequence[Tensor], threshold: float) -> Tensor:
    """Positions in `where` of the samples whose trilinear mask value exceeds the threshold."""
    codes = code.index_select(0, where)
    passes = t.index_select(0, where).isfinite()  # devices differ in the cell that a NaN falls into
    passes &= (codes == 255) & (threshold < FULL_BELOW)
    mixed = (~passes).nonzero().view(-1)
    chosen = where.index_select(0, mixed)
    bits = codes.index_select(0, mixed)
    low, high = [], []
    for pixel in pixels:
        value = pixel.index_select(0, chosen)
        floor = value.floor()
        high.append(value - floor)
        low.append(floor.add_(1).sub_(value))
    total = torch.zeros_like(low[0])
    for corner in range(8):
        x, y, z = (high[axis] if corner >> axis & 1 else low[axis] for axis in range(3))
        total += (x * y).mul_(z).mul_(bits >> corner & 1)
    passes[mixed] = total > threshold
    return passes.nonzero().view(-1)
