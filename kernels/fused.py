"""The two fused ops of a frame, and what they read.

`trace` is march, density and composite in one pass over rays; `shade` is appearance, decode and the colours' sum, for the usual
decoder in fp16. `features` and `resolve` are the parts of `shade` for every other shape, with the caller's matrix products in
between. All counts stay on the device: `trace` writes a status that the caller reads when the frame is finished, and renders
again with larger buffers where they were too small. Compiled for CUDA; the references here compose the plain ops.

list [L, 4] int32: the coloured samples, see `lists`. found, offset [R] int32: coloured samples of a ray, and where they begin in
the list. status [4] int32: coloured samples in all, largest number a ray needed if it passed `capacity` (else 0), samples in absent
blocks, samples that survived the march. `launch` chooses among launch shapes of a kernel, see `tuning`: bits do not depend on it.
The ops of ranks that share a scene's channels are in `mixed`; they can be called from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .library import CUT, NAMESPACE
from .lists import fitted, list_ray, list_weight, make_list, pack_bits, unpack_bits
from .mixed import Marched, march_density, shade_features, weigh_list

__all__ = [
    "Marched",
    "Traced",
    "features",
    "list_ray",
    "list_weight",
    "march_density",
    "pack_bits",
    "pack_decoder",
    "pack_shade",
    "pad_basis",
    "pad_channels",
    "resolve",
    "shade",
    "shade_features",
    "shade_pass",
    "shade_takes",
    "trace",
    "weigh_list",
]

FEATURES, HIDDEN, SHADE_CHANNELS, SHADE_FEATURES = 32, 128, 48, 27

_FIELD = "float[] box, int[] division, Tensor? slots, Tensor[] planes, Tensor[] lines, int resolutions"
SCHEMAS = {
    "trace": (
        "(Tensor rays, Tensor extent, Tensor base, Tensor slope, float[] crop, Tensor[] occupancy, float[] mask_box, int[] mask_size,"
        f" float mask_threshold, {_FIELD}, Tensor? basis, str activation, bool nonlinear, float shift, float scale, float threshold,"
        f" float stop, int capacity, int list_capacity, int launch=0, {CUT}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "shade": (
        f"(Tensor rays, Tensor list, Tensor status, Tensor found, Tensor offset, {_FIELD}, Tensor matrices, Tensor biases,"
        f" int launch=0, {CUT}) -> Tensor"
    ),
    "shade_pass": (
        f"(Tensor rays, Tensor list, Tensor status, {_FIELD}, Tensor matrices, Tensor biases, Tensor(a!) colour, int launch=0, {CUT}) -> ()"
    ),
    "features": f"(Tensor rays, Tensor list, int count, {_FIELD}, Tensor basis, Tensor? status=None, {CUT}) -> Tensor",
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


def pad_channels(table: Tensor) -> Tensor:
    """[..., C] -> [..., C rounded up to 8], zeros in the new channels, contiguous. A table that is so already is returned itself: it may
    be most of a device's memory.
    """
    if table.shape[-1] % 8 == 0:
        return table.contiguous()
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
    rows = torch.zeros(FEATURES, basis.shape[1], device=basis.device)
    rows[:SHADE_FEATURES] = basis
    matrices, bias = pack_decoder(weights, biases)
    return torch.cat([_core_matrices(rows), matrices]), bias


def pack_decoder(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """As `pack_shade` without the basis: what `shade_features` multiplies."""
    first = weights[0]
    device = first.device
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
    last = torch.zeros(8, HIDDEN, device=device)
    last[:3] = weights[2]
    matrices = torch.cat([_core_matrices(m) for m in (grouped, weights[1], last)])
    bias = torch.zeros(2 * HIDDEN + 8, device=device)
    bias[:HIDDEN], bias[HIDDEN : 2 * HIDDEN], bias[2 * HIDDEN : 2 * HIDDEN + 3] = biases[0], biases[1], biases[2]
    return matrices, bias


def _core_matrices(matrix: Tensor) -> Tensor:
    """[N, K] -> [K / 8, N / 8, 8, 8] fp16, flat."""
    n, k = matrix.shape
    return matrix.view(n // 8, 8, k // 8, 8).permute(2, 0, 1, 3).reshape(-1).to(torch.float16)


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
    status: Tensor | None = None,
    origins: Tensor | None = None,
    extents: Sequence[int] = (),
) -> Tensor:
    listed = count if status is None else min(count, int(status[0]))
    samples = samples[:listed]
    t = samples[:, 1].contiguous().view(torch.float32)
    result = reference.appearance(rays, list_ray(samples), t, box, division, slots, planes, lines, resolutions, basis, origins, extents)
    return fitted(result, count)


def _reference_resolve(colour: Tensor, offset: Tensor, found: Tensor) -> Tensor:
    whole = torch.where(offset + found <= colour.shape[0], found, 0).to(torch.int64)  # an overfull list is rendered again
    total = int(whole.sum())
    return torch.segment_reduce(colour[:total, :3].contiguous(), "sum", lengths=whole, axis=0, unsafe=True, initial=0)


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
    launch: int = 0,
    origins: Tensor | None = None,
    extents: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Without early stop and without a limit for a ray: `stop` and `capacity` are not looked at, nor is `launch`."""
    count = rays.shape[0]
    codes = reference.pack_occupancy(unpack_bits(occupancy[0], mask_size), 5) if occupancy else ()
    ray, t, delta = reference.march(rays, extent, base, slope, crop, codes, mask_box, mask_threshold)
    feature = reference.density(rays, ray, t, box, division, slots, planes, lines, resolutions, basis, origins, extents)
    weights, coloured = reference.composite(feature, ray, delta, count, activation, shift, nonlinear, scale, threshold)
    _, depth, alpha = reference.accumulate(weights, t, ray, coloured, weights.new_zeros(coloured.shape[0], 3), count)
    seen = ray.index_select(0, coloured)
    rows = make_list(seen, t.index_select(0, coloured), weights.index_select(0, coloured), list_capacity)
    found = torch.bincount(seen.to(torch.int64), minlength=count).to(torch.int32)
    offset = (found.cumsum(0) - found).to(torch.int32)
    status = torch.tensor([seen.shape[0], 0, 0, ray.shape[0]], dtype=torch.int32, device=rays.device)
    return rows, found, offset, alpha, depth, status


def _trace_shapes(
    rays: Tensor, extent: Tensor, base: Tensor, slope: Tensor, crop: object, occupancy: object, mask_box: object, mask_size: object,
    mask_threshold: float, box: object, division: object, slots: object, planes: object, lines: object, resolutions: int,
    basis: object, activation: str, nonlinear: bool, shift: float, scale: float, threshold: float, stop: float, capacity: int,
    list_capacity: int, launch: int = 0, origins: object = None, extents: object = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    count = rays.shape[0]
    ints = [rays.new_empty(size, dtype=torch.int32) for size in ((list_capacity, 4), (count,), (count,))]
    return (*ints, rays.new_empty(count), rays.new_empty(count), rays.new_empty(4, dtype=torch.int32))


def _shade_shape(rays: Tensor, *_: object) -> Tensor:
    return rays.new_empty(rays.shape[0], 3)


def _shade_pass_shape(*_: object) -> None:
    return None


def _features_shape(
    rays: Tensor, samples: Tensor, count: int, box: object, division: object, slots: object, planes: object, lines: object,
    resolutions: int, basis: Tensor, status: object = None, origins: object = None, extents: object = (),
) -> Tensor:  # fmt: skip
    return rays.new_empty(count, basis.shape[0])


def _resolve_shape(colour: Tensor, offset: Tensor, found: Tensor) -> Tensor:
    return colour.new_empty(found.shape[0], 3)


_REFERENCES: dict[str, Callable[..., object]] = {"trace": _reference_trace, "features": _reference_features, "resolve": _reference_resolve}
_SHAPES: dict[str, Callable[..., object]] = {
    "trace": _trace_shapes,
    "shade": _shade_shape,
    "shade_pass": _shade_pass_shape,
    "features": _features_shape,
    "resolve": _resolve_shape,
}

for _name, _schema in SCHEMAS.items():
    torch.library.define(f"{NAMESPACE}::{_name}", _schema)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _SHAPES[_name])
    if _name in _REFERENCES:
        torch.library.impl(f"{NAMESPACE}::{_name}", "default", _REFERENCES[_name])

trace = torch.ops.landmark_batch.trace
shade = torch.ops.landmark_batch.shade
shade_pass = torch.ops.landmark_batch.shade_pass
features = torch.ops.landmark_batch.features
resolve = torch.ops.landmark_batch.resolve
