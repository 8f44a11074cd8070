"""`weigh`: density and composite in one op, which leaves out what nothing is seen of.

Behind the first walls of a scene most surviving samples are hidden; a ray is given up where less light passes than `stop`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .absent import absent_blocks
from .library import CUT, NAMESPACE, PLAIN
from .library import ops as _ops

STOP = 1e-7  # transmittance below which float32 sums of weights no longer change

SCHEMA = (
    "(Tensor rays, Tensor ray, Tensor t, Tensor delta, int count, float[] box, int[] division, Tensor? slots, Tensor[] planes,"
    " Tensor[] lines, int resolutions, Tensor? basis, str activation, float shift, bool nonlinear, float scale, float threshold,"
    f" float stop, {CUT}) -> (Tensor, Tensor)"
)


def weigh(
    rays: Tensor,
    ray: Tensor,
    t: Tensor,
    delta: Tensor,
    count: int,
    box: Sequence[float],
    division: Sequence[int],
    slots: Tensor | None,
    planes: Sequence[Tensor],
    lines: Sequence[Tensor],
    resolutions: int,
    basis: Tensor | None = None,
    *,
    activation: str,
    shift: float,
    nonlinear: bool,
    scale: float,
    threshold: float,
    stop: float = STOP,
    origins: Tensor | None = None,
    extents: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Weights [M] of samples and indices [C] int64 of the coloured ones: `composite` of `density`, arguments as there.

    Samples behind the point where a ray's transmittance is below `stop` have the weight 0 (the reference: below `stop`).
    Arguments are checked as in `kernels.density`; delta [M] of `kernels.march`. AbsentBlockError for a sample in an absent block.
    """
    if delta.shape != t.shape or delta.dtype != torch.float32:
        raise ValueError(f"delta is {delta.dtype} {list(delta.shape)}, not float32 {list(t.shape)}")
    with absent_blocks():
        weights, coloured = _ops.weigh(
            rays,
            ray,
            t,
            delta,
            count,
            [float(v) for v in box],
            list(division),
            slots,
            list(planes),
            list(lines),
            resolutions,
            basis,
            activation,
            shift,
            nonlinear,
            scale,
            threshold,
            stop,
            origins,
            list(extents),
        )
    return weights, coloured


def reference_weigh(
    rays: Tensor,
    ray: Tensor,
    t: Tensor,
    delta: Tensor,
    count: int,
    box: Sequence[float],
    division: Sequence[int],
    slots: Tensor | None,
    planes: Sequence[Tensor],
    lines: Sequence[Tensor],
    resolutions: int,
    basis: Tensor | None,
    activation: str,
    shift: float,
    nonlinear: bool,
    scale: float,
    threshold: float,
    stop: float,
    origins: Tensor | None = None,
    extents: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """The op in plain torch, without the early stop: `stop` is not looked at."""
    feature = reference.density(rays, ray, t, box, division, slots, planes, lines, resolutions, basis, origins, extents)
    return reference.composite(feature, ray, delta, count, activation, shift, nonlinear, scale, threshold)


def _shapes(rays: Tensor, ray: Tensor, t: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(t), t.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


PLAIN["weigh"] = reference_weigh
torch.library.define(f"{NAMESPACE}::weigh", SCHEMA)
torch.library.impl(f"{NAMESPACE}::weigh", "default", reference_weigh)
torch.library.register_fake(f"{NAMESPACE}::weigh", _shapes)
