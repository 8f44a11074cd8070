"""What goes to a device for a frame, and what it makes of it, in one tensor each: every copy is one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def host_camera(c2w: NDArray[np.floating], intrinsics: Sequence[float], device: torch.device) -> Tensor:
    """[16] float32 of `pose_and_lens`, in host memory; pinned for a CUDA device, so that nothing waits for its copy."""
    camera = torch.empty(16, dtype=torch.float32, pin_memory=device.type == "cuda")
    values = camera.numpy()
    values[:12].reshape(3, 4)[:] = np.asarray(c2w)[:3, :4]
    values[12:] = intrinsics
    return camera


def pose_and_lens(camera: Tensor) -> tuple[Tensor, Tensor]:
    """[3, 4] and [4] of `host_camera`, wherever that is by now."""
    return camera[:12].view(3, 4), camera[12:]


def device_camera(c2w: NDArray[np.floating], intrinsics: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pose [3, 4] and lens [4], float32, on the device."""
    return pose_and_lens(host_camera(c2w, intrinsics, device).to(device, non_blocking=True))


def pixel_values(count: int, device: torch.device) -> Tensor:
    """Room for the pixels of a frame, or for some of them."""
    return torch.empty(5 * _room(count), dtype=torch.float32, device=device)


def pixel_planes(values: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """rgb [count, 3], depth [count], alpha [count] in `pixel_values(count)`."""
    room = _room(count)
    return values[: 3 * count].view(count, 3), values[3 * room : 3 * room + count], values[4 * room : 4 * room + count]


def _room(count: int) -> int:
    """Of a plane: the next one begins at a multiple of 16 bytes."""
    return -(-count // 4) * 4
