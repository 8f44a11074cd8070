"""What a checkpoint's settings and shapes say about its scene: the SceneConfig, without its planes and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.division import block_box, choose_division, division_error, divisions_of, divisions_of_grid
from landmark_batch.scene.geometry import Geometry, Shape, clean_keys, read_geometry, unused_keys
from landmark_batch.scene.kwargs import CheckpointSettings, division_of_args, read_settings
from landmark_batch.scene.layout import COMPANIONS, SceneFiles
from landmark_batch.scene.mask import mask_shape
from landmark_batch.scene.stored import TensorLike
from landmark_batch.scene.torch_head import read_torch_head
from landmark_batch.scene.weights import SceneConfig

Division = tuple[int, int]


@dataclass(frozen=True)
class CheckpointHead:
    """One file, its settings read and its shapes checked. names: of its state_dict, {clean key: key}."""

    path: Path
    content: Mapping[Any, Any]
    settings: CheckpointSettings
    names: Mapping[str, str]
    geometry: Geometry


def open_head(path: Path, files: SceneFiles) -> CheckpointHead:
    """Of a file of which no tensor is read. Raises CheckpointError for whatever is wrong with the file, its kwargs or its shapes."""
    return read_head(read_torch_head(path), path, files)


def read_head(content: Mapping[Any, Any], path: Path, files: SceneFiles) -> CheckpointHead:
    """Of what a file holds. Raises as `open_head`."""
    settings = read_settings(content, path)
    if "state_dict" not in content:
        raise CheckpointError(
            f"{path}: no state_dict in it, only settings, as in a {COMPANIONS[1]} companion",
            remedy="name the -merged-stack.th it was cut from",
        )
    names, shapes = tensor_shapes(content["state_dict"], path)
    if "gridShape" in content and not any(name.startswith("density_plane.") for name in shapes):
        raise CheckpointError(
            f"{path}: no planes in it, as in a {COMPANIONS[0]} companion", remedy="name the -merged-stack.th it was cut from"
        )
    if files.kind != "file" and _is_plane_parallel(names):
        raise CheckpointError(
            f"{path}: a block of plane-parallel training, whose blocks overlap and share their lines",
            remedy="name the -merged.th that LandMark writes at the end of that training",
        )
    return CheckpointHead(path, content, settings, names, read_geometry(shapes, settings, path))


def tensor_shapes(state_dict: object, path: Path) -> tuple[dict[str, str], dict[str, Shape]]:
    """({clean key: key}, shapes of the tensors by clean key) of a state_dict. Raises CheckpointError for what is none."""
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(f"{path}: state_dict is a {type(state_dict).__name__}", remedy="name a .th file that LandMark wrote")
    names = clean_keys(state_dict, path)
    held = {name: state_dict[key] for name, key in names.items()}
    return names, {name: tuple(value.shape) for name, value in held.items() if isinstance(value, TensorLike)}


def configure(files: SceneFiles, first: CheckpointHead, asked: Division | None) -> tuple[SceneConfig, list[str]]:
    """The scene's config and notes for the user. asked: plane_division of the job. Raises CheckpointError."""
    settings, geometry = first.settings, first.geometry
    trained = division_of_args(settings.training_args)
    notes = list(settings.notes)
    unused = sorted({key.split(".")[0] for key in unused_keys(first.names)})
    if unused:
        notes.append(f"not used for rendering: {', '.join(f'{name}.*' for name in unused)}")
    if files.companion is not None and files.companion != first.path:
        notes.append(f"{files.companion.name} is a companion; {first.path.name} beside it was read")
    aabb, grid_size, layout, division = settings.aabb, settings.grid_size, "single", (1, 1)
    if files.kind == "sub":
        if geometry.stacked:
            raise CheckpointError(
                f"{first.path}: holds {geometry.blocks} blocks, its name says one", remedy="rename it to ...-merged-stack.th"
            )
        whole = divide_block(files, first, asked, trained)
        aabb, grid_size = block_box(settings.aabb, whole, files.block or 0), geometry.block_grid
        notes.append(f"block {files.block} alone, of {whole[0]}x{whole[1]}, in its own part of the box")
    elif files.kind == "subs":
        layout, grid_size = "multi-block", geometry.block_grid  # what LandMark's merge writes
        division, more = choose_division(files.directory, len(files.paths), _divisions_of_subs(files, first), asked, trained)
        notes += more
    elif geometry.stacked:
        layout = "multi-block"
        division, more = choose_division(first.path, geometry.blocks, divisions_of(geometry.blocks), asked, trained)
        notes += more
    else:
        if _looks_like_block(settings, geometry):
            raise CheckpointError(
                f"{first.path}: planes of {geometry.planes[0][1]}x{geometry.planes[0][0]} where gridSize says "
                f"{settings.grid_size[0]}x{settings.grid_size[1]}: one block of a larger scene, and its name does not say which",
                remedy="give it its name back: <name>-sub{b}.th",
            )
        choose_division(first.path, 1, [(1, 1)], asked, None)
    mask = mask_shape(first.content["alphaMask.shape"], first.path) if "alphaMask.shape" in first.content else None
    config = SceneConfig(
        layout=layout,
        division=division,
        resolutions=geometry.resolutions,
        ndims=geometry.ndims,
        aabb=aabb,
        near_far=settings.near_far,
        grid_size=grid_size,
        density_channels=max(geometry.density_channels),
        appearance_channels=max(geometry.appearance_channels),
        app_dim=settings.app_dim,
        feature_width=settings.feature_width,
        view_pe=settings.view_pe,
        fea_pe=settings.fea_pe,
        activation=settings.activation,
        density_shift=settings.density_shift,
        distance_scale=settings.distance_scale,
        weight_threshold=settings.weight_threshold,
        step_ratio=settings.step_ratio,
        nonlinear_density=geometry.nonlinear_density,
        bias=geometry.bias,
        embedding_rows=geometry.embedding_rows,
        embedding_channels=geometry.embedding_channels,
        training_args=settings.training_args,
        plane_sizes=geometry.planes,
        line_sizes=geometry.lines,
        mask_size=mask,
    )
    return config, notes


def divide_block(files: SceneFiles, first: CheckpointHead, asked: Division | None, trained: Division | None) -> Division:
    """The division that a lone -sub{b}.th belongs to, from the job, its args, or gridSize against its planes."""
    block = files.block or 0
    fitting = divisions_of_grid(first.settings.grid_size, first.geometry)
    whole_known = first.settings.grid_size != first.geometry.block_grid
    fitting = [division for division in fitting if division[0] * division[1] > block]
    for division, origin in ((asked, "plane_division"), (trained, "its own plane_division")):
        if division is None:
            continue
        if division[0] * division[1] <= block or (whole_known and fitting and division not in fitting):
            planes = f"{first.geometry.planes[0][1]}x{first.geometry.planes[0][0]}"
            raise division_error(
                f"{first.path}: {origin} = {list(division)} does not fit block {block} with planes of {planes} "
                f"in a scene of {first.settings.grid_size}",
                fitting,
                "count its blocks along x and y",
            )
        return division
    if len(fitting) == 1:
        return fitting[0]
    message = f"{first.path}: the file does not say into how many blocks along x and y its scene is divided"
    raise division_error(message, fitting, "set scene.plane_division to the blocks along x and y")


def _divisions_of_subs(files: SceneFiles, first: CheckpointHead) -> list[Division]:
    blocks = len(files.paths)
    if first.settings.grid_size == first.geometry.block_grid:  # cut from a merged file: gridSize is a block's
        return divisions_of(blocks)
    fitting = divisions_of_grid(first.settings.grid_size, first.geometry, blocks)
    if not fitting:
        whole = divisions_of_grid(first.settings.grid_size, first.geometry)
        if whole:
            counts = sorted({x * y for x, y in whole})
            raise CheckpointError(
                f"{files.directory}: {blocks} block files of a scene that was divided into {' or '.join(map(str, counts))}",
                remedy=f"put all {files.stem.name}-sub{{b}}.th there, or name one to render its block alone",
            )
        return divisions_of(blocks)
    return fitting


def _looks_like_block(settings: CheckpointSettings, geometry: Geometry) -> bool:
    rows, columns = geometry.planes[0]
    return columns < settings.grid_size[0] or rows < settings.grid_size[1]


def _is_plane_parallel(names: Mapping[str, str]) -> bool:
    return ".params." in names.get("density_line.0", "") and ".params." not in names.get("density_plane.0", ".params.")
