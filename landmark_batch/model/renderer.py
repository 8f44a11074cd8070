"""Renderer: a scene on a device, ready to turn cameras into pixels."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.model.blocks import BlockTables
from landmark_batch.model.decoder import Decoder
from landmark_batch.model.field import Field
from landmark_batch.model.output import FrameBuffer, RenderOutput, on_background
from landmark_batch.model.pool import TilePool
from landmark_batch.model.profile import mark, recording
from landmark_batch.model.runtime import load_runtime
from landmark_batch.model.sampling import Sampler
from landmark_batch.model.settings import RenderSettings
from landmark_batch.model.tiles import Tile, frame_tiles, tile_side
from landmark_batch.scene.weights import SceneWeights

STAGES = ("rays", "march", "weigh", "appearance", "decode", "accumulate")
_RANGES = {"weigh": "density"}  # names in a timeline, where they are others


class TileOutput:
    """Sums of one tile: rgb [R, 3] before the background, depth [R], alpha [R]; counters and stage seconds as in RenderOutput."""

    __slots__ = ("alpha", "counters", "depth", "rgb", "stages", "tile")

    def __init__(self, tile: Tile, rgb: Tensor, depth: Tensor, alpha: Tensor, counters: dict[str, int], stages: dict[str, float]) -> None:
        self.tile, self.rgb, self.depth, self.alpha, self.counters, self.stages = tile, rgb, depth, alpha, counters, stages


class Renderer:
    """Renders frames of one scene with one set of settings.

    A frame has the same bits whatever the order, the number of threads, `rays_per_batch` and the share of tiles rendered here:
    see `landmark_batch.model.tiles`. Values that are not finite are not hidden.

    weights: moved to `device` in the settings' precision. threads: tiles rendered at once on a CPU, each on one thread (default:
    torch's number of threads), further bounded by rays_per_batch. profile: measure stages on CUDA too, at the price of waiting
    for the device after each. tables: where the blocks of a scene that is fetched sit, weights being the rest of it. Loads the
    compiled kernels that settings.runtime = 'fused' means, unless this process has them.
    """

    def __init__(
        self,
        weights: SceneWeights,
        settings: RenderSettings,
        device: torch.device | str = "cpu",
        *,
        threads: int | None = None,
        profile: bool = False,
        tables: BlockTables | None = None,
    ) -> None:
        self.settings = settings
        self.config = weights.config
        self.device = torch.device(device)
        load_runtime(settings.runtime, self.device.type)
        with torch.inference_mode():
            self._sampler = Sampler(weights.config, settings, weights.mask, self.device)
            self._field = Field(weights, settings.precision, self.device, tables)
            self._decoder = Decoder(weights, settings.appearance, self.device)
        self._profile = profile or self.device.type == "cpu"
        columns, rows = tile_side(settings.samples, self.device.type)
        wanted = threads or torch.get_num_threads()
        if settings.rays_per_batch:
            wanted = min(wanted, max(1, settings.rays_per_batch // (columns * rows)))
        self._pool = TilePool(wanted if self.device.type == "cpu" else 0)

    def render(self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, height: int) -> RenderOutput:
        """One frame. c2w: [3, 4] camera to world, OpenGL axes. intrinsics: (fl_x, fl_y, cx, cy) in pixels."""
        frame = FrameBuffer(width, height, self.device, STAGES)
        pose, lens = self._camera(c2w, intrinsics)
        with full_precision():
            self._pool.run(lambda tile: self._place(frame, self._render_tile(pose, lens, width, tile)), self.tiles(width, height))
        return frame.output(stages=self._profile)

    def assemble(self, parts: Iterable[TileOutput], width: int, height: int) -> RenderOutput:
        """The frame of all its tiles, in any order."""
        frame = FrameBuffer(width, height, self.device, STAGES)
        for part in parts:
            self._place(frame, part)
        return frame.output(stages=self._profile)

    def tiles(self, width: int, height: int) -> list[Tile]:
        """The tiles of a frame of this size; any share of them may be rendered anywhere."""
        return frame_tiles(width, height, self.settings.samples, self.device.type)

    def render_tiles(
        self, c2w: NDArray[np.floating], intrinsics: Sequence[float], width: int, tiles: Sequence[Tile]
    ) -> Iterator[TileOutput]:
        """The sums of some tiles of a frame, in their order, as they are finished."""
        pose, lens = self._camera(c2w, intrinsics)
        with full_precision():
            yield from self._pool.map(lambda tile: self._render_tile(pose, lens, width, tile), tiles)

    def close(self) -> None:
        """End the renderer's threads."""
        self._pool.close()

    def compose(self, rgb: Tensor, alpha: Tensor) -> Tensor:
        """rgb [..., 3] on the background, clamped to 0..1."""
        return on_background(rgb, alpha, self.settings.background)

    def _camera(self, c2w: NDArray[np.floating], intrinsics: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Pose [3, 4] and lens [4] on the device."""
        pose = torch.as_tensor(np.asarray(c2w, dtype=np.float32)[:3, :4]).to(self.device)
        return pose, torch.tensor([float(v) for v in intrinsics], dtype=torch.float32, device=self.device)

    def _place(self, frame: FrameBuffer, part: TileOutput) -> None:
        with torch.inference_mode():
            frame.place(part.tile, self.compose(part.rgb, part.alpha), part.depth, part.alpha, part.counters, part.stages)

    def _render_tile(self, pose: Tensor, lens: Tensor, width: int, tile: Tile) -> TileOutput:
        clock = _Clock(self.device) if self._profile or recording() else None
        settings, config = self.settings, self.config
        with torch.inference_mode(), kernels.plain_ops() if settings.runtime == "torch" else nullcontext():
            rays = pixel_rays(pose, lens, settings.pixel_center, tile.pixels(width, self.device), width)
            _lap(clock, "rays")
            samples = self._sampler.march(rays)
            _lap(clock, "march")
            weights, coloured = self._field.weigh(
                rays,
                samples,
                tile.rays,
                activation=config.activation,
                shift=config.density_shift,
                nonlinear=config.nonlinear_density,
                scale=settings.distance_scale,
                threshold=config.weight_threshold,
            )
            _lap(clock, "weigh")
            seen = samples.select(coloured)
            features = self._field.appearance(rays, seen)
            _lap(clock, "appearance")
            colours = self._decoder.colours(features, rays, seen)
            _lap(clock, "decode")
            rgb, depth, alpha = kernels.accumulate(weights, samples.t, samples.ray, coloured, colours, tile.rays)
            _lap(clock, "accumulate")
        counters = {"rays": tile.rays, "samples": tile.rays * settings.samples, "survived": len(samples), "coloured": len(seen)}
        return TileOutput(tile, rgb, depth, alpha, counters, clock.stages if clock else {})


class _Clock:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = time.perf_counter()
        self.stages: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.stages[stage] = now - self._last
        mark(_RANGES.get(stage, stage), self._last, now)
        self._last = now


def _lap(clock: _Clock | None, stage: str) -> None:
    if clock is not None:
        clock.lap(stage)


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products in float32 (no TF32, no bfloat16 passes), whatever the process has set."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
