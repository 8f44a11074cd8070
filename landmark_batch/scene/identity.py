"""The content digest of a scene: what a frame's fingerprint says about the weights it was rendered from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_cache_path

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.edit import find_edit_files
from landmark_batch.scene.layout import SceneFiles, find_scene_files
from landmark_batch.scene.location import SceneLocation, as_location
from landmark_batch.scene.store import BlockStore, open_if_store

logger = logging.getLogger(__name__)

CACHE_NAME = "scene-digests.json"
_CACHE_VERSION = 1
_KEEP = 4096  # entries; the oldest go first


def scene_digest(path: SceneLocation, *, edit: str | None = None, edit_block: int | None = None, cache_dir: Path | None = None) -> str:
    """sha256 (hex) of the content of every file that makes the scene, in block order, edit files included.

    Names and places of the files do not count, except which block a file is. A file's own digest is kept in
    `cache_dir`/scene-digests.json (default: the user's cache directory of landmark-batch) under its path, size and time of change;
    a cache that is missing, broken or not writable only costs time. Raises CheckpointError as `load_scene` for files that are not there.
    A block store's is made of the digests that it recorded: none of its planes is read.
    """
    if (store := open_if_store(path)) is not None:
        return store_digest(store)
    files = find_scene_files(Path(as_location(path)))
    parts = list(scene_parts(files, edit, edit_block))
    with _Cache((cache_dir or user_cache_path("landmark-batch")) / CACHE_NAME) as cache:
        digests = [(role, cache.digest(file)) for role, file in parts]
    total = hashlib.sha256(b"landmark-batch scene 1\n")
    for role, digest in digests:
        total.update(f"{role} {digest}\n".encode())
    return total.hexdigest()


def store_digest(store: BlockStore) -> str:
    """sha256 (hex) over the digests of what its blocks share and of every block."""
    total = hashlib.sha256(b"landmark-batch block store 1\n")
    for digest in (store.base_digest, *store.digests):
        total.update(f"{digest}\n".encode())
    return total.hexdigest()


def scene_parts(files: SceneFiles, edit: str | None = None, edit_block: int | None = None) -> Iterator[tuple[str, Path]]:
    """(role, file) of every file that is read: 'scene', 'sub 3', 'edit 3', 'mask'."""
    for number, file in enumerate(files.paths):
        yield ("scene" if files.kind == "file" else f"sub {files.block if files.kind == 'sub' else number}"), file
    if edit is not None:
        found = find_edit_files(files, edit, edit_block)
        yield f"edit {found.block}", found.weights
        yield "mask", found.volume


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes. Raises CheckpointError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read it: {error.strerror or error}", remedy="check the path and its permissions") from None


class _Cache:
    """{path: [size, mtime_ns, digest]} in a JSON file. Read on entry, merged with what others wrote meanwhile and replaced on exit."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, list[object]] = {}
        self.added: dict[str, list[object]] = {}

    def __enter__(self) -> _Cache:
        self.known = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        if self.added:
            with contextlib.suppress(OSError):
                self._write()

    def digest(self, path: Path) -> str:
        try:
            path = path.resolve()
            before = path.stat()
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot read it: {error.strerror or error}", remedy="check the path and its permissions"
            ) from None
        key = [before.st_size, before.st_mtime_ns]
        entry = self.added.get(str(path)) or self.known.get(str(path))
        if entry is not None and entry[:2] == key:
            return str(entry[2])
        digest = file_digest(path)
        after = path.stat()
        if [after.st_size, after.st_mtime_ns] != key:
            raise CheckpointError(f"{path}: changed while it was read", remedy="wait until it is written completely")
        self.added[str(path)] = [*key, digest]
        return digest

    def _read(self) -> dict[str, list[object]]:
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        files = content.get("files") if isinstance(content, dict) and content.get("version") == _CACHE_VERSION else None
        if not isinstance(files, dict):
            return {}
        return {path: entry for path, entry in files.items() if _is_entry(entry)}

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        entries = {path: entry for path, entry in self._read().items() if path not in self.added} | self.added
        entries = dict(list(entries.items())[-_KEEP:])
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            temporary.write_text(json.dumps({"version": _CACHE_VERSION, "files": entries}, indent=0), encoding="utf-8")
            temporary.replace(self.file)
        finally:
            temporary.unlink(missing_ok=True)


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and isinstance(entry[0], int)
        and isinstance(entry[1], int)
        and isinstance(entry[2], str)
        and len(entry[2]) == 64
    )
