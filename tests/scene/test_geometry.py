from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.scene.geometry import clean_key
from tests.factories import make_scene
from tests.scene.conftest import rewrite


def fail(path: Path, spoil: Any) -> CheckpointError:
    rewrite(path, spoil)
    with pytest.raises(CheckpointError) as caught:
        load_scene(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("key", "shape", "texts"),
    [
        ("density_plane.1", (1, 4, 14, 17), ["app_plane.1 has shape (1, 6, 14, 18)", "(1, 4, 14, 17)", "density_plane.1"]),
        ("app_plane.0", (1, 6, 7, 8), ["app_plane.0 has shape (1, 6, 7, 8)", "(1, 4, 7, 9)"]),
        ("density_line.0", (1, 4, 5, 2), ["density_line.0 has shape (1, 4, 5, 2)", "(1, C, n, 1)"]),
        ("app_line.1", (1, 6, 11, 1), ["app_line.1 has shape (1, 6, 11, 1)", "(1, 4, 10, 1)"]),
        ("density_plane.0", (4, 7, 9), ["density_plane.0 has shape (4, 7, 9)", "(1, C, h, w)"]),
        ("density_plane.0", (1, 3, 7, 9), ["density_plane.0 has shape (1, 3, 7, 9)", "density_n_comp says [4]"]),
        ("app_plane.1", (1, 3, 14, 18), ["app_plane.1 has shape (1, 3, 14, 18)", "appearance_n_comp says [6]"]),
        ("basis_mat.weight", (9, 11), ["basis_mat.weight has shape (9, 11)", "(9, 12)"]),
        ("basis_mat.weight", (8, 12), ["basis_mat.weight has shape (8, 12)", "app_dim"]),
        ("embedding_app.weight", (3, 47), ["renderModule.mlp.0.weight has shape (16, 108)", "(16, 107)", "an embedding of 47"]),
        ("embedding_app.weight", (3,), ["embedding_app.weight has shape (3)"]),
        ("renderModule.mlp.0.weight", (16, 60), ["(16, 60)", "(16, 108)", "view_pe = 2", "fea_pe = 2"]),
        ("renderModule.mlp.0.weight", (15, 108), ["(15, 108)", "featureC = 16"]),
        ("renderModule.mlp.2.weight", (16, 15), ["renderModule.mlp.2.weight has shape (16, 15)", "(16, 16)"]),
        ("renderModule.mlp.4.weight", (4, 16), ["renderModule.mlp.4.weight has shape (4, 16)", "(3, 16)"]),
        ("renderModule.mlp.4.bias", (4,), ["renderModule.mlp.4.bias has shape (4)", "(3)"]),
        ("basis_den.weight", (1, 7), ["basis_den.weight has shape (1, 7)", "(1, 8)"]),
    ],
)
def test_shapes_that_disagree(sequential: Path, key: str, shape: tuple[int, ...], texts: list[str]) -> None:
    error = fail(sequential, lambda content: content["state_dict"].update({key: torch.zeros(shape)}))
    for text in texts:
        assert text in error.message


@pytest.mark.parametrize(
    "key",
    [
        *("density_plane.0", "app_plane.1", "density_line.1", "app_line.0", "basis_mat.weight"),
        *("renderModule.mlp.0.weight", "renderModule.mlp.4.weight", "renderModule.mlp.2.bias"),
    ],
)
def test_tensors_that_are_missing(sequential: Path, key: str) -> None:
    assert f"{key} is missing" in fail(sequential, lambda content: content["state_dict"].pop(key)).message


def test_missing_embedding_is_named(sequential: Path) -> None:
    error = fail(sequential, lambda content: content["state_dict"].pop("embedding_app.weight"))
    assert "embedding_app.weight is missing" in str(error.remedy)


def test_pieces_of_channel_parallel_training(sequential: Path) -> None:
    def split(content: dict[str, Any]) -> None:
        for key, value in content["state_dict"].items():
            if "density_" in key:
                content["state_dict"][key] = value[:, :2].clone()

    error = fail(sequential, split)
    assert "density_n_comp says [4]" in error.message
    assert "-merged.th" in str(error.remedy)


def test_same_tensor_twice(sequential: Path) -> None:
    error = fail(sequential, lambda content: content["state_dict"].update({"module.basis_mat.weight": torch.zeros(1)}))
    assert "basis_mat.weight and module.basis_mat.weight are the same tensor" in error.message


def test_blocks_that_disagree(merged: Path) -> None:
    error = fail(merged, lambda content: content["state_dict"].update({"density_line.0": torch.zeros(1, 4, 5, 5)}))
    assert "density_line.0 has shape (1, 4, 5, 5)" in error.message
    assert "(1, C, n, 6)" in error.message


def test_planes_that_do_not_divide_into_dims(sequential: Path) -> None:
    error = fail(sequential, lambda content: content["kwargs"].update(density_n_comp=[4, 4, 4]))
    assert "2 density planes do not divide into the 3 dims" in error.message


def test_resolutions_come_from_shapes(tmp_path: Path) -> None:
    for ndims in (1, 3):
        for resolutions in ((1,), (2,), (1, 2, 4), (1, 3), (2, 4, 8)):
            path = tmp_path / "a.th"
            save_landmark_checkpoint(make_scene(ndims=ndims, resolutions=resolutions, grid_size=(5, 4, 3)), path)
            config = load_scene(path).config
            assert (config.ndims, config.resolutions) == (ndims, resolutions)


def test_clean_key() -> None:
    assert clean_key("basis_mat.module.weight") == "basis_mat.weight"
    assert clean_key("module.density_plane.module.params.2") == "density_plane.2"
    assert clean_key("renderModule.module.mlp.0.bias") == "renderModule.mlp.0.bias"
    assert clean_key("modules.params_x.1") == "modules.params_x.1"


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"near_far": [2.0, 0.5]}, ["near_far", "near must be below far"]),
        ({"near_far": [0.5]}, ["near_far = [0.5]", "2 numbers"]),
        ({"near_far": [0.5, float("nan")]}, ["near_far", "nan"]),
        ({"aabb": torch.zeros(2, 3)}, ["aabb", "below the second"]),
        ({"aabb": torch.zeros(3, 2)}, ["aabb"]),
        ({"aabb": torch.tensor([[0, 0, 0], [1, 1, float("inf")]])}, ["aabb", "finite"]),
        ({"distance_scale": 0}, ["distance_scale = 0", "above 0"]),
        ({"distance_scale": "much"}, ["distance_scale = 'much'"]),
        ({"step_ratio": float("nan")}, ["step_ratio = nan"]),
        ({"fea2denseAct": "gelu"}, ["fea2denseAct = 'gelu'", "softplus"]),
        ({"gridSize": [9, 7]}, ["gridSize = [9, 7]", "3 numbers"]),
        ({"gridSize": [9, 0, 5]}, ["gridSize[1] = 0"]),
        ({"view_pe": -2}, ["view_pe = -2"]),
        ({"fea_pe": 1.5}, ["fea_pe = 1.5"]),
        ({"featureC": True}, ["featureC = True"]),
        ({"density_n_comp": []}, ["density_n_comp = []"]),
        ({"app_dim": torch.zeros(100)}, ["app_dim holds 100 numbers"]),
    ],
)
def test_wrong_kwargs(sequential: Path, change: dict[str, Any], texts: list[str]) -> None:
    error = fail(sequential, lambda content: content["kwargs"].update(change))
    for text in texts:
        assert text in error.message


@pytest.mark.parametrize("key", ["aabb", "near_far", "gridSize", "distance_scale", "rayMarch_weight_thres", "fea2denseAct", "view_pe"])
def test_missing_kwargs(sequential: Path, key: str) -> None:
    assert f"kwargs.{key} is missing" in fail(sequential, lambda content: content["kwargs"].pop(key)).message


def test_numbers_may_be_tensors_and_numpy(sequential: Path) -> None:
    before = load_scene(sequential).config

    def convert(content: dict[str, Any]) -> None:
        kwargs = content["kwargs"]
        kwargs["gridSize"] = torch.tensor(kwargs["gridSize"])
        kwargs["near_far"] = np.array(kwargs["near_far"])
        kwargs["aabb"] = kwargs["aabb"].numpy()
        kwargs["distance_scale"] = np.float64(kwargs["distance_scale"])
        kwargs["density_n_comp"] = kwargs["density_n_comp"][0]

    assert load_scene(rewrite(sequential, convert)).config == before


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"alphaMask.shape": (1, 1, 5, 7, 10)}, ["alphaMask.mask holds 40 bytes", "(5, 7, 10)", "44"]),
        ({"alphaMask.shape": (7, 9)}, ["alphaMask.shape = (7, 9)"]),
        ({"alphaMask.shape": (2, 1, 5, 7, 9)}, ["alphaMask.shape = (2, 1, 5, 7, 9)"]),
        ({"alphaMask.mask": np.zeros(40, dtype=np.float32)}, ["alphaMask.mask is float32"]),
        ({"alphaMask.mask": "none"}, ["alphaMask.mask is str"]),
        ({"alphaMask.aabb": torch.zeros(2, 3)}, ["alphaMask.aabb"]),
    ],
)
def test_wrong_masks(sequential: Path, change: dict[str, Any], texts: list[str]) -> None:
    error = fail(sequential, lambda content: content.update(change))
    for text in texts:
        assert text in error.message


def test_part_of_a_mask(sequential: Path) -> None:
    assert "alphaMask.aabb is missing beside alphaMask.shape" in fail(sequential, lambda content: content.pop("alphaMask.aabb")).message


def test_no_kwargs_no_state(sequential: Path, merged: Path) -> None:
    assert "no kwargs in it" in fail(sequential, lambda content: content.pop("kwargs")).message
    assert "only settings" in fail(merged, lambda content: content.pop("state_dict")).message
    assert "no kwargs in it (it holds 'weights')" in fail(merged, lambda content: (content.clear(), content.update(weights=1))).message
