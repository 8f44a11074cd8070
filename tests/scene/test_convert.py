"""convert_scene: every kind of checkpoint becomes a block store that gives the same scene, bit for bit."""

from __future__ import annotations

import errno
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from landmark_batch.errors import CheckpointError, ConfigError, DiskFullError, LandmarkError
from landmark_batch.scene import convert, store_writer
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.config import load_config
from landmark_batch.scene.convert import convert_scene
from landmark_batch.scene.export import save_landmark_blocks, save_landmark_checkpoint
from landmark_batch.scene.identity import scene_digest
from landmark_batch.scene.info import describe_scene
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore, is_block_store
from landmark_batch.scene.weights import SceneWeights
from tests.factories import make_scene
from tests.scene.conftest import assert_same_weights, read_raw, rewrite
from tests.scene.test_edit import town  # noqa: F401  (a fixture)


def _merged(folder: Path) -> Path:
    scene = make_scene(division=(2, 3), mask=0.4, nonlinear_density=True, bias=False)
    return save_landmark_checkpoint(scene, folder / "town-merged-stack.th", companions=True)[0]


def _subs(folder: Path) -> Path:
    save_landmark_blocks(make_scene(division=(3, 2), ndims=3, mask=0.4), folder / "town")
    return folder


def _one_sub(folder: Path) -> Path:
    return save_landmark_blocks(make_scene(division=(2, 2)), folder / "town")[3]


def _sequential(folder: Path) -> Path:
    return save_landmark_checkpoint(make_scene(mask=0.4, embedding_rows=3, grid_size=(33, 29, 5)), folder / "park.th")[0]


def _three_planes(folder: Path) -> Path:
    return save_landmark_checkpoint(make_scene(ndims=3, grid_size=(19, 23, 11), resolutions=(1, 2, 4)), folder / "park.th")[0]


@pytest.mark.parametrize(
    ("make", "blocks"),
    [(_merged, None), (_subs, None), (_one_sub, (2, 1)), (_sequential, None), (_sequential, (4, 3)), (_three_planes, (3, 2))],
)
def test_a_store_is_the_scene(tmp_path: Path, make: Callable[[Path], Path], blocks: tuple[int, int] | None) -> None:
    path = make(tmp_path)
    done = convert_scene(path, tmp_path / "scene.zarr", blocks=blocks, threads=2)
    scene, found = load_scene(path), load_scene(done.target)
    assert_same_weights(found, scene)
    assert found.config == scene.config == load_config(done.target)
    assert found.warnings == scene.warnings
    for rank in (0, 3):
        shard = ChannelShard(rank, 4)
        part = load_scene(done.target, shard=shard)
        assert_same_weights(part, load_scene(path, shard=shard))
        assert part.shard == shard
    store = BlockStore.open(done.target)
    assert store.division == (blocks or scene.config.division)
    assert (store.origins is None) == (store.extents == ()) == (scene.config.layout == "multi-block")


def test_half_precision_rounds_planes_and_lines_alone(merged: Path, tmp_path: Path) -> None:
    scene = load_scene(merged)
    done = convert_scene(merged, tmp_path / "half.zarr", precision="fp16")
    found = load_scene(done.target)
    grids = ("density_planes", "density_lines", "app_planes", "app_lines")
    halved = replace(scene, **{name: tuple(item.half().float() for item in getattr(scene, name)) for name in grids})
    assert_same_weights(found, halved)
    store = BlockStore.open(done.target)
    assert store.precision == "fp16"
    assert store.read_plane(0, store.tables[0]).dtype == np.float16
    assert store.block_bytes("fp16") * 2 == store.block_bytes("fp32")


def test_half_precision_refuses_what_it_cannot_hold(merged: Path, tmp_path: Path) -> None:
    rewrite(merged, lambda content: content["state_dict"]["app_plane.1"][0, 0, 0, 0, :1].fill_(1e5))
    with pytest.raises(CheckpointError, match=r"app_plane\.1 holds 100000, float16"):
        convert_scene(merged, tmp_path / "half.zarr", precision="fp16")
    assert not list(tmp_path.glob("*half.zarr*"))


def test_nan_is_found_and_nothing_is_left(merged: Path, tmp_path: Path) -> None:
    rewrite(merged, lambda content: content["state_dict"]["density_plane.0"][0, 0, 4, 0, :1].fill_(math.nan))
    with pytest.raises(CheckpointError, match=r"density_plane\.0 holds NaN"):
        convert_scene(merged, tmp_path / "town.zarr")
    assert not list(tmp_path.glob("*town.zarr*"))


def test_any_reader_of_zarr_reads_it(merged: Path, tmp_path: Path) -> None:
    scene, target = load_scene(merged), tmp_path / "town.zarr"
    convert_scene(merged, target)
    for group in (zarr.open_group(target, mode="r"), zarr.open_group(target, mode="r", use_consolidated=False)):
        for level, plane in enumerate(scene.app_planes):
            assert np.array_equal(np.asarray(group[f"app_plane/{level}"]), plane.numpy())
            assert np.array_equal(np.asarray(group[f"density_line/{level}"]), scene.density_lines[level].numpy())
        assert np.array_equal(np.asarray(group["decoder/basis_mat"]), scene.basis_mat.numpy())
    raw = (target / "app_plane" / "1" / "c.3.0.0.0").read_bytes()
    assert raw == scene.app_planes[1][3].numpy().tobytes(), "a chunk file is the tensor's bytes"


@pytest.mark.parametrize("edit", ["new", "remove", "reset"])
def test_an_edit_is_converted(town: tuple[Path, dict[str, SceneWeights]], tmp_path: Path, edit: str) -> None:  # noqa: F811
    path, _ = town
    done = convert_scene(path, tmp_path / "town.zarr", edit=edit, edit_block=3)
    assert_same_weights(load_scene(done.target), load_scene(path, edit=edit, edit_block=3))
    assert any(f"edit = {edit!r}" in note for note in done.notes)


def test_digests_tell_which_block_differs(town: tuple[Path, dict[str, SceneWeights]], tmp_path: Path) -> None:  # noqa: F811
    path, _ = town
    plain = BlockStore.open(convert_scene(path, tmp_path / "a.zarr").target)
    again = BlockStore.open(convert_scene(path, tmp_path / "b.zarr", threads=1).target)
    edited = BlockStore.open(convert_scene(path, tmp_path / "c.zarr", edit="new", edit_block=3).target)
    assert plain.digests == again.digests
    assert plain.base_digest == again.base_digest
    assert [a == b for a, b in zip(plain.digests, edited.digests, strict=True)] == [True, True, True, False]
    assert plain.base_digest != edited.base_digest, "its mask is another one"
    assert scene_digest(tmp_path / "a.zarr") == scene_digest(tmp_path / "b.zarr") != scene_digest(tmp_path / "c.zarr")


def test_a_store_knows_its_own_division_and_takes_no_edit(merged: Path, tmp_path: Path) -> None:
    target = convert_scene(merged, tmp_path / "town.zarr").target
    assert load_config(target, plane_division=(2, 3)).division == (2, 3)
    for read in (load_config, load_scene):
        with pytest.raises(ConfigError, match=r"plane_division = \[3, 2\], the store was made with \[2, 3\]"):
            read(target, plane_division=(3, 2))  # type: ignore[operator]
        with pytest.raises(CheckpointError, match="cannot be exchanged") as caught:
            read(target, edit="new")  # type: ignore[operator]
        assert "convert --edit" in str(caught.value)


def test_what_is_refused(merged: Path, sequential: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = convert_scene(merged, tmp_path / "town.zarr").target
    before = scene_digest(target)
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    cases: list[tuple[type[LandmarkError], str, Callable[[], object]]] = [
        (CheckpointError, "exists", lambda: convert_scene(merged, target)),
        (CheckpointError, "is no block store", lambda: convert_scene(merged, other, force=True)),
        (CheckpointError, "a block store, not a checkpoint", lambda: convert_scene(target, tmp_path / "x.zarr")),
        (CheckpointError, "without edit", lambda: convert_scene(merged, tmp_path / "x.zarr", edit_block=1)),
        (ConfigError, "blocks of its own", lambda: convert_scene(merged, tmp_path / "x.zarr", blocks=(4, 4))),
        (ConfigError, "at most 9x7", lambda: convert_scene(sequential, tmp_path / "x.zarr", blocks=(10, 1))),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    assert other.read_text() == "mine"
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(store_writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFullError, match=r"needs [1-9][\d.,]* MB|needs 0\.[1-9] MB"):
        convert_scene(merged, tmp_path / "x.zarr")
    assert not list(tmp_path.glob("*x.zarr*"))
    assert scene_digest(target) == before


def test_a_disk_that_fills_up_leaves_nothing(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_writer.os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"plane/.*the disk is full"):
        convert_scene(merged, tmp_path / "x.zarr")
    assert not list(tmp_path.glob("*x.zarr*"))


def test_force_replaces_a_store(merged: Path, sequential: Path, tmp_path: Path) -> None:
    target = convert_scene(merged, tmp_path / "town.zarr").target
    convert_scene(sequential, target, force=True)
    assert load_config(target).layout == "single"
    assert [item.name for item in tmp_path.iterdir() if "zarr" in item.name] == ["town.zarr"]


def test_an_interrupted_conversion_leaves_nothing_and_a_killed_ones_rest_is_cleared(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "town.zarr"
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from landmark_batch.scene import convert\n"
        "convert.convert_scene(Path(sys.argv[1]), Path(sys.argv[2]),\n"
        "                      progress=lambda what, share: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(merged), str(target)], timeout=120, check=False)
    assert done.returncode == -9
    left = list(tmp_path.glob(".town.zarr.*.tmp"))
    assert left, "the process was killed while it wrote"
    assert not target.exists()

    def interrupt(what: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_scene(merged, target, progress=interrupt)
    assert not list(tmp_path.glob(".town.zarr.*"))
    assert not target.exists()
    assert not is_block_store(target)


def test_memory_is_some_strips_whatever_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_landmark_checkpoint(make_scene(division=(2, 2), grid_size=(150, 150, 5)), tmp_path / "town-merged-stack.th")[0]
    strips: list[int] = []
    stored = convert._stored

    def watch(values: torch.Tensor, *rest: object) -> object:
        strips.append(values.numel() * 4)
        return stored(values, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(convert, "_stored", watch)
    monkeypatch.setattr(convert, "STRIP", 1 << 16)
    done = convert_scene(path, tmp_path / "town.zarr", threads=2)
    assert max(strips) <= 1 << 16 < done.block_bytes // 20
    assert_same_weights(load_scene(done.target), load_scene(path))


def test_memory_is_that_of_two_blocks_whatever_the_scene(tmp_path: Path) -> None:
    scene = make_scene(division=(4, 4), grid_size=(110, 110, 5), density_channels=16, appearance_channels=48)
    path = save_landmark_checkpoint(scene, tmp_path / "town-merged-stack.th")[0]
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from landmark_batch.scene.convert import convert_scene\n"
        "def peak():\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) << 10\n"
        "before = peak()\n"
        "done = convert_scene(Path(sys.argv[1]), Path(sys.argv[2]), threads=2)\n"
        "print(peak() - before, done.block_bytes, Path(sys.argv[1]).stat().st_size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path, tmp_path / "a.zarr"], capture_output=True, text=True, timeout=120, check=True
    )
    grown, block, whole = map(int, done.stdout.split())
    assert grown < 2 * block + (64 << 20) < whole // 2


def test_a_file_from_before_torch_1_6(merged: Path, tmp_path: Path) -> None:
    scene = load_scene(merged)
    torch.save(read_raw(merged), merged, _use_new_zipfile_serialization=False)
    assert_same_weights(load_scene(convert_scene(merged, tmp_path / "old.zarr").target), scene)


def test_info_describes_a_store(merged: Path, sequential: Path, tmp_path: Path) -> None:
    plain, info = describe_scene(merged), describe_scene(convert_scene(merged, tmp_path / "town.zarr", precision="fp16").target)
    assert info.layout == "block store"
    assert info.store is not None
    assert (info.store.precision, info.store.cut) == ("fp16", False)
    assert info.file_bytes == 6 * info.store.block_bytes
    same = ("division", "levels", "parameters", "bytes_fp32", "aabb", "mask", "resolutions", "training_args", "missing")
    assert [getattr(info, name) for name in same] == [getattr(plain, name) for name in same]
    cut = describe_scene(convert_scene(sequential, tmp_path / "park.zarr", blocks=(3, 1)).target)
    assert cut.store is not None
    assert (cut.store.division, cut.store.cut, cut.blocks) == ((3, 1), True, 1)
    assert cut.as_dict()["store"]["division"] == [3, 1]


@pytest.mark.parametrize(("name", "blocks"), [("seq1.th", (3, 4)), ("bp0m-merged-stack.th", None), ("bp0-sub0.th", (2, 2))])
def test_reference_checkpoints(reference_dir: Path, tmp_path: Path, name: str, blocks: tuple[int, int] | None) -> None:
    path = reference_dir / "ckpt" / name
    division = (2, 2) if describe_scene(path).division is None else None
    done = convert_scene(path, tmp_path / "scene.zarr", blocks=blocks, plane_division=division)
    assert_same_weights(load_scene(done.target), load_scene(path, plane_division=division))
