"""BlockStore: damaged stores, and stores behind URLs that answer late, wrongly, or not at all."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import fsspec
import numpy as np
import pytest

from landmark_batch.errors import CheckpointError, StoreError
from landmark_batch.object_path import as_store_path
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.config import load_config
from landmark_batch.scene.convert import convert_scene
from landmark_batch.scene.identity import scene_digest
from landmark_batch.scene.info import describe_scene
from landmark_batch.scene.store import BlockStore, is_block_store
from tests.object_server import every_service
from tests.ports import free_port
from tests.scene.conftest import assert_same_weights

KEY = "app_plane/1/c.3.0.0.0"


@pytest.fixture
def store(merged: Path, tmp_path: Path) -> Path:
    return convert_scene(merged, tmp_path / "town.zarr").target


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(Path.unlink, "missing"), (cut, "bytes where"), (lengthen, "more bytes"), (flip, "not those that were written")],
)
def test_a_damaged_plane_is_named(store: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(store / KEY)
    for read in (load_scene, lambda path: BlockStore.open(path).read_plane(3, BlockStore.open(path).tables[3])):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(store)
        assert f"{store / KEY} (block 3)" in caught.value.message
        assert caught.value.remedy
    assert load_config(store).blocks == 6, "what needs no planes still works"
    opened = BlockStore.open(store)
    assert opened.read_plane(2, opened.tables[3]).any()


@pytest.mark.parametrize("key", ["mask/c.0", "decoder/basis_mat/c.0.0", "density_line/0/c.0.0.0", "digests/c.0.0.0"])
def test_damage_in_what_blocks_share_is_found(store: Path, key: str) -> None:
    flip(store / key)
    with pytest.raises(CheckpointError, match="not those that were written"):
        load_scene(store)


def test_damaged_lines_name_their_block(store: Path) -> None:
    path = store / "app_line" / "1" / "c.0.0.0"
    data = bytearray(path.read_bytes())
    data[len(data) * 4 // 6 + 5] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"app_line/1/c\.0\.0\.0 \(block 4\): damaged"):
        BlockStore.open(store).base()


def rewrite_head(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    root = json.loads((store / "zarr.json").read_text())
    change(root["attributes"]["landmark_batch_scene"])
    (store / "zarr.json").write_text(json.dumps(root))


def test_a_damaged_or_foreign_head(store: Path, tmp_path: Path) -> None:
    text = (store / "zarr.json").read_bytes()
    cases: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda head: head.update(version=2), "version 2, this program reads version 1"),
        (lambda head: head["config"].update(density_shift=-9.0), "damaged"),
        (lambda head: head.pop("parts"), "damaged"),
        (lambda head: head["config"].update(colour="red"), "damaged"),
    ]
    for change, message in cases:
        rewrite_head(store, change)
        with pytest.raises(CheckpointError, match=message):
            load_scene(store)
        (store / "zarr.json").write_bytes(text)
    frames = tmp_path / "frames.zarr"
    frames.mkdir()
    (frames / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    assert not is_block_store(frames)
    with pytest.raises(CheckpointError, match="no block store of a scene"):
        BlockStore.open(frames)
    with pytest.raises(CheckpointError, match="no block store"):
        BlockStore.open(tmp_path / "nowhere")


def test_reading_one_block(store: Path, merged: Path) -> None:
    scene, opened = load_scene(merged), pickle.loads(pickle.dumps(BlockStore.open(store)))
    planes = [*scene.density_planes, *scene.app_planes]
    assert [(t.kind, t.level) for t in opened.tables] == [("density", 0), ("density", 1), ("app", 0), ("app", 1)]
    for table, plane in zip(opened.tables, planes, strict=True):
        into = np.full(table.shape, np.nan, np.float32)
        opened.read_plane_into(5, table, into)
        assert np.array_equal(into, plane[5].numpy())
    base = opened.base()
    assert [plane.shape[0] for plane in base.app_planes] == [0, 0]
    assert base.density_lines[0].shape[0] == 6
    numbers = sum(plane[0].numel() for plane in planes) + sum(line[0].numel() for line in (*scene.density_lines, *scene.app_lines))
    assert opened.block_bytes("fp32") == 4 * numbers
    assert opened.block_bytes("fp32", shares=2) == 2 * numbers
    with pytest.raises(IndexError):
        opened.read_plane(6, opened.tables[0])
    for wrong in (np.empty((1, 2, 3), np.float32), np.empty(opened.tables[0].shape, np.float64)):
        with pytest.raises(ValueError, match="density_plane/0"):
            opened.read_plane_into(0, opened.tables[0], wrong)


class Faults:
    """What a server does to requests by path, one fault a request until they are used up. asked: every path that came."""

    def __init__(self) -> None:
        self.plans: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self._lock = Lock()

    def next(self, path: str) -> str:
        with self._lock:
            self.asked.append(path)
            plan = next((plan for part, plan in self.plans.items() if path.endswith(part)), [])
            return plan.pop(0) if plan else ""


@pytest.fixture
def served(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Faults]]:
    """The store behind http://127.0.0.1, with faults to order."""
    faults = Faults()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(store.parent))

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            fault = faults.next(self.path)
            if fault.isdigit():
                self.send_error(int(fault))
            elif fault:
                data = bytearray((store.parent / self.path[1:]).read_bytes())
                if fault == "flip":
                    data[7] ^= 1
                if fault != "drop":
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2] if fault == "break" else data)
                self.close_connection = True
            else:
                super().do_GET()

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{store.name}", faults
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_store_over_http_is_the_scene(served: tuple[str, Faults], merged: Path, store: Path) -> None:
    url, faults = served
    assert is_block_store(url)
    assert not is_block_store(f"{url}/nothing")
    assert load_config(url) == load_config(merged)
    assert scene_digest(url) == scene_digest(store)
    assert not any("_plane" in path for path in faults.asked), "digests and config need no planes"
    assert_same_weights(load_scene(f"{url}/"), load_scene(merged))
    info = describe_scene(url)
    assert (info.path, info.layout, info.as_dict()["path"]) == (url, "block store", url)


def test_failed_reads_are_tried_again(served: tuple[str, Faults], merged: Path, caplog: pytest.LogCaptureFixture) -> None:
    url, faults = served
    faults.plans = {"town.zarr/zarr.json": ["503", "drop"], KEY: ["break", "500", "flip"], "mask/c.0": ["429"]}
    opened = BlockStore.open(url, delay=0.001)
    scene = load_scene(merged)
    assert np.array_equal(opened.read_plane(3, opened.tables[3]), scene.app_planes[1][3].numpy())
    base = opened.base()
    assert base.mask is not None
    assert faults.asked.count(f"/town.zarr/{KEY}") == 4
    assert not any(plan for plan in faults.plans.values())
    assert len(re.findall("trying again", caplog.text)) == 6


def test_reads_that_go_on_failing_are_an_error(served: tuple[str, Faults]) -> None:
    url, faults = served
    opened = BlockStore.open(url, attempts=3, delay=0.001)
    table = opened.tables[3]
    faults.plans = {KEY: ["503"] * 9}
    with pytest.raises(StoreError, match=r"block 3.*HTTP 503.*3 attempts"):
        opened.read_plane(3, table)
    for plan, message in (["404"], "missing"), (["403"], "HTTP 403"), (["flip"] * 2, "not those that were written"):
        faults.plans, reads = {KEY: plan}, len(plan)
        faults.asked.clear()
        with pytest.raises((CheckpointError, StoreError), match=message) as caught:
            opened.read_plane(3, table)
        assert f"{url}/{KEY} (block 3)" in caught.value.message
        assert len(faults.asked) == reads, "what will not mend is not tried again"
    faults.plans = {KEY: ["flip"] * 9}
    with pytest.raises(CheckpointError):
        load_scene(url)


def test_a_server_that_is_gone(store: Path) -> None:
    with pytest.raises(StoreError, match=r"zarr\.json: cannot read it: .*2 attempts"):
        BlockStore.open(f"http://127.0.0.1:{free_port()}/town.zarr", attempts=2, delay=0.001)


def test_other_urls(store: Path, merged: Path) -> None:
    scene = load_scene(merged)
    assert_same_weights(load_scene(f"file://{store}"), scene)
    assert load_config(f"file://{merged}") == load_config(merged)
    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/town.zarr", recursive=True)
    try:
        assert_same_weights(load_scene("memory://town.zarr"), scene)
        memory.rm(f"/town.zarr/{KEY}")
        with pytest.raises(CheckpointError, match=f"{re.escape(KEY)}.*missing"):
            load_scene("memory://town.zarr")
    finally:
        memory.rm("/town.zarr", recursive=True)
    with pytest.raises(CheckpointError, match=r"reads nosuch://") as caught:
        load_scene("nosuch://bucket/town.zarr")
    assert "local folder" in str(caught.value)


@every_service
def test_in_an_object_store(bucket: str, store: Path, merged: Path) -> None:
    url, scene = f"{bucket}/scenes/town.zarr", load_scene(merged)
    assert not is_block_store(url)
    with pytest.raises(CheckpointError, match=f"{url}: no block store"):
        BlockStore.open(url)
    root = as_store_path(url)
    for file in (path for path in store.rglob("*") if path.is_file()):
        (root / str(file.relative_to(store))).write_bytes(file.read_bytes())
    assert is_block_store(f"{url}/")
    assert_same_weights(load_scene(url), scene)
    assert_same_weights(load_scene(pickle.loads(pickle.dumps(BlockStore.open(url))).location), scene)
    (root / KEY).write_bytes((store / KEY).read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=f"{re.escape(KEY)}.*bytes where"):
        load_scene(url)
    (root / KEY).unlink()
    with pytest.raises(CheckpointError, match=f"{url}/{re.escape(KEY)}.*missing"):
        load_scene(url)
    with pytest.raises(StoreError, match="there is no bucket") as caught:
        load_scene(f"{bucket}-none/town.zarr")
    assert caught.value.exit_code == 2


def test_an_object_store_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(CheckpointError, match=r"reads s3://") as caught:
        load_scene("s3://bucket/town.zarr")
    assert "landmark-batch[cloud]" in str(caught.value)


def test_a_store_can_be_copied(store: Path, merged: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "elsewhere")
    assert_same_weights(load_scene(tmp_path / "elsewhere"), load_scene(merged))
