"""SceneBlocks: the blocks of a job's scene, and which of them each frame of its flight can see. Known before anything is rendered."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import ConfigError
from landmark_batch.frames.fingerprint import flight_digest
from landmark_batch.job import RenderJob
from landmark_batch.workflows.ahead import bytes_ahead
from landmark_batch.workflows.machine import usable_cores

if TYPE_CHECKING:
    from landmark_batch.fetching.choice import SceneSize
    from landmark_batch.fetching.flight_blocks import FlightBlocks
    from landmark_batch.model.settings import RenderSettings
    from landmark_batch.scene.weights import Box

logger = logging.getLogger(__name__)

FRAME_BYTES = 5 * 4 * 3 + 16  # a pixel: rgb, depth and alpha as rendered, copied and composed; its place in the order of rays
SEEN_VERSION = 1  # of how visibility is computed; another one computes anew
KEPT = 64  # tables in the cache folder; the oldest go first


@dataclass(frozen=True)
class SceneBlocks:
    """seen: blocks of every frame of the flight. size: of the scene in memory, in the job's precision, of a rank's share.

    digests: of the blocks' content, base: of everything else. division: blocks along x and y of aabb.
    """

    seen: FlightBlocks
    size: SceneSize
    digests: tuple[str, ...]
    base: str
    division: tuple[int, int]
    aabb: Box


def scene_blocks(
    job: RenderJob, settings: RenderSettings, flight: Flight, *, device: str, cache_dir: Path | None = None
) -> SceneBlocks | None:
    """Of the job's block store; None for a checkpoint, which is always held whole.

    cache_dir: where tables of what flights see are kept, default the user's cache folder. Raises ConfigError where the job wants a
    checkpoint's blocks to be fetched, CheckpointError or StoreError as BlockStore.open.
    """
    from landmark_batch.scene.store import BlockStore, is_block_store

    checkpoint = job.scene.checkpoint
    assert checkpoint is not None
    if not is_block_store(checkpoint):
        _refuse_fetching(job)
        return None
    from landmark_batch.fetching.choice import SceneSize
    from landmark_batch.model.memory import batch_memory

    store = BlockStore.open(checkpoint)
    ranks = settings.tensor_parallel
    block = store.block_bytes(settings.precision, ranks)
    config = store.config
    rest = config.decoder_parameters(ranks) * 4 + flight.width * flight.height * FRAME_BYTES
    if config.mask_size is not None:
        z, y, x = config.mask_size
        rest += z * y * x + (z + 3) * (y + 3) * (x + 3) * 8 // 7
    batch = batch_memory(config, settings, flight.width, flight.height, device=device, tensor_parallel=ranks)
    seen = _seen(store, settings, flight, cache_dir or user_cache_path("landmark-batch"))
    ahead = bytes_ahead(flight.width * flight.height) if device == "cuda" else 0
    return SceneBlocks(
        seen, SceneSize(store.blocks, block, rest, batch, ahead), store.digests, store.base_digest, store.division, config.aabb
    )


def _refuse_fetching(job: RenderJob) -> None:
    """A checkpoint is held whole. Beside mode "resident", numbers of slots (LandMark's neighbour_size) do not matter."""
    fetching, scene = job.fetching, job.scene
    limits = {"gpu_blocks": fetching.gpu_blocks, "gpu_memory": fetching.gpu_memory, "host_memory": fetching.host_memory}
    asked = [f'fetching.mode = "{fetching.mode}"'] if fetching.mode == "dynamic" else []
    asked += [
        f"fetching.{key} = {value}"
        for key, value in limits.items()
        if value is not None and (fetching.mode != "resident" or key == "gpu_memory")
    ]
    if asked:
        instead = "leave it out" if fetching.mode == "resident" else "set fetching.mode=resident, which holds it whole"
        raise ConfigError(
            f"{asked[0]}: {scene.checkpoint} is a checkpoint, whose blocks cannot be read one by one",
            remedy=f"{how_to_convert(job)}; or {instead}",
        )


def how_to_convert(job: RenderJob) -> str:
    """What makes a block store of a job's checkpoint and has the job render it, to be pasted into a shell."""
    scene = job.scene
    name = Path(str(scene.checkpoint)).name.removesuffix(".th")
    words = ["landmark-batch", "convert", str(scene.checkpoint), f"{name}.zarr"]
    words += ["--plane-division", f"{scene.plane_division[0]}x{scene.plane_division[1]}"] if scene.plane_division else []
    words += ["--edit", scene.edit] if scene.edit else []
    return f"convert it once: `{shlex.join(words)}`, then {shlex.join(['--set', f'scene.checkpoint={name}.zarr'])}"


def _seen(store: object, settings: RenderSettings, flight: Flight, cache: Path) -> FlightBlocks:
    """From the cache folder where this flight was looked at before with the same mask, box and sampling."""
    from landmark_batch.fetching.flight_blocks import FlightBlocks, flight_blocks
    from landmark_batch.scene.store import BlockStore

    assert isinstance(store, BlockStore)
    key = hashlib.sha256(
        repr(
            (
                SEEN_VERSION,
                store.base_digest,
                store.division,
                flight_digest(flight),
                settings.mode,
                settings.samples,
                settings.near,
                settings.far,
                settings.alpha_mask_threshold,
                settings.aabb,
                settings.pixel_center,
            )
        ).encode()
    ).hexdigest()
    file = cache / "seen" / f"{key[:32]}.npz"
    if file.is_file():
        try:
            found = FlightBlocks.load(file)
            if len(found) == len(flight):
                return found
        except ConfigError:
            logger.info("%s is damaged: computed again", file)
    with _main_stays_out():
        found = flight_blocks(store.config, settings, store.stored_mask(), store.division, flight, processes=usable_cores())
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        found.save(file)
        for old in sorted(file.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def _main_stays_out() -> Iterator[None]:
    """Processes that start in here do not import the caller's main module: a script without a main guard would begin again in each."""
    original = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data = original(name)
        return {key: value for key, value in data.items() if key not in ("init_main_from_name", "init_main_from_path")}

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = original
