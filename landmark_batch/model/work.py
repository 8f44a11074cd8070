"""What a frame asks of a machine: arithmetic and bytes by stage, from the scene's shape and the number of its samples.

Counted is what the algorithm needs, not what a kernel does: a multiply-add is 2 FLOP; a lookup reads four texels of a plane and two of
a line for every channel, whether memory or a cache serves them. Sines, exponentials and index arithmetic are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.sampling import Samples
from landmark_batch.scene.weights import SceneConfig

TEXELS = 4 + 2  # of a plane and a line around a sample
INTERPOLATION = 8 + 4 + 1  # FLOP a channel: bilinear, linear, their product
COUNTED = (
    "density and appearance: 6 texels a channel, table and sample, in the precision of the tables, from whatever cache holds them; "
    "13 FLOP of interpolation, 1 of the sum over channels, 2 a row of the basis",
    "decode: products of its three layers on 2 FLOP a weight, the appearance row folded into the bias; encodings are not counted",
    "march: 8 mask voxels a tested sample, not counted as bytes; accumulate: weights, distances and colours once, 4 bytes each",
)


@dataclass(frozen=True)
class Work:
    """Of one frame: flop, bytes. kind: 'decode' where matrix products are most of it, '' where lookups are."""

    flop: float
    bytes: float
    kind: str = ""

    def __add__(self, other: Work) -> Work:
        return Work(self.flop + other.flop, self.bytes + other.bytes, self.kind or other.kind)


@dataclass(frozen=True)
class SampleCounts:
    """Of one frame. tested: rays × samples a ray. survived: in the box and the mask. evaluated: their density is needed, being in front

    of the point where a ray's transmittance falls below the runtime's stop. coloured: above the weight threshold."""

    rays: int
    tested: int
    survived: int
    evaluated: int
    coloured: int

    def a_ray(self) -> dict[str, float]:
        """The same for a mean ray."""
        return {name: getattr(self, name) / max(1, self.rays) for name in ("tested", "survived", "evaluated", "coloured")}


def frame_work(config: SceneConfig, counts: SampleCounts, *, element: int) -> dict[str, Work]:
    """Work by stage, under the names of `Renderer`'s ranges. element: bytes of a number in planes and lines."""
    tables = config.ndims * len(config.resolutions)
    density, appearance = tables * config.density_channels, tables * config.appearance_channels
    width = config.feature_width
    columns = config.app_dim * (1 + 2 * config.fea_pe) + (3 + 6 * config.view_pe if config.view_pe >= 0 else 0)
    basis = 2 * config.app_dim * appearance
    return {
        "rays": Work(0.0, 24.0 * counts.rays),
        "march": Work(0.0, 0.0),
        "density": Work(
            counts.evaluated * density * (INTERPOLATION + 1.0 + config.nonlinear_density), counts.evaluated * density * TEXELS * element
        ),
        "appearance": Work(
            counts.coloured * (appearance * INTERPOLATION + basis), counts.coloured * (appearance * TEXELS * element + 4.0 * config.app_dim)
        ),
        "decode": Work(counts.coloured * 2.0 * width * (columns + width + 3), counts.coloured * 4.0 * (config.app_dim + 3), kind="decode"),
        "accumulate": Work(
            2.0 * counts.survived + 8.0 * counts.coloured, 12.0 * counts.survived + 20.0 * counts.coloured + 20.0 * counts.rays
        ),
    }


def work_of_range(name: str, work: Mapping[str, Work]) -> Work | None:
    """Work of a measured range: of 'march and density' both; None for a name without counted work."""
    parts = [work[part] for part in name.split(" and ") if part in work]
    if not parts:
        return None
    total = sum(parts[1:], parts[0])
    return total if total.flop or total.bytes else None


@torch.inference_mode()
def count_samples(
    renderer: Renderer, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int, *, stop: float
) -> SampleCounts:
    """Count a frame's samples. stop: transmittance below which a ray ends."""
    settings = renderer.settings
    pose = torch.as_tensor(np.asarray(c2w, dtype=np.float32)[:3, :4]).to(renderer.device)
    lens = torch.tensor([float(v) for v in intrinsics], dtype=torch.float32, device=renderer.device)
    survived = evaluated = coloured = 0
    for tile in renderer.tiles(width, height):
        rays = pixel_rays(pose, lens, settings.pixel_center, tile.pixels(width, renderer.device), width)
        samples = renderer._sampler.march(rays)
        before, opacity = _transmittance(renderer, rays, samples)
        survived += len(samples)
        evaluated += int((before >= stop).sum())
        coloured += int((before * opacity > renderer.config.weight_threshold).sum())
    rays_in_all = width * height
    return SampleCounts(rays_in_all, rays_in_all * settings.samples, survived, evaluated, coloured)


def _transmittance(renderer: Renderer, rays: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """Transmittance in front of each sample, and its opacity, float64 [M]."""
    config = renderer.config
    feature = renderer._field.density(rays, samples)
    sigma = feature.relu() if config.nonlinear_density else feature
    sigma = F.softplus(sigma + config.density_shift) if config.activation == "softplus" else sigma.relu()
    depth = sigma.to(torch.float64) * samples.delta * renderer.settings.distance_scale
    total = depth.cumsum(0) - depth
    first = torch.searchsorted(samples.ray, samples.ray)  # of each sample's ray
    return torch.exp(total.index_select(0, first) - total) if len(samples) else depth, -torch.expm1(-depth)
