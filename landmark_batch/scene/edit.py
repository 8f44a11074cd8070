"""LandMark's edit mode: one block and the alpha mask exchanged for those of sub{b}_add.th, sub{b}_remove.th or sub{b}.th."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.layout import SceneFiles, sub_path
from landmark_batch.scene.mask import read_volume
from landmark_batch.scene.weights import AlphaMask, SceneConfig, SceneWeights

EDITS = {"reset": (None, "clean"), "new": ("add", "add"), "remove": ("remove", "remove")}  # suffix of the block, of the mask


@dataclass(frozen=True)
class EditFiles:
    """block: its index. weights: the .th with its grids. volume: the .npy with the mask of the whole scene."""

    block: int
    weights: Path
    volume: Path


def find_edit_files(files: SceneFiles, edit: str, block: int | None) -> EditFiles:
    """Files of an edit beside the scene's own. Raises CheckpointError naming what is missing."""
    if edit not in EDITS:
        raise CheckpointError(f"edit = {edit!r}: known are {', '.join(EDITS)}", remedy="set scene.edit to one of them")
    if files.kind == "sub":
        raise CheckpointError(f"{files.paths[0]}: edit = {edit!r} exchanges a block of a whole scene", remedy="name the -merged-stack.th")
    suffix, volume = EDITS[edit]
    if block is None:
        block = _only_block(files, edit)
    weights = sub_path(files.stem, block, suffix)
    found = EditFiles(block, weights, files.directory / f"alpha_volume_{volume}.npy")
    for path in (found.weights, found.volume):
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; edit = {edit!r} of block {block} needs it", remedy="put it beside the checkpoint")
    return found


def check_edit(config: SceneConfig, files: SceneFiles, edit: str, block: int | None) -> EditFiles:
    """The files of an edit that this scene can take. Raises CheckpointError: no blocks, no such block, no mask, files missing."""
    found = find_edit_files(files, edit, block)
    if config.layout != "multi-block":
        raise CheckpointError(f"{files.paths[0]}: edit = {edit!r} exchanges a block, this scene is one grid", remedy="leave scene.edit out")
    if found.block >= config.blocks:
        raise CheckpointError(
            f"edit_block = {found.block}: {files.stem.name} has {config.blocks} blocks",
            remedy=f"set scene.edit_block to 0-{config.blocks - 1}",
        )
    if config.mask_size is None:
        raise CheckpointError(
            f"{files.paths[0]}: edit = {edit!r} exchanges the alpha mask, this scene has none", remedy="leave scene.edit out"
        )
    return found


def apply_edit(weights: SceneWeights, files: SceneFiles, edit: str, block: int | None) -> SceneWeights:
    """Exchange one block's planes and lines (in place) and the mask (its box stays), of a scene or of a channel share.

    Raises CheckpointError.
    """
    import torch

    from landmark_batch.scene.assemble import check_same_block, grids_of, open_checkpoint

    config = weights.config
    found = check_edit(config, files, edit, block)
    part = open_checkpoint(found.weights, SceneFiles("sub", (found.weights,), files.stem, block=found.block))
    check_same_block(part, config, files.paths[0])
    grids_of(weights).fill(part.state, slice(found.block, found.block + 1), stacked=False)
    mask = weights.mask
    if mask is not None:
        z, y, x = mask.volume.shape
        mask = AlphaMask(torch.from_numpy(read_volume(found.volume, (z, y, x))), mask.aabb)
    note = f"edit = {edit!r}: block {found.block} from {found.weights.name}, mask from {found.volume.name}"
    return replace(weights, mask=mask, warnings=(*weights.warnings, note))


def find_edits(files: SceneFiles) -> dict[str, tuple[int, ...]]:
    """The edits whose files lie beside a scene: {'new': (15,), 'reset': (15,)}; blocks whose every file is there."""
    found: dict[str, tuple[int, ...]] = {}
    for edit, (suffix, volume) in EDITS.items():
        if (files.directory / f"alpha_volume_{volume}.npy").is_file():
            blocks = tuple(block for block in _blocks_with_edits(files, edit) if sub_path(files.stem, block, suffix).is_file())
            if blocks:
                found[edit] = blocks
    return found


def _blocks_with_edits(files: SceneFiles, edit: str) -> list[int]:
    pattern = re.compile(re.escape(files.stem.name) + r"-sub(\d+)_(add|remove)\.th")
    wanted = {"new": {"add"}, "remove": {"remove"}, "reset": {"add", "remove"}}[edit]
    matches = [match for item in files.directory.glob("*.th") if (match := pattern.fullmatch(item.name)) and match[2] in wanted]
    return sorted({int(match[1]) for match in matches})


def _only_block(files: SceneFiles, edit: str) -> int:
    """The block of an edit that names none: the one for which edit files lie beside the checkpoint."""
    blocks = _blocks_with_edits(files, edit)
    if len(blocks) == 1:
        return blocks[0]
    if not blocks:
        suffix = EDITS[edit][0] or "add"
        raise CheckpointError(
            f"{files.directory / f'{files.stem.name}-sub{{b}}_{suffix}.th'}: missing; edit = {edit!r} needs it",
            remedy="put it beside the checkpoint",
        )
    raise CheckpointError(
        f"{files.directory}: edit = {edit!r} could exchange block {', '.join(map(str, blocks))}",
        remedy="set scene.edit_block to one of them",
    )
