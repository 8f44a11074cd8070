from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.config import load_config
from landmark_batch.scene.export import save_landmark_block, save_landmark_blocks, save_landmark_checkpoint
from landmark_batch.scene.weights import SceneWeights
from tests.factories import make_scene
from tests.scene.conftest import assert_same_weights

BLOCK = 3


def save_edit(scene: SceneWeights, stem: Path, edit: str | None) -> Path:
    return save_landmark_block(
        scene.config,
        BLOCK,
        stem,
        density_planes=[item[BLOCK] for item in scene.density_planes],
        density_lines=[item[BLOCK] for item in scene.density_lines],
        app_planes=[item[BLOCK] for item in scene.app_planes],
        app_lines=[item[BLOCK] for item in scene.app_lines],
        decoder=scene,
        edit=edit,
    )


@pytest.fixture
def town(tmp_path: Path) -> tuple[Path, dict[str, SceneWeights]]:
    """A merged 2x2 town with every file of LandMark's edit mode beside it."""
    scenes = {edit: make_scene(division=(2, 2), mask=0.4, seed=seed) for seed, edit in enumerate(("reset", "new", "remove"))}
    path = tmp_path / "town-merged-stack.th"
    save_landmark_checkpoint(scenes["reset"], path)
    for edit, suffix, volume in (("reset", None, "clean"), ("new", "add", "add"), ("remove", "remove", "remove")):
        save_edit(scenes[edit], tmp_path / "town", suffix)
        mask = scenes[edit].mask
        assert mask is not None
        np.save(tmp_path / f"alpha_volume_{volume}.npy", mask.volume.numpy().astype(np.uint8).reshape(-1))
    return path, scenes


@pytest.mark.parametrize("edit", ["new", "remove"])
@pytest.mark.parametrize("block", [None, BLOCK])
def test_block_and_mask_are_exchanged(town: tuple[Path, dict[str, SceneWeights]], edit: str, block: int | None) -> None:
    path, scenes = town
    edited = load_scene(path, edit=edit, edit_block=block)
    for before, wanted, after in zip(scenes["reset"].app_planes, scenes[edit].app_planes, edited.app_planes, strict=True):
        assert torch.equal(after[BLOCK], wanted[BLOCK])
        assert torch.equal(after[:BLOCK], before[:BLOCK])
    for before, wanted, after in zip(scenes["reset"].density_lines, scenes[edit].density_lines, edited.density_lines, strict=True):
        assert torch.equal(after[BLOCK], wanted[BLOCK])
        assert torch.equal(after[:BLOCK], before[:BLOCK])
    assert torch.equal(edited.basis_mat, scenes["reset"].basis_mat)
    assert edited.mask is not None
    assert scenes[edit].mask is not None
    assert torch.equal(edited.mask.volume, scenes[edit].mask.volume)  # type: ignore[union-attr]
    assert edited.mask.aabb == scenes["reset"].config.aabb
    assert any(f"edit = '{edit}': block {BLOCK}" in note for note in edited.warnings)


def test_reset_gives_the_scene_back(town: tuple[Path, dict[str, SceneWeights]]) -> None:
    path, scenes = town
    assert_same_weights(load_scene(path, edit="reset", edit_block=BLOCK), scenes["reset"])
    assert_same_weights(load_scene(path, edit="reset"), scenes["reset"])


def test_edit_of_a_directory_of_blocks(tmp_path: Path, town: tuple[Path, dict[str, SceneWeights]]) -> None:
    path, scenes = town
    save_landmark_blocks(scenes["reset"], tmp_path / "town")
    path.unlink()
    edited = load_scene(tmp_path, edit="new")
    assert torch.equal(edited.app_planes[0][BLOCK], scenes["new"].app_planes[0][BLOCK])


@pytest.mark.parametrize(
    ("gone", "edit"),
    [
        *(("town-sub3_add.th", "new"), ("alpha_volume_add.npy", "new"), ("town-sub3_remove.th", "remove")),
        *(("alpha_volume_remove.npy", "remove"), ("town-sub3.th", "reset"), ("alpha_volume_clean.npy", "reset")),
    ],
)
def test_missing_files_are_named(town: tuple[Path, dict[str, SceneWeights]], gone: str, edit: str) -> None:
    path, _ = town
    (path.parent / gone).unlink()
    with pytest.raises(CheckpointError) as caught:
        load_scene(path, edit=edit, edit_block=BLOCK)
    assert f"{path.parent / gone}: missing" in caught.value.message


def test_no_block_to_be_found(town: tuple[Path, dict[str, SceneWeights]]) -> None:
    path, scenes = town
    save_edit(scenes["new"], path.parent / "town", "add").rename(path.parent / "town-sub0_add.th")
    save_edit(scenes["new"], path.parent / "town", "add")
    with pytest.raises(CheckpointError, match="could exchange block 0, 3"):
        load_scene(path, edit="new")
    for file in path.parent.glob("*_add.th"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"town-sub\{b\}_add\.th: missing"):
        load_scene(path, edit="new")


@pytest.mark.parametrize("load", [load_scene, load_config])  # planning refuses what rendering would
def test_edits_that_make_no_sense(town: tuple[Path, dict[str, SceneWeights]], sequential: Path, load: Callable[..., object]) -> None:
    path, scenes = town
    with pytest.raises(CheckpointError, match="edit = 'rebuild': known are reset, new, remove"):
        load(path, edit="rebuild")
    with pytest.raises(CheckpointError, match="exchanges a block of a whole scene"):
        load(path.parent / "town-sub3.th", edit="new")
    (path.parent / "town-sub3_add.th").rename(path.parent / "town-sub4_add.th")
    with pytest.raises(CheckpointError, match="edit_block = 4: town has 4 blocks"):
        load(path, edit="new")
    (path.parent / "town-sub4_add.th").rename(path.parent / "park-sub0_add.th")
    sequential.replace(path.parent / "park.th")
    with pytest.raises(CheckpointError, match="this scene is one grid"):
        load(path.parent / "park.th", edit="new")
    bare = make_scene(division=(2, 2))
    save_landmark_checkpoint(bare, path)
    save_edit(scenes["new"], path.parent / "town", "add")
    with pytest.raises(CheckpointError, match="exchanges the alpha mask, this scene has none"):
        load(path, edit="new")


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros(10), "holds 10 values, the mask"),
        (np.full(400, 0.5), "other values than 0 and 1"),
        (np.array([{}], dtype=object), "not a .npy of numbers"),
    ],
)
def test_wrong_volumes(town: tuple[Path, dict[str, SceneWeights]], volume: np.ndarray[Any, Any], message: str) -> None:
    path, _ = town
    np.save(path.parent / "alpha_volume_add.npy", volume, allow_pickle=True)
    with pytest.raises(CheckpointError, match=message):
        load_scene(path, edit="new")


def test_block_of_another_scene(town: tuple[Path, dict[str, SceneWeights]]) -> None:
    path, _ = town
    save_edit(make_scene(division=(2, 2), grid_size=(8, 7, 5)), path.parent / "town", "add")
    with pytest.raises(CheckpointError, match=r"town-sub3_add\.th: plane sizes"):
        load_scene(path, edit="new")
