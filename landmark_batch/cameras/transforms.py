"""transforms.json: the dialects of LandMark city, nerfstudio and instant-ngp, all poses OpenGL camera to world.

The poses are taken as they stand. nerfstudio's `applied_transform` tells how they came from COLMAP, instant-ngp's `scale`,
`offset` and `aabb_scale` how its own trainer moves them into its cube: a LandMark scene trained on the file lives in the
coordinates of the file, so neither is applied.
Sources: LandMark app/tools/dataloader/ray_utils.py (load_json_drone_data), nerfstudio data/dataparsers/nerfstudio_dataparser.py,
instant-ngp src/nerf_loader.cu (read_focal_length: a frame's lens goes before the file's).
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from landmark_batch.cameras.flight import Float64
from landmark_batch.cameras.lenses import CameraTable, focal_of_fov
from landmark_batch.cameras.records import LAST_ROW, Record, number, pixels, pose, rate, shown
from landmark_batch.errors import CameraError

PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "distortion_params")
PHOTOGRAPHS = ("", ".png", ".jpg", ".jpeg", ".JPG", ".tif", ".tiff", ".webp")
_FOCAL_KEYS = ("fl_x", "fl_y", "x_fov", "y_fov", "camera_angle_x", "camera_angle_y")
_LENS_KEYS = frozenset((*_FOCAL_KEYS, "cx", "cy", "w", "h"))
_OTHER_LENSES = ("is_fisheye", "ftheta_p0", "latlong", "equirectangular", "orthographic")  # instant-ngp's

_UNCOMMON = frozenset((*DISTORTION, *_OTHER_LENSES, "camera_model"))

Size = tuple[int, int]
Lens = tuple[float, float, float, float]  # fl_x, fl_y, cx, cy


def dialect_of(raw: Record) -> str:
    """Which program's transforms.json this is: for messages, the reading is the same."""
    frames = raw.get("frames")
    first = frames[0] if isinstance(frames, list) and frames and isinstance(frames[0], dict) else {}
    if any(key in raw for key in ("applied_transform", "applied_scale", "orientation_override", "ply_file_path", "train_filenames")):
        return "nerfstudio transforms.json"
    if any(key in raw for key in ("aabb_scale", "scale", "offset", "x_fov", "camera_angle_y")) or "sharpness" in first:
        return "instant-ngp transforms.json"
    if "camera_angle_x" in raw and "fl_x" not in raw:
        return "Blender transforms.json"
    return "LandMark transforms.json"


def read_transforms(raw: Record, file: Path, width: int | None, height: int | None) -> CameraTable:
    """All frames of a parsed transforms.json, in the file's order.

    width, height: the job's, taken as the image size where the file states none and the photographs are not there.
    Raises CameraError naming file, frame and key.
    """
    dialect = dialect_of(raw)
    frames = raw.get("frames")
    if not isinstance(frames, list):
        raise CameraError(f"{file}: read as {dialect}: frames = {shown(frames)} is no list", remedy="frames holds one object a camera")
    if not frames:
        raise CameraError(f"{file}: read as {dialect}: frames is empty: there is no camera to render", remedy="name a file with poses")
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise CameraError(f"{file}: frame {i} is {shown(frame)}, not an object", remedy="a frame has transform_matrix and file_path")
    names = tuple(_name(frame, i) for i, frame in enumerate(frames))
    places = [f"{file}: frame {i} ({name})" for i, name in enumerate(names)]
    _refuse_other_lenses([raw, *frames], [str(file), *places])
    size = _Sizes(raw, file, width, height)
    lenses, sizes = [], []
    shared: dict[Size, Lens] | None = None if any(isinstance(raw.get(key), list) for key in _FOCAL_KEYS) else {}
    for i, (frame, place) in enumerate(zip(frames, places, strict=True)):
        extent = size.of(frame, place)
        sizes.append(extent)
        if shared is None or not _LENS_KEYS.isdisjoint(frame):
            lenses.append(_lens(raw, frame, str(file), place, extent, i, len(frames)))
        else:  # the file's lens
            if extent not in shared:
                shared[extent] = _lens(raw, frame, str(file), place, extent, i, len(frames))
            lenses.append(shared[extent])
    lens = np.array(lenses, dtype=np.float64)
    sizes_array = np.array(sizes, dtype=np.int64)
    return CameraTable(
        c2w=_poses(frames, places),
        intrinsics=lens,
        size=sizes_array,
        time=[number(frame, "time", place) for frame, place in zip(frames, places, strict=True)],
        names=names,
        fps=rate(raw, "fps", str(file)),
        source=str(file),
        dialect=dialect,
        warnings=tuple(_distortion([raw, *frames], [str(file), *places]) + _off_centre(lens, sizes_array, places)),
    )


def _name(frame: Record, i: int) -> str:
    name = frame.get("file_path")
    return name if isinstance(name, str) and name else f"frame_{i:05d}"


def _poses(frames: list[Record], places: list[str]) -> Float64:
    """[F, 3, 4]: all at once where every frame has a sound matrix of one shape, else one by one, which says what is wrong."""
    try:
        poses: Float64 = np.array([frame["transform_matrix"] for frame in frames], dtype=np.float64)
    except (KeyError, ValueError, TypeError, OverflowError):
        poses = np.empty(0)
    if poses.shape[1:] == (3, 4) or (poses.shape[1:] == (4, 4) and (np.abs(poses[:, 3] - LAST_ROW) <= 1e-6).all()):
        return np.ascontiguousarray(poses[:, :3])
    return np.stack([_pose(frame, place) for frame, place in zip(frames, places, strict=True)])


def _pose(frame: Record, place: str) -> Float64:
    if "transform_matrix" not in frame:
        if "rot_mat" in frame:
            remedy = "rot_mat is a raw ContextCapture or MatrixCity export: name the transforms file the scene was trained on"
        elif "transform_matrix_start" in frame:
            remedy = "a rolling shutter is not rendered: write one transform_matrix a frame"
        else:
            remedy = f"add transform_matrix (4x4, camera to world); the frame has {', '.join(frame) or 'no keys'}"
        raise CameraError(f"{place}: no transform_matrix", remedy=remedy)
    return pose(frame["transform_matrix"], "transform_matrix", place)


def _lens(raw: Record, frame: Record, file: str, place: str, size: Size, i: int, count: int) -> Lens:
    """(fl_x, fl_y, cx, cy); focal NaN where neither frame nor file has one. A frame's own lens goes before the file's."""
    fl = _focal(frame, place, size) or _focal(_pick(raw, i, count, file), file, size) or (math.nan, math.nan)
    own_size = frame.get("w") is not None and (frame.get("w"), frame.get("h")) != (raw.get("w"), raw.get("h"))
    centre = []
    for key, half in (("cx", size[0] / 2), ("cy", size[1] / 2)):
        value = number(frame, key, place)
        if value is None and not (own_size and raw.get("w") is not None):
            value = number(raw, key, file)
        centre.append(half if value is None else value)
    return (*fl, centre[0], centre[1])


def _pick(raw: Record, i: int, count: int, file: str) -> Record:
    """The file's focal keys for frame i: LandMark's loader also takes lists there, of one value or one a frame."""
    picked: dict[str, Any] = {}
    for key in _FOCAL_KEYS:
        value = raw.get(key)
        if isinstance(value, list):
            if len(value) not in (1, count):
                raise CameraError(f"{file}: {key} has {len(value)} values for {count} frames", remedy="give one value, or one a frame")
            value = value[0] if len(value) == 1 else value[i]
        picked[key] = value
    return picked


def _focal(record: Record, place: str, size: Size) -> tuple[float, float] | None:
    """(fl_x, fl_y) in pixels; one axis stands for both where the other is not given. camera_angle in radians, x_fov in degrees."""
    found: list[float | None] = []
    for axis, extent in (("x", size[0]), ("y", size[1])):
        focal = number(record, f"fl_{axis}", place)
        if focal is None:
            degrees = number(record, f"{axis}_fov", place)
            angle = math.radians(degrees) if degrees is not None else number(record, f"camera_angle_{axis}", place)
            if angle is not None:
                if not 0 < angle < math.pi:
                    key = f"{axis}_fov" if degrees is not None else f"camera_angle_{axis}"
                    shown_angle = degrees if degrees is not None else angle
                    raise CameraError(f"{place}: {key} = {shown_angle:g} is no field of view", remedy="above 0 and below half a turn")
                focal = focal_of_fov(angle, extent)
        if focal is not None and not math.isfinite(focal):
            raise CameraError(f"{place}: fl_{axis} = {focal} is not finite", remedy="a focal length is a number of pixels above 0")
        found.append(focal)
    x, y = found
    if x is None and y is None:
        return None
    return (x if x is not None else y or 0.0, y if y is not None else x or 0.0)


class _Sizes:
    """Image sizes: the frame's w and h, the file's, its photograph's, the first known photograph's, the job's."""

    def __init__(self, raw: Record, file: Path, width: int | None, height: int | None) -> None:
        self._raw, self._file = raw, file
        self._job = (width, height) if width and height else None
        self._stated = (pixels(raw, "w", str(file)), pixels(raw, "h", str(file)))
        self._known: Size | None = None

    def of(self, frame: Record, place: str) -> Size:
        w, h = pixels(frame, "w", place), pixels(frame, "h", place)
        if w is None and h is None:
            w, h = self._stated
        if w is not None and h is not None:
            return w, h
        size = photograph_size(self._file, frame.get("file_path")) or self._known
        self._known = size or self._known
        size = size or self._job
        if size is None:
            raise CameraError(
                f"{place}: no image size: w and h are not in the file and the photograph is not there",
                remedy="set cameras.width and cameras.height (--width, --height), or add w and h to the file",
            )
        return size


def photograph_size(camera_file: Path, file_path: object) -> Size | None:
    """(width, height) of the photograph a frame names, relative to the camera file; None where it is absent or no image."""
    if not isinstance(file_path, str) or not file_path:
        return None
    from PIL import Image

    for suffix in PHOTOGRAPHS:
        try:
            path = camera_file.parent / (file_path + suffix)
            if not path.is_file():
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only the header is read
                with Image.open(path) as image:
                    return image.width, image.height
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
    return None


def _refuse_other_lenses(records: list[Record], places: list[str]) -> None:
    for record, place in zip(records, places, strict=True):
        if _UNCOMMON.isdisjoint(record):
            continue
        model = record.get("camera_model")
        odd = next((key for key in _OTHER_LENSES if record.get(key)), None)
        if model is not None and str(model).upper() not in PINHOLES:
            odd = f"camera_model = {shown(model)}"
        if odd is not None:
            raise CameraError(f"{place}: {odd}: only pinhole cameras are rendered", remedy=f"undistort to one of {', '.join(PINHOLES)}")


def _distortion(records: list[Record], places: list[str]) -> list[str]:
    for record, place in zip(records, places, strict=True):
        for key in () if _UNCOMMON.isdisjoint(record) else DISTORTION:
            values = record.get(key)
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, int | float) and value != 0:
                    return [f"{place}: {key} = {value:g}: the lens is distorted; images are rendered undistorted (pinhole)"]
    return []


def _off_centre(lens: Float64, size: Any, places: list[str]) -> list[str]:
    """LandMark's loader puts the principal point in the middle and takes fl_x for both axes: say where a file says otherwise."""
    notes = []
    off = np.abs(lens[:, 2:] - size / 2).max(axis=1)
    if (off > 0.5).any():
        i = int(np.argmax(off))
        cx, cy = lens[i, 2:]
        w, h = size[i]
        notes.append(
            f"{places[i]}: principal point ({cx:g}, {cy:g}) is used as it stands; "
            f"LandMark's own loader takes the centre ({w / 2:g}, {h / 2:g})"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        odd = np.abs(lens[:, 1] / lens[:, 0] - 1) > 1e-3
    if odd.any():
        i = int(np.argmax(odd))
        notes.append(
            f"{places[i]}: fl_x = {lens[i, 0]:g} and fl_y = {lens[i, 1]:g} are both used; LandMark's own loader takes fl_x for both axes"
        )
    return notes
