from __future__ import annotations

import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.config import load_config
from landmark_batch.scene.export import save_landmark_blocks, save_landmark_checkpoint
from landmark_batch.scene.weights import SceneConfig, scene_bytes
from tests.factories import make_scene
from tests.scene.conftest import assert_same_weights, read_raw, rewrite


def without_args(config: SceneConfig) -> SceneConfig:
    return replace(config, training_args=())


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plain unpickling of the reference files, which were made by their own trainer: the other side of the comparison."""

    class PrintableConfig:
        pass

    module = types.ModuleType("app.tools.configs")
    PrintableConfig.__module__, PrintableConfig.__qualname__ = module.__name__, "PrintableConfig"
    module.PrintableConfig = PrintableConfig  # type: ignore[attr-defined]
    for name in ("app", "app.tools"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return read_raw


def test_sequential_reference(reference_dir: Path, trusted: Any) -> None:
    path = reference_dir / "ckpt" / "seq1.th"
    raw, scene = trusted(path), load_scene(path)
    state = raw["state_dict"]
    assert (scene.config.layout, scene.config.division, scene.config.ndims) == ("single", (1, 1), 1)
    assert scene.config.resolutions == (1, 2, 4)
    assert scene.config.near_far == (0.7, 2.2)
    assert scene.config.embedding_rows == 11500
    assert scene.config.aabb == tuple(map(tuple, raw["kwargs"]["aabb"].tolist()))
    for level in range(3):
        assert torch.equal(scene.density_planes[level][0], state[f"density_plane.{level}"][0].permute(1, 2, 0))
        assert torch.equal(scene.app_lines[level][0], state[f"app_line.{level}"][0, :, :, 0].t())
        assert scene.density_planes[level].is_contiguous()
        assert scene.app_lines[level].is_contiguous()
    assert torch.equal(scene.basis_mat, state["basis_mat.weight"])
    assert scene.embedding is not None
    assert torch.equal(scene.embedding, state["embedding_app.weight"])
    assert scene.mask is not None
    assert scene.mask.volume.shape == (2, 36, 36)
    assert round(float(scene.mask.volume.float().mean()), 2) == 0.83
    assert any("nerf.*" in note for note in scene.warnings)


def test_merged_reference(reference_dir: Path, trusted: Any) -> None:
    path = reference_dir / "ckpt" / "bp0-merged-stack.th"
    state, scene = trusted(path)["state_dict"], load_scene(path)
    assert (scene.config.layout, scene.config.division) == ("multi-block", (2, 2))
    assert scene.config.grid_size == (20, 20, 3)
    assert scene.config.training_arg("resMode") == [1, 2, 4]
    assert scene.config.training_arg("n_importance") == 128
    assert scene.config.training_arg("sampling_opt") is False
    assert scene.config.training_arg("expname") == "bp0"
    assert scene.warnings == ()
    for level in range(3):
        for block in range(4):
            assert torch.equal(scene.app_planes[level][block], state[f"app_plane.{level}"][0, :, block].permute(1, 2, 0))
            assert torch.equal(scene.density_lines[level][block], state[f"density_line.{level}"][0, :, :, block].t())
    assert scene_bytes(scene.config) == scene_bytes(load_config(path))
    held = sum(item.numel() for item in state.values()) * 4 + 3 * 40 * 40
    assert scene_bytes(scene.config) == held


def test_one_block_of_the_reference_alone(reference_dir: Path) -> None:
    whole = load_scene(reference_dir / "ckpt" / "bp0-merged-stack.th")
    block = load_scene(reference_dir / "ckpt" / "bp0-sub0.th")
    assert (block.config.layout, block.config.blocks) == ("single", 1)
    low, high = whole.config.aabb
    assert block.config.aabb == (low, ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[2]))
    assert block.config.grid_size == whole.config.grid_size
    assert any("2x2" in note for note in block.warnings)
    for level in range(3):
        assert torch.equal(block.density_planes[level][0], whole.density_planes[level][0])
        assert torch.equal(block.app_lines[level][0], whole.app_lines[level][0])


def test_directory_of_reference_blocks_is_the_merged_scene(reference_dir: Path, tmp_path: Path, trusted: Any) -> None:
    sub = trusted(reference_dir / "ckpt" / "bp0-sub0.th")
    state = trusted(reference_dir / "ckpt" / "bp0-merged-stack.th")["state_dict"]
    for number in range(4):
        for key in sub["state_dict"]:
            if "_plane." in key:
                sub["state_dict"][key] = state[key][:, :, number].clone()
            if "_line." in key:
                sub["state_dict"][key] = state[key][..., number : number + 1].clone()
        torch.save(sub, tmp_path / f"bp0-sub{number}.th")
    whole = load_scene(reference_dir / "ckpt" / "bp0-merged-stack.th")
    for division in (None, (2, 2)):
        scene = load_scene(tmp_path, plane_division=division)
        assert_same_weights(scene, whole)
        assert without_args(scene.config) == without_args(whole.config)
    with pytest.raises(CheckpointError, match=r"plane_division = \[4, 1\] does not fit") as caught:
        load_scene(tmp_path, plane_division=(4, 1))
    assert "[2, 2]" in str(caught.value.remedy)


def test_companions_lead_to_their_partner(reference_dir: Path, tmp_path: Path) -> None:
    folder = reference_dir / "ckpt"
    for suffix in ("-wo_plane", "-wo_state_dict"):
        scene = load_scene(folder / f"bp0-merged-stack{suffix}.th")
        assert scene.config.blocks == 4
        assert any(suffix in note for note in scene.warnings)
        alone = tmp_path / f"bp0-merged-stack{suffix}.th"
        shutil.copy(folder / alone.name, alone)
        with pytest.raises(CheckpointError, match=r"bp0-merged-stack\.th, which is not beside it"):
            load_scene(alone)
        renamed = tmp_path / "renamed.th"
        shutil.copy(alone, renamed)
        with pytest.raises(CheckpointError, match=f"as in a {suffix} companion"):
            load_scene(renamed)


scenes = st.fixed_dictionaries(
    {
        "division": st.sampled_from([(1, 1), (1, 2), (2, 2), (3, 2)]),
        "layout": st.sampled_from([None, "multi-block"]),
        "ndims": st.sampled_from([1, 3]),
        "resolutions": st.sampled_from([(1,), (1, 2), (1, 2, 4), (1, 3), (2, 3)]),
        "grid_size": st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 6)),
        "density_channels": st.integers(1, 5),
        "appearance_channels": st.integers(1, 7),
        "app_dim": st.integers(1, 9),
        "feature_width": st.integers(1, 12),
        "view_pe": st.integers(-1, 3),
        "fea_pe": st.integers(0, 3),
        "activation": st.sampled_from(["relu", "softplus"]),
        "nonlinear_density": st.booleans(),
        "bias": st.booleans(),
        "embedding_rows": st.sampled_from([0, 1, 5]),
        "mask": st.sampled_from([None, 0.0, 0.3, 1.0]),
        "mask_size": st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(axes=scenes)
def test_export_and_load_are_inverse(tmp_path: Path, axes: dict[str, Any]) -> None:
    scene = make_scene(**axes)
    path = tmp_path / "town-merged-stack.th"
    save_landmark_checkpoint(scene, path)
    loaded = load_scene(path)
    assert_same_weights(loaded, scene)
    assert without_args(loaded.config) == scene.config
    assert load_config(path) == loaded.config
    save_landmark_checkpoint(loaded, path)
    again = load_scene(path)
    assert again.config == loaded.config
    if scene.config.layout == "single":
        return
    blocks = tmp_path / "blocks"
    shutil.rmtree(blocks, ignore_errors=True)
    save_landmark_blocks(scene, blocks / "town")
    parts = load_scene(blocks)
    assert_same_weights(parts, scene)
    assert parts.config.division == scene.config.division
    last = load_scene(blocks / f"town-sub{scene.config.blocks - 1}.th")
    assert torch.equal(last.app_planes[0][0], scene.app_planes[0][-1])
    assert last.config.aabb[1] == pytest.approx(scene.config.aabb[1])


def test_as_landmark_writes_it_contiguous_and_wrapped(merged: Path) -> None:
    whole = load_scene(merged)

    def wrap(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        for key in list(state):
            head, _, rest = key.partition(".")
            inner = "module.params." if "_plane" in head or "_line" in head else "module."
            state[f"module.{head}.{inner}{rest}"] = state.pop(key).contiguous()
        content["kwargs"]["shadingMode"] = "MLP_Fea"
        state["module.nerf.rgb_linear.weight"] = torch.ones(3, 3)

    scene = load_scene(rewrite(merged, wrap))
    assert_same_weights(scene, whole)
    assert len([note for note in scene.warnings if "shadingMode" in note or "nerf" in note]) == 2


def test_half_and_double_precision_files(sequential: Path) -> None:
    scene = load_scene(sequential)
    for dtype, exact in ((torch.float64, True), (torch.float16, False)):

        def cast(content: dict[str, Any], dtype: torch.dtype = dtype) -> None:
            content["state_dict"] = {key: value.to(dtype) for key, value in content["state_dict"].items()}

        other = load_scene(rewrite(sequential, cast))
        assert other.app_planes[0].dtype == torch.float32
        assert torch.equal(other.app_planes[0], scene.app_planes[0] if exact else scene.app_planes[0].half().float())


def test_dims_with_different_channels_get_zeros(tmp_path: Path) -> None:
    scene = make_scene(ndims=3, nonlinear_density=True)
    path = tmp_path / "a.th"
    save_landmark_checkpoint(scene, path)

    def thin(content: dict[str, Any]) -> None:  # dims 1 and 2 with 1 of 4 density and 2 of 6 appearance channels
        state = content["state_dict"]
        for index in range(2, 6):
            for kind, count in (("density", 1), ("app", 2)):
                for part in ("plane", "line"):
                    state[f"{kind}_{part}.{index}"] = state[f"{kind}_{part}.{index}"][:, :count].clone()
        for key, sizes in (("basis_mat", (6, 6, 2, 2, 2, 2)), ("basis_den", (4, 4, 1, 1, 1, 1))):
            parts = state[f"{key}.weight"].split(sizes[0], dim=1)
            state[f"{key}.weight"] = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)
        content["kwargs"]["density_n_comp"] = [4, 1, 1]
        content["kwargs"]["appearance_n_comp"] = [6, 2, 2]

    thinned = load_scene(rewrite(path, thin))
    assert thinned.config.appearance_channels == 6
    for level, plane in enumerate(thinned.app_planes):
        kept = 6 if level < 2 else 2
        assert torch.equal(plane[..., :kept], scene.app_planes[level][..., :kept])
        assert not plane[..., kept:].any()
        columns = slice(level * 6, level * 6 + kept)
        assert torch.equal(thinned.basis_mat[:, columns], scene.basis_mat[:, columns])
    assert thinned.basis_density is not None
    assert thinned.basis_density.shape == (1, 24)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["app_plane.1", "density_line.0", "basis_mat.weight", "embedding_app.weight", "renderModule.mlp.2.bias"])
def test_not_finite(sequential: Path, key: str, value: float) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["state_dict"][key] = content["state_dict"][key].clone(memory_format=torch.contiguous_format)
        content["state_dict"][key].view(-1)[-1] = value

    with pytest.raises(CheckpointError, match=rf"park\.th: {key} holds NaN or Inf \(1 of"):
        load_scene(rewrite(sequential, spoil))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(1, 6, 7, 9, dtype=torch.int32), "torch.int32"),
        (torch.ones(1, 1, 1, 1).expand(1, 6, 7, 9), "more numbers than the file holds"),
        (torch.ones(1, 6, 7, 9).to_sparse(), "sparse"),
        ("a text", "app_plane.0 is missing"),
    ],
)
def test_tensors_that_are_none(sequential: Path, tensor: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_scene(rewrite(sequential, lambda content: content["state_dict"].update({"app_plane.0": tensor})))


def test_edit_block_without_edit(merged: Path) -> None:
    with pytest.raises(CheckpointError, match="edit_block = 1 without edit"):
        load_scene(merged, edit_block=1)
    with pytest.raises(CheckpointError, match="edit_block = 1 without edit"):
        load_config(merged, edit_block=1)


def test_blocks_with_other_decoders_are_noted(tmp_path: Path) -> None:
    scene = make_scene(division=(2, 1))
    save_landmark_blocks(scene, tmp_path / "town")
    rewrite(tmp_path / "town-sub1.th", lambda content: content["state_dict"]["basis_mat.weight"].add_(1))
    loaded = load_scene(tmp_path)
    assert torch.equal(loaded.basis_mat, scene.basis_mat)
    assert any("town-sub1.th: basis_mat.weight differ" in note for note in loaded.warnings)


def test_blocks_of_different_trainings(tmp_path: Path) -> None:
    save_landmark_blocks(make_scene(division=(2, 1)), tmp_path / "town")
    save_landmark_blocks(make_scene(division=(2, 1), grid_size=(8, 7, 5)), tmp_path / "other" / "town")
    (tmp_path / "other" / "town-sub1.th").replace(tmp_path / "town-sub1.th")
    with pytest.raises(CheckpointError, match=r"town-sub1\.th: plane sizes .* where town-sub0\.th has"):
        load_scene(tmp_path)
