"""What stands where in a block store: arrays, keys, attributes, digests. A Zarr v3 group that any reader of Zarr opens.

density_plane/{level}, app_plane/{level}   [blocks, h, w, C]   one uncompressed chunk a block: the file is the tensor's bytes
density_line/{level}, app_line/{level}     [blocks or 1, n, C] one chunk
decoder/{name}, mask, origins, digests                         one chunk each
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.weights import Box, SceneConfig

MARK = "landmark_batch_scene"  # the attribute that tells a block store from other groups
VERSION = 1
ROOT = "zarr.json"
Precision = Literal["fp32", "fp16"]
Kind = Literal["density", "app"]
DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
DIGEST = 32  # bytes of a sha256


@dataclass(frozen=True)
class BlockTable:
    """One plane of one block as it is stored: [height, width, channels]. level i = dim * R + res."""

    kind: Kind
    level: int
    height: int
    width: int
    channels: int

    @property
    def array(self) -> str:
        return f"{self.kind}_plane/{self.level}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, self.channels)

    def key(self, block: int) -> str:
        return chunk_key(self.array, 4, block)


@dataclass(frozen=True)
class LineTable:
    """Lines of a level: [rows, length, channels], rows being the blocks, or 1 where planes are cut."""

    kind: Kind
    level: int
    length: int
    channels: int

    @property
    def array(self) -> str:
        return f"{self.kind}_line/{self.level}"

    @property
    def key(self) -> str:
        return chunk_key(self.array, 3)


@dataclass(frozen=True)
class ArrayNote:
    """An array of the base: its shape and the sha256 (hex) of its bytes."""

    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class StoreHead:
    """Everything that a store's attributes say.

    cut: whole planes of a sequential scene cut into blocks; else every block has planes and lines of its own. division: blocks along
    x and y. parts: (h, w) of a block's stored plane by level. decoder: float32 arrays by name. lines: of a cut scene, by array.
    mask: [packed bytes] with mask_box, None without. origins: None unless cut. notes: for the user.
    """

    config: SceneConfig
    cut: bool
    division: tuple[int, int]
    precision: Precision
    parts: tuple[tuple[int, int], ...]
    decoder: Mapping[str, ArrayNote]
    lines: Mapping[str, ArrayNote]
    mask: ArrayNote | None
    mask_box: Box | None
    origins: ArrayNote | None
    notes: tuple[str, ...] = ()

    @property
    def blocks(self) -> int:
        return self.division[0] * self.division[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES[self.precision]

    def tables(self) -> tuple[BlockTable, ...]:
        """Planes of a block in the order density, app, levels each."""
        return plane_tables(self.config, self.parts)

    def line_tables(self) -> tuple[LineTable, ...]:
        return line_tables(self.config)

    def base_digest(self) -> str:
        """sha256 (hex) of all that blocks share: config, decoder, mask, boxes, and the lines and origins of a cut scene."""
        known = {key: value for key, value in self._plain().items() if key != "notes"}
        return hashlib.sha256(json.dumps(known, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()

    def attributes(self) -> dict[str, Any]:
        return {MARK: {"version": VERSION, **self._plain(), "base_digest": self.base_digest()}}

    def _plain(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return found


def plane_tables(config: SceneConfig, parts: Sequence[tuple[int, int]]) -> tuple[BlockTable, ...]:
    kinds: tuple[tuple[Kind, int], ...] = (("density", config.density_channels), ("app", config.appearance_channels))
    return tuple(BlockTable(kind, level, h, w, channels) for kind, channels in kinds for level, (h, w) in enumerate(parts))


def line_tables(config: SceneConfig) -> tuple[LineTable, ...]:
    kinds: tuple[tuple[Kind, int], ...] = (("density", config.density_channels), ("app", config.appearance_channels))
    return tuple(LineTable(kind, level, n, c) for kind, c in kinds for level, (_, _, n) in enumerate(config.level_sizes()))


def block_digest(digests: bytes) -> str:
    """A block's digest (hex) from those of its planes and lines, joined in the order of the tables."""
    return hashlib.sha256(digests).hexdigest()


def chunk_key(array: str, axes: int, first: int = 0) -> str:
    """Key of a chunk that is whole on all axes but the first."""
    return f"{array}/{'.'.join(['c', str(first), *['0'] * (axes - 1)])}"


def array_metadata(shape: Sequence[int], chunk: Sequence[int], dtype: np.dtype[Any], names: Sequence[str]) -> dict[str, Any]:
    """zarr.json of an array of uncompressed little-endian chunks."""
    codec: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        codec["configuration"] = {"endian": "little"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, size) for size in chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0 if dtype.kind == "f" else 0,
        "codecs": [codec],
        "attributes": {},
        "dimension_names": list(names),
    }


def store_metadata(head: StoreHead) -> dict[str, dict[str, Any]]:
    """{array or group: its zarr.json}, '' being the root, which repeats all others for readers that cannot list."""
    blocks, rows = head.blocks, 1 if head.cut else head.blocks
    nodes: dict[str, dict[str, Any]] = {}
    for table in head.tables():
        nodes[table.array] = array_metadata((blocks, *table.shape), (1, *table.shape), head.dtype, ("block", "h", "w", "channel"))
    for line in head.line_tables():
        shape = (rows, line.length, line.channels)
        nodes[line.array] = array_metadata(shape, shape, head.dtype, ("block", "n", "channel"))
    for name, note in head.decoder.items():
        names = ("out", "in") if len(note.shape) == 2 else ("out",)
        nodes[f"decoder/{name}"] = array_metadata(note.shape, note.shape, np.dtype("<f4"), names)
    byte = np.dtype(np.uint8)
    if head.mask is not None:
        nodes["mask"] = array_metadata(head.mask.shape, head.mask.shape, byte, ("byte",))
    if head.origins is not None:
        nodes["origins"] = array_metadata(head.origins.shape, head.origins.shape, np.dtype("<i4"), ("block", "level", "axis"))
    digests = digests_shape(head)
    nodes["digests"] = array_metadata(digests, digests, byte, ("block", "table", "byte"))
    groups = sorted({name.rpartition("/")[0] for name in nodes} - {""})
    nodes |= {name: {"zarr_format": 3, "node_type": "group", "attributes": {}} for name in groups}
    inline = {"kind": "inline", "must_understand": False, "metadata": dict(nodes)}
    root = {"zarr_format": 3, "node_type": "group", "attributes": head.attributes(), "consolidated_metadata": inline}
    return nodes | {"": root}


def digests_shape(head: StoreHead) -> tuple[int, int, int]:
    """[blocks, tables, 32]: of a block's planes and, where they are its own, of its lines."""
    return (head.blocks, len(head.tables()) + (0 if head.cut else len(head.line_tables())), DIGEST)


def block_bytes(head: StoreHead, element: int, shares: int = 1) -> int:
    """Bytes of one block in memory: planes and lines of `element` bytes a number, of one of `shares` channel shares."""
    planes = sum(table.height * table.width * -(-table.channels // shares) for table in head.tables())
    return element * (planes + sum(line.length * -(-line.channels // shares) for line in head.line_tables()))


def read_head(text: bytes, where: str) -> StoreHead:
    """The head in a root zarr.json. Raises CheckpointError: no block store, of an unknown version, or damaged."""
    found = mark_of(text)
    if found is None:
        raise CheckpointError(f"{where}: no block store of a scene", remedy="landmark-batch convert CHECKPOINT SCENE.zarr makes one")
    version = found.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{where}: a block store of version {version!r:.20}, this program reads version {VERSION}",
            remedy="convert the checkpoint again with this version, or install the one that wrote it",
        )
    damaged = CheckpointError(f"{where}: damaged: its attributes are not those that were written", remedy="copy or convert it again")
    try:
        mask, origins = found["mask"], found["origins"]
        head = StoreHead(
            config=SceneConfig(**{key: _tuples(value) for key, value in found["config"].items()}),
            cut=found["cut"],
            division=_tuples(found["division"]),
            precision=found["precision"],
            parts=_tuples(found["parts"]),
            decoder={name: _note(note) for name, note in found["decoder"].items()},
            lines={name: _note(note) for name, note in found["lines"].items()},
            mask=None if mask is None else _note(mask),
            mask_box=None if mask is None else _tuples(found["mask_box"]),
            origins=None if origins is None else _note(origins),
            notes=_tuples(found["notes"]),
        )
        if head.base_digest() != found["base_digest"]:
            raise damaged
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged from error
    return head


def mark_of(text: bytes) -> dict[str, Any] | None:
    """What the attribute of a block store holds in a root zarr.json, None in any other text."""
    try:
        root = json.loads(text)
        found = root["attributes"][MARK]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_store_folder(path: Path) -> bool:
    """Whether a block store lies in this local folder."""
    try:
        return mark_of((path / ROOT).read_bytes()) is not None
    except (OSError, ValueError):
        return False


def mask_bytes(size: tuple[int, int, int]) -> int:
    return -(-math.prod(size) // 8)


def _note(value: Mapping[str, Any]) -> ArrayNote:
    return ArrayNote(_tuples(value["shape"]), value["sha256"])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
