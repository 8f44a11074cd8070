from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from landmark_batch.errors import CheckpointError
from landmark_batch.scene import identity
from landmark_batch.scene.export import save_landmark_blocks, save_landmark_checkpoint
from landmark_batch.scene.identity import CACHE_NAME, file_digest, scene_digest
from tests.factories import make_scene


def test_content_counts_names_do_not(merged: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    digest = scene_digest(merged, cache_dir=cache)
    assert len(digest) == 64
    other = tmp_path / "elsewhere" / "other.th"
    other.parent.mkdir()
    shutil.copy(merged, other)
    assert scene_digest(other, cache_dir=cache) == digest
    for suffix in ("-wo_plane", "-wo_state_dict"):  # their partner is what is rendered
        assert scene_digest(merged.with_name(f"town-merged-stack{suffix}.th"), cache_dir=cache) == digest
    data = bytearray(other.read_bytes())
    data[len(data) // 2] ^= 1
    other.write_bytes(data)
    assert scene_digest(other, cache_dir=cache) != digest


def test_every_block_counts_in_its_place(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = save_landmark_blocks(make_scene(division=(2, 1)), tmp_path / "town" / "town")
    digest = scene_digest(tmp_path / "town", cache_dir=cache)
    assert scene_digest(paths[0], cache_dir=cache) != digest
    paths[0].rename(tmp_path / "town" / "town-sub2.th")
    paths[1].rename(paths[0])
    (tmp_path / "town" / "town-sub2.th").rename(paths[1])
    assert scene_digest(tmp_path / "town", cache_dir=cache) != digest


def test_edit_files_count(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = tmp_path / "town-merged-stack.th"
    save_landmark_checkpoint(make_scene(division=(2, 1), mask=0.5), path)
    save_landmark_blocks(make_scene(division=(2, 1), mask=0.5, seed=1), tmp_path / "town")
    (tmp_path / "town-sub1.th").rename(tmp_path / "town-sub1_add.th")
    np.save(tmp_path / "alpha_volume_add.npy", np.zeros(3))
    plain, edited = scene_digest(path, cache_dir=cache), scene_digest(path, edit="new", cache_dir=cache)
    assert plain != edited
    assert edited == scene_digest(path, edit="new", edit_block=1, cache_dir=cache)
    np.save(tmp_path / "alpha_volume_add.npy", np.ones(3))
    assert edited != scene_digest(path, edit="new", cache_dir=cache)
    with pytest.raises(CheckpointError, match=r"town-sub0_add\.th: missing"):
        scene_digest(path, edit="new", edit_block=0, cache_dir=cache)


def test_cache_spares_reading(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr(identity, "file_digest", counted)
    digests = {scene_digest(merged, cache_dir=tmp_path / "cache") for _ in range(3)}
    assert len(digests) == 1
    assert read == [merged]
    os.utime(merged, ns=(1, 1))
    digests.add(scene_digest(merged, cache_dir=tmp_path / "cache"))
    assert len(read) == 2
    merged.write_bytes(merged.read_bytes() + b"x")
    digests.add(scene_digest(merged, cache_dir=tmp_path / "cache"))
    assert len(read) == 3
    assert len(digests) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 1, "files": []}', b'{"version": 9, "files": {}}', b"[" * 200_000],
)
def test_broken_cache_costs_only_time(merged: Path, tmp_path: Path, content: bytes) -> None:
    digest = scene_digest(merged, cache_dir=tmp_path / "calm")
    cache = tmp_path / "broken"
    cache.mkdir()
    (cache / CACHE_NAME).write_bytes(content)
    assert scene_digest(merged, cache_dir=cache) == digest
    assert str(merged) in json.loads((cache / CACHE_NAME).read_text())["files"]


def test_wrong_entries_are_ignored(merged: Path, tmp_path: Path) -> None:
    digest = scene_digest(merged, cache_dir=tmp_path)
    stored = json.loads((tmp_path / CACHE_NAME).read_text())
    stored["files"][str(merged)][2] = "short"
    (tmp_path / CACHE_NAME).write_text(json.dumps(stored))
    assert scene_digest(merged, cache_dir=tmp_path) == digest


def test_cache_that_cannot_be_written(merged: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert scene_digest(merged, cache_dir=blocker / "under") == scene_digest(merged, cache_dir=tmp_path / "cache")


def test_default_cache_is_the_users(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    scene_digest(merged)
    assert (tmp_path / "home" / "landmark-batch" / CACHE_NAME).is_file()


def _digest_many(args: tuple[list[Path], Path]) -> list[str]:
    paths, cache = args
    return [scene_digest(path, cache_dir=cache) for path in paths]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children touch no torch
def test_two_processes_at_once(merged: Path, tmp_path: Path) -> None:
    copies = []
    for number in range(12):
        copy = tmp_path / f"copy{number}.th"
        copy.write_bytes(merged.read_bytes() + bytes([number]))
        copies.append(copy)
    cache = tmp_path / "cache"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        left, right = pool.map(_digest_many, [(copies, cache), (copies[::-1], cache)])
    assert left == right[::-1]
    assert len(set(left)) == 12
    json.loads((cache / CACHE_NAME).read_text())
    assert [item.name for item in cache.iterdir()] == [CACHE_NAME]


def test_missing_scene(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.th"):
        scene_digest(tmp_path / "gone.th", cache_dir=tmp_path)
