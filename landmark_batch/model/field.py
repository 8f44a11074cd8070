"""The grid field of a scene on its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels.weighing import weigh
from landmark_batch.model.blocks import BlockTables, cut_arguments
from landmark_batch.model.sampling import Samples, flat_box
from landmark_batch.scene.weights import SceneWeights

STORAGE = {"fp32": torch.float32, "fp16": torch.float16}


class Field:
    """Planes and lines of all blocks, held in `precision` and read in float32.

    density and appearance are sums over channels, so that a rank that holds a share of the channels computes its share of both.
    """

    def __init__(self, weights: SceneWeights, precision: str, device: torch.device, tables: BlockTables | None = None) -> None:
        """tables: where the blocks of a scene that is fetched sit; weights then hold everything but planes."""
        config = weights.config
        dtype = STORAGE[precision]
        self._box = flat_box(config.aabb)
        self._resolutions = len(config.resolutions)
        self._slots: Tensor | None = None
        self._cut = cut_arguments(tables)
        self._division: Sequence[int] = () if config.layout == "single" else config.division
        groups = [(weights.density_planes, weights.density_lines), (weights.app_planes, weights.app_lines)]
        if tables is None:
            self._density, self._app = ([[_store(tensor, dtype, device) for tensor in part] for part in group] for group in groups)
        else:
            self._division, self._slots = tables.division, tables.slots
            self._density = [[*tables.density_planes], [*tables.density_lines]]
            self._app = [[*tables.app_planes], [*tables.app_lines]]
        self._basis = weights.basis_mat.to(device, torch.float32).contiguous()
        self._basis_density = None
        if weights.basis_density is not None:
            self._basis_density = weights.basis_density.to(device, torch.float32).contiguous()

    def density(self, rays: Tensor, samples: Samples) -> Tensor:
        """Density feature [M] of samples of rays [R, 6], before activation."""
        planes, lines = self._density
        return kernels.density(
            rays,
            samples.ray,
            samples.t,
            self._box,
            self._division,
            self._slots,
            planes,
            lines,
            self._resolutions,
            self._basis_density,
            **self._cut,
        )

    def weigh(self, rays: Tensor, samples: Samples, count: int, **composite: Any) -> tuple[Tensor, Tensor]:
        """`kernels.composite` of `density` in one op: weights [M], indices [C] of the coloured samples. composite: its keywords."""
        planes, lines = self._density
        return weigh(
            rays,
            samples.ray,
            samples.t,
            samples.delta,
            count,
            self._box,
            self._division,
            self._slots,
            planes,
            lines,
            self._resolutions,
            self._basis_density,
            **self._cut,
            **composite,
        )

    def appearance(self, rays: Tensor, samples: Samples) -> Tensor:
        """Appearance features [C, app_dim] of samples of rays [R, 6]."""
        planes, lines = self._app
        return kernels.appearance(
            rays, samples.ray, samples.t, self._box, self._division, self._slots, planes, lines, self._resolutions, self._basis, **self._cut
        )


def _store(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return tensor.to(device=device, dtype=dtype).contiguous()
