"""What a store says about itself, kept twice: `store.json` in the hidden folder, and in the root group's attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.object_path import ObjectPath, StorePath

from . import durable
from .layout import HIDDEN, StoreLayout
from .sealed import DamagedError, read_sealed, seal, unseal
from .spec import StoreInfo, StoreSpec

FORMAT = "landmark-batch frame store"
VERSION = 1
ATTRIBUTE = "landmark_batch"
_SCENE = "landmark_batch_scene"  # scene.store_layout.MARK, which is not imported: this room knows no scenes
_STORES = "name the folder of frames that `landmark-batch render` wrote, NAME.zarr"


@dataclass(frozen=True)
class StoreDefinition:
    """settings: digest of the settings the store is being rendered with, '' unknown. flight: digest of the flight its coordinates hold.

    metadata: {'rgb/zarr.json': its text}. coordinates: {'pose/c.0.0.0': xxh3_64 of its bytes}. Both empty when read from the
    attributes alone (`whole` is then False).
    """

    spec: StoreSpec
    info: StoreInfo
    settings: str
    flight: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    coordinates: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return bool(self.metadata)

    def attribute(self) -> dict[str, Any]:
        """The copy that stands in the root group's attributes: one sealed text."""
        return {"format": FORMAT, "version": VERSION, "definition": seal(self._core()).decode()}

    def _core(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "spec": self.spec.as_dict(),
            "info": self.info.as_dict(),
            "flight": self.flight,
        }

    def save(self, path: StorePath) -> None:
        """Write store.json durably. Raises StoreError."""
        durable.replace_file(
            path, seal({**self._core(), "settings": self.settings, "metadata": dict(self.metadata), "coordinates": dict(self.coordinates)})
        )


def _parse(values: Mapping[str, Any], path: StorePath) -> StoreDefinition:
    if values.get("format") != FORMAT:
        raise StoreError(f"{path}: not a frame store of landmark-batch", remedy="write elsewhere with -o NEW.zarr")
    if values["version"] != VERSION:
        raise StoreError(f"{path}: store version {values['version']}, this program knows version {VERSION}", remedy="update landmark-batch")
    return StoreDefinition(
        spec=StoreSpec.from_dict(values["spec"]),
        info=StoreInfo(**values["info"]),
        settings=values.get("settings", ""),
        flight=values["flight"],
        metadata=values.get("metadata", {}),
        coordinates=values.get("coordinates", {}),
    )


def _from_attributes(root: StorePath) -> StoreDefinition:
    text = json.loads((root / "zarr.json").read_bytes())["attributes"][ATTRIBUTE]["definition"]
    return _parse(unseal(text.encode()), root)


def is_store(root: StorePath) -> bool:
    """True if `root` is a frame store of ours, damaged or not."""
    if isinstance(root, ObjectPath):
        if StoreLayout(root).definition.is_file():  # written last
            return True
    elif (root / HIDDEN).is_dir():
        return True
    return ATTRIBUTE in _attributes(root)


def what_else(root: StorePath) -> str:
    """What a folder is that is no frame store, for people."""
    if _SCENE in _attributes(root):
        return "a scene in blocks, not a frame store"
    return "a foreign directory, not a frame store of landmark-batch"


def _attributes(root: StorePath) -> Mapping[str, Any]:
    """Of the Zarr group at `root`; empty where there is none."""
    try:
        found = json.loads((root / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def load_definition(layout: StoreLayout) -> StoreDefinition:
    """store.json, or where that is damaged the copy in the attributes.

    Raises StoreError if `layout.root` is missing, a file, foreign, of a newer version, or damaged in both places. Touches nothing.
    """
    root = layout.root
    if not root.exists():
        raise StoreError(f"{root}: no such store", remedy="check the path; `landmark-batch render` creates one")
    if not root.is_dir():
        raise StoreError(f"{root} is a file, not a frame store", remedy=_STORES)
    if not is_store(root):
        raise StoreError(f"{root}: {what_else(root)}; it was not touched", remedy=_STORES)
    try:
        return _parse(read_sealed(layout.definition), root)
    except (OSError, DamagedError, LookupError, TypeError, ConfigError) as first:
        try:
            return _from_attributes(root)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError):
            raise StoreError(
                f"{root}: both descriptions of this store are damaged: {layout.definition} ({first}) and {root / 'zarr.json'}",
                remedy="restore one of the two files from a copy, or render into another store with -o NEW.zarr",
            ) from None
