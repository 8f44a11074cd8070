"""describe_scene: what a checkpoint is, what it costs, and what is missing to render it. Planes are not read into memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.companion import open_companion
from landmark_batch.scene.config import check_store_options
from landmark_batch.scene.configure import configure, open_head
from landmark_batch.scene.division import DivisionError
from landmark_batch.scene.edit import find_edits
from landmark_batch.scene.layout import find_companion
from landmark_batch.scene.location import SceneLocation, as_location
from landmark_batch.scene.mask import StoredMask, read_stored_mask
from landmark_batch.scene.store import BlockStore, open_if_store
from landmark_batch.scene.weights import Box, SceneConfig, scene_bytes

RENDER_ARGS = (  # settings of training that say how LandMark would render; near/far, box and scales stand in the config
    *("expname", "model_name", "plane_division", "resMode", "ndims", "sampling_opt", "n_importance", "nSamples", "step_ratio"),
    *("alpha_mask_filter_thre", "white_bkgd", "encode_app", "bias_enable", "nonlinear_density", "run_nerf", "residnerf"),
    *("render_batch_size", "render_near_far", "downsample_train", "dataset_name"),
)


@dataclass(frozen=True)
class Level:
    """One plane and its line. plane: (h, w) rows and columns, of one block. line: length. dim: 0 = XY plane with Z line."""

    dim: int
    resolution: int
    plane: tuple[int, int]
    line: int


@dataclass(frozen=True)
class MaskInfo:
    """size: (X, Y, Z) voxels. occupied: share of them, 0 to 1. aabb: its own box."""

    size: tuple[int, int, int]
    occupied: float
    aabb: Box


@dataclass(frozen=True)
class StoreInfo:
    """precision: 'fp32' or 'fp16', as stored. division: stored blocks along x and y. cut: whether they were cut out of whole planes.

    block_bytes: of one block as stored, its lines counted. planes: (h, w) of a block's stored plane by level.
    """

    precision: str
    division: tuple[int, int]
    cut: bool
    block_bytes: int
    planes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SceneInfo:
    """What `info` shows. layout: 'sequential', 'merged-stack', 'sub' (one block alone), 'subs' (one file a block), a companion,
    or 'block store'.

    path: text where it is a URL. file_bytes: of a block store, of its planes and lines as stored. division: blocks along x and y, None
    while unknown. grid_size: gridSize (x, y, z), of one block in a multi-block scene. bytes_fp32: of the loaded scene; bytes_fp16: with
    planes and lines in half precision. edits: {'new': (15,), ...}: blocks that have files for it. missing: what has to be supplied
    before it can be rendered, empty when nothing is. store: what only a block store has, else None.
    """

    path: Path | str
    files: tuple[Path, ...]
    file_bytes: int
    layout: str
    blocks: int
    division: tuple[int, int] | None
    resolutions: tuple[int, ...]
    ndims: int
    levels: tuple[Level, ...]
    grid_size: tuple[int, int, int]
    parameters: int
    bytes_fp32: int
    bytes_fp16: int
    aabb: Box
    near_far: tuple[float, float]
    mask: MaskInfo | None
    activation: str
    density_shift: float
    distance_scale: float
    weight_threshold: float
    step_ratio: float
    density_channels: int
    appearance_channels: int
    app_dim: int
    feature_width: int
    view_pe: int
    fea_pe: int
    bias: bool
    nonlinear_density: bool
    embedding_rows: int
    embedding_channels: int
    training_args: Mapping[str, Any]
    edits: Mapping[str, tuple[int, ...]]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    store: StoreInfo | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: paths as texts, tuples as lists."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


def describe_scene(path: SceneLocation, plane_division: tuple[int, int] | None = None) -> SceneInfo:
    """Describe a scene or a companion without loading its planes.

    Raises CheckpointError for a file that is missing, damaged, foreign or inconsistent, and for a plane_division that was given
    and does not fit (ConfigError where a block store says otherwise). What a file merely lacks to be rendered stands in `missing`.
    """
    if (store := open_if_store(path)) is not None:
        check_store_options(path, store.config, plane_division, None, None)
        return _describe_store(store)
    path = Path(as_location(path))
    files = find_companion(path)
    missing: list[str] = []
    if files.companion == files.paths[0]:
        first, lacks = open_companion(path)
        missing += lacks
        layout = "companion"
    else:
        first = open_head(files.paths[0], files)
        layout = {"sub": "sub", "subs": "subs"}.get(files.kind, "merged-stack" if first.geometry.stacked else "sequential")
    division: tuple[int, int] | None
    try:
        config, notes = configure(files, first, plane_division)
        division = config.division
    except DivisionError as error:
        if plane_division is not None:
            raise
        fallback = error.fitting[0] if error.fitting else ((files.block or 0) + 1, 1)
        config, notes = configure(files, first, fallback)
        division = None
        missing.append(f"plane_division: {error.remedy}")
    info = _describe(path, layout, config, division, read_stored_mask(first.content, first.path), notes)
    size = sum(_size(file) for file in files.paths)
    return replace(info, files=files.paths, file_bytes=size, edits=find_edits(files), missing=tuple(missing))


def _describe_store(store: BlockStore) -> SceneInfo:
    config = store.config
    info = _describe(store.location, "block store", config, config.division, store.stored_mask(), list(store.head.notes))
    block = store.block_bytes(store.precision)
    held = StoreInfo(store.precision, store.division, bool(store.extents), block, store.head.parts)
    files = (store.location,) if isinstance(store.location, Path) else ()
    return replace(info, files=files, file_bytes=block * store.blocks, store=held)


def _describe(
    path: SceneLocation, layout: str, config: SceneConfig, division: tuple[int, int] | None, mask: StoredMask | None, notes: list[str]
) -> SceneInfo:
    """Everything that the config says; files, edits and what is missing are left to the caller."""
    count = len(config.resolutions)
    return SceneInfo(
        path=path,
        files=(),
        file_bytes=0,
        layout=layout,
        blocks=config.blocks,
        division=division,
        resolutions=config.resolutions,
        ndims=config.ndims,
        levels=tuple(
            Level(level // count, config.resolutions[level % count], (h, w), n) for level, (h, w, n) in enumerate(config.level_sizes())
        ),
        grid_size=config.grid_size,
        parameters=config.grid_parameters() + config.decoder_parameters(),
        bytes_fp32=scene_bytes(config),
        bytes_fp16=scene_bytes(config, grid_element=2),
        aabb=config.aabb,
        near_far=config.near_far,
        mask=_mask(mask),
        activation=config.activation,
        density_shift=config.density_shift,
        distance_scale=config.distance_scale,
        weight_threshold=config.weight_threshold,
        step_ratio=config.step_ratio,
        density_channels=config.density_channels,
        appearance_channels=config.appearance_channels,
        app_dim=config.app_dim,
        feature_width=config.feature_width,
        view_pe=config.view_pe,
        fea_pe=config.fea_pe,
        bias=config.bias,
        nonlinear_density=config.nonlinear_density,
        embedding_rows=config.embedding_rows,
        embedding_channels=config.embedding_channels,
        training_args={name: config.training_arg(name) for name, _ in config.training_args if name in RENDER_ARGS},
        edits={},
        missing=(),
        notes=tuple(notes),
    )


def _mask(mask: StoredMask | None) -> MaskInfo | None:
    if mask is None:
        return None
    (z, y, x), volume = mask.shape, mask.volume()
    return MaskInfo((x, y, z), float(np.count_nonzero(volume)) / volume.size, mask.aabb)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file}: cannot read it: {error.strerror or error}", remedy="check the path and its permissions") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Level | MaskInfo | StoreInfo):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
