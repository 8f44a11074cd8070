"""What the frames of a flight cost, known before one is rendered: in samples, and in seconds once some have been measured."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from landmark_batch.chunks import FrameChunk, split_frames
from landmark_batch.frames.fingerprint import flight_digest
from landmark_batch.workflows.itinerary import RAY_COST
from landmark_batch.workflows.predicted import write_array
from landmark_batch.workflows.request import RenderRequest

if TYPE_CHECKING:
    from landmark_batch.scene.mask import StoredMask
    from landmark_batch.scene.weights import SceneConfig

Float64 = NDArray[np.float64]

logger = logging.getLogger(__name__)

COSTS_VERSION = 1  # of how samples are estimated; another one estimates anew
LOOKED_AT = 96  # frames of a flight whose samples are counted, of a scene that is no block store; the rest lies between them
DEAR = 1.5  # times the mean cost of a chunk of the same size, above which a chunk is halved
KEPT = 64  # tables in the cache folder; the oldest go first
_WORST = 2.0  # a measured frame is believed to be so many times dearer or cheaper than the fit, no more


@dataclass(frozen=True)
class FrameCosts:
    """samples: [F] that survive, of every frame of the flight, about. pixels: of a frame.

    seconds: [F] that a worker (or a render group) is expected to render, NaN where nothing is expected; None without a measurement.
    """

    samples: Float64
    pixels: int
    seconds: Float64 | None = None

    def each(self, frames: Iterable[int]) -> Float64:
        """[n] of these frames in samples, rays counted too: what they take beside each other."""
        return np.asarray(self.samples[np.fromiter(frames, dtype=np.int64)] + RAY_COST * self.pixels, dtype=np.float64)

    def of(self, frames: Iterable[int]) -> float:
        """Cost of these frames together."""
        return float(self.each(frames).sum())


@dataclass(frozen=True)
class CostModel:
    """Seconds of a frame = (base + per_sample x samples) x correction, as fitted to measured frames.

    frames: the measured ones, ascending. corrections: measured over fitted there; between them it is interpolated.
    """

    base: float
    per_sample: float
    frames: tuple[int, ...]
    corrections: tuple[float, ...]

    def seconds(self, frames: Sequence[int] | NDArray[np.int64], samples: Float64) -> Float64:
        """[n] seconds of frames with these samples [n]."""
        fitted = self.base + self.per_sample * samples
        return np.asarray(fitted * np.interp(np.asarray(frames, np.float64), self.frames, self.corrections), dtype=np.float64)


def fit_costs(frames: Sequence[int], samples: Sequence[float], seconds: Sequence[float]) -> CostModel:
    """The model of measured frames: least squares with neither term below 0, then what is left of each frame as its correction.

    frames: ascending, at least one. Raises ValueError for lists of other lengths, or none.
    """
    if not frames or not len(frames) == len(samples) == len(seconds):
        raise ValueError(f"{len(frames)} frames, {len(samples)} samples, {len(seconds)} seconds: one each, at least one frame")
    x, y = np.asarray(samples, np.float64), np.asarray(seconds, np.float64)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    base = float(y.mean() - slope * x.mean())
    if slope < 0:
        slope, base = 0.0, float(y.mean())
    elif base < 0:
        slope, base = float((x * y).sum() / (x * x).sum()), 0.0
    fitted = base + slope * x
    ratios = np.divide(y, fitted, out=np.ones_like(y), where=fitted > 0)
    corrections = np.clip(ratios, 1 / _WORST, _WORST).tolist()
    return CostModel(base, slope, tuple(int(frame) for frame in frames), tuple(corrections))


def frame_costs(request: RenderRequest, frames: Sequence[int], *, cache_dir: Path | None = None) -> FrameCosts | None:
    """Of a request's flight, as looked at in `frames` (at least one); None where it renders no scene.

    cache_dir: where counted samples are kept, default the user's cache folder. Raises CheckpointError as `load_config`.
    """
    if request.renderer.get("kind") != "scene" or not frames:
        return None
    if request.blocks is not None:
        return FrameCosts(request.blocks.seen.samples.astype(np.float64), request.pixels)
    ordered = sorted(frames)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(LOOKED_AT, len(ordered))).round().astype(np.int64))
    looked_at = np.asarray(ordered, dtype=np.int64)[places]
    counted = _counted(request, looked_at, cache_dir or user_cache_path("landmark-batch"))
    return FrameCosts(np.interp(np.arange(len(request.flight)), looked_at, counted), request.pixels)


def cut_chunks(frames: Iterable[int], chunk_frames: int, unit: int, costs: FrameCosts | None) -> list[FrameChunk]:
    """As `split_frames`, dear chunks halved (and again) so that all take about as long; a half begins at a multiple of its size.

    unit: frames that must be committed together. costs: None leaves the chunks as they are.
    """
    chunks = split_frames(frames, chunk_frames)
    count = sum(len(chunk.frames) for chunk in chunks)
    if costs is None or not count:
        return chunks
    limit = DEAR * chunk_frames * sum(costs.of(chunk.frames) for chunk in chunks) / count

    def halved(chunk: FrameChunk, size: int) -> Iterable[FrameChunk]:
        if size <= unit or size % (2 * unit) or costs.of(chunk.frames) <= limit:
            yield chunk
            return
        for half in split_frames(chunk.frames, size // 2):
            yield from halved(half, size // 2)

    return [part for chunk in chunks for part in halved(chunk, chunk_frames)]


def _counted(request: RenderRequest, frames: NDArray[np.int64], cache: Path) -> Float64:
    """[n] samples of these frames, from the cache folder where they were counted before."""
    what = (COSTS_VERSION, request.scene, flight_digest(request.flight), request.settings.canonical())
    key = hashlib.sha256(repr(what).encode() + frames.tobytes()).hexdigest()
    file = cache / "costs" / f"{key[:32]}.npy"
    with suppress(OSError, ValueError, EOFError):
        found = np.load(file, allow_pickle=False)
        if found.shape == frames.shape and found.dtype == np.float64:
            return np.asarray(found)
    counts = _count(request, frames)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_array(file, counts)
        for old in sorted(file.parent.glob("*.npy"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    return counts


def _count(request: RenderRequest, frames: NDArray[np.int64]) -> Float64:
    from landmark_batch.fetching.sample_count import SampleCounter
    from landmark_batch.model.settings import resolve_settings

    config, mask = _config_and_mask(request)
    job = request.job.model_copy(update={"model": request.job.model.model_copy(update={"runtime": "torch"})})  # samples are those of any
    settings = resolve_settings(job, config)
    counter, flight = SampleCounter(config, settings, mask), request.flight
    counts = [counter.estimate(flight.c2w[i], flight.intrinsics[i].tolist(), flight.width, flight.height) for i in frames]
    return np.asarray(counts, dtype=np.float64)


def _config_and_mask(request: RenderRequest) -> tuple[SceneConfig, StoredMask | None]:
    """Of a checkpoint, its edit applied, without its planes."""
    from landmark_batch.scene.configure import configure, open_head
    from landmark_batch.scene.edit import check_edit
    from landmark_batch.scene.layout import find_scene_files
    from landmark_batch.scene.location import as_location
    from landmark_batch.scene.mask import read_stored_mask, read_volume
    from landmark_batch.workflows.request import checkpoint_of

    scene = request.job.scene
    files = find_scene_files(Path(as_location(checkpoint_of(request.job))))
    first = open_head(files.paths[0], files)
    config = configure(files, first, scene.plane_division)[0]
    mask = read_stored_mask(first.content, first.path)
    if scene.edit is not None and mask is not None:
        volume = read_volume(check_edit(config, files, scene.edit, scene.edit_block).volume, mask.shape)
        mask = replace(mask, bits=np.packbits(volume))
    return config, mask
