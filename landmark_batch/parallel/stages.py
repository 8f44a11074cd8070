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
from landmark_batch.model.blocks import BlockTables, FrameFetcher
from landmark_batch.model.decoder import Decoder
from landmark_batch.model.field import Field
from landmark_batch.model.passes import FieldInPasses
from landmark_batch.model.profile import span
from landmark_batch.model.runtime import load_runtime
from landmark_batch.model.sampling import Sampler, Samples
from landmark_batch.model.settings import RenderSettings
from landmark_batch.scene.weights import SceneWeights


@dataclass(frozen=True)
class Weighed:
    """weights [M] of samples, and the indices [C] int64 of those that get a colour."""

    weights: Tensor
    coloured: Tensor


class TensorStages:
    """With the plain ops, in torch or compiled for the CPU. weights: a share of a scene's channels."""

    def __init__(self, weights: SceneWeights, settings: RenderSettings, device: torch.device, tables: BlockTables | None = None) -> None:
        self.settings, self.config, self.device = settings, weights.config, device
        load_runtime(settings.runtime, device.type)
        with torch.inference_mode():
            self._decoder = Decoder(weights, settings.appearance, device)
            self._sampler = Sampler(self.config, settings, weights.mask, device)
            self._field: Field | FieldInPasses = Field(weights, settings.precision, device, tables)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Where the methods are called: this thread's ops are those of the runtime, and remember nothing for gradients."""
        with torch.inference_mode(), kernels.plain_ops() if self.settings.runtime == "torch" else nullcontext():
            yield

    @contextmanager
    def in_passes(self, fetcher: FrameFetcher) -> Iterator[None]:
        """Inside, blocks are brought as samples need them, a few at a time."""
        field = self._field
        assert isinstance(field, Field)
        self._field = FieldInPasses(field, self.config, fetcher.tables.division, fetcher)
        try:
            yield
        finally:
            self._field = field

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
