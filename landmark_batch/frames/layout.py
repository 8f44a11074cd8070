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
from pathlib import Path

HIDDEN = "done/.landmark"
DONE_KEY = "done/c.0"
PARTIAL = ".partial"
MOVING = ".moving"


@dataclass(frozen=True)
class StoreLayout:
    """Paths of the store at `root`."""

    root: Path

    @property
    def hidden(self) -> Path:
        return self.root / HIDDEN

    @property
    def definition(self) -> Path:
        return self.hidden / "store.json"

    @property
    def flight(self) -> Path:
        return self.hidden / "flight.json"

    @property
    def fence(self) -> Path:
        return self.hidden / "fence.json"

    @property
    def damaged(self) -> Path:
        return self.hidden / "damaged.json"

    @property
    def journal(self) -> Path:
        return self.hidden / "journal.json"

    @property
    def lock(self) -> Path:
        return self.hidden / "lock"

    @property
    def settings(self) -> Path:
        return self.hidden / "settings"

    @property
    def ledger(self) -> Path:
        return self.hidden / "ledger"

    @property
    def owners(self) -> Path:
        return self.hidden / "owners"

    @property
    def claims(self) -> Path:
        return self.hidden / "claims"

    @property
    def restructuring(self) -> Path:
        return self.hidden / "restructuring"

    @property
    def rebuilt(self) -> Path:
        """Staging place of metadata and coordinates while they are replaced."""
        return self.hidden / "rebuilt"

    def directories(self) -> tuple[Path, ...]:
        return (self.hidden, self.settings, self.ledger, self.owners, self.claims)

    def chunk(self, output: str, index: int) -> Path:
        """File of chunk (or shard) `index` of an output's array."""
        return self.root / output / chunk_name(output, index)


def chunk_name(output: str, index: int) -> str:
    return f"c.{index}" + (".0.0.0" if output == "rgb" else ".0.0")


def chunk_index(name: str) -> int | None:
    """Index of a chunk file name, None for anything else in the folder."""
    parts = name.split(".")
    if len(parts) in (4, 5) and parts[0] == "c" and all(part.isdecimal() for part in parts[1:]):
        return int(parts[1])
    return None


def file_sizes(folder: Path) -> dict[str, int]:
    """{name: bytes} of the chunk files in an array's folder, in one pass; {} if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.name.startswith("c.")}
    except FileNotFoundError:
        return {}
