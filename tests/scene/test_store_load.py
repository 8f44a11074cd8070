"""A block store's planes where a renderer will hold them: on its device, in its precision, the bits of a scene that was converted later."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from landmark_batch.errors import CheckpointError
from landmark_batch.kernels.fused import pad_channels
from landmark_batch.model.field import STORAGE
from landmark_batch.scene import store_load
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.config import SceneConfig
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore, BlockTable
from landmark_batch.scene.store_layout import store_metadata
from landmark_batch.scene.store_load import load_store, planes_read
from landmark_batch.workflows.renderers import _first_place
from tests.fetching.flights import make_settings, write_store

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["blocks", "cut3", "half"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shard", [None, ChannelShard(1, 2), ChannelShard(2, 3)], ids=["whole", "half", "padded"])
def test_planes_come_to_their_place(tmp_path: Path, device: str, kind: str, precision: str, shard: ChannelShard | None) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    _, store = write_store(tmp_path, kind)
    there = torch.device(device)
    asked: list[SceneConfig] = []

    def planes(config: SceneConfig) -> tuple[torch.device, torch.dtype]:
        asked.append(config)
        return there, STORAGE[precision]

    expected, found = load_scene(store, shard=shard), load_scene(store, shard=shard, planes=planes)
    assert asked == [expected.config]
    for old, new in zip((*expected.density_planes, *expected.app_planes), (*found.density_planes, *found.app_planes), strict=True):
        assert (new.device.type, new.dtype) == (device, STORAGE[precision])
        assert torch.equal(new, old.to(there, STORAGE[precision]))
    assert found.density_lines[0].device.type == "cpu" and found.density_lines[0].dtype == torch.float32
    assert all(torch.equal(old, new) for old, new in zip(expected.app_lines, found.app_lines, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["blocks", "cut3"])
@pytest.mark.parametrize("size", [1, 3 * 4096])
def test_a_plane_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, kind: str, size: int) -> None:
    """Of some rows each, the last of them smaller, from threads that use their memory again and again."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    _, store = write_store(tmp_path, kind)
    expected = load_scene(store)
    monkeypatch.setattr(store_load, "PIECE_BYTES", size)
    monkeypatch.setattr(store_load, "ALIGN", 4)
    found = load_scene(store, planes=lambda _: (torch.device(device), torch.float16))
    for old, new in zip((*expected.density_planes, *expected.app_planes), (*found.density_planes, *found.app_planes), strict=True):
        assert torch.equal(new.cpu(), old.to(torch.float16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-5], r"\d+ bytes where \d+ were written"),
        (lambda data: b"", "0 bytes where"),
        (lambda data: data + b"x", "more bytes where"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "its bytes are not those that were written"),
    ],
)
def test_a_damaged_plane_that_came_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes], message: str
) -> None:
    _, store = write_store(tmp_path, "blocks")
    table = BlockStore.open(store).tables[-1]
    file = store / table.key(2)
    file.write_bytes(change(file.read_bytes()))
    monkeypatch.setattr(store_load, "PIECE_BYTES", 500)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_scene(store, planes=lambda _: (torch.device("cpu"), torch.float16))
    assert f"{file} (block 2): damaged" in caught.value.message
    file.unlink()
    with pytest.raises(CheckpointError, match=r"\(block 2\): missing"):
        load_scene(store, planes=lambda _: (torch.device("cpu"), torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("damaged", ["decoder", "density_line", "app_plane"])
def test_what_is_damaged_is_told_before_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str, dtype: torch.dtype
) -> None:
    _, path = write_store(tmp_path, "blocks")
    store, begun = BlockStore.open(path), []
    whole, rows = BlockStore.read_plane_into, BlockStore.plane_rows

    def read_whole(self: BlockStore, block: int, table: BlockTable, into: NDArray[Any]) -> None:
        begun.append((block, table))
        whole(self, block, table, into)

    def read_rows(self: BlockStore, block: int, table: BlockTable, spare: Any) -> Any:
        begun.append((block, table))
        return rows(self, block, table, spare)

    monkeypatch.setattr(BlockStore, "read_plane_into", read_whole)
    monkeypatch.setattr(BlockStore, "plane_rows", read_rows)
    load_store(store, dtype=dtype, threads=1)
    assert begun[3:] and sorted(begun, key=str) == sorted(planes_read(store), key=str)
    block, table = begun[2]
    file = path / {"decoder": "decoder/basis_mat/c.0.0", "density_line": "density_line/1/c.0.0.0"}.get(damaged, table.key(block))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    begun.clear()
    with pytest.raises(CheckpointError, match="damaged: its bytes are not those") as caught:
        load_store(store, dtype=dtype, threads=1)
    assert str(file) in caught.value.message
    assert len(begun) == (3 if damaged == "app_plane" else 0)


@pytest.mark.parametrize("kind", ["blocks", "cut3"])
def test_each_part_of_a_scene_is_read_once(tmp_path: Path, kind: str) -> None:
    """A cut scene's blocks may hold the same part of a plane."""
    _, path = write_store(tmp_path, kind)
    store = BlockStore.open(path)
    read = planes_read(store)
    assert len(set(read)) == len(read)
    assert (len(read) < store.blocks * len(store.tables)) == (kind == "cut3")
    if store.origins is not None:
        parts = {(table, *store.origins[block, table.level].tolist()) for table in store.tables for block in range(store.blocks)}
        assert {(table, *store.origins[block, table.level].tolist()) for block, table in read} == parts and len(parts) == len(read)


def test_planes_without_numbers_are_not_read(tmp_path: Path) -> None:
    """As a store of no density channels has them; nothing but its head is changed here."""
    _, path = write_store(tmp_path, "cut")
    expected, head = load_scene(path), BlockStore.open(path).head
    head = replace(head, config=replace(head.config, density_channels=0))
    (path / "zarr.json").write_text(json.dumps(store_metadata(head)[""]))
    for dtype in (torch.float32, torch.float16):
        found = load_scene(path, planes=lambda _, dtype=dtype: (torch.device("cpu"), dtype))  # type: ignore[misc]
        assert all(plane.shape[-1] == 0 for plane in found.density_planes)
        for old, new in zip(expected.app_planes, found.app_planes, strict=True):
            assert torch.equal(new, old.to(dtype))


@pytest.mark.parametrize("channels", [16, 6])
def test_kernels_take_the_planes_as_they_came(tmp_path: Path, channels: int) -> None:
    """A device that has a scene once must not hold it twice; where channels are filled up, planes come to the host first."""
    _, store = write_store(tmp_path, "blocks", density_channels=8, appearance_channels=channels)
    weights = load_scene(store, planes=lambda _: (torch.device("cpu"), torch.float16))
    for plane in (*weights.density_planes, *weights.app_planes):
        assert (pad_channels(plane) is plane) == (plane.shape[-1] % 8 == 0)
    for runtime, first in (("fused", "cuda" if channels == 16 else "cpu"), ("torch", "cuda")):
        settings = make_settings(BlockStore.open(store), runtime=runtime)
        assert _first_place(weights.config, settings, "cuda", None) == first
        assert _first_place(weights.config, settings, "cuda", ChannelShard(0, 2)) == ("cuda" if runtime == "torch" else "cpu")


def test_a_checkpoint_comes_as_it_always_does(tmp_path: Path) -> None:
    checkpoint, _ = write_store(tmp_path, "blocks")

    def planes(config: SceneConfig) -> tuple[torch.device, torch.dtype]:
        raise AssertionError("asked")

    assert load_scene(checkpoint, planes=planes).app_planes[0].dtype == torch.float32


def test_a_gpu_without_room_is_not_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = write_store(tmp_path, "blocks")

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(store_load, "grid", full)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        load_scene(store, planes=lambda _: (torch.device("cpu"), torch.float16))
