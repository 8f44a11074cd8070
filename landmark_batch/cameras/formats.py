"""Camera files in: one entry for every dialect, and the cameras written into a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landmark_batch.cameras.camera_path import read_camera_path
from landmark_batch.cameras.check import check_flight
from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.lenses import CameraTable, build_flight
from landmark_batch.cameras.records import pose, read_json, shown
from landmark_batch.cameras.transforms import read_transforms
from landmark_batch.errors import CameraError, ConfigError
from landmark_batch.job import InlineFrame, RenderJob

DEFAULT_FPS = 24.0
_READ = "files read: transforms.json of LandMark, nerfstudio and instant-ngp (frames), camera_path.json of nerfstudio (camera_path)"


def load_flight(
    file: Path,
    *,
    transform: Path | None = None,
    dataset: Path | None = None,
    width: int | None = None,
    height: int | None = None,
    focal: float | None = None,
    default_fps: float = DEFAULT_FPS,
) -> Flight:
    """Every camera of a file, in its order, in scene coordinates, at one image size; poses and lenses checked.

    transform: nerfstudio's dataparser_transforms.json, for a camera_path.json. dataset: the transforms.json nerfstudio was trained on,
    where that has an applied_transform (see `read_normalisation`).
    width, height (pixels): scale the focal (see `fit_lenses`). focal (pixels at the final size): replaces the file's.
    default_fps: frames a second where neither times nor fps are in the file.
    Raises CameraError naming the file, how it was read, the frame and the value.
    """
    file = Path(file)
    raw = read_json(file)
    if isinstance(raw, dict) and "camera_path" in raw:
        table = read_camera_path(raw, file, transform, dataset)
    elif isinstance(raw, dict) and "frames" in raw:
        if transform is not None:
            raise CameraError(
                f"{file} is a transforms.json: its poses are scene coordinates, {transform} does not apply",
                remedy="leave cameras.transform out, or name a camera_path.json",
            )
        table = read_transforms(raw, file, width, height)
    else:
        raise _unknown(file, raw)
    flight = build_flight(table, width, height, focal, default_fps)
    check_flight(flight, None)
    return flight


def inline_flight(
    frames: Sequence[InlineFrame],
    width: int,
    height: int,
    default_fps: float = DEFAULT_FPS,
    *,
    focal: float | None = None,
    source: str = "job file",
) -> Flight:
    """Cameras written into a job as [[cameras.frame]]. focal: pixels, for frames that name none of their own.

    Raises CameraError: no frames, a matrix of another shape, no focal, and as `check_flight`.
    """
    if not frames:
        raise CameraError(f"{source}: no cameras", remedy="write [[cameras.frame]] tables, or name a camera file as cameras.file")
    names = tuple(frame.name or f"frame_{i:05d}" for i, frame in enumerate(frames))
    focals = []
    for i, frame in enumerate(frames):
        value = frame.focal if frame.focal is not None else focal
        if value is None:
            raise CameraError(f"{source}: frame {i} ({names[i]}): no focal", remedy="give the frame a focal (pixels), or set cameras.focal")
        focals.append(value)
    lens = np.array(focals, dtype=np.float64)
    count = len(frames)
    table = CameraTable(
        c2w=np.stack([pose(frame.c2w, "c2w", f"{source}: frame {i} ({names[i]})") for i, frame in enumerate(frames)]),
        intrinsics=np.stack([lens, lens, np.full(count, width / 2), np.full(count, height / 2)], axis=1),
        size=np.tile(np.array([width, height], dtype=np.int64), (count, 1)),
        time=[frame.time for frame in frames],
        names=names,
        fps=None,
        source=source,
        dialect="[[cameras.frame]]",
    )
    flight = build_flight(table, None, None, None, default_fps)
    check_flight(flight, None)
    return flight


def flight_of_job(job: RenderJob) -> Flight:
    """The job's flight: its camera file or its inline frames, with the job's size and focal applied; video.fps times what has no times.

    Raises ConfigError where the job names no cameras, or inline frames without a size; CameraError as `load_flight` and `inline_flight`.
    """
    cameras = job.cameras
    where = str(job.path) if job.path is not None else "job"
    fps = job.video.fps or DEFAULT_FPS
    if cameras.file is not None:
        return load_flight(
            cameras.file,
            transform=cameras.transform,
            dataset=cameras.dataset,
            width=cameras.width,
            height=cameras.height,
            focal=cameras.focal,
            default_fps=fps,
        )
    if not cameras.frame:
        raise ConfigError(f"{where}: no cameras", remedy="set cameras.file (--cameras FILE), or write [[cameras.frame]] tables")
    if cameras.width is None or cameras.height is None:
        raise ConfigError(f"{where}: [[cameras.frame]] needs cameras.width and cameras.height", remedy="set both, in pixels")
    return inline_flight(cameras.frame, cameras.width, cameras.height, fps, focal=cameras.focal, source=where if job.path else "job file")


def _unknown(file: Path, raw: Any) -> CameraError:
    if isinstance(raw, dict) and "transform" in raw and "scale" in raw:
        return CameraError(
            f"{file} is nerfstudio's dataparser_transforms.json, not a camera file",
            remedy="name it as cameras.transform beside a camera_path.json",
        )
    if isinstance(raw, dict) and isinstance(raw.get("path"), list):
        return CameraError(f"{file} looks like instant-ngp's base_cam.json, which is not read", remedy=_READ)
    if isinstance(raw, dict) and raw and all(isinstance(item, dict) and "rot_mat" in item for item in raw.values()):
        return CameraError(
            f"{file} is a raw ContextCapture export (rot_mat)",
            remedy="name the transforms file that cc2nerf.py made of it, which the scene was trained on",
        )
    if isinstance(raw, dict) and "keyframes" in raw:
        return CameraError(
            f"{file}: keyframes without camera_path", remedy="export the path from nerfstudio's viewer, which writes the frames between"
        )
    if isinstance(raw, dict):
        return CameraError(f"{file}: no camera file: its keys are {', '.join(list(raw)[:8]) or 'none'}", remedy=_READ)
    return CameraError(f"{file}: no camera file: it holds {shown(raw)}, not an object", remedy=_READ)
