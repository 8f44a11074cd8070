"""A store without frames: metadata, coordinates, description. Made to create a store, to change its flight, and to mend it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from landmark_batch import __version__
from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import StoreError
from landmark_batch.object_path import ObjectPath, StorePath, at_once

from . import durable
from .arrays import COORDINATES, create_coordinate, create_outputs
from .definition import ATTRIBUTE, StoreDefinition
from .fingerprint import flight_digest
from .layout import StoreLayout
from .sealed import seal
from .spec import StoreInfo, StoreSpec

SCENE_UNITS = "scene units"


def coordinate_values(flight: Flight) -> dict[str, NDArray[Any]]:
    """{name: array [F, ...]} of every coordinate; `done` all false."""
    count = len(flight)
    return {
        "frame": np.arange(count, dtype=np.int64),
        "time": np.ascontiguousarray(flight.time, dtype=np.float64),
        "pose": np.ascontiguousarray(flight.c2w, dtype=np.float64),
        "focal": np.ascontiguousarray(flight.intrinsics[:, 0], dtype=np.float64),
        "intrinsics": np.ascontiguousarray(flight.intrinsics, dtype=np.float64),
        "done": np.zeros(count, dtype=np.bool_),
    }


def _output_attributes(spec: StoreSpec, info: StoreInfo) -> dict[str, dict[str, Any]]:
    rgb = {"long_name": "colour", "colour": "display-referred sRGB", "background": info.background}
    if spec.names and any(output.channels == 4 for output in spec.outputs):
        rgb["alpha"] = "premultiplied"
    depth: dict[str, Any] = {"long_name": "distance along the view axis", "units": SCENE_UNITS}
    if info.metres_per_unit is not None:
        depth["metres_per_unit"] = info.metres_per_unit
    return {"rgb": dict(rgb), "depth": depth, "alpha": {"long_name": "sum of weights along the ray, 0 to 1"}}


def _root_attributes(definition: StoreDefinition) -> dict[str, Any]:
    info = definition.info
    values: dict[str, Any] = {
        "name": info.name,
        "fps": info.fps,
        "metres_per_unit": info.metres_per_unit,
        "units": SCENE_UNITS,
        "background": info.background,
        "colour": "display-referred sRGB",
        "program": f"landmark-batch {__version__}",
        "coordinates": " ".join(name for name in COORDINATES if name != "frame"),
    }
    return {**values, ATTRIBUTE: definition.attribute()}


def write_skeleton(root: StorePath, spec: StoreSpec, info: StoreInfo, flight: Flight, settings: str) -> StoreDefinition:
    """Write metadata, coordinates, flight.json and store.json under the new directory `root`, synced to disk.

    settings: digest. Consolidated metadata is written into the root, so that xarray opens it without looking around.
    Raises StoreError if spec and flight disagree or the disk refuses.
    """
    if (len(flight), flight.width, flight.height) != (spec.frames, spec.width, spec.height):
        raise StoreError(
            f"{flight.source}: {len(flight)} frames of {flight.width}×{flight.height} do not fit a store of "
            f"{spec.frames} frames of {spec.width}×{spec.height}"
        )
    if isinstance(root, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="landmark-batch-") as folder:
            made = Path(folder) / "store"
            definition = write_skeleton(made, spec, info, flight, settings)
            upload(made, root)
            return definition
    layout = StoreLayout(root)
    definition = StoreDefinition(spec, info, settings, flight_digest(flight))
    try:
        root.mkdir(parents=True)
        store = LocalStore(root)
        zarr.create_group(store, zarr_format=3, attributes=_root_attributes(definition))
        create_outputs(store, spec, _output_attributes(spec, info))
        for name, values in coordinate_values(flight).items():
            create_coordinate(store, name, values)
        layout.hidden.mkdir(parents=True, exist_ok=True)
        names = sorted([*spec.names, *COORDINATES])
        metadata = {f"{name}/zarr.json": (root / name / "zarr.json").read_text(encoding="utf-8") for name in names}
        group = json.loads((root / "zarr.json").read_bytes())
        nodes = {name: json.loads(metadata[f"{name}/zarr.json"]) for name in names}
        group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": nodes}
        metadata["zarr.json"] = json.dumps(group, indent=2)
        (root / "zarr.json").write_text(metadata["zarr.json"], encoding="utf-8")
        coordinates = {
            f"{name}/{file.name}": xxhash.xxh3_64_hexdigest(file.read_bytes())
            for name in COORDINATES
            if name != "done"
            for file in sorted((root / name).glob("c.*"))
        }
        layout.flight.write_bytes(seal({"names": list(flight.names), "fps": flight.fps, "source": flight.source}))
        whole = StoreDefinition(spec, info, settings, definition.flight, metadata, coordinates)
        whole.save(layout.definition)
        durable.sync_tree(root)
    except OSError as error:
        raise durable.store_error(error, root) from error
    return whole


def upload(folder: Path, root: ObjectPath) -> None:
    """Every file of a folder to the same name below `root`; the group's zarr.json and the description come last.

    Raises ObjectStoreError.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    last = ["zarr.json", str(StoreLayout(Path()).definition)]

    def send(name: str) -> None:
        (root / name).replace_bytes(files[name].read_bytes())

    at_once(send, [name for name in files if name not in last])
    for name in last:
        send(name)
