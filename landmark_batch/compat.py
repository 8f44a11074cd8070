"""LandMark's command line, config file and environment -> the values of a job file, with notes on what differs.

This mode paints as LandMark's dist_render does: hull sampling, white background, near and far of the checkpoint, appearance 2930
(MovingArea* types: row 0), focal 1483.6378 with RENDER_1080P. Its cut at 100 frames is not copied. docs/from-landmark.md has the table.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.errors import CameraError, ConfigError
from landmark_batch.job_template import scene_name
from landmark_batch.landmark_options import (
    HONOURED,
    LISTS,
    Value,
    environment_number,
    environment_switch,
    model_type,
    read_config,
)
from landmark_batch.object_path import is_url

FOCAL_1080P = 1483.6378  # dist_render/ddp_infer/nerf_inferer.py
EDIT_BLOCK = 15  # dist_render/ddp_infer/editer.py exchanges this block and no other
DEFAULT_SAMPLES = 128  # n_importance of app/tools/config_parser.py


@dataclass(frozen=True)
class LandmarkJob:
    """values: sections of a job file, for `job_from_dict`. source: what errors about them name.

    export_images: --save_png. stage_times: PROFILE_STAGES or PROFILE_TIMELINE. timeline: PROFILE_TIMELINE. notes: lines a user should
    read once.
    """

    values: dict[str, Any]
    source: str
    export_images: bool
    stage_times: bool
    timeline: bool
    notes: tuple[str, ...]


def job_from_landmark(
    options: Mapping[str, Value], environment: Mapping[str, str], *, cameras: Path | None = None, runtime_given: bool = False
) -> LandmarkJob:
    """options: of the command line, as `split_argv` returns them; they come before those of the config file they name.

    cameras: a camera file given otherwise, in place of LandMark's dataroot/datadir/transforms_test.json. runtime_given: the user
    chose the runtime himself, so that the model type's is not noted.
    Raises ConfigError and CameraError naming option, value and remedy.
    """
    config_path = _text(options, "config")
    settings: dict[str, Value] = {**(read_config(Path(config_path)) if config_path else {}), **options}
    notes: list[str] = []
    values: dict[str, Any] = {"scene": {}, "cameras": {}, "sampling": {"mode": "hull"}, "model": {}, "parallel": {}, "fetching": {}}
    values["output"] = {"background": "white"}

    checkpoint = _text(settings, "ckpt")
    if checkpoint is None:
        where = f"neither --ckpt nor {config_path}" if config_path else "no --ckpt"
        raise ConfigError(f"{where} names a checkpoint", remedy="add --ckpt FILE.th")
    scene = values["scene"]["checkpoint"] = checkpoint if is_url(checkpoint) else Path(checkpoint)
    values["name"] = _name(Path(_text(settings, "expname") or "").name or scene_name(scene), scene)

    _set_model(settings, values, notes, runtime_given=runtime_given)
    _set_sampling(settings, values)
    if _text(settings, "dataset") not in (None, "City"):
        raise ConfigError(f"--dataset {_text(settings, 'dataset')}: LandMark's renderer knows City alone", remedy="leave --dataset out")
    _set_cameras(settings, values, cameras)
    stage_times = _set_environment(environment, values, notes)
    if isinstance(settings.get("use_multistream"), bool):
        values["parallel"]["overlap"] = settings["use_multistream"]
    _set_groups(_text(settings, "model_type"), environment, values, notes)

    unused = sorted(key for key in settings if key not in HONOURED)
    if unused:
        notes.append(f"without meaning here: {', '.join(unused)}")
    return LandmarkJob(
        values=values,
        source=f"--config {config_path}" if config_path else "command line",
        export_images=settings.get("save_png") is True,
        stage_times=stage_times,
        timeline=environment_switch(environment, "PROFILE_TIMELINE"),
        notes=tuple(notes),
    )


def _name(name: str, scene: Path | str) -> str:
    """The job's name, such that the store of frames in the working directory is not the scene's own."""
    taken = isinstance(scene, Path) and scene.resolve() == Path(f"{name}.zarr").resolve()
    return f"{name}-frames" if taken else name


def _set_model(settings: Mapping[str, Value], values: dict[str, Any], notes: list[str], *, runtime_given: bool) -> None:
    name = _text(settings, "model_type")
    branch_parallel = settings.get("branch_parallel") is True
    division = settings.get("plane_division")
    if branch_parallel and isinstance(division, list) and division:
        values["scene"]["plane_division"] = [_whole(part, "plane_division") for part in division]
    encode_app = settings.get("encode_app") is True or "config" not in settings
    if name is None:
        if encode_app:
            values["scene"]["appearance"] = 2930
        return
    kind = model_type(name)
    if "config" in settings and kind.multi_block is not None and kind.multi_block != branch_parallel:
        wanted, found = ("branch_parallel = 1", "0") if kind.multi_block else ("branch_parallel = 0", "1")
        raise ConfigError(
            f"--model_type {name} renders scenes trained with {wanted}; {_text(settings, 'config')} says {found}",
            remedy="name another model type, or mend branch_parallel in the config",
        )
    values["model"]["runtime"] = "fused" if kind.fused else "torch"
    values["fetching"]["mode"] = "dynamic" if kind.dynamic else "resident"
    if kind.dynamic and (blocks := _text(settings, "neighbour_size")):
        values["fetching"]["gpu_blocks"] = _whole(blocks, "neighbour_size")
    if encode_app and kind.appearance is not None:
        values["scene"]["appearance"] = kind.appearance
    if kind.fused and not runtime_given:
        notes.append(f"{name} asks for fused kernels; --runtime torch renders the same picture without them")
    elif not runtime_given:
        notes.append(f"{name} asks for plain torch; --runtime auto renders the same picture with compiled kernels, many times faster")
    if kind.dynamic:
        notes.append(f"{name}: LandMark tests its mask with > 0 whatever the threshold; here alpha_mask_filter_thre holds")


def _set_sampling(settings: Mapping[str, Value], values: dict[str, Any]) -> None:
    sampling = values["sampling"]
    sampling["samples"] = _whole(_text(settings, "n_importance") or str(DEFAULT_SAMPLES), "n_importance")
    sampling["alpha_mask_threshold"] = _real(_text(settings, "alpha_mask_filter_thre") or "0", "alpha_mask_filter_thre")
    if batch := _text(settings, "render_batch_size"):
        sampling["rays_per_batch"] = _whole(batch, "render_batch_size")
    if box := _text(settings, "aabb"):
        try:
            values["scene"]["aabb"] = ast.literal_eval(box)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ConfigError(f"--aabb {box}: not a box", remedy="write --aabb '[[x0,y0,z0],[x1,y1,z1]]'") from None


def _set_cameras(settings: Mapping[str, Value], values: dict[str, Any], cameras: Path | None) -> None:
    path = cameras or _transforms_file(settings)
    values["cameras"]["file"] = path
    value = settings.get("subfolder")
    subfolder = value if isinstance(value, list) else []
    count = _whole(_text(settings, "pose_num") or "-1", "pose_num")
    if count == 0 or count < -1:
        raise ConfigError(f"--pose_num {count}: not a number of frames", remedy="write how many of the first, or -1 for all")
    if not subfolder and count < 1:
        return
    names = _frame_names(path)
    wanted = [i for i, name in enumerate(names) if not subfolder or Path(name).parent.name in subfolder]
    if not wanted:
        raise CameraError(f"{path}: no frame lies in a folder named {subfolder}", remedy="mend or leave out subfolder in the config")
    if count >= 1:
        wanted = wanted[:count]
    if len(wanted) < len(names):
        values["cameras"]["frames"] = format_frame_ranges(wanted)


def _transforms_file(settings: Mapping[str, Value]) -> Path:
    """LandMark reads dataroot/datadir/transforms_test.json; its default datadir '_' is a placeholder for none."""
    root = _text(settings, "dataroot")
    if root is None:
        raise ConfigError("no dataroot, so no poses", remedy="add --dataroot DIR (with transforms_test.json in it) or --cameras FILE")
    folder = _text(settings, "datadir") or "_"
    candidates = list(dict.fromkeys([Path(root) / folder, Path(root)] if folder != "_" else [Path(root)]))
    for candidate in candidates:
        if (candidate / "transforms_test.json").is_file():
            return candidate / "transforms_test.json"
    raise CameraError(
        f"no transforms_test.json in {' or '.join(str(candidate) for candidate in candidates)}",
        remedy="add --dataroot DIR (with transforms_test.json in it) or --cameras FILE",
    )


def _frame_names(path: Path) -> list[str]:
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))["frames"]
        return [str(frame["file_path"]) if isinstance(frame, dict) and "file_path" in frame else "" for frame in frames]
    except OSError as error:
        raise CameraError(f"{path}: cannot read it: {error.strerror}", remedy="check --dataroot, datadir or --cameras") from None
    except (ValueError, KeyError, TypeError):
        raise CameraError(f"{path}: not a camera file: no list 'frames' of objects", remedy="give a transforms.json") from None


def _set_environment(environment: Mapping[str, str], values: dict[str, Any], notes: list[str]) -> bool:
    if environment_switch(environment, "RENDER_1080P"):
        values["cameras"].update(width=1920, height=1080, focal=FOCAL_1080P)
    if environment_switch(environment, "HALF_PRECISION_PARAM"):
        values["model"]["precision"] = "fp16"
    if environment_switch(environment, "ENABLE_EDIT_MODE"):
        notes.append(
            "ENABLE_EDIT_MODE: every block as trained, as LandMark starts; --set scene.edit=new (or remove, reset) exchanges the block "
            f"that has such a file (LandMark: always {EDIT_BLOCK})"
        )
    values["images"] = {"pattern": "{frame}.{ext}"}  # LandMark names them 0.png, 1.png, ...
    if folder := environment.get("PNG_SAVING_PATH"):
        values["images"]["dir"] = Path(folder)
    return environment_switch(environment, "PROFILE_STAGES") or environment_switch(environment, "PROFILE_TIMELINE")


def _set_groups(name: str | None, environment: Mapping[str, str], values: dict[str, Any], notes: list[str]) -> None:
    """LandMark's world is one group that renders frame by frame, its data-parallel size what TENSOR_PARALLEL_SIZE leaves of the
    world. Here frames are independent: groups of the tensor-parallel size alone render them side by side, into the same pixels.
    """
    size = environment_number(environment, "TENSOR_PARALLEL_SIZE", 1)
    if name is not None and size > 1 and not model_type(name).tensor_parallel:
        notes.append(
            f"TENSOR_PARALLEL_SIZE: {name} keeps the whole scene on every GPU, as in LandMark; --tensor-parallel {size} shares its channels"
        )
        size = 1
    values["parallel"]["tensor_parallel"] = size
    if size > 1:
        notes.append(
            f"TENSOR_PARALLEL_SIZE: every {size} workers share the scene, and such groups render frames side by side; LandMark splits "
            f"each frame over all of them, which --data-parallel N (world size / {size}) does"
        )
    if "NCCL_TIMEOUT" in environment:
        seconds = environment_number(environment, "NCCL_TIMEOUT", 1800)
        if size > 1:
            values["parallel"]["render_timeout"] = seconds
        else:
            notes.append("NCCL_TIMEOUT: one process renders a frame, no collective can time out; --render-timeout holds for groups")


def _text(settings: Mapping[str, Value], key: str) -> str | None:
    value = settings.get(key)
    if isinstance(value, list):
        raise ConfigError(f"{key} = {value}: one value is wanted", remedy=f"only {', '.join(sorted(LISTS))} are lists")
    return value if isinstance(value, str) else None


def _whole(text: str, key: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{key} = {text!r} is no whole number", remedy=f"mend {key}") from None


def _real(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{key} = {text!r} is no number", remedy=f"mend {key}") from None
