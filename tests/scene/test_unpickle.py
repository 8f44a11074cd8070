from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.stored import ALLOWED, StoredArray
from landmark_batch.scene.unpickle import read_torch_file
from tests.scene.conftest import read_raw


class Touch:
    """Pickles to a call that creates a file."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("function", "name"), [(os.system, "posix.system"), (eval, "builtins.eval"), (open, ".open")])
def test_code_in_a_file_never_runs(tmp_path: Path, legacy: bool, function: Any, name: str) -> None:
    victim = tmp_path / "victim"
    argument = {os.system: f"touch {victim}", eval: f"open({str(victim)!r}, 'w').close()", open: str(victim)}[function]
    args = (argument, "w") if function is open else (argument,)
    path = tmp_path / "evil.th"
    torch.save({"kwargs": {}, "state_dict": {}, "x": Touch(function, *args)}, path, _use_new_zipfile_serialization=not legacy)
    error = refusal(path)
    assert name in error.message
    assert not victim.exists()


def test_every_refused_name_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evil.th"
    torch.save({"a": Touch(os.getcwd), "b": Touch(os.urandom, 4), "c": torch.ones(2)}, path)
    message = refusal(path).message
    assert "posix.getcwd" in message
    assert "posix.urandom" in message
    assert "_rebuild_tensor" not in message


def test_torch_functions_are_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "evil.th"
    torch.save({"a": Touch(torch.hub.download_url_to_file, "http://127.0.0.1:1/x", str(tmp_path / "x"))}, path)
    assert "torch.hub.download_url_to_file" in refusal(path).message
    assert not (tmp_path / "x").exists()


def test_nothing_stays_registered(sequential: Path) -> None:
    before = set(torch.serialization.get_safe_globals())  # torch lists a set, in any order
    read_torch_file(sequential)
    assert set(torch.serialization.get_safe_globals()) == before
    sequential.write_bytes(sequential.read_bytes()[:-200])
    refusal(sequential)
    assert set(torch.serialization.get_safe_globals()) == before


def test_stand_ins_are_not_numpy() -> None:
    assert not any(isinstance(item, np.ufunc) or getattr(item, "__module__", "").startswith("numpy") for item in ALLOWED.values())


@pytest.mark.parametrize(
    "names", [("numpy.core.multiarray", "numpy._core.multiarray"), ("numpy._core.multiarray", "numpy.core.multiarray")]
)
def test_both_numpy_spellings(tmp_path: Path, names: tuple[str, str]) -> None:
    path, other = tmp_path / "a.th", tmp_path / "b.th"
    mask = np.packbits(np.arange(40) % 3 == 0)
    torch.save({"mask": mask, "scalar": np.float64(2.5), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            target.writestr(item, data.replace(names[0].encode(), names[1].encode()) if item.filename.endswith(".pkl") else data)
    for file in (path, other):
        content = read_torch_file(file)
        assert isinstance(content["mask"], StoredArray)
        assert np.array_equal(content["mask"].as_numpy(), mask)
        assert content["scalar"] == 2.5
        assert np.array_equal(content["fortran"].as_numpy(), np.arange(6.0).reshape(2, 3))


def test_object_arrays_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.th"
    torch.save({"mask": np.array([{}, None], dtype=object)}, path)
    with pytest.raises(ValueError, match="number"):
        read_torch_file(path)["mask"].as_numpy()


def test_legacy_format(sequential: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.th"
    torch.save(read_raw(sequential), old, _use_new_zipfile_serialization=False)
    left, right = load_scene(sequential), load_scene(old)
    assert left.config == right.config
    assert torch.equal(left.app_planes[0], right.app_planes[0])


def test_compressed_archive_reads_the_same(sequential: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.th"
    with zipfile.ZipFile(sequential) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
    assert torch.equal(load_scene(packed).app_planes[1], load_scene(sequential).app_planes[1])


def test_missing_empty_directory_foreign(tmp_path: Path) -> None:
    path = tmp_path / "a.th"
    assert "no such checkpoint" in refusal(path).message
    path.write_bytes(b"")
    assert "empty" in refusal(path).message
    path.write_text("just text")
    assert "not a checkpoint" in refusal(path).message
    assert "directory" in refusal(tmp_path).message
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.txt", "sun")
    assert "holiday.txt" in refusal(path).message
    path.write_bytes(pickle.dumps({"kwargs": {}}, protocol=4))
    assert "not a checkpoint" in refusal(path).message


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.th"
    os.mkfifo(pipe)
    for path, message in ((pipe, "not a regular file"), (Path("a" * 5000), "cannot read it"), (Path("a\0b.th"), "cannot read it")):
        with pytest.raises(CheckpointError, match=message):
            load_scene(path)


def test_other_things_torch_saves(tmp_path: Path) -> None:
    path = tmp_path / "a.th"
    torch.save([1, 2, 3], path)
    assert "list" in refusal(path).message
    torch.save(torch.nn.Linear(2, 2), path)
    assert "torch.nn.modules.linear.Linear" in refusal(path).message
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/constants.pkl", b"")
    path.write_bytes(buffer.getvalue())
    assert "TorchScript" in refusal(path).message


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_anywhere(sequential: Path, tmp_path: Path, legacy: bool) -> None:
    whole = tmp_path / "whole.th"
    torch.save(read_raw(sequential), whole, _use_new_zipfile_serialization=not legacy)
    data = whole.read_bytes()
    path = tmp_path / "cut.th"
    for length in [1, 3, 10, 100, 700, *range(1000, len(data) - 1, len(data) // 12), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as caught:
            load_scene(path)
        assert str(path) in caught.value.message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_pickles_end_in_one_kind_of_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "damaged.th"
    if not (tmp_path / "good.th").exists():
        torch.save({"kwargs": {"aabb": torch.zeros(2, 3), "gridSize": [1, 2, 3]}, "state_dict": {"a": np.ones(3)}}, tmp_path / "good.th")
    with zipfile.ZipFile(tmp_path / "good.th") as source, zipfile.ZipFile(path, "w") as target:
        for item in source.infolist():
            content = bytearray(source.read(item))
            if item.filename.endswith("data.pkl"):
                for _ in range(data.draw(st.integers(1, 3))):
                    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            target.writestr(item, bytes(content))
    try:
        load_scene(path)
    except CheckpointError as error:
        assert str(path) in error.message
    else:
        pytest.fail("a file without planes was taken for a scene")
