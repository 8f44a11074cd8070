"""Channel shares of a scene: what one rank of a tensor-parallel group holds.

Density and appearance features are sums over channels (a learned basis is linear in them too), so that ranks that hold a share of
the channels each compute a share of both, and the shares add up to the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from landmark_batch.scene.weights import SceneConfig, SceneWeights


@dataclass(frozen=True)
class ChannelShard:
    """Share `rank` of `size` equal shares of the channels of every plane and line. Raises ValueError for a rank outside them."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} of {self.size}: ranks are counted from 0")

    def span(self, channels: int) -> tuple[int, int, int]:
        """(start, stop, padded width): channels [start, stop) are this share's; it is filled up with zeros to the width of all.

        The width is that of the largest share, channels / size rounded up; the last shares may hold fewer channels, or none.
        """
        width = -(-channels // self.size)
        return min(self.rank * width, channels), min((self.rank + 1) * width, channels), width


WHOLE = ChannelShard(0, 1)


def idle_shares(config: SceneConfig, size: int) -> int:
    """How many of `size` shares hold no channel of this scene, neither of density nor of appearance."""
    filled = (-(-channels // ChannelShard(0, size).span(channels)[2]) for channels in (config.density_channels, config.appearance_channels))
    return size - max(filled)


def shard_weights(weights: SceneWeights, shard: ChannelShard) -> SceneWeights:
    """The share of a scene in memory, the very bits that `load_scene(path, shard=shard)` reads. Mask, embedding and MLP stay whole.

    Tensors that are cut are copies, so that the whole scene's memory can go. Raises ValueError for a scene that is a share already.
    """
    if weights.shard is not None:
        raise ValueError(f"the scene is share {weights.shard.rank} of {weights.shard.size} already")
    config = weights.config
    density, appearance = config.density_channels, config.appearance_channels
    return replace(
        weights,
        shard=shard,
        density_planes=tuple(cut_channels(tensor, density, shard) for tensor in weights.density_planes),
        density_lines=tuple(cut_channels(tensor, density, shard) for tensor in weights.density_lines),
        app_planes=tuple(cut_channels(tensor, appearance, shard) for tensor in weights.app_planes),
        app_lines=tuple(cut_channels(tensor, appearance, shard) for tensor in weights.app_lines),
        basis_mat=cut_columns(weights.basis_mat, appearance, shard),
        basis_density=None if weights.basis_density is None else cut_columns(weights.basis_density, density, shard),
    )


def cut_channels(tensor: Tensor, channels: int, shard: ChannelShard) -> Tensor:
    """[..., channels] -> [..., padded width], contiguous; the tensor itself where the share is everything."""
    start, stop, width = shard.span(channels)
    if (start, stop) == (0, channels) and width == channels:
        return tensor
    import torch

    part = tensor[..., start:stop]
    if stop - start == width:
        return part.clone(memory_format=torch.contiguous_format)
    return torch.nn.functional.pad(part, (0, width - (stop - start))).contiguous()


def cut_columns(matrix: Tensor, channels: int, shard: ChannelShard) -> Tensor:
    """Columns (dim, res, channel) of a basis [F, dims * res * channels] -> those of the share, [F, dims * res * padded width]."""
    parts = cut_channels(matrix.reshape(matrix.shape[0], -1, channels), channels, shard)
    return matrix if parts.shape[-1] == channels else parts.flatten(1)
