"""Writing a scene in LandMark's checkpoint format: what `load_scene` reads back identically, and LandMark reads too."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.layout import COMPANIONS, sub_path
from landmark_batch.scene.weights import AlphaMask, SceneConfig, SceneWeights, literal


def save_landmark_checkpoint(weights: SceneWeights, path: Path, *, companions: bool = False) -> tuple[Path, ...]:
    """Write one .th file: sequential for layout 'single', else -merged-stack.th (whatever name `path` has).

    companions: write -wo_plane.th and -wo_state_dict.th beside a merged file, as LandMark's merge does. Nothing is copied: the
    tensors keep their channels-last memory and get LandMark's shapes by strides. Returns the files written, each complete or absent.
    Raises CheckpointError where a file cannot be written.
    """
    config = weights.config
    stacked = config.layout == "multi-block"
    content: dict[str, Any] = {"kwargs": _kwargs(config, config.grid_size), "state_dict": _grids(weights, stacked) | _decoder(weights)}
    content |= _mask(weights.mask)
    if not stacked:
        return (_write(content, Path(path)),)
    shapes = {key: value.shape for key, value in content["state_dict"].items() if "_plane." in key or "_line." in key}
    content["gridShape"] = shapes
    written = [_write(content, Path(path))]
    if companions:
        stem = Path(path).name.removesuffix(".th")
        content["state_dict"] = {key: value for key, value in content["state_dict"].items() if "_plane." not in key}
        written.append(_write(content, Path(path).with_name(f"{stem}{COMPANIONS[0]}.th")))
        del content["state_dict"]
        written.append(_write(content, Path(path).with_name(f"{stem}{COMPANIONS[1]}.th")))
    return tuple(written)


def save_landmark_blocks(weights: SceneWeights, stem: Path) -> tuple[Path, ...]:
    """Write <stem>-sub{b}.th for every block. Returns the files written."""
    return tuple(
        save_landmark_block(
            weights.config,
            block,
            stem,
            density_planes=[item[block] for item in weights.density_planes],
            density_lines=[item[block] for item in weights.density_lines],
            app_planes=[item[block] for item in weights.app_planes],
            app_lines=[item[block] for item in weights.app_lines],
            decoder=weights,
        )
        for block in range(weights.config.blocks)
    )


def save_landmark_block(
    config: SceneConfig,
    block: int,
    stem: Path,
    *,
    density_planes: Sequence[Tensor],
    density_lines: Sequence[Tensor],
    app_planes: Sequence[Tensor],
    app_lines: Sequence[Tensor],
    decoder: SceneWeights,
    edit: str | None = None,
) -> Path:
    """Write <stem>-sub{block}.th (or -sub{block}_{edit}.th) of a scene of which no more than this block is in memory.

    config: of the whole scene. Planes [h, w, C], lines [n, C] of this block, one a level. decoder: holds basis, embedding, MLP and
    mask; its planes are not read. Returns the file. Raises CheckpointError where it cannot be written.
    """
    grids: dict[str, Tensor] = {}
    for kind, planes, lines in (("density", density_planes, density_lines), ("app", app_planes, app_lines)):
        grids |= {f"{kind}_plane.{level}": _own(plane).permute(2, 0, 1)[None] for level, plane in enumerate(planes)}
        grids |= {f"{kind}_line.{level}": _own(line).t()[None, :, :, None] for level, line in enumerate(lines)}
    content = {"kwargs": _kwargs(config, whole_grid(config)), "state_dict": grids | _decoder(decoder)} | _mask(decoder.mask)
    return _write(content, sub_path(Path(stem), block, edit))


def whole_grid(config: SceneConfig) -> tuple[int, int, int]:
    """gridSize as branch-parallel training knows it: voxels of the whole scene at resolution 1; a block's if that is not whole."""
    h, w, n = config.level_sizes()[0]
    first = config.resolutions[0]
    sizes = (w * config.division[0], h * config.division[1], n)
    if any(size % first for size in sizes):
        return (w, h, n)
    return (sizes[0] // first, sizes[1] // first, sizes[2] // first)


def _kwargs(config: SceneConfig, grid_size: tuple[int, int, int]) -> dict[str, Any]:
    kwargs: dict[str, Any] = {
        "aabb": torch.tensor(config.aabb, dtype=torch.float32),
        "gridSize": list(grid_size),
        "density_n_comp": [config.density_channels] * config.ndims,
        "appearance_n_comp": [config.appearance_channels] * config.ndims,
        "app_dim": config.app_dim,
        "density_shift": config.density_shift,
        "alphaMask_thres": 1e-4,
        "distance_scale": config.distance_scale,
        "rayMarch_weight_thres": config.weight_threshold,
        "fea2denseAct": config.activation,
        "near_far": list(config.near_far),
        "step_ratio": config.step_ratio,
        "pos_pe": 6,
        "view_pe": config.view_pe,
        "fea_pe": config.fea_pe,
        "featureC": config.feature_width,
    }
    args = {name: _typed(text) for name, text in config.training_args}
    if config.layout == "multi-block":
        args |= {"plane_division": list(config.division), "resMode": list(config.resolutions), "ndims": config.ndims}
        args |= {"nonlinear_density": config.nonlinear_density, "bias_enable": config.bias, "encode_app": config.embedding_rows > 0}
    if args:
        kwargs["args"] = args
    return kwargs


def _typed(text: str) -> object:
    value = literal(text)
    return value if str(value) == text else text


def _grids(weights: SceneWeights, stacked: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for kind, planes, lines in (
        ("density", weights.density_planes, weights.density_lines),
        ("app", weights.app_planes, weights.app_lines),
    ):
        for level, plane in enumerate(planes):
            found[f"{kind}_plane.{level}"] = _own(plane).permute(3, 0, 1, 2)[None] if stacked else _own(plane).permute(0, 3, 1, 2)
        for level, line in enumerate(lines):
            found[f"{kind}_line.{level}"] = _own(line).permute(2, 1, 0)[None]
    return found


def _decoder(weights: SceneWeights) -> dict[str, Tensor]:
    found = {"basis_mat.weight": _own(weights.basis_mat)}
    if weights.basis_density is not None:
        found["basis_den.weight"] = _own(weights.basis_density)
    if weights.embedding is not None:
        found["embedding_app.weight"] = _own(weights.embedding)
    for layer, weight, bias in zip((0, 2, 4), weights.mlp_weights, weights.mlp_biases, strict=True):
        found[f"renderModule.mlp.{layer}.weight"] = _own(weight)
        if bias is not None:
            found[f"renderModule.mlp.{layer}.bias"] = _own(bias)
    return found


def _own(tensor: Tensor) -> Tensor:
    """The tensor in a storage that holds nothing else: torch.save writes whole storages."""
    plain = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
    return plain.clone() if plain.untyped_storage().nbytes() != plain.numel() * plain.element_size() else plain


def _mask(mask: AlphaMask | None) -> dict[str, Any]:
    if mask is None:
        return {}
    volume = mask.volume.cpu().numpy()
    return {
        "alphaMask.shape": (1, 1, *volume.shape),
        "alphaMask.mask": np.packbits(volume.reshape(-1)),
        "alphaMask.aabb": torch.tensor(mask.aabb, dtype=torch.float32),
    }


def _write(content: dict[str, Any], path: Path) -> Path:
    """torch.save to a temporary name beside `path`, fsynced, renamed. The bytes depend on the content alone, not on the name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: cannot write it: {error}", remedy="check the directory, its permissions and its free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path
