"""Making an empty store: whole or not at all, under the name it is to have."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from pathlib import Path

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import LandmarkError, StoreError
from landmark_batch.object_path import ObjectPath

from . import durable
from .conditions import require_conditions
from .definition import StoreDefinition, is_store, what_else
from .fence import Fence, write_fence
from .fingerprint import FrameSettings
from .layout import StoreLayout
from .locks import store_mutex
from .process import tag_process, writer_tag
from .saved_settings import save_settings
from .skeleton import upload, write_skeleton
from .spec import StoreInfo, StoreSpec

_log = logging.getLogger(__name__)


def create_store(layout: StoreLayout, spec: StoreSpec, flight: Flight, settings: FrameSettings, info: StoreInfo | None) -> StoreDefinition:
    """Parents are created. Raises StoreError if there is anything at its place (an empty directory may be), or it cannot be written."""
    if isinstance(layout.root, ObjectPath):
        return _create_objects(layout, layout.root, spec, flight, settings, info)
    return _create_folder(layout.root, spec, flight, settings, info)


def _create_folder(path: Path, spec: StoreSpec, flight: Flight, settings: FrameSettings, info: StoreInfo | None) -> StoreDefinition:
    _refuse_existing(path)
    made = path.with_name(f".{path.name}.{writer_tag('new')}.creating")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        definition = _write(StoreLayout(made), spec, flight, settings, info or StoreInfo(path.stem, flight.fps))
        durable.step("created")
        made.rename(path)
        durable.sync_directory(path.parent)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        if path.exists():
            _refuse_existing(path)
        raise durable.store_error(error, path) from error
    except LandmarkError:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return definition


def _create_objects(
    layout: StoreLayout, root: ObjectPath, spec: StoreSpec, flight: Flight, settings: FrameSettings, info: StoreInfo | None
) -> StoreDefinition:
    """It is a store from its last object on, `store.json`; what a maker that died left before that is written again."""
    _refuse_objects(layout, root)
    require_conditions(layout)
    with tempfile.TemporaryDirectory(prefix="landmark-batch-") as folder:
        made = StoreLayout(Path(folder) / "store")
        definition = _write(made, spec, flight, settings, info or StoreInfo(root.stem, flight.fps))
        try:
            with store_mutex(layout):
                _refuse_objects(layout, root)
                upload(Path(folder) / "store", root)
        except OSError as error:
            raise durable.store_error(error, root) from error
    return definition


def _write(layout: StoreLayout, spec: StoreSpec, flight: Flight, settings: FrameSettings, info: StoreInfo) -> StoreDefinition:
    definition = write_skeleton(layout.root, spec, info, flight, settings.digest)
    for folder in layout.directories():
        folder.mkdir(exist_ok=True)
    save_settings(layout, settings)
    write_fence(layout, Fence(discards=0))
    return definition


def _refuse_objects(layout: StoreLayout, root: ObjectPath) -> None:
    elsewhere = "name another place with -o"
    if is_store(root):
        raise StoreError(f"{root}: there is a frame store already", remedy=f"open it, or {elsewhere}")
    if root.is_file():
        raise StoreError(f"{root} is an object, not a frame store", remedy=elsewhere)
    with contextlib.suppress(StopIteration):
        next(path for path in root.iterdir() if path.name != "done")
        if isinstance(layout.lock, ObjectPath) and not layout.lock.is_file():  # else: a store that was not made to its end
            raise StoreError(f"{root}: foreign objects, not a frame store of landmark-batch; they were not touched", remedy=elsewhere)


def _refuse_existing(path: Path) -> None:
    if is_store(path):
        raise StoreError(f"{path}: there is a frame store already", remedy="open it, or write elsewhere with -o NEW.zarr")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise StoreError(f"{path}: {parent} is a file, not a directory", remedy="name another path with -o NEW.zarr")
    try:
        if path.is_dir() and not any(path.iterdir()):
            return
    except OSError as error:
        raise durable.store_error(error, path) from error
    if path.is_dir():
        raise StoreError(
            f"{path}: {what_else(path)}; it was not touched",
            remedy="name another path with -o NEW.zarr",
        )
    if path.exists() or path.is_symlink():
        raise StoreError(f"{path} is a file, not a frame store", remedy="name another path with -o NEW.zarr")


def _remove_abandoned(path: Path) -> None:
    """Half-made stores whose maker died."""
    prefix, suffix = f".{path.name}.", ".creating"
    for entry in path.parent.iterdir():
        if entry.name.startswith(prefix) and entry.name.endswith(suffix):
            maker = tag_process(entry.name[len(prefix) : -len(suffix)])
            if maker is not None and maker.is_dead():
                _log.info("%s: removed, left by process %d", entry, maker.pid)
                shutil.rmtree(entry, ignore_errors=True)
