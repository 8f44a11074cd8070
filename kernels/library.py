"""Schemas of all ops, the reference as their default implementation on every device, and shapes for tracing.

A compiled library overrides an op for a device by TORCH_LIBRARY_IMPL(landmark_batch, CPU or CUDA, m); callers do not change. It
serves every caller of its process but those inside `plain_ops`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import reference

NAMESPACE = "landmark_batch"

_FIELD = "Tensor rays, Tensor ray, Tensor t, float[] box, int[] division, Tensor? slots, Tensor[] planes, Tensor[] lines, int resolutions"
CUT = "Tensor? origins=None, int[] extents=[]"  # of a cut scene, last in every op that reads planes

SCHEMAS: dict[str, str] = {
    "pack_occupancy": "(Tensor volume, int levels) -> (Tensor, Tensor, Tensor)",
    "pixel_rays": "(Tensor c2w, Tensor intrinsics, float pixel_center, Tensor pixel_index, int width) -> Tensor",
    "ray_hull": "(Tensor rays, float far, float floor) -> Tensor",
    "ray_box": "(Tensor rays, float[] box, float near, float far) -> Tensor",
    "march": (
        "(Tensor rays, Tensor extent, Tensor base, Tensor slope, float[] box, Tensor[] occupancy, float[] mask_box, float threshold)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "density": f"({_FIELD}, Tensor? basis, {CUT}) -> Tensor",
    "composite": (
        "(Tensor feature, Tensor ray, Tensor delta, int count, str activation, float shift, bool nonlinear, float scale,"
        " float threshold, float stop=0.0) -> (Tensor, Tensor)"
    ),
    "appearance": f"({_FIELD}, Tensor basis, {CUT}) -> Tensor",
    "decode": ("(Tensor features, Tensor rays, Tensor ray, Tensor[] weights, Tensor[] biases, int fea_pe, int view_pe) -> Tensor"),
    "accumulate": "(Tensor weights, Tensor t, Tensor ray, Tensor coloured, Tensor rgb, int count) -> (Tensor, Tensor, Tensor)",
}


def _pack_occupancy(volume: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    size = [int(n) for n in volume.shape]
    cells = 1
    for level in range(1, levels + 1):
        cells_z, cells_y, cells_x = (-(-n // 2**level) + 4 for n in size)
        cells += cells_z * cells_y * cells_x
    return (
        volume.new_empty([n + 3 for n in size], dtype=torch.uint8),
        volume.new_empty([cells], dtype=torch.uint8),
        volume.new_empty([levels + 1, 4], dtype=torch.int64),
    )


def _pixel_rays(c2w: Tensor, intrinsics: Tensor, pixel_center: float, pixel_index: Tensor, width: int) -> Tensor:
    return c2w.new_empty(pixel_index.shape[0], 6)


def _per_ray(rays: Tensor, *_: Any) -> Tensor:
    return rays.new_empty(rays.shape[0])


def _march(rays: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    samples = torch.library.get_ctx().new_dynamic_size()
    return rays.new_empty(samples, dtype=torch.int32), rays.new_empty(samples), rays.new_empty(samples)


def _density(rays: Tensor, ray: Tensor, t: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(t)


def _composite(feature: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    coloured = torch.library.get_ctx().new_dynamic_size()
    return torch.empty_like(feature), feature.new_empty(coloured, dtype=torch.int64)


def _appearance(rays: Tensor, ray: Tensor, t: Tensor, *rest: Any) -> Tensor:
    basis: Tensor = rest[6]
    return t.new_empty(t.shape[0], basis.shape[0])


def _decode(features: Tensor, *_: Any) -> Tensor:
    return features.new_empty(features.shape[0], 3)


def _accumulate(weights: Tensor, t: Tensor, ray: Tensor, coloured: Tensor, rgb: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    return weights.new_empty(count, 3), weights.new_empty(count), weights.new_empty(count)


_SHAPES: dict[str, Callable[..., Tensor | Sequence[Tensor]]] = {
    "pack_occupancy": _pack_occupancy,
    "pixel_rays": _pixel_rays,
    "ray_hull": _per_ray,
    "ray_box": _per_ray,
    "march": _march,
    "density": _density,
    "composite": _composite,
    "appearance": _appearance,
    "decode": _decode,
    "accumulate": _accumulate,
}

PLAIN: dict[str, Callable[..., Any]] = {name: getattr(reference, name) for name in SCHEMAS}


class _Thread(threading.local):
    plain = False


_thread = _Thread()


@contextmanager
def plain_ops() -> Iterator[None]:
    """The ops of this thread are the plain-torch references meanwhile, whatever libraries this process has loaded."""
    before, _thread.plain = _thread.plain, True
    try:
        yield
    finally:
        _thread.plain = before


class Ops:
    """The ops by name: the dispatcher's, or the plain references inside `plain_ops`."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = PLAIN[name] if _thread.plain else getattr(torch.ops.landmark_batch, name)
        return found


ops = Ops()

for _name, _schema in SCHEMAS.items():
    torch.library.define(f"{NAMESPACE}::{_name}", _schema)
    torch.library.impl(f"{NAMESPACE}::{_name}", "default", getattr(reference, _name))  # key CompositeExplicitAutograd
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _SHAPES[_name])
