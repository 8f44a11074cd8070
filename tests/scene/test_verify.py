"""verify_scene and convert: bytes that changed since they were written are found, in every kind of scene."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.convert import convert_scene
from landmark_batch.scene.export import save_landmark_blocks, save_landmark_checkpoint
from landmark_batch.scene.store import BlockStore
from landmark_batch.scene.verify import verify_scene
from tests.factories import make_scene
from tests.scene.conftest import read_raw


def _flip(path: Path, record: str, *, byte: int = 101) -> str:
    """Change one byte inside the content of the record whose name ends so, or of the largest ('*'). Returns its name."""
    with zipfile.ZipFile(path) as archive:
        found = [item for item in archive.infolist() if record == "*" or item.filename.endswith(record)]
    item = max(found, key=lambda entry: entry.file_size)
    data = bytearray(path.read_bytes())
    content = item.header_offset + 30 + int.from_bytes(data[item.header_offset + 26 : item.header_offset + 28], "little")
    content += int.from_bytes(data[item.header_offset + 28 : item.header_offset + 30], "little")
    data[content + min(byte, item.file_size - 1)] ^= 0x10
    path.write_bytes(data)
    return item.filename


def test_what_was_written_is_whole(merged: Path, tmp_path: Path) -> None:
    ticks: list[tuple[int, int]] = []
    found = verify_scene(merged, threads=2, progress=lambda done, total: ticks.append((done, total)))
    with zipfile.ZipFile(merged) as archive:
        records = archive.infolist()
    assert (found.ok, found.damaged, found.unchecked) == (True, (), ())
    assert (found.records, found.bytes) == (len(records), sum(item.file_size for item in records))
    assert ticks[-1] == (len(records), len(records))
    assert not list(tmp_path.glob("*.zarr"))


def test_a_byte_of_a_plane_is_found(merged: Path) -> None:
    before = load_scene(merged)
    name = _flip(merged, "*")
    assert load_scene(merged).config == before.config  # torch reads it without a word
    found = verify_scene(merged)
    assert len(found.damaged) == 1
    assert found.damaged[0].startswith(f"{merged}: record {name}: its CRC-32 is ")


def test_every_file_of_a_directory_and_the_companion_are_looked_at(tmp_path: Path) -> None:
    subs = save_landmark_blocks(make_scene(division=(2, 2)), tmp_path / "subs" / "town")
    names = [_flip(subs[3], "*"), _flip(subs[1], "data.pkl")]
    found = verify_scene(tmp_path / "subs")
    assert [line.split(": its")[0] for line in found.damaged] == [f"{subs[1]}: record {names[1]}", f"{subs[3]}: record {names[0]}"]
    files = save_landmark_checkpoint(make_scene(division=(2, 2)), tmp_path / "town-merged-stack.th", companions=True)
    companion = next(file for file in files if file.name.endswith("-wo_plane.th"))
    _flip(companion, "data.pkl")
    assert [line.split(": record")[0] for line in verify_scene(companion).damaged] == [str(companion)]


def test_a_record_whose_own_header_is_gone(merged: Path) -> None:
    with zipfile.ZipFile(merged) as archive:
        item = archive.infolist()[-1]
    data = bytearray(merged.read_bytes())
    data[item.header_offset : item.header_offset + 4] = b"none"
    merged.write_bytes(data)
    assert verify_scene(merged).damaged == (
        f"{merged}: record {item.filename}: cannot be read: no record begins at byte {item.header_offset}",
    )


def test_a_packed_archive(merged: Path) -> None:
    with zipfile.ZipFile(merged) as archive:
        content = [(item.filename, archive.read(item)) for item in archive.infolist()]
    with zipfile.ZipFile(merged, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content:
            archive.writestr(name, data)
    assert verify_scene(merged).ok
    name = _flip(merged, "*")
    assert [line.split(": cannot")[0] for line in verify_scene(merged).damaged] == [f"{merged}: record {name}"]


@pytest.mark.parametrize("old", [True, False])
def test_files_without_checksums_are_named_and_converted(merged: Path, tmp_path: Path, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    content = read_raw(merged)
    if old:
        torch.save(content, merged, _use_new_zipfile_serialization=False)
    else:
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(content, merged)
        finally:
            torch.serialization.set_crc32_options(before)
    found = verify_scene(merged)
    assert (found.records, found.ok, found.unchecked) == (0, True, (str(merged),))
    assert convert_scene(merged, tmp_path / "scene.zarr").head.blocks == 6


def test_a_foreign_file_and_one_cut_short_are_refused(merged: Path) -> None:
    merged.write_bytes(merged.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="its end is missing"):
        verify_scene(merged)
    merged.write_bytes(b"not of torch")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        verify_scene(merged)


def test_a_block_of_a_store_that_changed_is_found(merged: Path, tmp_path: Path) -> None:
    target = convert_scene(merged, tmp_path / "scene.zarr").target
    store = BlockStore.open(target)
    whole = verify_scene(target)
    assert (whole.ok, whole.records) == (True, 1 + store.blocks * len(store.tables))
    files = [Path(store.where(4, store.tables[0])), *(target / "decoder" / "mlp.0.weight").glob("c.*")]
    for file in files:
        data = bytearray(file.read_bytes())
        data[7] ^= 1
        file.write_bytes(data)
    assert [line.split(" (")[0] for line in verify_scene(target).damaged] == [str(files[1]), str(files[0])]


@pytest.mark.parametrize("kind", ["merged", "subs"])
def test_convert_refuses_a_damaged_file_and_leaves_nothing(merged: Path, tmp_path: Path, kind: str) -> None:
    source, damaged = merged, merged
    if kind == "subs":
        source = tmp_path / "subs"
        damaged = save_landmark_blocks(make_scene(division=(2, 2)), source / "town")[2]
    name = _flip(damaged, "*", byte=100)  # the low end of a float: a finite number still
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        convert_scene(source, tmp_path / "scene.zarr", threads=2)
    assert caught.value.message.startswith(f"{damaged}: record {name} is damaged: its CRC-32 is")
    assert not list(tmp_path.glob("*.zarr"))
