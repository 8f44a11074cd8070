"""What the leader tells the other ranks: a fixed number of float64, so that no message has a size to agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.errors import CameraError, GroupError

SIZE = 24
MAX_SIDE = 2**20


class Opcode(IntEnum):
    RENDER = 1
    CLOSE = 2


@dataclass(frozen=True)
class Order:
    """serial: counts the orders of a group. scene: a number that all ranks that render the same share. floats: gather the frame as it
    was rendered, not in the store's dtypes. frame: its number in the flight, where ranks fetch what it needs. The rest as in `render`.
    """

    opcode: Opcode
    serial: int
    scene: int
    c2w: NDArray[np.float64]
    intrinsics: tuple[float, float, float, float]
    width: int
    height: int
    floats: bool = True
    frame: int | None = None

    def pack(self) -> Tensor:
        """[SIZE] float64."""
        camera = [*self.c2w.reshape(12).tolist(), *self.intrinsics, self.width, self.height]
        numbers = [int(self.opcode), self.serial, self.scene, *camera, int(self.floats), -1 if self.frame is None else self.frame]
        return torch.tensor(numbers + [0.0] * (SIZE - len(numbers)), dtype=torch.float64)

    @classmethod
    def unpack(cls, buffer: Tensor) -> Order:
        """Raises GroupError for what is no order."""
        numbers = buffer.tolist()
        try:
            opcode = Opcode(int(numbers[0]))
        except ValueError as error:
            raise GroupError(f"order {numbers[0]:g} is unknown: the leader runs another version", remedy="install one version") from error
        fl_x, fl_y, cx, cy = numbers[15:19]
        pose = np.array(numbers[3:15], dtype=np.float64).reshape(3, 4)
        sizes = int(numbers[19]), int(numbers[20])
        frame = int(numbers[22]) if numbers[22] >= 0 else None
        return cls(opcode, int(numbers[1]), int(numbers[2]), pose, (fl_x, fl_y, cx, cy), *sizes, bool(numbers[21]), frame)


def empty_order() -> Tensor:
    """The buffer into which an order is received."""
    return torch.zeros(SIZE, dtype=torch.float64)


def close_order(serial: int) -> Order:
    return Order(Opcode.CLOSE, serial, 0, np.zeros((3, 4)), (0.0, 0.0, 0.0, 0.0), 0, 0)


def render_order(
    serial: int,
    scene: int,
    c2w: NDArray[np.floating],
    intrinsics: Sequence[SupportsFloat],
    width: int,
    height: int,
    *,
    floats: bool = True,
    frame: int | None = None,
) -> Order:
    """Raises CameraError for a pose, a lens or a size that no rank can render: what is sent is always in order."""
    pose = np.asarray(c2w)
    if pose.dtype.kind not in "fiu":
        raise CameraError(f"pose has dtype {pose.dtype}, not a real number's", remedy="give camera-to-world matrices of floats")
    if pose.ndim != 2 or pose.shape[0] not in (3, 4) or pose.shape[1] != 4:
        raise CameraError(f"pose has shape {list(pose.shape)}, not [3, 4]", remedy="give one camera-to-world matrix a frame")
    matrix = pose[:3].astype(np.float64)
    if not np.isfinite(matrix).all():
        raise CameraError("pose holds NaN or Inf", remedy="see landmark-batch cameras check")
    try:
        lens = tuple(float(value) for value in intrinsics)
    except (TypeError, ValueError) as error:
        raise CameraError(f"intrinsics {intrinsics!r} are not four numbers", remedy="give fl_x, fl_y, cx, cy in pixels") from error
    if len(lens) != 4 or not all(math.isfinite(value) for value in lens):
        raise CameraError(f"intrinsics {list(lens)} are not four finite numbers", remedy="give fl_x, fl_y, cx, cy in pixels")
    for name, value in (("width", width), ("height", height)):
        if not isinstance(value, (int, np.integer)) or not 1 <= value <= MAX_SIDE:
            raise CameraError(f"{name} = {value!r}: a whole number from 1 to {MAX_SIDE}", remedy="set the frame's size in pixels")
    return Order(Opcode.RENDER, serial, scene, matrix, (lens[0], lens[1], lens[2], lens[3]), int(width), int(height), floats, frame)
