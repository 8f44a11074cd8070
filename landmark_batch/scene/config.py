"""load_config: what a scene of any kind is, before anything of it is loaded."""

from __future__ import annotations

from pathlib import Path

from landmark_batch.errors import CheckpointError, ConfigError
from landmark_batch.scene.configure import configure, open_head
from landmark_batch.scene.edit import check_edit
from landmark_batch.scene.layout import find_scene_files
from landmark_batch.scene.location import SceneLocation, as_location
from landmark_batch.scene.mask import read_stored_mask
from landmark_batch.scene.store import open_if_store
from landmark_batch.scene.weights import SceneConfig


def load_config(
    path: SceneLocation, *, plane_division: tuple[int, int] | None = None, edit: str | None = None, edit_block: int | None = None
) -> SceneConfig:
    """The SceneConfig that `load_scene` would give, without reading planes (for planning) and without torch. Raises as `load_scene`.

    What only the planes show (NaN, blocks of different trainings) is found by `load_scene` alone.
    """
    if (store := open_if_store(path)) is not None:
        check_store_options(path, store.config, plane_division, edit, edit_block)
        return store.config
    check_edit_block(path, edit, edit_block)
    files = find_scene_files(Path(as_location(path)))
    first = open_head(files.paths[0], files)
    config = configure(files, first, plane_division)[0]
    read_stored_mask(first.content, first.path)
    if edit is not None:
        check_edit(config, files, edit, edit_block)
    return config


def check_store_options(
    location: SceneLocation, config: SceneConfig, plane_division: tuple[int, int] | None, edit: str | None, edit_block: int | None
) -> None:
    """Raises ConfigError for a plane_division that is not the store's, CheckpointError for an edit: a store holds what was converted."""
    if edit is not None or edit_block is not None:
        wish = f"edit = {edit!r}" if edit is not None else f"edit_block = {edit_block}"
        raise CheckpointError(
            f"{location}: {wish}: the blocks of a store cannot be exchanged on loading",
            remedy="make a store of it by landmark-batch convert --edit, or name the checkpoint",
        )
    if plane_division is not None and plane_division != config.division:
        raise ConfigError(
            f"{location}: plane_division = {list(plane_division)}, the store was made with {list(config.division)}",
            remedy="leave scene.plane_division out: a store knows its own",
        )


def check_edit_block(path: SceneLocation, edit: str | None, edit_block: int | None) -> None:
    """Raises CheckpointError for the block of an edit without an edit."""
    if edit is None and edit_block is not None:
        raise CheckpointError(f"{path}: edit_block = {edit_block} without edit", remedy="set scene.edit to reset, new or remove")
