"""The arithmetic of a tile whose channels are spread over tensor ranks: the parts between two exchanges.

`march_density` and `appearance` work on all samples with this rank's channels; `weigh` and `finish` on the samples this rank owns,
with the sums over all channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels import fused
from landmark_batch.model.decoder import Decoder
from landmark_batch.model.field import STORAGE, Field
from landmark_batch.model.profile import span
from landmark_batch.model.runtime import load_runtime
from landmark_batch.model.sampling import Sampler, Samples, flat_box
from landmark_batch.model.settings import RenderSettings
from landmark_batch.scene.weights import SceneWeights


@dataclass(frozen=True)
class Weighed:
    """weights [M] of samples, and the indices [C] int64 of those that get a colour."""

    weights: Tensor
    coloured: Tensor


class TensorStages:
    """With the plain ops, in torch or compiled for the CPU. weights: a share of a scene's channels."""

    def __init__(self, weights: SceneWeights, settings: RenderSettings, device: torch.device) -> None:
        self.settings, self.config, self.device = settings, weights.config, device
        load_runtime(settings.runtime, device.type)
        with torch.inference_mode():
            self._decoder = Decoder(weights, settings.appearance, device)
            self._load(weights)

    def _load(self, weights: SceneWeights) -> None:
        self._sampler = Sampler(self.config, self.settings, weights.mask, self.device)
        self._field = Field(weights, self.settings.precision, self.device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Where the methods are called: this thread's ops are those of the runtime, and remember nothing for gradients."""
        with torch.inference_mode(), kernels.plain_ops() if self.settings.runtime == "torch" else nullcontext():
            yield

    def march_density(self, rays: Tensor) -> tuple[Samples, Tensor]:
        """Samples of rays [R, 6], the same on every rank, and this rank's part [M] of their density features."""
        with span("march", self.device):
            samples = self._sampler.march(rays)
        with span("density", self.device):
            return samples, self._field.density(rays, samples)

    def weigh(self, feature: Tensor, samples: Samples, count: int) -> Weighed:
        """feature [M]: summed over ranks. samples: of `count` rays, counted from 0."""
        config = self.config
        weights, coloured = kernels.composite(
            feature,
            samples.ray,
            samples.delta,
            count,
            activation=config.activation,
            shift=config.density_shift,
            nonlinear=config.nonlinear_density,
            scale=self.settings.distance_scale,
            threshold=config.weight_threshold,
        )
        return Weighed(weights, coloured)

    def appearance(self, rays: Tensor, seen: Samples) -> Tensor:
        """This rank's part [C, app_dim] of the appearance features of all coloured samples."""
        with span("appearance", self.device):
            return self._field.appearance(rays, seen)

    def finish(self, rays: Tensor, samples: Samples, weighed: Weighed, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rgb [R, 3] before the background, depth [R], alpha [R] of rays [R, 6], with features [C, app_dim] summed over ranks."""
        with span("decode", self.device):
            colours = self._decoder.colours(features, rays, samples.select(weighed.coloured))
        with span("accumulate", self.device):
            return kernels.accumulate(weighed.weights, samples.t, samples.ray, weighed.coloured, colours, rays.shape[0])


class FusedTensorStages(TensorStages):
    """With the compiled CUDA kernels for march, density and appearance, the larger part of the work; tables as they read them."""

    def _load(self, weights: SceneWeights) -> None:
        config, device, dtype = self.config, self.device, STORAGE[self.settings.precision]
        self._sampler = Sampler(config, self.settings, None, device)
        self._occupancy: list[Tensor] = []
        self._mask_box, self._mask_size = flat_box(config.aabb), [0, 0, 0]
        if weights.mask is not None:
            self._occupancy = fused.pack_bits(weights.mask.volume.to(device))
            self._mask_box = flat_box(weights.mask.aabb)
            self._mask_size = [int(n) for n in reversed(weights.mask.volume.shape)]
        density, app = (
            [[fused.pad_channels(tensor.to(device=device, dtype=dtype)) for tensor in group] for group in groups]
            for groups in ((weights.density_planes, weights.density_lines), (weights.app_planes, weights.app_lines))
        )
        grid = (flat_box(config.aabb), () if config.layout == "single" else config.division, None)
        self._density = (*grid, *density, len(config.resolutions))
        self._app = (*grid, *app, len(config.resolutions))
        tables = len(app[0])
        self._basis = fused.pad_basis(weights.basis_mat.to(device, torch.float32), tables)
        self._basis_density = None
        if weights.basis_density is not None:
            self._basis_density = fused.pad_basis(weights.basis_density.to(device, torch.float32), tables)
        self._samples_per_ray = 16.0

    def march_density(self, rays: Tensor) -> tuple[Samples, Tensor]:
        settings = self.settings
        with span("march and density", self.device):
            while True:
                capacity = max(1024, int(rays.shape[0] * self._samples_per_ray))
                marched = fused.Marched(
                    *fused.march_density(
                        rays,
                        self._sampler.extent(rays),
                        *self._sampler.tables,
                        flat_box(settings.aabb),
                        self._occupancy,
                        self._mask_box,
                        self._mask_size,
                        settings.alpha_mask_threshold,
                        *self._density,
                        self._basis_density,
                        capacity,
                    )
                )
                found = int(marched.status[0])  # waits for the device
                if found <= capacity:
                    samples = Samples(marched.ray[:found], marched.t[:found], marched.delta[:found])
                    return samples, marched.partial[:found]
                self._samples_per_ray = found / rays.shape[0] * 1.25

    def appearance(self, rays: Tensor, seen: Samples) -> Tensor:
        if len(seen) == 0:
            return rays.new_zeros(0, self.config.app_dim)
        with span("appearance", self.device):
            zeros = torch.zeros_like(seen.ray)
            samples = torch.stack([seen.ray, seen.t.view(torch.int32), zeros, zeros], dim=1)
            features: Tensor = fused.features(rays, samples, len(seen), *self._app, self._basis)
            return features


def open_stages(weights: SceneWeights, settings: RenderSettings, device: torch.device) -> TensorStages:
    """The stages of a runtime on a device."""
    kind = FusedTensorStages if settings.runtime == "fused" and device.type == "cuda" else TensorStages
    return kind(weights, settings, device)
