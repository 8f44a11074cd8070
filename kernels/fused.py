"""The two fused ops of a frame, and what they read.

`trace` is march, density and composite in one pass over rays; `shade` is appearance, decode and the colours' sum, for the usual
decoder in fp16. `features` and `resolve` are the parts of `shade` for every other shape, with the caller's matrix products in
between. All counts stay on the device: `trace` writes a status that the caller reads when the frame is finished, and renders
again with larger buffers where they were too small. Compiled for CUDA; the references here compose the plain ops.

list [L, 4] int32: ray, t (bits), weight (bits), 0 of each coloured sample, in the order of rays and of their samples.
found, offset [R] int32: coloured samples of a ray, and where they begin in the list. status [4] int32: coloured samples in all,
largest number a ray needed if it passed `capacity` (else 0), samples in absent blocks, samples that survived the march.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .library import NAMESPACE

CELL = 8  # voxels of a coarse cell, on each axis
FEATURES, HIDDEN, SHADE_CHANNELS, SHADE_FEATURES = 32, 128, 48, 27

_FIELD = "float[] box, int[] division, Tensor? slots, Tensor[] planes, Tensor[] lines, int resolutions"
SCHEMAS = {
    "trace": (
        "(Tensor rays, Tensor extent, Tensor base, Tensor slope, float[] crop, Tensor[] occupancy, float[] mask_box, int[] mask_size,"
        f" float mask_threshold, {_FIELD}, Tensor? basis, str activation, bool nonlinear, float shift, float scale, float threshold,"
        " float stop, int capacity, int list_capacity) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "shade": (
        f"(Tensor rays, Tensor list, Tensor status, Tensor found, Tensor offset, {_FIELD}, Tensor matrices, Tensor biases) -> Tensor"
    ),
    "features": f"(Tensor rays, Tensor list, int count, {_FIELD}, Tensor basis) -> Tensor",
    "resolve": "(Tensor colour, Tensor offset, Tensor found) -> Tensor",
}


class Traced(NamedTuple):
    """What `trace` returns: see the module's text; alpha, depth [R] are finished sums."""

    list: Tensor
    found: Tensor
    offset: Tensor
    alpha: Tensor
    depth: Tensor
    status: Tensor


def pack_bits(volume: Tensor) -> list[Tensor]:
    """Mask volume [Z, Y, X] bool -> bits [Z, Y, ceil(X / 32)] int32 (x fastest, lowest bit first) and coarse bits, as `trace` reads.

    A coarse cell of 8 voxels an axis is set if any voxel in it or next to it is.
    """
    z, y, x = volume.shape
    near = torch.nn.functional.max_pool3d(volume[None, None].to(torch.float32), 3, 1, 1)
    padded = torch.nn.functional.pad(near, (0, -x % CELL, 0, -y % CELL, 0, -z % CELL))
    cells = torch.nn.functional.max_pool3d(padded, CELL, CELL)[0, 0] > 0
    return [
        _bits(torch.nn.functional.pad(volume, (0, -x % 32))),
        _bits(torch.nn.functional.pad(cells.reshape(-1), (0, -cells.numel() % 32))),
    ]


def _bits(flags: Tensor) -> Tensor:
    """Bool [..., 32 n] -> int32 [..., n]."""
    words = flags.reshape(*flags.shape[:-1], -1, 32).to(torch.int64)
    value = (words << torch.arange(32, device=flags.device)).sum(-1)
    return torch.where(value >= 2**31, value - 2**32, value).to(torch.int32).contiguous()


def pad_channels(table: Tensor) -> Tensor:
    """[..., C] -> [..., C rounded up to 8], zeros in the new channels, contiguous."""
    return torch.nn.functional.pad(table, (0, -table.shape[-1] % 8)).contiguous()


def pad_basis(basis: Tensor, tables: int) -> Tensor:
    """Basis [F, tables * C] -> [F, tables * C rounded up to 8]: columns of padded channels are 0."""
    rows = basis.shape[0]
    return pad_channels(basis.reshape(rows, tables, -1)).reshape(rows, -1)


def shade_takes(channels: int, tables: int, dtype: torch.dtype, app_dim: int, widths: Sequence[int], fea_pe: int, view_pe: int) -> bool:
    """Whether `shade` is compiled for this shape of field and decoder; `features` serves all."""
    return (
        dtype == torch.float16
        and channels == SHADE_CHANNELS
        and 1 <= tables <= 3
        and app_dim == SHADE_FEATURES
        and tuple(widths) == (HIDDEN, HIDDEN, 3)
        and (fea_pe, view_pe) == (2, 2)
    )


def pack_shade(basis: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Decoder matrices in the order `shade` multiplies them, fp16 core matrices, and its biases [264] float32.

    basis [27, tables * 48]; weights [128, 150], [128, 128], [3, 128] with the appearance folded into biases[0]. Input columns are
    rearranged into groups of 32: features, sin of both octaves, cos of both; then 16 of the view direction.
    """
    device = basis.device
    first = weights[0]
    count = SHADE_FEATURES
    grouped = torch.zeros(HIDDEN, 5 * FEATURES + 16, device=device)
    grouped[:, :count] = first[:, :count]
    start = count + 3
    features = torch.arange(count, device=device)
    for group, (cosine, octave) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1)), start=1):
        columns = start + cosine * 2 * count + features * 2 + octave
        grouped[:, group * FEATURES : group * FEATURES + count] = first[:, columns]
    grouped[:, 5 * FEATURES : 5 * FEATURES + 3] = first[:, count : count + 3]
    grouped[:, 5 * FEATURES + 3 : 5 * FEATURES + 15] = first[:, start + 4 * count :]
    rows = torch.zeros(FEATURES, basis.shape[1], device=device)
    rows[:count] = basis
    last = torch.zeros(8, HIDDEN, device=device)
    last[:3] = weights[2]
    matrices = torch.cat([_core_matrices(m) for m in (rows, grouped, weights[1], last)])
    bias = torch.zeros(2 * HIDDEN + 8, device=device)
    bias[:HIDDEN], bias[HIDDEN : 2 * HIDDEN], bias[2 * HIDDEN : 2 * HIDDEN + 3] = biases[0], biases[1], biases[2]
    return matrices, bias


def _core_matrices(matrix: Tensor) -> Tensor:
    """[N, K] -> [K / 8, N / 8, 8, 8] fp16, flat."""
    n, k = matrix.shape
    return matrix.view(n // 8, 8, k // 8, 8).permute(2, 0, 1, 3).reshape(-1).to(torch.float16)


def list_ray(samples: Tensor) -> Tensor:
    """Ray [L] int32 of each entry of a list."""
    return samples[:, 0].contiguous()


def list_weight(samples: Tensor) -> Tensor:
    """Weight [L] float32 of each entry of a list."""
    return samples[:, 2].contiguous().view(torch.float32)


def _reference_features(
    rays: Tensor,
    samples: Tensor,
    count: int,
    box: Sequence[float],
    division: Sequence[int],
    slots: Tensor | None,
    planes: Sequence[Tensor],
    lines: Sequence[Tensor],
    resolutions: int,
    basis: Tensor,
) -> Tensor:
    t = samples[:count, 1].contiguous().view(torch.float32)
    return reference.appearance(rays, list_ray(samples[:count]), t, box, division, slots, planes, lines, resolutions, basis)


def _reference_resolve(colour: Tensor, offset: Tensor, found: Tensor) -> Tensor:
    total = int(found.sum())
    return torch.segment_reduce(colour[:total, :3].contiguous(), "sum", lengths=found.to(torch.int64), axis=0, unsafe=True, initial=0)


def _reference_trace(
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
    activation: str,
    nonlinear: bool,
    shift: float,
    scale: float,
    threshold: float,
    stop: float,
    capacity: int,
    list_capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Without early stop and without limits: `stop`, `capacity` and `list_capacity` are not looked at."""
    count = rays.shape[0]
    codes = reference.pack_occupancy(_unpack(occupancy[0], mask_size), 5) if occupancy else ()
    ray, t, delta = reference.march(rays, extent, base, slope, crop, codes, mask_box, mask_threshold)
    feature = reference.density(rays, ray, t, box, division, slots, planes, lines, resolutions, basis)
    weights, coloured = reference.composite(feature, ray, delta, count, activation, shift, nonlinear, scale, threshold)
    _, depth, alpha = reference.accumulate(weights, t, ray, coloured, weights.new_zeros(coloured.shape[0], 3), count)
    seen = ray.index_select(0, coloured)
    columns = [
        seen,
        t.index_select(0, coloured).view(torch.int32),
        weights.index_select(0, coloured).view(torch.int32),
        torch.zeros_like(seen),
    ]
    found = torch.bincount(seen.to(torch.int64), minlength=count).to(torch.int32)
    offset = (found.cumsum(0) - found).to(torch.int32)
    status = torch.tensor([seen.shape[0], 0, 0, ray.shape[0]], dtype=torch.int32, device=rays.device)
    return torch.stack(columns, dim=1), found, offset, alpha, depth, status


def _unpack(bits: Tensor, size: Sequence[int]) -> Tensor:
    """bits [Z, Y, words] -> volume [Z, Y, X] bool; size (X, Y, Z)."""
    flags = bits[..., None] >> torch.arange(32, device=bits.device, dtype=torch.int32) & 1
    return flags.flatten(-2)[..., : size[0]].to(torch.bool).contiguous()


for _name, _schema in SCHEMAS.items():
    torch.library.define(f"{NAMESPACE}::{_name}", _schema)
for _name, _function in (("trace", _reference_trace), ("features", _reference_features), ("resolve", _reference_resolve)):
    torch.library.impl(f"{NAMESPACE}::{_name}", "default", _function)

trace = torch.ops.landmark_batch.trace
shade = torch.ops.landmark_batch.shade
features = torch.ops.landmark_batch.features
resolve = torch.ops.landmark_batch.resolve
