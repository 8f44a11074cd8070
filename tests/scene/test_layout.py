from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.division import DivisionError, block_box, divisions_of
from landmark_batch.scene.export import save_landmark_blocks, save_landmark_checkpoint
from landmark_batch.scene.layout import find_scene_files
from tests.factories import make_scene
from tests.scene.conftest import assert_same_weights, rewrite


def touch(directory: Path, *names: str) -> None:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_bytes(b"x")


def forget(content: dict[str, Any]) -> None:
    content["kwargs"].pop("args", None)


def test_kinds_of_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.th", "b-merged-stack.th", "b-merged-stack-wo_plane.th", "c-sub12.th")
    assert find_scene_files(tmp_path / "a.th").kind == "file"
    assert find_scene_files(tmp_path / "b-merged-stack.th").stem == tmp_path / "b"
    companion = find_scene_files(tmp_path / "b-merged-stack-wo_plane.th")
    assert companion.paths == (tmp_path / "b-merged-stack.th",)
    assert companion.companion == tmp_path / "b-merged-stack-wo_plane.th"
    sub = find_scene_files(tmp_path / "c-sub12.th")
    assert (sub.kind, sub.block, sub.stem) == ("sub", 12, tmp_path / "c")


def test_directories(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    touch(folder, *(f"t-sub{b}.th" for b in range(12)), "t-sub3_add.th", "t-sub3_remove.th", "t_opt-sub0.th", "t-sub0.png")
    found = find_scene_files(folder)
    assert [path.name for path in found.paths] == [f"t-sub{b}.th" for b in range(12)]  # 2 before 10
    touch(folder, "t-merged-stack.th", "t-merged-stack-wo_plane.th")
    assert find_scene_files(folder).paths == (folder / "t-merged-stack.th",)
    (folder / "t-merged-stack.th").unlink()
    (folder / "t-sub5.th").unlink()
    with pytest.raises(CheckpointError, match=r"log: blocks are missing: t-sub5\.th"):
        find_scene_files(folder)


def test_directories_that_are_not_one_scene(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint") as caught:
        load_scene(tmp_path)
    assert str(tmp_path) in caught.value.message
    touch(tmp_path, "a.th", "b-merged-stack.th")
    with pytest.raises(CheckpointError, match=r"several scenes in this directory: a\.th, b-merged-stack\.th"):
        find_scene_files(tmp_path)
    touch(tmp_path, "c-sub0.th", "d-sub0.th")
    with pytest.raises(CheckpointError, match=r"c-sub\{b\}\.th, d-sub\{b\}\.th"):
        find_scene_files(tmp_path)


def test_reference_directory_names_its_scenes(reference_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bp0m-merged-stack\.th, seq1\.th"):
        load_scene(reference_dir / "ckpt")


def test_companion_without_partner_knows_of_blocks(tmp_path: Path) -> None:
    touch(tmp_path, "b-merged-stack-wo_plane.th", "b-sub0.th")
    with pytest.raises(CheckpointError) as caught:
        load_scene(tmp_path / "b-merged-stack-wo_plane.th")
    assert "holds no planes" in caught.value.message
    assert "directory of the -sub{b}.th" in str(caught.value.remedy)


def test_division_of_a_merged_file(merged: Path) -> None:
    assert load_scene(merged).config.division == (2, 3)
    scene = load_scene(merged, plane_division=(3, 2))
    assert scene.config.division == (3, 2)
    assert any("training used [2, 3]" in note for note in scene.warnings)
    for wrong in ((2, 2), (1, 1), (7, 1)):
        with pytest.raises(DivisionError, match=rf"plane_division = \[{wrong[0]}, {wrong[1]}\] does not fit its 6 blocks") as caught:
            load_scene(merged, plane_division=wrong)
        assert str(caught.value.remedy).endswith("[1, 6], [2, 3], [3, 2], [6, 1]")
    rewrite(merged, forget)
    with pytest.raises(DivisionError, match="does not say how they lie") as caught:
        load_scene(merged)
    assert str(caught.value.remedy).endswith("[1, 6], [2, 3], [3, 2], [6, 1]")
    assert load_scene(merged, plane_division=(2, 3)).config.division == (2, 3)


def test_division_in_args_that_does_not_fit(merged: Path) -> None:
    rewrite(merged, lambda content: content["kwargs"]["args"].update(plane_division=[2, 2]))
    with pytest.raises(DivisionError, match=r"its plane_division = \[2, 2\] does not fit its 6 blocks"):
        load_scene(merged)
    rewrite(merged, lambda content: content["kwargs"]["args"].update(plane_division=[2, 3, 1]))
    assert load_scene(merged).config.division == (2, 3)


def test_one_merged_block_needs_no_division(tmp_path: Path) -> None:
    path = tmp_path / "b-merged-stack.th"
    save_landmark_checkpoint(make_scene(layout="multi-block"), path)
    config = load_scene(rewrite(path, forget)).config
    assert (config.layout, config.division) == ("multi-block", (1, 1))


def test_sequential_takes_no_division(sequential: Path) -> None:
    assert load_scene(sequential, plane_division=(1, 1)).config.division == (1, 1)
    with pytest.raises(DivisionError, match=r"\[2, 2\] does not fit its 1 block\n"):
        load_scene(sequential, plane_division=(2, 2))


def test_division_of_blocks_comes_from_the_grid(tmp_path: Path) -> None:
    scene = make_scene(division=(3, 2), resolutions=(1, 2, 4), grid_size=(9, 7, 5))
    for path in save_landmark_blocks(scene, tmp_path / "town"):
        rewrite(path, forget)
    loaded = load_scene(tmp_path)
    assert_same_weights(loaded, scene)
    assert loaded.config == scene.config
    with pytest.raises(DivisionError, match=r"plane_division = \[2, 3\] does not fit"):
        load_scene(tmp_path, plane_division=(2, 3))
    (tmp_path / "town-sub5.th").unlink()
    with pytest.raises(CheckpointError, match="5 block files of a scene that was divided into 6"):
        load_scene(tmp_path)


def test_one_block_alone_lies_where_it_belongs(tmp_path: Path) -> None:
    scene = make_scene(division=(3, 2), resolutions=(1, 2, 4), mask=0.5)
    paths = save_landmark_blocks(scene, tmp_path / "town")
    rewrite(paths[3], forget)
    block = load_scene(paths[3])
    assert block.config.aabb == block_box(scene.config.aabb, (3, 2), 3)
    assert block.mask is not None
    assert block.mask.aabb == scene.config.aabb
    with pytest.raises(DivisionError, match=r"plane_division = \[2, 2\] does not fit block 3") as caught:
        load_scene(paths[3], plane_division=(2, 2))
    assert str(caught.value.remedy).endswith("[3, 2]")
    renamed = paths[3].rename(tmp_path / "renamed.th")
    with pytest.raises(CheckpointError, match="its name does not say which"):
        load_scene(renamed)
    moved = renamed.rename(tmp_path / "town-sub6.th")
    with pytest.raises(DivisionError, match="does not say into how many blocks"):
        load_scene(moved)


def test_block_box_tiles_the_scene() -> None:
    box = ((-1.0, 0.0, 0.0), (2.0, 4.0, 1.0))
    assert block_box(box, (3, 2), 0) == ((-1.0, 0.0, 0.0), (0.0, 2.0, 1.0))
    assert block_box(box, (3, 2), 3) == ((0.0, 2.0, 0.0), (1.0, 4.0, 1.0))
    assert divisions_of(6) == [(1, 6), (2, 3), (3, 2), (6, 1)]


def test_plane_parallel_blocks_are_refused(tmp_path: Path) -> None:
    def wrap(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        for key in [key for key in state if "_line." in key]:
            state[key.replace("_line.", "_line.module.params.")] = state.pop(key)

    path = save_landmark_blocks(make_scene(division=(2, 1)), tmp_path / "town")[0]
    with pytest.raises(CheckpointError, match="plane-parallel") as caught:
        load_scene(rewrite(path, wrap))
    assert "-merged.th" in str(caught.value.remedy)


def test_a_stack_named_as_one_block(merged: Path) -> None:
    with pytest.raises(CheckpointError, match="holds 6 blocks, its name says one"):
        load_scene(merged.rename(merged.with_name("town-sub0.th")))
