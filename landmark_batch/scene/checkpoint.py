"""load_scene: a LandMark checkpoint of any kind, or a block store, becomes SceneWeights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.assemble import open_checkpoint, read_weights
from landmark_batch.scene.config import check_edit_block, check_store_options
from landmark_batch.scene.configure import configure
from landmark_batch.scene.edit import apply_edit
from landmark_batch.scene.layout import find_scene_files
from landmark_batch.scene.location import SceneLocation, as_location
from landmark_batch.scene.shard import ChannelShard
from landmark_batch.scene.store import open_if_store
from landmark_batch.scene.store_load import load_store
from landmark_batch.scene.weights import SceneConfig, SceneWeights, scene_bytes


def load_scene(
    path: SceneLocation,
    *,
    plane_division: tuple[int, int] | None = None,
    edit: str | None = None,
    edit_block: int | None = None,
    shard: ChannelShard | None = None,
    planes: Callable[[SceneConfig], tuple[torch.device, torch.dtype]] | None = None,
) -> SceneWeights:
    """Read a LandMark scene onto the CPU in float32, channels last.

    path: a sequential .th, a -merged-stack.th, one of its companions (its partner is read), one -sub{b}.th (that block alone, in
    its own part of the box), or a directory with all -sub{b}.th of a training (what LandMark's merge would give, without it); or the
    folder or URL of a block store, which is read by several threads.
    plane_division: blocks along x and y; default the checkpoint's own. edit: 'reset', 'new' or 'remove' with the block to
    exchange (default the only one that has such a file): LandMark's edit mode. shard: read only that share of the channels of planes
    and lines, for one rank of a tensor-parallel group; NaN and Inf are then looked for in the share alone. planes: where those of a block
    store go instead, and in which type, as a renderer will hold them; a checkpoint's do not.

    Memory: tensors are read one by one from a memory-mapped file, so the peak is the scene (or its share) in float32 plus file pages that
    the system may drop; a file in torch's format from before 1.6 is read whole: its size plus the scene.
    Raises CheckpointError naming the file, the value and the remedy; for a block store also ConfigError (a plane_division that is not
    its own) and StoreError (a remote one that does not answer).
    """
    if (store := open_if_store(path)) is not None:
        check_store_options(path, store.config, plane_division, edit, edit_block)
        device, dtype = (None, torch.float32) if planes is None else planes(store.config)
        with _enough_memory(path, store.config, shard, dtype):
            return load_store(store, shard, device=device, dtype=dtype)
    check_edit_block(path, edit, edit_block)
    files = find_scene_files(Path(as_location(path)))
    first = open_checkpoint(files.paths[0], files)
    config, notes = configure(files, first, plane_division)
    with _enough_memory(files.paths[0], config, shard):
        weights = read_weights(files, first, config, notes, shard)
    return weights if edit is None else apply_edit(weights, files, edit, edit_block)


@contextmanager
def _enough_memory(
    place: SceneLocation, config: SceneConfig, shard: ChannelShard | None, dtype: torch.dtype = torch.float32
) -> Iterator[None]:
    """Turns a failed allocation of the scene's memory into a CheckpointError with numbers."""
    try:
        yield
    except torch.OutOfMemoryError:  # of a GPU
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        what = "the scene" if shard is None else f"share {shard.rank + 1} of {shard.size} of the scene"
        need = scene_bytes(config, shares=1 if shard is None else shard.size) * dtype.itemsize / 4 / 2**30
        raise CheckpointError(
            f"{place}: {what} needs {need:.1f} GiB in {str(dtype).removeprefix('torch.')}, which this machine does not give",
            remedy="render on a machine with more memory, or set parallel.tensor_parallel to share the scene among more workers",
        ) from error
