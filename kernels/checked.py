"""Rendering ops: checked wrappers over `torch.ops.landmark_batch.*`.

Each op has a schema and a plain-torch implementation for every device; compiled libraries override it by dispatch key. The
wrappers check shapes, dtypes and devices once, so that no implementation has to. They raise ValueError or TypeError, which mean
a bug in the caller: users' input is checked long before. A sample in a block that is not in memory is an AbsentBlockError.

Common arguments: rays [R, 6] float32, origin and unnormalised direction; ray [M] int32, the ray of each sample, ascending;
t [M] float32, the ray parameter of each sample; box (x0, y0, z0, x1, y1, z1) in scene units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .absent import absent_blocks
from .library import ops as _ops

ACTIVATIONS = ("softplus", "relu")


def pack_occupancy(volume: Tensor, levels: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Mask volume [Z, Y, X] bool -> what `march` reads: codes, coarse levels, table of levels. Made once a scene."""
    _check("volume", volume, (None, None, None), torch.bool)
    if levels < 0:
        raise ValueError(f"levels = {levels}: at least 0")
    return _triple(_ops.pack_occupancy(volume, levels))


def pixel_rays(c2w: Tensor, intrinsics: Tensor, pixel_center: float, pixel_index: Tensor, width: int) -> Tensor:
    """Rays [R, 6] of pixels row * width + column [R] int64: c2w [3, 4] and intrinsics [4] (fl_x, fl_y, cx, cy) as for a camera."""
    _check("c2w", c2w, (3, 4), torch.float32)
    _check("intrinsics", intrinsics, (4,), torch.float32, c2w)
    _check("pixel_index", pixel_index, (None,), torch.int64, c2w)
    if width < 1:
        raise ValueError(f"width = {width}: at least 1")
    return _one(_ops.pixel_rays(c2w, intrinsics, pixel_center, pixel_index, width))


def ray_hull(rays: Tensor, far: float, floor: float) -> Tensor:
    """t [R] where each ray reaches z = floor, or `far` where it does not go down."""
    _check("rays", rays, (None, 6), torch.float32)
    return _one(_ops.ray_hull(rays, far, floor))


def ray_box(rays: Tensor, box: Sequence[float], near: float, far: float) -> Tensor:
    """t [R] where each ray enters the box, clamped to near..far."""
    _check("rays", rays, (None, 6), torch.float32)
    return _one(_ops.ray_box(rays, _box("box", box), near, far))


def march(
    rays: Tensor,
    extent: Tensor,
    base: Tensor,
    slope: Tensor,
    box: Sequence[float],
    occupancy: Sequence[Tensor] = (),
    mask_box: Sequence[float] = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0),
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples that survive: ray [M] int32, t [M], delta [M] (distance to the ray's next sample, 0 for its last).

    Ray r has N samples t = base[k] + extent[r] * slope[k]. Those in `box` (faces included) with a trilinear mask value above
    `threshold` survive; occupancy: of `pack_occupancy`, spanning mask_box, or empty for no mask.
    """
    _check("rays", rays, (None, 6), torch.float32)
    _check("extent", extent, (rays.shape[0],), torch.float32, rays)
    _check("base", base, (None,), torch.float32, rays)
    _check("slope", slope, (base.shape[0],), torch.float32, rays)
    if base.shape[0] == 0:
        raise ValueError("base is empty: at least one sample a ray")
    if occupancy:
        if len(occupancy) != 3:
            raise ValueError(f"occupancy has {len(occupancy)} tensors: pass what pack_occupancy returns")
        _check("occupancy[0]", occupancy[0], (None, None, None), torch.uint8, rays)
        _check("occupancy[1]", occupancy[1], (None,), torch.uint8, rays)
        _check("occupancy[2]", occupancy[2], (None, 4), torch.int64, rays)
    return _triple(_ops.march(rays, extent, base, slope, _box("box", box), list(occupancy), _box("mask_box", mask_box), threshold))


def density(
    rays: Tensor,
    ray: Tensor,
    t: Tensor,
    box: Sequence[float],
    division: Sequence[int],
    slots: Tensor | None,
    planes: Sequence[Tensor],
    lines: Sequence[Tensor],
    resolutions: int,
    basis: Tensor | None = None,
    origins: Tensor | None = None,
    extents: Sequence[int] = (),
) -> Tensor:
    """Density feature [M] before activation.

    division: blocks along x, y; empty for a single-block scene. slots [blocks] int64: row of the tables that holds a block, -1
    absent (AbsentBlockError if a sample lies there); None = block b in row b. planes[dim * resolutions + res] [S, h, w, C], lines
    [S, n, C], float32 or float16. basis [1, K]: learned weights of the K = dims * resolutions * C products; None = plain sum.

    origins and extents make it a cut scene, one whose planes were cut into blocks: a sample has the bits it has in the whole. Its
    block is clamp(floor((v + 1) / (2 / blocks))) on x and on y, v in -1..1 over the box. planes then hold a block's tile, lines stay
    whole; origins [blocks, planes, 2] int32: first column and row of each tile in the whole plane; extents: height, width of each
    whole plane. A tile has the texels floor(first) .. floor(last) + 1 that its block reads.
    """
    columns = _check_field(rays, ray, t, division, slots, planes, lines, resolutions, origins, extents)
    if basis is not None:
        _check("basis", basis, (1, columns), torch.float32, rays)
    tables = (list(division), slots, list(planes), list(lines), resolutions)
    with absent_blocks():
        return _one(_ops.density(rays, ray, t, _box("box", box), *tables, basis, origins, list(extents)))


def composite(
    feature: Tensor,
    ray: Tensor,
    delta: Tensor,
    count: int,
    *,
    activation: str,
    shift: float,
    nonlinear: bool,
    scale: float,
    threshold: float,
    stop: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Weights [M] of all samples, and indices [C] int64 of those above `threshold`, which get a colour.

    feature [M]: of `density`; delta [M]: of `march`; count: number of rays. scale: LandMark's distance_scale. stop: samples behind
    the point where a ray's transmittance is below it have the weight 0 (the reference: as they come), so that composite of density
    has the bits of `weighing.weigh`.
    """
    _check("feature", feature, (None,), torch.float32)
    _check("ray", ray, (feature.shape[0],), torch.int32, feature)
    _check("delta", delta, (feature.shape[0],), torch.float32, feature)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation = {activation!r}: one of {', '.join(ACTIVATIONS)}")
    weights, coloured = _ops.composite(feature, ray, delta, count, activation, shift, nonlinear, scale, threshold, stop)
    return weights, coloured


def appearance(
    rays: Tensor,
    ray: Tensor,
    t: Tensor,
    box: Sequence[float],
    division: Sequence[int],
    slots: Tensor | None,
    planes: Sequence[Tensor],
    lines: Sequence[Tensor],
    resolutions: int,
    basis: Tensor,
    origins: Tensor | None = None,
    extents: Sequence[int] = (),
) -> Tensor:
    """Appearance features [C, F] of the coloured samples: basis [F, K] times their products. Arguments as in `density`."""
    columns = _check_field(rays, ray, t, division, slots, planes, lines, resolutions, origins, extents)
    _check("basis", basis, (None, columns), torch.float32, rays)
    tables = (list(division), slots, list(planes), list(lines), resolutions)
    with absent_blocks():
        return _one(_ops.appearance(rays, ray, t, _box("box", box), *tables, basis, origins, list(extents)))


def decode(
    features: Tensor,
    rays: Tensor,
    ray: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    fea_pe: int,
    view_pe: int,
) -> Tensor:
    """Colours [C, 3] in 0..1 of samples with features [C, F].

    weights: three [out, in]; biases: three [out], or empty. First-layer columns: features, view direction (none for view_pe < 0),
    PE(features, fea_pe), PE(view direction, view_pe); an appearance row is folded into the first bias by the caller.
    """
    _check("features", features, (None, None), torch.float32)
    _check("rays", rays, (None, 6), torch.float32, features)
    _check("ray", ray, (features.shape[0],), torch.int32, features)
    if len(weights) != 3 or len(biases) not in (0, 3):
        raise ValueError(f"{len(weights)} weights, {len(biases)} biases: three weights, three biases or none")
    width = features.shape[1] * (1 + 2 * max(fea_pe, 0)) + (3 + 6 * view_pe if view_pe >= 0 else 0)
    for i, weight in enumerate(weights):
        _check(f"weights[{i}]", weight, (3 if i == 2 else None, width), torch.float32, features)
        width = weight.shape[0]
        if biases:
            _check(f"biases[{i}]", biases[i], (width,), torch.float32, features)
    return _one(_ops.decode(features, rays, ray, list(weights), list(biases), fea_pe, view_pe))


def accumulate(weights: Tensor, t: Tensor, ray: Tensor, coloured: Tensor, rgb: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per ray, over its samples in order: rgb [R, 3] = sum of weight * colour, depth [R] = sum of weight * t, alpha [R].

    weights, t, ray [M]; coloured [C] int64 ascending into M; rgb [C, 3]; count = R.
    """
    _check("weights", weights, (None,), torch.float32)
    _check("t", t, (weights.shape[0],), torch.float32, weights)
    _check("ray", ray, (weights.shape[0],), torch.int32, weights)
    _check("coloured", coloured, (None,), torch.int64, weights)
    _check("rgb", rgb, (coloured.shape[0], 3), torch.float32, weights)
    return _triple(_ops.accumulate(weights, t, ray, coloured, rgb, count))


def _check_field(
    rays: Tensor,
    ray: Tensor,
    t: Tensor,
    division: Sequence[int],
    slots: Tensor | None,
    planes: Sequence[Tensor],
    lines: Sequence[Tensor],
    resolutions: int,
    origins: Tensor | None,
    extents: Sequence[int],
) -> int:
    """Checks the arguments that density and appearance share; returns the number of products K of a sample."""
    _check("rays", rays, (None, 6), torch.float32)
    _check("ray", ray, (None,), torch.int32, rays)
    _check("t", t, (ray.shape[0],), torch.float32, rays)
    if len(division) not in (0, 2) or any(n < 1 for n in division):
        raise ValueError(f"division = {list(division)}: blocks along x and y, or empty")
    if slots is not None:
        if not division:
            raise ValueError("slots without a division: a single-block scene has no block table")
        _check("slots", slots, (division[0] * division[1],), torch.int64, rays)
    if len(planes) != len(lines) or resolutions < 1 or len(planes) not in (resolutions, 3 * resolutions):
        raise ValueError(f"{len(planes)} planes, {len(lines)} lines, {resolutions} resolutions: one of each, for 1 or 3 dims")
    if (origins is None) != (not extents):
        raise ValueError("origins without extents, or extents without origins: a cut scene needs both")
    if origins is not None:
        if not division:
            raise ValueError("origins without a division: the division says how the scene was cut")
        _check("origins", origins, (division[0] * division[1], len(planes), 2), torch.int32, rays)
        if len(extents) != 2 * len(planes) or any(n < 1 for n in extents):
            raise ValueError(f"extents = {list(extents)}: height and width of each of the {len(planes)} whole planes")
    rows = 1 if not division else division[0] * division[1] if slots is None else None
    columns = 0
    for i, (plane, line) in enumerate(zip(planes, lines, strict=True)):
        channels = plane.shape[-1]
        _check(f"planes[{i}]", plane, (rows, None, None, channels), (torch.float32, torch.float16), rays)
        _check(f"lines[{i}]", line, (plane.shape[0], None, channels), (torch.float32, torch.float16), rays)
        if not (plane.is_contiguous() and line.is_contiguous()):
            raise ValueError(f"planes[{i}] or lines[{i}] is not contiguous")
        columns += channels
    return columns


def _check(
    name: str,
    value: Tensor,
    shape: tuple[int | None, ...],
    dtype: torch.dtype | tuple[torch.dtype, ...],
    like: Tensor | None = None,
) -> None:
    if value.dim() != len(shape) or any(want is not None and have != want for have, want in zip(value.shape, shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} has shape {list(value.shape)}, not [{wanted}]")
    if value.dtype not in (dtype if isinstance(dtype, tuple) else (dtype,)):
        raise TypeError(f"{name} is {value.dtype}, not {dtype}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name} is on {value.device}, not on {like.device}")


def _box(name: str, box: Sequence[float]) -> list[float]:
    if len(box) != 6:
        raise ValueError(f"{name} has {len(box)} numbers, not 6")
    return [float(v) for v in box]


def _one(result: Tensor) -> Tensor:
    return result


def _triple(result: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = result
    return first, second, third
