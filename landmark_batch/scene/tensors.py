"""Tensors of a state_dict: checked, float32, channels last, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.configure import tensor_shapes

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ALL = slice(None)
_AGAIN = "export the checkpoint again from its training"


class State:
    """The state_dict of one file under clean keys. A tensor that was taken is forgotten, so that its memory can go."""

    def __init__(self, state_dict: Mapping[Any, Any], path: Path) -> None:
        self.path = path
        self.names, self.shapes = tensor_shapes(state_dict, path)
        self._values = {name: state_dict[key] for name, key in self.names.items()}

    def take(self, name: str) -> Tensor:
        """The tensor as the file holds it, after checks. Raises CheckpointError naming file and key."""
        value = self.view(name)
        del self._values[name]
        return value

    def view(self, name: str) -> Tensor:
        """As `take`, but the tensor can be had again: memory-mapped, it costs none."""
        value = self._values.get(name)
        key = self.names.get(name, name)
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{self.path}: {key} is missing in state_dict", remedy="name a complete checkpoint of LandMark")
        if value.dtype not in _FLOATS or value.layout != torch.strided or value.device.type != "cpu":
            raise CheckpointError(
                f"{self.path}: {key} holds {value.dtype} in layout {value.layout} on {value.device}: expected plain float tensors",
                remedy=_AGAIN,
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{self.path}: {key} of shape {tuple(value.shape)} asks for more numbers than the file holds", remedy=_AGAIN
            )
        return value.detach()

    def dense(self, name: str) -> Tensor:
        """A whole matrix or vector, float32, contiguous, finite."""
        result = torch.empty(self.shapes[name], dtype=torch.float32)
        result.copy_(self.take(name))
        check_finite(result, self.path, self.names[name])
        return result

    def plane_into(self, name: str, out: Tensor, stacked: bool, channels: slice = ALL) -> None:
        """Copy (1, C, h, w), or (1, C, B, h, w) when stacked, into out [B, h, w, >=C], whose further channels stay as they are.

        channels: of the C, no other is read.
        """
        source = self.take(name)[0][channels]
        count = source.shape[0]
        for block in range(out.shape[0]):
            part = source[:, block] if stacked else source
            out[block, :, :, :count].copy_(part.permute(1, 2, 0))
            check_finite(out[block], self.path, self.names[name])

    def line_into(self, name: str, out: Tensor, channels: slice = ALL) -> None:
        """Copy (1, C, n, B) into out [B, n, >=C], whose further channels stay as they are. channels: of the C, no other is read."""
        source = self.take(name)[0][channels]
        out[:, :, : source.shape[0]].copy_(source.permute(2, 1, 0))
        check_finite(out, self.path, self.names[name])


def check_finite(tensor: Tensor, path: Path, key: str) -> None:
    """Raises CheckpointError naming file and key when the tensor holds NaN or Inf."""
    low, high = torch.aminmax(tensor)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{path}: {key} holds NaN or Inf ({bad} of {tensor.numel()} values)",
            remedy="the training diverged or the file is damaged: " + _AGAIN,
        )


def grid(
    blocks: int, sizes: tuple[int, ...], channels: int, padded: bool, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Memory for planes or lines, [blocks, *sizes, channels], by default on the CPU; zeros where some channels will not be filled."""
    shape = (blocks, *sizes, channels)
    return torch.zeros(shape, dtype=dtype, device=device) if padded else torch.empty(shape, dtype=dtype, device=device)
