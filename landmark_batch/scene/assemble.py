"""From opened checkpoint files to SceneWeights: which block comes from where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.division import block_box, choose_division, division_error, divisions_of, divisions_of_grid
from landmark_batch.scene.geometry import BASIS, BASIS_DENSITY, EMBEDDING, MLP_LAYERS, Geometry, read_geometry, unused_keys
from landmark_batch.scene.kwargs import CheckpointSettings, division_of_args, read_settings
from landmark_batch.scene.layout import COMPANIONS, SceneFiles, shorten
from landmark_batch.scene.mask import mask_shape, read_mask
from landmark_batch.scene.shard import WHOLE, ChannelShard, cut_columns
from landmark_batch.scene.tensors import State, grid
from landmark_batch.scene.unpickle import read_torch_file
from landmark_batch.scene.weights import SceneConfig, SceneWeights

Division = tuple[int, int]


@dataclass(frozen=True)
class OpenCheckpoint:
    """One file, opened: settings read, shapes checked, tensors not yet touched (memory-mapped where the format allows it)."""

    path: Path
    content: Mapping[Any, Any]
    settings: CheckpointSettings
    state: State
    geometry: Geometry


def open_checkpoint(path: Path, files: SceneFiles) -> OpenCheckpoint:
    """Raises CheckpointError for whatever is wrong with the file, its kwargs or its shapes."""
    content = read_torch_file(path)
    settings = read_settings(content, path)
    if "state_dict" not in content:
        raise CheckpointError(
            f"{path}: no state_dict in it, only settings, as in a {COMPANIONS[1]} companion",
            remedy="name the -merged-stack.th it was cut from",
        )
    state = State(content["state_dict"], path)
    if "gridShape" in content and not any(name.startswith("density_plane.") for name in state.shapes):
        raise CheckpointError(
            f"{path}: no planes in it, as in a {COMPANIONS[0]} companion", remedy="name the -merged-stack.th it was cut from"
        )
    if files.kind != "file" and _is_plane_parallel(state):
        raise CheckpointError(
            f"{path}: a block of plane-parallel training, whose blocks overlap and share their lines",
            remedy="name the -merged.th that LandMark writes at the end of that training",
        )
    return OpenCheckpoint(path, content, settings, state, read_geometry(state.shapes, settings, path))


def configure(files: SceneFiles, first: OpenCheckpoint, asked: Division | None) -> tuple[SceneConfig, list[str]]:
    """The scene's config and notes for the user. asked: plane_division of the job. Raises CheckpointError."""
    settings, geometry = first.settings, first.geometry
    trained = division_of_args(settings.training_args)
    notes = list(settings.notes)
    unused = sorted({key.split(".")[0] for key in unused_keys(first.state.names)})
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


def divide_block(files: SceneFiles, first: OpenCheckpoint, asked: Division | None, trained: Division | None) -> Division:
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


def read_weights(
    files: SceneFiles, first: OpenCheckpoint, config: SceneConfig, notes: list[str], shard: ChannelShard | None = None
) -> SceneWeights:
    """Copy every tensor, one at a time; of planes and lines only the channels of `shard`.

    Raises CheckpointError (NaN or Inf, blocks that do not match, mask).
    """
    mask = read_mask(first.content, first.path)
    geometry, share = first.geometry, shard or WHOLE
    blocks, resolutions = config.blocks, len(config.resolutions)
    density, appearance = share.span(config.density_channels), share.span(config.appearance_channels)
    density_pads = _pads(geometry.density_channels, density, resolutions)
    app_pads = _pads(geometry.appearance_channels, appearance, resolutions)
    target = Grids(
        density_planes=[grid(blocks, size, density[2], pad) for size, pad in zip(geometry.planes, density_pads, strict=True)],
        density_lines=[grid(blocks, (n,), density[2], pad) for n, pad in zip(geometry.lines, density_pads, strict=True)],
        app_planes=[grid(blocks, size, appearance[2], pad) for size, pad in zip(geometry.planes, app_pads, strict=True)],
        app_lines=[grid(blocks, (n,), appearance[2], pad) for n, pad in zip(geometry.lines, app_pads, strict=True)],
        density=slice(*density[:2]),
        appearance=slice(*appearance[:2]),
    )
    decoder = read_decoder(first)
    if files.kind == "subs":
        for block in range(blocks):
            part = first if block == 0 else open_block(files, block, config, decoder, notes)
            target.fill(part.state, slice(block, block + 1), stacked=False)
            del part
    else:
        target.fill(first.state, slice(0, blocks), stacked=geometry.stacked)
    basis, basis_density = wide_bases(decoder, geometry, config)
    if basis_density is not None:
        basis_density = cut_columns(basis_density, config.density_channels, share)
    return SceneWeights(
        config=config,
        density_planes=tuple(target.density_planes),
        density_lines=tuple(target.density_lines),
        app_planes=tuple(target.app_planes),
        app_lines=tuple(target.app_lines),
        basis_mat=cut_columns(basis, config.appearance_channels, share),
        basis_density=basis_density,
        embedding=decoder.get(EMBEDDING),
        mlp_weights=(decoder["mlp.0.weight"], decoder["mlp.2.weight"], decoder["mlp.4.weight"]),
        mlp_biases=(decoder.get("mlp.0.bias"), decoder.get("mlp.2.bias"), decoder.get("mlp.4.bias")),
        mask=mask,
        warnings=tuple(notes),
        shard=shard,
    )


@dataclass(frozen=True)
class Grids:
    """Planes [B, h, w, C] and lines [B, n, C] of a scene, to be filled. density, appearance: the channels of the files that go in."""

    density_planes: list[Tensor]
    density_lines: list[Tensor]
    app_planes: list[Tensor]
    app_lines: list[Tensor]
    density: slice
    appearance: slice

    def fill(self, state: State, blocks: slice, *, stacked: bool) -> None:
        """Copy one file's grids into these blocks."""
        for kind, planes, lines, channels in (
            ("density", self.density_planes, self.density_lines, self.density),
            ("app", self.app_planes, self.app_lines, self.appearance),
        ):
            for level in range(len(planes)):
                state.plane_into(f"{kind}_plane.{level}", planes[level][blocks], stacked, channels)
                state.line_into(f"{kind}_line.{level}", lines[level][blocks], channels)


def grids_of(weights: SceneWeights) -> Grids:
    """The grids of a scene or of a channel share, to be filled anew in place."""
    share = weights.shard or WHOLE
    return Grids(
        list(weights.density_planes),
        list(weights.density_lines),
        list(weights.app_planes),
        list(weights.app_lines),
        slice(*share.span(weights.config.density_channels)[:2]),
        slice(*share.span(weights.config.appearance_channels)[:2]),
    )


def check_same_block(part: OpenCheckpoint, config: SceneConfig, scene: Path) -> None:
    """Raises CheckpointError unless `part` is one block with the grids and the box of the scene."""
    mine = part.geometry
    if mine.stacked:
        raise CheckpointError(f"{part.path}: holds {mine.blocks} blocks, expected one", remedy="name it ...-merged-stack.th")
    for name, ours, theirs in (
        ("plane sizes", mine.planes, config.plane_sizes),
        ("line sizes", mine.lines, config.line_sizes),
        ("density channels", max(mine.density_channels), config.density_channels),
        ("appearance channels", max(mine.appearance_channels), config.appearance_channels),
        ("kwargs.aabb", part.settings.aabb, config.aabb),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{part.path}: {name} {ours} where {scene.name} has {theirs}", remedy="the files are of different trainings"
            )


def open_block(files: SceneFiles, block: int, config: SceneConfig, decoder: dict[str, Tensor], notes: list[str]) -> OpenCheckpoint:
    """The file of one block of a 'subs' scene, checked against the scene; what differs in its decoder goes into `notes`."""
    part = open_checkpoint(files.paths[block], files)
    check_same_block(part, config, files.paths[0])
    differing = [name for name, tensor in read_decoder(part).items() if name not in decoder or not torch.equal(tensor, decoder[name])]
    if differing:
        notes.append(f"{part.path.name}: {shorten(differing)} differ from those of {files.paths[0].name}, which are used for all blocks")
    return part


def read_decoder(part: OpenCheckpoint) -> dict[str, Tensor]:
    """Bases, embedding and colour MLP of a file, by short name. Can be called once a file."""
    geometry = part.geometry
    names = {BASIS: BASIS}
    if geometry.nonlinear_density:
        names[BASIS_DENSITY] = BASIS_DENSITY
    if geometry.embedding_rows:
        names[EMBEDDING] = EMBEDDING
    for layer in MLP_LAYERS:
        names[f"mlp.{layer}.weight"] = f"renderModule.mlp.{layer}.weight"
        if geometry.bias:
            names[f"mlp.{layer}.bias"] = f"renderModule.mlp.{layer}.bias"
    return {short: part.state.dense(name) for short, name in names.items()}


def wide_bases(decoder: dict[str, Tensor], geometry: Geometry, config: SceneConfig) -> tuple[Tensor, Tensor | None]:
    """The appearance and the density basis with columns for as many channels at every level as the widest one has."""
    resolutions, density = len(config.resolutions), decoder.get(BASIS_DENSITY)
    if density is not None:
        density = _pad_columns(density, geometry.density_channels, config.density_channels, resolutions)
    return _pad_columns(decoder[BASIS], geometry.appearance_channels, config.appearance_channels, resolutions), density


def _pads(channels: tuple[int, ...], span: tuple[int, int, int], resolutions: int) -> list[bool]:
    """For each level, whether fewer of its channels lie in the span than are held (zeros fill them up, which add nothing)."""
    start, stop, width = span
    return [min(stop, count) - start < width for count in channels for _ in range(resolutions)]


def _pad_columns(matrix: Tensor, channels: tuple[int, ...], most: int, resolutions: int) -> Tensor:
    """Columns (dim, res, channel) of a basis widened to `most` channels everywhere."""
    if all(count == most for count in channels):
        return matrix
    parts = torch.split(matrix, [count for count in channels for _ in range(resolutions)], dim=1)
    return torch.cat([torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in parts], dim=1)


def _divisions_of_subs(files: SceneFiles, first: OpenCheckpoint) -> list[Division]:
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


def _is_plane_parallel(state: State) -> bool:
    return ".params." in state.names.get("density_line.0", "") and ".params." not in state.names.get("density_plane.0", ".params.")
