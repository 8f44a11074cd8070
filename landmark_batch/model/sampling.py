"""Where a ray is sampled, and which samples lie in occupied space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.model.settings import RenderSettings, dense_step
from landmark_batch.scene.weights import AlphaMask, Box, SceneConfig


@dataclass(frozen=True)
class Samples:
    """Surviving samples of a tile of rays: ray [M] int32 ascending, t [M], delta [M] (distance to the ray's next sample)."""

    ray: Tensor
    t: Tensor
    delta: Tensor

    def __len__(self) -> int:
        return int(self.t.shape[0])

    def select(self, index: Tensor) -> Samples:
        """The samples at `index` [C], ascending."""
        return Samples(self.ray.index_select(0, index), self.t.index_select(0, index), self.delta.index_select(0, index))


def flat_box(box: Box) -> tuple[float, ...]:
    """((x0, y0, z0), (x1, y1, z1)) -> (x0, y0, z0, x1, y1, z1), as the ops take it."""
    return (*box[0], *box[1])


class Sampler:
    """Samples of both of LandMark's ways, t = base[k] + extent(ray) * slope[k].

    hull (sample_ray_within_hull): t = near (1 - s) + far s with s = linspace(0, 1, N), far where the ray reaches the scene's
    floor. dense (sample_ray): t = entry of the box + step k.
    """

    def __init__(self, config: SceneConfig, settings: RenderSettings, mask: AlphaMask | None, device: torch.device) -> None:
        self._config = config
        self._settings = settings
        base, slope = sample_tables(config, settings)
        self._base, self._slope = base.to(device), slope.to(device)
        self._occupancy: Sequence[Tensor] = ()
        self._mask_box = flat_box(config.aabb)
        if mask is not None:
            self._occupancy = kernels.pack_occupancy(mask.volume.to(device))
            self._mask_box = flat_box(mask.aabb)

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """base [N], slope [N] on the device."""
        return self._base, self._slope

    def extent(self, rays: Tensor) -> Tensor:
        """[R]: t of the scene's floor (hull) or of the entry into its box (dense)."""
        settings, box = self._settings, self._config.aabb
        if settings.mode == "hull":
            return kernels.ray_hull(rays, settings.far, box[0][2])
        return kernels.ray_box(rays, flat_box(box), settings.near, settings.far)

    def march(self, rays: Tensor) -> Samples:
        """The samples of rays [R, 6] that lie in the box and in occupied space."""
        ray, t, delta = kernels.march(
            rays,
            self.extent(rays),
            self._base,
            self._slope,
            flat_box(self._settings.aabb),
            self._occupancy,
            self._mask_box,
            self._settings.alpha_mask_threshold,
        )
        return Samples(ray, t, delta)


def sample_tables(config: SceneConfig, settings: RenderSettings) -> tuple[Tensor, Tensor]:
    """base [N], slope [N] on the CPU, in LandMark's float32 arithmetic."""
    if settings.mode == "hull":
        s = torch.linspace(0.0, 1.0, settings.samples, dtype=torch.float32)
        return settings.near * (1.0 - s), s
    steps = torch.arange(settings.samples, dtype=torch.float32) * dense_step(config)
    return steps, torch.ones_like(steps)
