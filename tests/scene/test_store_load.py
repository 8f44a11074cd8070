"""A block store's planes where a renderer will hold them: on its device, in its precision, the bits of a scene that was converted later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from landmark_batch.errors import CheckpointError
from landmark_batch.kernels.fused import pad_channels
from landmark_batch.model.field import STORAGE
from landmark_batch.scene import store_load
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.config import SceneConfig
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import BlockStore
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
