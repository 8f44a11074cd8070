"""The demo: a procedural city as a checkpoint in LandMark's format or as a block store, a flight over it and a job that renders it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from landmark_batch.cameras.write import write_transforms
from landmark_batch.errors import ConfigError
from landmark_batch.scene.city_field import METRES, FieldSpec
from landmark_batch.scene.city_flight import city_flight
from landmark_batch.scene.city_scene import CitySpec, Progress, city_of, write_scene
from landmark_batch.scene.city_store import write_store
from landmark_batch.scene.store_layout import Precision

_log = logging.getLogger(__name__)

NAME = "city"
SCENES = {"checkpoint": f"{NAME}-merged-stack.th", "store": f"{NAME}-scene.zarr"}  # by format
SIZES = {
    "small": CitySpec(FieldSpec(256, (1, 2, 4), 8, 24), side=200.0, width=64, pe=1, voxel=1.25, shell=2.4, steps=1200, samples=192),
    "city": CitySpec(FieldSpec(2048, (1, 2, 4), 16, 48), side=280.0, width=128, pe=2, voxel=0.82, shell=4.0, steps=2000, samples=256),
}


@dataclass(frozen=True)
class DemoFiles:
    """What `write_demo` wrote. checkpoint: the .th file, or the block store.

    psnr: of the fitted decoder, dB. occupancy: share of the mask's voxels.
    """

    checkpoint: Path
    cameras: Path
    job: Path
    psnr: float
    occupancy: float


def write_demo(
    directory: Path,
    *,
    blocks: tuple[int, int] = (2, 2),
    size: Literal["small", "city"] = "small",
    seed: int = 0,
    frames: int = 48,
    width: int = 384,
    height: int = 216,
    fine: int | None = None,
    form: Literal["checkpoint", "store"] = "checkpoint",
    precision: Precision = "fp32",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> DemoFiles:
    """Write a city, transforms.json and city.toml into `directory` (made if missing). Same arguments, same bytes.

    form: 'checkpoint' (city-merged-stack.th) or 'store' (city-scene.zarr, the same scene, several blocks at a time in `jobs` processes,
    its planes and lines in `precision`). A city that is there is replaced.

    blocks: along x and y. size: 'small' (blocks of 200 m) renders on a CPU, 'city' (280 m) has a real scene's channels.
    fine: nodes of a block's side in the finest plane (a multiple of 4). Memory: about two blocks (a process), whatever their number.
    progress: called with the pass in hand and the share that is done.
    Raises ConfigError (a value, the directory), DiskFullError, CheckpointError.
    """
    _check(blocks, size, seed, frames, width, height, fine)
    if form == "checkpoint" and (precision != "fp32" or jobs is not None):
        raise ConfigError("precision and jobs are for a block store, a checkpoint is float32", remedy="add --format store")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs = {jobs}: nothing to work with", remedy="at least 1 process")
    spec = SIZES[size]
    if fine is not None:
        spec = replace(spec, field=replace(spec.field, fine=fine))
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot make this directory: {error.strerror}", remedy="choose another one") from error
    checkpoint = directory / SCENES[form]
    if form == "store":
        report = write_store(checkpoint, blocks, spec, seed, progress or _silent, precision=precision, jobs=jobs, force=True)
    else:
        report = write_scene(checkpoint, blocks, spec, seed, progress or _silent)
    city = city_of(blocks, spec, seed)
    cameras = write_transforms(city_flight(city.half_x, city.half_y, frames, width, height), directory / "transforms.json")
    job = _write_text(directory / f"{NAME}.toml", _job_text(checkpoint.name, blocks, spec, frames))
    if progress is not None:
        progress("done", 1.0)
    _log.info("demo city in %s: decoder %.1f dB, mask %.1f %% occupied", directory, report.psnr, 100 * report.occupancy)
    return DemoFiles(checkpoint, cameras, job, report.psnr, report.occupancy)


def _silent(_label: str, _share: float) -> None:
    return None


def _check(blocks: tuple[int, int], size: str, seed: int, frames: int, width: int, height: int, fine: int | None) -> None:
    if size not in SIZES:
        raise ConfigError(f"size = {size!r}: not a size of the demo", remedy=f"choose one of {', '.join(SIZES)}")
    if not all(1 <= count <= 64 for count in blocks):
        raise ConfigError(f"blocks = {blocks[0]}x{blocks[1]}: out of range", remedy="1 to 64 blocks along each axis, for example 2x2")
    if not 0 <= seed < 1 << 31:
        raise ConfigError(f"seed = {seed}: out of range", remedy=f"0 to {(1 << 31) - 1}")
    if min(frames, width, height) < 1:
        raise ConfigError(f"{frames} frames of {width}x{height} pixels: nothing to fly", remedy="at least 1 of each")
    step = SIZES[size].field.resolutions[-1]
    if fine is not None and not (32 <= fine <= 16384 and fine % step == 0):
        raise ConfigError(f"fine = {fine}: no size of a plane here", remedy=f"32 to 16384 nodes, a multiple of {step}")


def _write_text(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot write it: {error.strerror}", remedy="check the directory and its permissions") from error
    return path


def _job_text(scene: str, blocks: tuple[int, int], spec: CitySpec, frames: int) -> str:
    size = f"{blocks[0] * spec.side:.0f} x {blocks[1] * spec.side:.0f} m"
    return f"""\
# A procedural city of {blocks[0]} x {blocks[1]} blocks, {size}, and a flight of {frames} frames over it.
#
#   landmark-batch preview {NAME}.toml    a small film of the whole flight after about a minute
#   landmark-batch render {NAME}.toml     every frame, into {NAME}.zarr; stopped, it goes on where it was when started again
#   landmark-batch export video {NAME}.zarr {NAME}.mp4
#   landmark-batch export images {NAME}.zarr
#
# Then move a camera in transforms.json, and render again with --update: only the frames that changed are rendered.
# Paths are relative to this file. Any value can be changed for one run: --set sampling.samples=128
version = 1
name = "{NAME}"

[scene]
checkpoint = "{scene}"
plane_division = [{blocks[0]}, {blocks[1]}]  # blocks along x and y
metres_per_unit = {METRES:g}  # converts depth when it is exported

[cameras]
file = "transforms.json"
# frames = "0-23"  # a part of the flight

[sampling]
mode = "hull"  # from near to the ground below, LandMark's way of rendering
samples = {spec.samples}  # a ray; more give smoother edges
alpha_mask_threshold = 0.5  # of the mask that skips empty space

[output]
store = "{NAME}.zarr"
rgb = "uint8"
depth = false  # or "float32": scene units along the view axis
background = "white"
"""
