"""From opened checkpoint files to SceneWeights: which block comes from where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.configure import CheckpointHead, read_head
from landmark_batch.scene.geometry import BASIS, BASIS_DENSITY, EMBEDDING, MLP_LAYERS, Geometry
from landmark_batch.scene.layout import SceneFiles, shorten
from landmark_batch.scene.mask import read_mask
from landmark_batch.scene.shard import WHOLE, ChannelShard, cut_columns
from landmark_batch.scene.tensors import State, grid
from landmark_batch.scene.unpickle import read_torch_file
from landmark_batch.scene.weights import SceneConfig, SceneWeights


@dataclass(frozen=True)
class OpenCheckpoint(CheckpointHead):
    """One file, opened: settings read, shapes checked, tensors not yet touched (memory-mapped where the format allows it)."""

    state: State


def open_checkpoint(path: Path, files: SceneFiles) -> OpenCheckpoint:
    """Raises CheckpointError for whatever is wrong with the file, its kwargs or its shapes."""
    head = read_head(read_torch_file(path), path, files)
    return OpenCheckpoint(head.path, head.content, head.settings, head.names, head.geometry, State(head.content["state_dict"], path))


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
