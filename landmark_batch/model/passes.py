"""A frame that needs more blocks than there are slots: densities block by block, weights once, then colours block by block.

A sample lies in one block alone, so its density is what it is whatever other blocks are there. Weights are formed when all densities of a
ray are known, and a ray's colours are summed when all of them are: the bits are those of a frame with every block in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.kernels.weighing import STOP
from landmark_batch.model.blocks import BlockSource, in_passes
from landmark_batch.model.field import Field
from landmark_batch.model.renderer import Renderer, TileOutput, full_precision
from landmark_batch.model.sampling import Samples
from landmark_batch.model.tiles import Tile
from landmark_batch.model.touched import blocks_of, present_blocks
from landmark_batch.scene.weights import SceneConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

BAND_SAMPLES = 2**22  # surviving samples that are held at once: a band of tiles goes through all of its passes before the next


@dataclass
class _Part:
    """A tile between its passes. block [M]: of each sample, -1 for none."""

    tile: Tile
    rays: Tensor
    samples: Samples
    block: Tensor
    feature: Tensor
    weights: Tensor
    coloured: Tensor
    seen: Samples
    features: Tensor


class FieldInPasses:
    """A `Field` whose blocks sit in slots, fewer than its samples lie in: what is asked of it is done block by block.

    One thread may use it, since one hold ends before the next begins.
    """

    def __init__(self, field: Field, config: SceneConfig, division: Sequence[int], source: BlockSource) -> None:
        self._field, self._config, self._source = field, config, source
        self._division = tuple(division)

    def density(self, rays: Tensor, samples: Samples) -> Tensor:
        """As Field.density."""
        feature = torch.zeros_like(samples.t)
        for chosen in self._passes(rays, samples):
            feature[chosen] = self._field.density(rays, samples.select(chosen))
        return feature

    def appearance(self, rays: Tensor, samples: Samples) -> Tensor:
        """As Field.appearance."""
        features = samples.t.new_zeros(len(samples), self._config.app_dim)
        for chosen in self._passes(rays, samples, last=True):
            features[chosen] = self._field.appearance(rays, samples.select(chosen))
        return features

    def _passes(self, rays: Tensor, samples: Samples, *, last: bool = False) -> Iterator[Tensor]:
        """Indices of the samples whose blocks are present, pass by pass. last: they are not needed again."""
        block = blocks_of(rays, samples, self._config, self._division)
        for group in in_passes(self._source.in_order(present_blocks([block]), last=last), self._source.capacity):
            with self._source.hold(group):
                yield _inside(block, group, self._division)


class TilePasses:
    """Renders tiles by a `Renderer` whose blocks sit in slots, fewer than a frame needs."""

    def __init__(self, renderer: Renderer, division: Sequence[int]) -> None:
        """division: blocks along x, y, see `BlockTables`."""
        self._renderer = renderer
        self._division = tuple(division)

    def render_tiles(
        self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, tiles: Sequence[Tile], source: BlockSource
    ) -> Iterator[TileOutput]:
        """As `Renderer.render_tiles`, with blocks brought by `source` as they are needed."""
        renderer = self._renderer
        pose = torch.as_tensor(np.asarray(c2w, dtype=np.float32)[:3, :4]).to(renderer.device)
        lens = torch.tensor([float(v) for v in intrinsics], dtype=torch.float32, device=renderer.device)
        with full_precision():
            band: list[_Part] = []
            held = 0
            for part in renderer._pool.map(self._plain(lambda tile: self._march(pose, lens, width, tile)), tiles):
                band.append(part)
                held += len(part.samples)
                if held >= BAND_SAMPLES:
                    yield from self._finish_band(band, source)
                    band, held = [], 0
            yield from self._finish_band(band, source)

    def _finish_band(self, band: list[_Part], source: BlockSource) -> Iterator[TileOutput]:
        needed = present_blocks(part.block for part in band)
        for group in in_passes(source.in_order(needed, last=False), source.capacity):
            with source.hold(group):
                self._each(band, lambda part, group=group: self._add_density(part, group))  # type: ignore[misc]
        self._each(band, self._weigh)
        needed = present_blocks(part.block.index_select(0, part.coloured) for part in band)
        for group in in_passes(source.in_order(needed, last=True), source.capacity):
            with source.hold(group):
                self._each(band, lambda part, group=group: self._add_appearance(part, group))  # type: ignore[misc]
        yield from self._renderer._pool.map(self._plain(self._decode), band)

    def _each(self, band: list[_Part], step: Callable[[_Part], None]) -> None:
        for _ in self._renderer._pool.map(self._plain(step), band):
            pass

    def _plain(self, step: Callable[[Item], Result]) -> Callable[[Item], Result]:
        """`step` with the ops of the renderer's runtime."""

        def run(item: Item) -> Result:
            plain = self._renderer.settings.runtime == "torch"
            with torch.inference_mode(), kernels.plain_ops() if plain else nullcontext():
                return step(item)

        return run

    def _march(self, pose: Tensor, lens: Tensor, width: int, tile: Tile) -> _Part:
        renderer = self._renderer
        rays = pixel_rays(pose, lens, renderer.settings.pixel_center, tile.pixels(width, renderer.device), width)
        samples = renderer._sampler.march(rays)
        block = blocks_of(rays, samples, renderer.config, self._division)
        nothing = samples.t.new_zeros(0)
        feature = torch.zeros_like(samples.t)  # what a sample outside all blocks has
        return _Part(tile, rays, samples, block, feature, nothing, block.new_zeros(0), samples, nothing)

    def _add_density(self, part: _Part, group: Sequence[int]) -> None:
        chosen = _inside(part.block, group, self._division)
        if chosen.shape[0]:
            part.feature[chosen] = self._renderer._field.density(part.rays, part.samples.select(chosen))

    def _weigh(self, part: _Part) -> None:
        config, settings = self._renderer.config, self._renderer.settings
        part.weights, part.coloured = kernels.composite(
            part.feature,
            part.samples.ray,
            part.samples.delta,
            part.tile.rays,
            activation=config.activation,
            shift=config.density_shift,
            nonlinear=config.nonlinear_density,
            scale=settings.distance_scale,
            threshold=config.weight_threshold,
            stop=STOP,
        )
        part.seen = part.samples.select(part.coloured)
        part.features = part.feature.new_zeros(part.coloured.shape[0], config.app_dim)

    def _add_appearance(self, part: _Part, group: Sequence[int]) -> None:
        chosen = _inside(part.block.index_select(0, part.coloured), group, self._division)
        if chosen.shape[0]:
            part.features[chosen] = self._renderer._field.appearance(part.rays, part.seen.select(chosen))

    def _decode(self, part: _Part) -> TileOutput:
        tile, samples = part.tile, part.samples
        colours = self._renderer._decoder.colours(part.features, part.rays, part.seen)
        rgb, depth, alpha = kernels.accumulate(part.weights, samples.t, samples.ray, part.coloured, colours, tile.rays)
        count = tile.rays * self._renderer.settings.samples
        counters = {"rays": tile.rays, "samples": count, "survived": len(samples), "coloured": len(part.seen)}
        part.feature = part.features = part.weights = samples.t.new_zeros(0)  # a band holds the rest of it until its end
        return TileOutput(tile, rgb, depth, alpha, counters, {})


def _inside(block: Tensor, group: Sequence[int], division: Sequence[int]) -> Tensor:
    """Indices of the samples whose block [M] is in the group."""
    present = torch.zeros(division[0] * division[1] + 1, dtype=torch.bool, device=block.device)
    present[torch.tensor(group, dtype=torch.int64, device=block.device)] = True  # the last row is of -1
    return present.index_select(0, block % present.shape[0]).nonzero().squeeze(1)
