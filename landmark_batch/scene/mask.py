"""The alpha mask of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.kwargs import as_box
from landmark_batch.scene.stored import StoredArray, TensorLike
from landmark_batch.scene.weights import AlphaMask, Box

_KEYS = ("alphaMask.shape", "alphaMask.mask", "alphaMask.aabb")
_REMEDY = "the file is damaged or its mask was edited: export the checkpoint again"


@dataclass(frozen=True)
class StoredMask:
    """bits: packed occupancy of the voxels. shape: (Z, Y, X). aabb: the mask's own box."""

    bits: NDArray[np.uint8]
    shape: tuple[int, int, int]
    aabb: Box

    def volume(self) -> NDArray[np.bool_]:
        """[Z, Y, X] occupancy."""
        return np.unpackbits(self.bits, count=math.prod(self.shape)).view(np.bool_).reshape(self.shape)


def occupancy(mask: AlphaMask | StoredMask) -> NDArray[np.bool_]:
    """[Z, Y, X] of a mask, wherever it lies."""
    return mask.volume() if isinstance(mask, StoredMask) else np.asarray(mask.volume.cpu().numpy())


def read_mask(content: Mapping[Any, Any], path: Path) -> AlphaMask | None:
    """The mask of an opened checkpoint as the renderer takes it; None without one. Raises as `read_stored_mask`."""
    import torch

    mask = read_stored_mask(content, path)
    return None if mask is None else AlphaMask(torch.from_numpy(mask.volume()), mask.aabb)


def read_stored_mask(content: Mapping[Any, Any], path: Path) -> StoredMask | None:
    """The mask of a checkpoint: alphaMask.shape (1, 1, Z, Y, X), .mask (packed bits), .aabb; None without them.

    Raises CheckpointError naming file, key, and the sizes that disagree.
    """
    present = [key for key in _KEYS if key in content]
    if not present:
        return None
    if len(present) < len(_KEYS):
        missing = next(key for key in _KEYS if key not in content)
        raise CheckpointError(f"{path}: {missing} is missing beside {present[0]}", remedy=_REMEDY)
    shape = mask_shape(content["alphaMask.shape"], path)
    bits = _bytes(content["alphaMask.mask"], path)
    count = math.prod(shape)
    if bits.size != (count + 7) // 8:
        raise CheckpointError(
            f"{path}: alphaMask.mask holds {bits.size} bytes, alphaMask.shape {shape} asks for {(count + 7) // 8}", remedy=_REMEDY
        )
    corners = content["alphaMask.aabb"]
    if isinstance(corners, StoredArray):
        corners = _array(corners, "alphaMask.aabb", path)
    rows = corners.tolist() if isinstance(corners, TensorLike | np.ndarray) and tuple(corners.shape) == (2, 3) else corners
    return StoredMask(bits, shape, as_box(rows, f"{path}: alphaMask.aabb"))


def mask_shape(value: object, path: Path) -> tuple[int, int, int]:
    """(Z, Y, X) of alphaMask.shape."""
    sizes = tuple(value) if isinstance(value, tuple | list) else ()
    if len(sizes) < 3 or not all(isinstance(size, int) and size >= 1 for size in sizes) or any(size != 1 for size in sizes[:-3]):
        raise CheckpointError(f"{path}: alphaMask.shape = {value!r:.80}: expected (1, 1, Z, Y, X)", remedy=_REMEDY)
    return (sizes[-3], sizes[-2], sizes[-1])


def read_volume(file: Path, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """An occupancy volume of LandMark's edit mode: a .npy of 0 and 1, unpacked, at least Z*Y*X values. Returns [Z, Y, X] bool."""
    try:
        values = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: missing; edit needs it", remedy="put LandMark's alpha volume of this edit beside the checkpoint"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{file}: not a .npy of numbers: {error}", remedy="save it again with numpy.save") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise CheckpointError(f"{file}: not a .npy of numbers", remedy="save it again with numpy.save")
    count = math.prod(shape)
    flat = values.reshape(-1)[:count]
    if flat.size != count:
        raise CheckpointError(
            f"{file}: holds {values.size} values, the mask {shape} asks for {count}", remedy="it belongs to another scene"
        )
    if not bool(np.isin(flat, (0, 1)).all()):
        raise CheckpointError(
            f"{file}: holds other values than 0 and 1", remedy="an occupancy volume says for each voxel: empty (0) or not (1)"
        )
    return np.asarray((flat != 0).reshape(shape))


def _bytes(value: object, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    array = _array(value, "alphaMask.mask", path) if isinstance(value, StoredArray) else value
    if isinstance(array, TensorLike):
        array = array.numpy()
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = array.dtype if isinstance(array, np.ndarray) else type(value).__name__
        raise CheckpointError(f"{path}: alphaMask.mask is {kind}: expected packed bits (uint8)", remedy=_REMEDY)
    return array.reshape(-1)


def _array(value: StoredArray, key: str, path: Path) -> np.ndarray[Any, Any]:
    try:
        return value.as_numpy()
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {key}: {error}", remedy=_REMEDY) from None
