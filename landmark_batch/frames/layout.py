"""Where things lie in a store.

    flight.zarr/
      zarr.json                 root group: attributes, consolidated metadata, a copy of the spec
      rgb/zarr.json             arrays; depth/ and alpha/ alike
      rgb/c.12.0.0.0            frame 12: one chunk, one file (frames_per_shard frames with sharding)
      frame/ time/ pose/ focal/ intrinsics/ done/      coordinates, one file each
      done/.landmark/           everything that is not Zarr's: `done` says which frames stand, this says why

Zarr readers list groups and never the inside of an array, so that files of ours in an array's folder raise no warning in any
reader, with or without consolidated metadata. Chunk names use '.', so that all frames of an output share one directory: one
fsync makes a whole commit's names durable, and moving a frame is one rename.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from landmark_batch.object_path import ObjectPath, StorePath, as_store_path

HIDDEN = "done/.landmark"
DONE_KEY = "done/c.0"
PARTIAL = ".partial"
MOVING = ".moving"


@dataclass(frozen=True)
class StoreLayout:
    """Paths of the store at `root`, a folder or a place in an object store: the same names in both."""

    root: StorePath

    @property
    def hidden(self) -> StorePath:
        return self.root / HIDDEN

    @property
    def definition(self) -> StorePath:
        return self.hidden / "store.json"

    @property
    def flight(self) -> StorePath:
        return self.hidden / "flight.json"

    @property
    def fence(self) -> StorePath:
        return self.hidden / "fence.json"

    @property
    def damaged(self) -> StorePath:
        return self.hidden / "damaged.json"

    @property
    def journal(self) -> StorePath:
        return self.hidden / "journal.json"

    @property
    def lock(self) -> StorePath:
        return self.hidden / "lock"

    @property
    def settings(self) -> StorePath:
        return self.hidden / "settings"

    @property
    def ledger(self) -> StorePath:
        return self.hidden / "ledger"

    @property
    def owners(self) -> StorePath:
        return self.hidden / "owners"

    @property
    def claims(self) -> StorePath:
        return self.hidden / "claims"

    @property
    def restructuring(self) -> StorePath:
        return self.hidden / "restructuring"

    @property
    def rebuilt(self) -> StorePath:
        """Staging place of metadata and coordinates while they are replaced."""
        return self.hidden / "rebuilt"

    def directories(self) -> tuple[StorePath, ...]:
        return (self.hidden, self.settings, self.ledger, self.owners, self.claims)

    def chunk(self, output: str, index: int) -> StorePath:
        """File of chunk (or shard) `index` of an output's array."""
        return self.root / output / chunk_name(output, index)


def layout_of(location: StorePath | str) -> StoreLayout:
    """Of the store at a path or URL. Raises ConfigError for a URL where no store can be."""
    root = as_store_path(location)
    return StoreLayout(root if isinstance(root, ObjectPath) else root.absolute())


def chunk_name(output: str, index: int) -> str:
    return f"c.{index}" + (".0.0.0" if output == "rgb" else ".0.0")


def chunk_index(name: str) -> int | None:
    """Index of a chunk file name, None for anything else in the folder."""
    parts = name.split(".")
    if len(parts) in (4, 5) and parts[0] == "c" and all(part.isdecimal() for part in parts[1:]):
        return int(parts[1])
    return None


def file_sizes(folder: StorePath) -> dict[str, int]:
    """{name: bytes} of the chunk files in an array's folder, in one pass; {} if there is no such folder."""
    if isinstance(folder, ObjectPath):
        return {name: size for name, size in folder.sizes().items() if name.startswith("c.")}
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.name.startswith("c.")}
    except FileNotFoundError:
        return {}


def entry_names(folder: StorePath) -> list[str]:
    """Names in a folder, of up to 100,000 files; [] if there is no such folder."""
    if isinstance(folder, ObjectPath):
        return [path.name for path in folder.iterdir()]
    try:
        return os.listdir(folder)  # noqa: PTH208  names only
    except FileNotFoundError:
        return []
