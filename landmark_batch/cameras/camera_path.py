"""camera_path.json of nerfstudio's viewer, and the way back from its normalised space.

Sources: nerfstudio cameras/camera_paths.py (get_path_from_json), viewer/render_panel.py (what is written),
data/dataparsers/base_dataparser.py (save_dataparser_transform, transform_poses_to_original_space).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landmark_batch.cameras.flight import Float64
from landmark_batch.cameras.lenses import CameraTable, focal_of_fov
from landmark_batch.cameras.records import Record, number, pixels, pose, rate, read_json, shown
from landmark_batch.errors import CameraError

DIALECT = "nerfstudio camera_path.json"
_LEGACY = ((0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0))  # nerfstudio's, where colmap/sparse/0 is there and no key


@dataclass(frozen=True)
class Normalisation:
    """nerfstudio's change of coordinates: x_normalised = scale * (rotation · x_scene + shift), transform = [rotation | shift], [3, 4]."""

    transform: Float64
    scale: float

    def undo(self, c2w: Float64) -> Float64:
        """Poses [F, 3, 4] of the normalised space in scene coordinates."""
        back = np.linalg.inv(self.transform[:, :3])
        out = np.empty_like(c2w)
        out[:, :, :3] = back @ c2w[:, :, :3]
        out[:, :, 3] = (c2w[:, :, 3] / self.scale - self.transform[:, 3]) @ back.T
        return out


def read_normalisation(file: Path, dataset: Path | None = None) -> Normalisation:
    """dataparser_transforms.json (transform 3x4 and scale). dataset: the transforms.json nerfstudio was trained on.

    nerfstudio multiplies that file's applied_transform and applied_scale into what it saves, so without `dataset` poses go back to
    the coordinates before them (COLMAP's).
    Raises CameraError: no transform or scale, a transform that is no rotation and shift, scale 0.
    """
    raw = read_json(file, "dataparser_transforms.json")
    if not isinstance(raw, dict) or "transform" not in raw or "scale" not in raw:
        raise CameraError(
            f"{file}: no dataparser_transforms.json: it has no keys transform and scale",
            remedy="cameras.transform names the file that nerfstudio writes beside its config.yml",
        )
    transform = _rigid(raw["transform"], "transform", str(file))
    scale = rate(raw, "scale", str(file))
    if scale is None:
        raise CameraError(f"{file}: scale = null", remedy="copy the file from nerfstudio's output folder again")
    if dataset is None:
        return Normalisation(transform, scale)
    applied, applied_scale = _applied(dataset)
    rotation = transform[:, :3] @ np.linalg.inv(applied[:, :3])
    shift = transform[:, 3] - rotation @ applied[:, 3]
    return Normalisation(np.column_stack([rotation, shift]), scale / applied_scale)


def _applied(dataset: Path) -> tuple[Float64, float]:
    """applied_transform [3, 4] and applied_scale of a transforms.json, as nerfstudio reads them."""
    raw = read_json(dataset, "transforms.json")
    if not isinstance(raw, dict) or "frames" not in raw:
        raise CameraError(
            f"{dataset}: no transforms.json: it has no frames", remedy="cameras.dataset names the file nerfstudio was trained on"
        )
    scale = rate(raw, "applied_scale", str(dataset)) or 1.0
    if "applied_transform" in raw:
        return _rigid(raw["applied_transform"], "applied_transform", str(dataset)), scale
    legacy = (dataset.parent / "colmap" / "sparse" / "0").exists()
    return np.array(_LEGACY) if legacy else np.eye(3, 4), scale


def _rigid(value: object, key: str, place: str) -> Float64:
    matrix = pose(value, key, place)
    rotation = matrix[:, :3]
    if not np.isfinite(matrix).all() or not np.allclose(rotation @ rotation.T, np.eye(3), rtol=0, atol=1e-3):
        raise CameraError(
            f"{place}: {key} = {shown(matrix.tolist())} is no rotation and shift", remedy="copy the file again as nerfstudio wrote it"
        )
    return matrix


def read_camera_path(raw: Record, file: Path, transform: Path | None, dataset: Path | None) -> CameraTable:
    """All frames of a parsed camera_path.json, in scene coordinates. fov is vertical, in degrees; fps is taken before seconds.

    Raises CameraError naming file, frame and key: no frames, a panorama or fisheye, no fov, no size.
    """
    place = f"{file}: read as {DIALECT}"
    cameras = raw.get("camera_path")
    if not isinstance(cameras, list):
        raise CameraError(f"{place}: camera_path = {shown(cameras)} is no list", remedy="export the path again from nerfstudio's viewer")
    if not cameras:
        keys = raw.get("keyframes")
        hint = f" ({len(keys)} keyframes, but no frames between them)" if isinstance(keys, list) and keys else ""
        raise CameraError(f"{place}: camera_path is empty{hint}", remedy="add at least two keyframes in the viewer and export again")
    kind = raw.get("camera_type", "perspective")
    if str(kind).lower() != "perspective":
        raise CameraError(f"{place}: camera_type = {shown(kind)}: only perspective is rendered", remedy="export the path as perspective")
    height, width = (pixels(raw, key, place) for key in ("render_height", "render_width"))
    if height is None or width is None:
        raise CameraError(f"{place}: no render_width and render_height", remedy="add them to the file (pixels)")
    poses, focals, names = [], [], []
    for i, camera in enumerate(cameras):
        where = f"{file}: frame {i} (frame_{i:05d})"
        if not isinstance(camera, dict) or "camera_to_world" not in camera:
            raise CameraError(f"{where}: no camera_to_world", remedy="each entry of camera_path has camera_to_world (16 numbers) and fov")
        poses.append(pose(camera["camera_to_world"], "camera_to_world", where, flat=True))
        fov = number(camera, "fov", where)
        fov = number(raw, "default_fov", place) if fov is None else fov
        if fov is None or not 0 < fov < 180:
            raise CameraError(f"{where}: fov = {fov}", remedy="fov is vertical, in degrees, between 0 and 180")
        focals.append(focal_of_fov(math.radians(fov), height))
        names.append(f"frame_{i:05d}")
    c2w = np.stack(poses)
    notes = []
    if transform is not None:
        c2w = read_normalisation(transform, dataset).undo(c2w)
        if dataset is None:
            notes.append(
                f"{file}: poses are taken back to the coordinates before nerfstudio's applied_transform; if the scene was trained on a "
                "transforms.json that has one, name that file as cameras.dataset"
            )
    if raw.get("crop") is not None:
        notes.append(f"{file}: its crop box is not applied; set scene.aabb to crop")
    fps, seconds = rate(raw, "fps", place), rate(raw, "seconds", place)
    if fps is None and seconds is not None:
        fps = len(cameras) / seconds
    elif fps is not None and seconds is not None and abs(len(cameras) / fps - seconds) > 2 / fps:
        notes.append(f"{file}: {len(cameras)} frames at fps = {fps:g} last {len(cameras) / fps:.2f} s, seconds = {seconds:g} is not used")
    focal = np.array(focals)
    count = len(cameras)
    return CameraTable(
        c2w=c2w,
        intrinsics=np.stack([focal, focal, np.full(count, width / 2), np.full(count, height / 2)], axis=1),
        size=np.tile(np.array([width, height], dtype=np.int64), (count, 1)),
        time=[None] * count,
        names=tuple(names),
        fps=fps,
        source=str(file),
        dialect=DIALECT,
        warnings=tuple(notes),
    )
