from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.config import load_config
from landmark_batch.scene.export import save_landmark_blocks, save_landmark_checkpoint
from landmark_batch.scene.info import describe_scene
from landmark_batch.scene.weights import SceneConfig, SceneWeights, scene_bytes
from tests.factories import make_scene
from tests.scene.conftest import rewrite


def numbers_in(weights: SceneWeights) -> tuple[int, int]:
    grids = [*weights.density_planes, *weights.density_lines, *weights.app_planes, *weights.app_lines]
    rest = [weights.basis_mat, weights.basis_density, weights.embedding, *weights.mlp_weights, *weights.mlp_biases]
    return sum(item.numel() for item in grids), sum(item.numel() for item in rest if item is not None)


@pytest.mark.parametrize("nonlinear_density", [False, True])
@pytest.mark.parametrize(("division", "ndims"), [((1, 1), 1), ((2, 2), 3)])
def test_counts_are_those_of_the_loaded_scene(tmp_path: Path, division: tuple[int, int], ndims: int, nonlinear_density: bool) -> None:
    scene = make_scene(
        division=division, ndims=ndims, nonlinear_density=nonlinear_density, bias=not nonlinear_density, embedding_rows=3, mask=0.5
    )
    path = tmp_path / "a.th"
    save_landmark_checkpoint(scene, path)
    info, (grids, rest) = describe_scene(path), numbers_in(load_scene(path))
    assert info.parameters == grids + rest
    assert info.bytes_fp32 == (grids + rest) * 4 + 9 * 7 * 5
    assert info.bytes_fp16 == grids * 2 + rest * 4 + 9 * 7 * 5
    assert info.missing == ()
    assert info.file_bytes == path.stat().st_size
    assert [(level.dim, level.resolution) for level in info.levels] == [(d, r) for d in range(ndims) for r in (1, 2)]
    assert info.levels[1].plane == (14, 18)
    assert info.mask is not None
    assert info.mask.size == (9, 7, 5)
    assert scene.mask is not None
    assert info.mask.occupied == pytest.approx(float(scene.mask.volume.float().mean()))


def test_config_without_sizes_counts_by_resolution() -> None:
    scene = make_scene(division=(2, 1), ndims=3)
    bare = SceneConfig(**{**scene.config.__dict__, "plane_sizes": (), "line_sizes": ()})
    assert bare.level_sizes() == scene.config.level_sizes()
    assert scene_bytes(bare) == scene_bytes(scene.config)


def test_reference_files(reference_dir: Path) -> None:
    folder = reference_dir / "ckpt"
    layouts = {path.name: describe_scene(path).layout for path in sorted(folder.glob("*.th"))}
    assert layouts == {
        "bp0-merged-stack-wo_plane.th": "merged-stack",
        "bp0-merged-stack-wo_state_dict.th": "merged-stack",
        "bp0-merged-stack.th": "merged-stack",
        "bp0-sub0.th": "sub",
        "bp0m-merged-stack.th": "merged-stack",
        "seq1.th": "sequential",
    }
    info = describe_scene(folder / "bp0m-merged-stack.th")
    assert (info.blocks, info.division, info.resolutions) == (4, (2, 2), (1, 2, 4))
    assert info.mask is not None
    assert info.mask.occupied == pytest.approx(0.507, abs=5e-4)
    assert info.training_args["resMode"] == [1, 2, 4]
    assert info.training_args["n_importance"] == 128
    json.dumps(info.as_dict(), allow_nan=False)


@pytest.mark.parametrize(("suffix", "lacks"), [("-wo_plane", 1), ("-wo_state_dict", 2)])
def test_companions_alone(reference_dir: Path, tmp_path: Path, suffix: str, lacks: int) -> None:
    name = f"bp0-merged-stack{suffix}.th"
    shutil.copy(reference_dir / "ckpt" / name, tmp_path / name)
    info = describe_scene(tmp_path / name)
    assert info.layout == "companion"
    assert len(info.missing) == lacks
    assert "density_plane" in info.missing[0]
    assert info.levels == describe_scene(reference_dir / "ckpt" / "bp0-merged-stack.th").levels
    json.dumps(info.as_dict(), allow_nan=False)


@pytest.mark.parametrize("resolutions", [(1,), (1, 2), (1, 2, 4)])
def test_companions_of_made_scenes(tmp_path: Path, resolutions: tuple[int, ...]) -> None:
    path = tmp_path / "a-merged-stack.th"
    scene = make_scene(division=(2, 2), ndims=3, resolutions=resolutions, nonlinear_density=True, embedding_rows=2)
    save_landmark_checkpoint(scene, path, companions=True)
    path.unlink()
    for suffix in ("-wo_plane", "-wo_state_dict"):
        info = describe_scene(tmp_path / f"a-merged-stack{suffix}.th")
        assert info.missing
        assert len(info.levels) == 3 * len(resolutions)
    rewrite(tmp_path / "a-merged-stack-wo_plane.th", lambda content: content.pop("gridShape"))
    with pytest.raises(CheckpointError, match="no gridShape"):
        describe_scene(tmp_path / "a-merged-stack-wo_plane.th")


def test_unknown_division_is_what_is_missing(merged: Path) -> None:
    rewrite(merged, lambda content: content["kwargs"].pop("args"))
    info = describe_scene(merged)
    assert info.division is None
    assert info.blocks == 6
    assert info.missing == ("plane_division: set scene.plane_division to one that fits: [1, 6], [2, 3], [3, 2], [6, 1]",)
    assert describe_scene(merged, (2, 3)).missing == ()
    with pytest.raises(CheckpointError, match="does not fit its 6 blocks"):
        describe_scene(merged, (2, 2))


def test_block_alone_whose_place_is_unknown(tmp_path: Path) -> None:
    path = save_landmark_blocks(make_scene(division=(3, 2), mask=0.5), tmp_path / "town")[5]
    rewrite(path, lambda content: content["kwargs"].update(args={}, gridSize=[9, 7, 5]))
    info = describe_scene(path)
    assert info.division is None
    assert "plane_division" in info.missing[0]
    assert load_config(path, plane_division=(3, 2)).aabb[1] == pytest.approx(make_scene(division=(3, 2)).config.aabb[1])


def test_directory_and_edits(tmp_path: Path) -> None:
    scene = make_scene(division=(2, 1), mask=0.5)
    paths = save_landmark_blocks(scene, tmp_path / "town")
    shutil.copy(paths[1], tmp_path / "town-sub1_add.th")
    np.save(tmp_path / "alpha_volume_add.npy", np.zeros(3))
    info = describe_scene(tmp_path)
    assert (info.layout, info.blocks, info.files) == ("subs", 2, paths)
    assert info.edits == {"new": (1,)}
    np.save(tmp_path / "alpha_volume_clean.npy", np.zeros(3))
    assert describe_scene(tmp_path).edits == {"reset": (1,), "new": (1,)}


def test_bad_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a-merged-stack-wo_plane.th").write_bytes(b"no")
    for name in ("gone.th", "a-merged-stack-wo_plane.th"):
        with pytest.raises(CheckpointError, match=name):
            describe_scene(tmp_path / name)
