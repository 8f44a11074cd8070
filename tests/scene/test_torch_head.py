"""Heads of torch files against what torch reads of them; everything unusual is left to torch."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.assemble import open_checkpoint
from landmark_batch.scene.configure import open_head
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.scene.kwargs import read_settings
from landmark_batch.scene.layout import SceneFiles
from landmark_batch.scene.mask import read_mask, read_stored_mask
from landmark_batch.scene.stored import StoredArray, StoredConfig, StoredDevice, StoredDtype, StoredTensor
from landmark_batch.scene.torch_head import read_torch_head
from landmark_batch.scene.unpickle import read_torch_file
from tests.factories import make_scene


def assert_same(head: Any, whole: Any) -> None:
    """Values, types and order; of tensors every number."""
    if isinstance(whole, torch.Tensor):
        assert isinstance(head, StoredTensor) and tuple(whole.shape) == head.shape and head.numel() == whole.numel()
        assert np.array_equal(head.numpy(), whole.detach().numpy(), equal_nan=True) and head.numpy().dtype == whole.detach().numpy().dtype
    elif isinstance(whole, torch.device):
        assert isinstance(head, StoredDevice) and str(head) == str(whole)
    elif isinstance(whole, dict):
        assert isinstance(head, dict) and list(head) == list(whole)
        for key, value in whole.items():
            assert_same(head[key], value)
    elif isinstance(whole, list | tuple):
        assert isinstance(head, list | tuple) and len(head) == len(whole)
        for one, other in zip(head, whole, strict=True):
            assert_same(one, other)
    elif isinstance(whole, StoredArray):
        assert isinstance(head, StoredArray) and np.array_equal(head.as_numpy(), whole.as_numpy())
    elif isinstance(whole, StoredConfig):
        assert isinstance(head, StoredConfig)
        assert_same(head.values, whole.values)
    elif isinstance(whole, StoredDtype):
        assert isinstance(head, StoredDtype) and head.as_numpy() == whole.as_numpy()
    else:
        assert type(head) is type(whole) and head == whole


def assert_heads(path: Path, kind: str = "file") -> None:
    """A scene's settings, shapes and mask, with torch and without."""
    files = SceneFiles(kind, (path,), path.with_suffix(""))  # type: ignore[arg-type]
    head, whole = open_head(path, files), open_checkpoint(path, files)
    assert (head.settings, head.names, head.geometry) == (whole.settings, whole.names, whole.geometry)
    mask, loaded = read_stored_mask(head.content, path), read_mask(whole.content, path)
    assert (mask is None) == (loaded is None)
    if mask is not None and loaded is not None:
        assert mask.aabb == loaded.aabb and np.array_equal(mask.volume(), loaded.volume.numpy())


@pytest.mark.parametrize("changes", [{}, {"division": (2, 2), "mask": 0.4, "embedding_rows": 3}, {"ndims": 3, "bias": False}], ids=str)
def test_scenes(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "scene-merged-stack.th"
    save_landmark_checkpoint(make_scene(**changes), path)
    assert_same(read_torch_head(path), read_torch_file(path))
    assert_heads(path)


def test_what_landmark_wrote(reference_dir: Path) -> None:
    files = sorted((reference_dir / "ckpt").glob("*.th"))
    assert files
    for path in files:
        head = read_torch_head(path)
        assert_same(head, read_torch_file(path))
        assert read_settings(head, path) == read_settings(read_torch_file(path), path)
        if not path.stem.endswith(("-wo_plane", "-wo_state_dict")):
            assert_heads(path, "sub" if "-sub" in path.name else "file")


def test_all_that_a_file_may_hold(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float64)
    content = {
        "views": [base[3:9], base.view(4, 6).t(), base.view(2, 3, 4)[:, 1], base[5], base[:0], base[::5]],
        "types": [
            torch.zeros(2, dtype=kind) + 1 for kind in (torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        ],
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "state": torch.nn.Linear(2, 3).state_dict(),
        "device": torch.device("cuda", 1),
        "shape": torch.Size([1, 2]),
        "numpy": [np.float64(2.5), np.arange(6, dtype=">i4").reshape(2, 3), np.array([True])],
        "plain": (None, True, -1, 2**40, -(2**70), 1.5, "ä", [], {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    }
    path = tmp_path / "all.th"
    torch.save(content, path)
    assert_same(read_torch_head(path), read_torch_file(path))


@pytest.mark.parametrize("how", ["legacy", "bfloat16", "sparse"])
def test_what_is_left_to_torch(how: str, tmp_path: Path) -> None:
    path, values = tmp_path / "a.th", torch.eye(3)
    values = values.to(torch.bfloat16) if how == "bfloat16" else values.to_sparse() if how == "sparse" else values
    torch.save({"a": values}, path, _use_new_zipfile_serialization=how != "legacy")
    assert torch.equal(read_torch_head(path)["a"].to_dense(), values.to_dense())


class Call:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


def damaged(path: Path, edit: Any) -> Path:
    """A copy in which records are changed: edit(name, content) -> content, or None to leave it out."""
    target = path.with_name("damaged.th")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for item in source.infolist():
            content = edit(item.filename, source.read(item))
            if content is not None:
                copy.writestr(item.filename, content)
    return target


def test_what_torch_refuses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.th"
    torch.save({"a": Call()}, path)
    with pytest.raises(CheckpointError, match=r"refused: it asks for posix\.mkdir"):
        read_torch_head(path)
    assert not Path("made").exists()
    torch.save({"a": torch.ones(100)}, path)
    short = damaged(path, lambda name, content: content[:40] if "/data/" in name else content)
    gone = damaged(path, lambda name, content: None if "/data/" in name else content)
    for file in (short, gone, tmp_path / "none.th", tmp_path):
        with pytest.raises(CheckpointError) as caught:
            read_torch_head(file)
        with pytest.raises(CheckpointError) as expected:
            read_torch_file(file)
        assert caught.value.message == expected.value.message


def test_numbers_that_are_damaged_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.th"
    torch.save({"a": torch.arange(8.0)}, path)
    head = read_torch_head(path)
    data = path.read_bytes()
    numbers = torch.arange(8.0).numpy().tobytes()
    path.write_bytes(data.replace(numbers, numbers[::-1]))
    with pytest.raises(CheckpointError, match=r"a\.th: truncated or damaged"):
        head["a"].tolist()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_pickle_is_read_as_torch_reads_it(tmp_path: Path, data: st.DataObject) -> None:
    """What torch reads, the reader without it reads too; what torch refuses ends in no other error."""
    path = tmp_path / "a.th"
    if not path.exists():
        torch.save({"kwargs": {"aabb": torch.zeros(2, 3), "n": [1, 2, 3]}, "state_dict": {"a": torch.ones(2, 2)}}, path)

    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 2))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        return bytes(changed)

    file = damaged(path, edit)
    try:
        whole = read_torch_file(file)
    except CheckpointError:
        with contextlib.suppress(CheckpointError):  # torch also minds what is nothing but a number here, as a tensor's device
            read_torch_head(file)
    else:
        assert repr(plain(read_torch_head(file))) == repr(plain(whole))


def plain(value: Any) -> Any:
    """Tensors as lists, in what a file holds."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, torch.Tensor | StoredTensor):
        return (str(value.tolist()), tuple(value.shape))
    return value
