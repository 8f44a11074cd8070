"""LandMark's own surface as a table: every option its parsers accept, its eight model types, its config files, its environment.

Source: InternLandMark/LandMark, app/tools/config_parser.py (ArgsParser), dist_render/renderer.py (engine_config_parser),
dist_render/comm/env.py (EnvSetting), dist_render/comm/types.py (ModelType). Config files are ConfigArgParse's: `key = value`,
`[a, b]` for lists, `#` and `;` for comments.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from landmark_batch.errors import ConfigError

Value = str | list[str] | bool


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FLAGS = _names(
    "use_multistream test save_png encode_app run_nerf nonlinear_density residnerf preload lr_upsample_reset wandb tensorboard "
    "plane_parallel channel_parallel branch_parallel model_parallel_and_DDP render_spherical render_path sampling_opt white_bkgd "
    "dynamic_fetching use_preprocessed_data debug filter_ray skip_save_imgs"
)
LISTS = _names(
    "resMode n_lamb_sigma n_lamb_sh train_near_far upsamp_list update_AlphaMask_list plane_division render_near_far render_lb "
    "render_ub subfolder lb ub"
)
SCALARS = _names(
    "config ckpt model_type dataset local_rank pose_num aabb render_batch_size alpha_mask_filter_thre dataroot datadir "
    "model_name nerf_D nerf_D_a nerf_W nerf_freq n_importance nerf_n_importance data_dim_color pos_pe view_pe fea_pe featureC "
    "bias_enable fea2denseAct density_shift ndims start_iters n_iters batch_size progress_refresh_rate add_upsample add_lpips add_nerf "
    "add_distort patch_size lr_init lr_basis lr_decay_iters lr_decay_target_ratio L1_weight_inital Ortho_weight TV_weight_density "
    "TV_weight_app alpha_mask_thre nSamples step_ratio N_voxel_init N_voxel_final progressive_alpha alpha_grid_reso "
    "channel_parallel_size render_px render_fov render_nframes render_skip render_fps render_spherical_zdiff render_spherical_radius "
    "render_downward render_ncircle render_pathid distance_scale compute_extra_metrics generate_videos ckpt_type neighbour_size "
    "expname basedir partition add_timestamp dataset_name processed_data_type preprocessed_dir camera random_seed N_vis vis_every "
    "downsample_train env optim_dir"
)
OPTIONS = FLAGS | LISTS | SCALARS
COMMAND_LINE = OPTIONS - {"debug"}  # --debug is this program's own

HONOURED = _names(
    "config ckpt model_type dataroot datadir subfolder pose_num save_png aabb render_batch_size alpha_mask_filter_thre n_importance "
    "encode_app branch_parallel plane_division neighbour_size expname dataset use_multistream"
)

ENVIRONMENT = (
    "RENDER_1080P",
    "TENSOR_PARALLEL_SIZE",
    "PNG_SAVING_PATH",
    "PROFILE_TIMELINE",
    "HALF_PRECISION_PARAM",
    "ENABLE_EDIT_MODE",
    "PROFILE_STAGES",
    "NCCL_TIMEOUT",
)


@dataclass(frozen=True)
class ModelType:
    """A model type of LandMark as the four independent values it stands for.

    multi_block: trained branch parallel (None: LandMark does not check). fused: its fused kernels. tensor_parallel: takes
    TENSOR_PARALLEL_SIZE. dynamic: fetches a window of blocks. appearance: the row of the embedding it reads, None = it passes none.
    """

    multi_block: bool | None
    fused: bool = False
    tensor_parallel: bool = False
    dynamic: bool = False
    appearance: int | None = 2930


MODEL_TYPES: dict[str, ModelType] = {
    "Torch": ModelType(multi_block=False, appearance=None),
    "TorchKernelFusion": ModelType(multi_block=False, fused=True),
    "MultiBlockTorch": ModelType(multi_block=True),
    "MultiBlockKernelFusion": ModelType(multi_block=True, fused=True),
    "MultiBlockTensorParallelTorch": ModelType(multi_block=True, tensor_parallel=True),
    "MultiBlockTensorParallelKernelFusion": ModelType(multi_block=True, fused=True, tensor_parallel=True),
    "MovingAreaTorch": ModelType(multi_block=True, dynamic=True, appearance=0),
    "MovingAreaCudaKernel": ModelType(multi_block=None, fused=True, dynamic=True, appearance=0),
}


def model_type(name: str) -> ModelType:
    """Raises ConfigError naming the nearest type."""
    if name in MODEL_TYPES:
        return MODEL_TYPES[name]
    near = difflib.get_close_matches(name, MODEL_TYPES, n=1, cutoff=0.4)
    raise ConfigError(
        f"--model_type {name}: no model type of LandMark", remedy=f"did you mean {near[0]}?" if near else f"one of {', '.join(MODEL_TYPES)}"
    )


def split_argv(argv: Sequence[str]) -> tuple[dict[str, Value], list[str]]:
    """Takes LandMark's options out of a command line, hyphens or underscores alike -> (options, what is left).

    Raises ConfigError when an option lacks its value.
    """
    found: dict[str, Value] = {}
    rest: list[str] = []
    items = iter(argv)
    for item in items:
        if item == "--":
            rest += [item, *items]
            break
        name, equals, value = item.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or key not in COMMAND_LINE:
            rest.append(item)
            continue
        if key in FLAGS:
            found[key] = _switch(value, name) if equals else True
            continue
        if not equals:
            value = next(items, "")
            if not value or value.startswith("--"):
                raise ConfigError(f"{name} needs a value", remedy=f"write {name} VALUE")
        if key in LISTS:
            earlier = found.get(key, [])
            found[key] = [*(earlier if isinstance(earlier, list) else []), *_elements(value)]
        else:
            found[key] = value
    return found, rest


_LINE = re.compile(r"^(?P<key>[^:=;#\s]+)\s*(?:[:=\s]\s*(?P<quote>['\"]?)(?P<value>.+?)?(?P=quote))?\s*(?:\s[;#].*)?$")


def read_config(path: Path) -> dict[str, Value]:
    """A LandMark config file -> its options; flags become True or False, lists lists of text.

    Raises ConfigError naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file", remedy="name the .txt file the scene was trained or rendered with") from None
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--config {path}: cannot be read as text", remedy="name the .txt file LandMark was given") from None
    if path.suffix.lower() == ".toml":
        raise ConfigError(
            f"--config {path}: a job file is no config of LandMark's", remedy="leave --config and --ckpt out, and name the job file alone"
        )
    values: dict[str, Value] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text[0] in "#;[" or text.startswith("---"):
            continue
        match = _LINE.match(text)
        if match is None:
            raise ConfigError(f"{path}, line {number}: {text!r} is not 'key = value'", remedy="mend that line")
        key, value = match["key"].replace("-", "_"), match["value"]
        place = f"{path}, line {number}: {key}"
        if key in FLAGS:
            values[key] = True if value is None else _switch(value, place)
        elif key in LISTS:
            values[key] = _elements(value or "")
        else:
            values[key] = value if value is not None else "true"
    if values and not any(key in OPTIONS for key in values):
        raise ConfigError(f"--config {path}: no line of it is an option of LandMark's", remedy="name the .txt file LandMark was given")
    return values


def _switch(value: str, place: str) -> bool:
    if value.lower() in ("true", "yes", "1", "on"):
        return True
    if value.lower() in ("false", "no", "0", "off"):
        return False
    raise ConfigError(f"{place} = {value!r} is neither on nor off", remedy="write 1 or 0")


def _elements(value: str) -> list[str]:
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return [part.strip().strip("'\"") for part in inside.split(",") if part.strip()]


def environment_switch(environment: Mapping[str, str], name: str) -> bool:
    """A switch of LandMark's environment. Raises ConfigError where LandMark raises."""
    value = environment.get(name)
    return False if value is None else _switch(value.strip() or "0", name)


def environment_number(environment: Mapping[str, str], name: str, default: int) -> int:
    """A whole number of at least 1 in LandMark's environment. Raises ConfigError."""
    value = environment.get(name)
    if value is None:
        return default
    if not value.strip().isdigit() or int(value) < 1:
        raise ConfigError(f"{name} = {value!r} is no whole number above 0", remedy=f"unset {name}, or give it one")
    return int(value)
