from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.export import save_landmark_blocks, save_landmark_checkpoint, whole_grid
from tests.factories import make_scene
from tests.scene.conftest import read_raw


def test_landmark_shapes(tmp_path: Path) -> None:
    scene = make_scene(division=(2, 3), ndims=3, resolutions=(1, 2), mask=0.5, embedding_rows=2)
    written = save_landmark_checkpoint(scene, tmp_path / "a-merged-stack.th", companions=True)
    assert [path.name for path in written] == ["a-merged-stack.th", "a-merged-stack-wo_plane.th", "a-merged-stack-wo_state_dict.th"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    content = read_raw(written[0])
    state = content["state_dict"]
    assert state["density_plane.1"].shape == (1, 4, 6, 14, 18)
    assert state["density_plane.2"].shape == (1, 4, 6, 5, 9)  # x, z
    assert state["density_plane.4"].shape == (1, 4, 6, 5, 7)  # y, z
    assert state["app_line.2"].shape == (1, 6, 7, 6)  # y
    assert torch.equal(state["app_plane.3"][0, :, 4], scene.app_planes[3][4].permute(2, 0, 1))
    assert content["kwargs"]["args"]["plane_division"] == [2, 3]
    assert content["kwargs"]["gridSize"] == [9, 7, 5]
    assert content["alphaMask.shape"] == (1, 1, 5, 7, 9)
    assert content["gridShape"]["density_plane.0"] == (1, 4, 6, 7, 9)
    assert "density_plane.0" not in read_raw(written[1])["state_dict"]
    assert "state_dict" not in read_raw(written[2])


def test_block_files(tmp_path: Path) -> None:
    scene = make_scene(division=(2, 3), resolutions=(1, 2))
    paths = save_landmark_blocks(scene, tmp_path / "a")
    assert [path.name for path in paths] == [f"a-sub{block}.th" for block in range(6)]
    content = read_raw(paths[4])
    assert content["kwargs"]["gridSize"] == [18, 21, 5] == list(whole_grid(scene.config))
    assert content["state_dict"]["density_plane.1"].shape == (1, 4, 14, 18)
    assert torch.equal(content["state_dict"]["app_line.0"][0, :, :, 0], scene.app_lines[0][4].t())
    assert paths[0].stat().st_size < 40_000 + 4 * 6 * 4 * 4 * 63  # a block, not the storage of all


def test_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.th", "another/b.th"):
        save_landmark_checkpoint(make_scene(mask=0.5), tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "taken.th").mkdir()
    with pytest.raises(CheckpointError, match=r"taken\.th: cannot write it"):
        save_landmark_checkpoint(make_scene(), tmp_path / "taken.th")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write it"):
        save_landmark_checkpoint(make_scene(), tmp_path / "file" / "a.th")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.th"]


def test_old_file_stands_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.th"
    save_landmark_checkpoint(make_scene(seed=1), path)
    before = path.read_bytes()

    def full(content: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_landmark_checkpoint(make_scene(seed=2), path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.th"]
