"""Out of the store: images and films of a job's frames, by path, with the job's settings and the usual names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Flight
from landmark_batch.chunks import parse_frame_ranges
from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.frames.export_images import ImageExporter, ImageReport
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.source import FrameSource
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.frames.store_source import open_source
from landmark_batch.frames.video_settings import VideoReport, VideoSettings
from landmark_batch.job import RenderJob, video_suffix
from landmark_batch.model.runtime import KernelSource
from landmark_batch.object_path import StorePath, as_store_path

Progress = Callable[[int, int], None]
Frames = str | Iterable[int] | None


def default_images_folder(store: StorePath, output: str) -> Path:
    """city.zarr, rgb -> city/rgb"""
    store = _here(store)
    base = store.with_suffix("") if store.suffix == ".zarr" else store.with_name(store.name + ".images")
    return base / output


def default_video_file(store: StorePath, codec: str = "libx264") -> Path:
    """city.zarr -> city.mp4, or .mkv for ffv1, .mov for prores_ks and dnxhr, .webm for libvpx-vp9"""
    store = _here(store)
    return store.with_name(store.name.removesuffix(".zarr") + video_suffix(codec))


def _here(store: StorePath | str) -> Path:
    """The store's path, or for one in an object store its name in the working directory: files are written beside it."""
    place = as_store_path(store)
    return place if isinstance(place, Path) else Path(place.name)


def export_images(
    store: StorePath,
    folder: Path | None = None,
    settings: ImageSettings | None = None,
    *,
    frames: Frames = None,
    allow_missing: bool = False,
    force: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    kernels: KernelSource | None = None,
) -> ImageReport:
    """Frames of a store as image files in `folder` (default: city.zarr -> city/rgb). Files that are up to date are left alone.

    frames: '0-239x10' or indices; None = the whole flight. force: write all. workers: images made at the same time. progress: called
    with (done, all). kernels: where compiled code for PNGs is, or is to be built once there are many; None: PNGs are made without.
    Raises StoreError (foreign store; unfinished frames, named, unless allow_missing), ConfigError, DiskFullError.
    """
    settings = settings or ImageSettings()
    source = open_source(store)
    place, library = folder or default_images_folder(store, settings.output), None if kernels is None else kernels.png_library()
    with ImageExporter(source, place, settings, workers=workers, library=library) as exporter:
        return exporter.export(_frames(frames, source), allow_missing=allow_missing, force=force, progress=progress)


def export_video(
    store: StorePath,
    file: Path | None = None,
    settings: VideoSettings | None = None,
    *,
    fps: Fraction | float | str | None = None,
    job_fps: float | None = None,
    frames: Frames = None,
    progress: Progress | None = None,
) -> VideoReport:
    """Frames of a store as a film (default: city.zarr -> city.mp4). Encoder and pixel format are checked before a frame is read.

    fps: 24, 23.976 or '30000/1001'; None = job_fps, else the camera file's, else 24; the report says which. frames: as in
    `export_images`; they follow one another without gaps. After an interruption only the film's missing segments are encoded.
    Raises StoreError naming unfinished frames, ConfigError, DiskFullError.
    """
    from landmark_batch.frames.export_video import export_video as encode_video

    settings = settings or VideoSettings()
    source = open_source(store)
    path = file or default_video_file(store, settings.codec)
    return encode_video(source, path, settings, fps=fps, job_fps=job_fps, frames=_frames(frames, source), progress=progress)


def _frames(frames: Frames, source: FrameSource) -> Iterable[int] | None:
    return parse_frame_ranges(frames, source.frames) if isinstance(frames, str) else frames


def image_settings(job: RenderJob, output: str, *, allow_8bit: bool = False) -> ImageSettings:
    """What [images] of a job says about an output. Depth as PNG is colour-mapped in 8 bits; alpha from uint8 has 8 bits."""
    section = job.images
    shallow = output == "depth" or (output == "alpha" and job.output.alpha == "uint8" and not allow_8bit)
    return ImageSettings(
        output=output,
        format=section.format,
        bit_depth=8 if shallow else section.bit_depth,
        pattern=section.pattern,
        start_number=section.start_number,
        allow_8bit=allow_8bit,
    )


def video_settings(job: RenderJob, *, allow_8bit: bool = False) -> VideoSettings:
    """What [video] of a job says."""
    section = job.video
    return VideoSettings(codec=section.codec, crf=section.crf, preset=section.preset, pix_fmt=section.pix_fmt, allow_8bit=allow_8bit)


@dataclass(frozen=True)
class PlannedSource:
    """A FrameSource of which nothing is rendered yet: what exports need to be checked against before frame 0."""

    name: str
    path: str
    frames: int
    width: int
    height: int
    outputs: Mapping[str, OutputSpec]
    names: Sequence[str]
    fps: float | None
    background: str
    metres_per_unit: float | None
    fps_origin: str = "camera file"

    @classmethod
    def of_job(cls, job: RenderJob, flight: Flight) -> PlannedSource:
        section = job.output
        kinds = {"rgb": section.rgb, "depth": section.depth, "alpha": section.alpha}
        channels = {"rgb": 4 if section.background == "transparent" else 3}
        return cls(
            name=job.name,
            path=str(job.store_path),
            frames=len(flight),
            width=flight.width,
            height=flight.height,
            outputs={name: OutputSpec(name, dtype, channels.get(name)) for name, dtype in kinds.items() if dtype},
            names=flight.names,
            fps=flight.fps,
            background=section.background,
            metres_per_unit=job.scene.metres_per_unit,
        )

    def finished(self, frames: Iterable[int] | None = None) -> Mapping[int, Mapping[str, str]]:
        return {}

    def read(self, output: str, frame: int) -> NDArray[Any]:
        raise StoreError(f"{self.path}: frame {frame} is not rendered yet")

    def pose(self, frame: int) -> NDArray[np.float64] | None:
        return None


def check_exports(job: RenderJob, flight: Flight, *, images: bool = False, video: bool = False, allow_8bit: bool = False) -> list[str]:
    """Whether a job's images and film can be made at all, before anything is rendered. Returns notes for the user.

    Raises ConfigError: an encoder or pixel format this build lacks, a bad pattern, 16 or 10 bits from a uint8 output.
    """
    source = PlannedSource.of_job(job, flight)
    notes: list[str] = []
    if images:
        for output in source.outputs:
            notes += ImageExporter(source, job.images_dir / output, image_settings(job, output, allow_8bit=allow_8bit)).notes
    if video:
        if "rgb" not in source.outputs:
            raise ConfigError(
                f"{job.name}: a film needs rgb, and output.rgb is false", remedy="set output.rgb = 'uint8', or leave --video out"
            )
        from landmark_batch.frames.export_video import VideoExporter

        notes += VideoExporter(source, job.video_path, video_settings(job, allow_8bit=allow_8bit), job_fps=job.video.fps).notes
    return list(dict.fromkeys(notes))
