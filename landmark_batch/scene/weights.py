"""SceneWeights: a GridNeRF scene in memory, one layout for every kind of checkpoint."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from landmark_batch.scene.shard import ChannelShard

Box = tuple[tuple[float, float, float], tuple[float, float, float]]  # (min xyz, max xyz), scene units
PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # of dim d: columns w run along the first, rows h along the second
LINE_AXES = (2, 1, 0)


@dataclass(frozen=True)
class SceneConfig:
    """What kwargs of a LandMark checkpoint say, completed by what its shapes say. Plain values, hashable, no tensors.

    layout: 'single' (sequential: one block) or 'multi-block'. division: blocks along x and y; block = floor(bx)*division[1] + floor(by).
    resolutions: resMode, e.g. (1, 2, 4). ndims: 1 (XY plane, Z line) or 3.
    grid_size: kwargs.gridSize (voxels along x, y, z; of one block in a merged file: it sets the dense step, as in LandMark).
    activation: 'softplus' or 'relu'. view_pe, fea_pe: positional-encoding octaves (0 = none; view_pe -1: no view direction at all).
    embedding_rows: 0 without encode_app. training_args: settings of training as texts, see `training_arg`.
    plane_sizes: (h, w) and line_sizes: n of every level i = dim * R + res; empty means grid_size * res. mask_size: (Z, Y, X) or None.
    """

    layout: str
    division: tuple[int, int]
    resolutions: tuple[int, ...]
    ndims: int
    aabb: Box
    near_far: tuple[float, float]
    grid_size: tuple[int, int, int]
    density_channels: int
    appearance_channels: int
    app_dim: int
    feature_width: int
    view_pe: int
    fea_pe: int
    activation: str
    density_shift: float
    distance_scale: float
    weight_threshold: float
    step_ratio: float
    nonlinear_density: bool
    bias: bool
    embedding_rows: int
    embedding_channels: int
    training_args: tuple[tuple[str, str], ...] = ()
    plane_sizes: tuple[tuple[int, int], ...] = ()
    line_sizes: tuple[int, ...] = ()
    mask_size: tuple[int, int, int] | None = None

    @property
    def blocks(self) -> int:
        return self.division[0] * self.division[1]

    def training_arg(self, name: str) -> Any:
        """A setting of training (sampling_opt, n_importance, white_bkgd, ...) as a Python value, None where the file has none."""
        return literal(dict(self.training_args).get(name))

    def level_sizes(self) -> list[tuple[int, int, int]]:
        """(h, w, n) of every level i = dim * R + res: rows and columns of its planes, length of its lines."""
        if self.plane_sizes:
            return [(h, w, n) for (h, w), n in zip(self.plane_sizes, self.line_sizes, strict=True)]
        size = self.grid_size
        return [
            (size[PLANE_AXES[dim][1]] * res, size[PLANE_AXES[dim][0]] * res, size[LINE_AXES[dim]] * res)
            for dim in range(self.ndims)
            for res in self.resolutions
        ]

    def grid_parameters(self, shares: int = 1) -> int:
        """Numbers in planes and lines of all blocks; of one of `shares` channel shares, its padding counted."""
        channels = -(-self.density_channels // shares) + -(-self.appearance_channels // shares)
        return sum((h * w + n) * channels for h, w, n in self.level_sizes()) * self.blocks

    def decoder_parameters(self, shares: int = 1) -> int:
        """Numbers in basis, embedding and colour MLP; with the columns of one of `shares` channel shares in the basis."""
        levels = self.ndims * len(self.resolutions)
        view = 3 + 6 * self.view_pe if self.view_pe >= 0 else 0
        width = self.app_dim * (1 + 2 * self.fea_pe) + self.embedding_channels + view
        count = self.app_dim * -(-self.appearance_channels // shares) * levels + self.embedding_rows * self.embedding_channels
        count += self.feature_width * (width + self.feature_width + 3)
        count += -(-self.density_channels // shares) * levels if self.nonlinear_density else 0
        return count + (2 * self.feature_width + 3 if self.bias else 0)


def literal(text: str | None) -> Any:
    """A training argument's text as a Python value; the text itself where it is no literal."""
    if text is None:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def scene_bytes(config: SceneConfig, *, grid_element: int = 4, shares: int = 1) -> int:
    """Bytes of a scene in memory: planes and lines of `grid_element` bytes a number, the decoder in float32, the mask a byte a voxel.

    shares: of one of so many channel shares.
    """
    mask = math.prod(config.mask_size) if config.mask_size else 0
    return config.grid_parameters(shares) * grid_element + config.decoder_parameters(shares) * 4 + mask


@dataclass(frozen=True)
class AlphaMask:
    """volume: [Z, Y, X] bool occupancy. aabb: the mask's own box."""

    volume: Tensor
    aabb: Box


@dataclass(frozen=True)
class SceneWeights:
    """Channels last everywhere, one leading block axis (1 for a sequential scene). float32 unless cast.

    density_planes[i], app_planes[i]: [B, h, w, C];  density_lines[i], app_lines[i]: [B, n, C];  i = dim * R + res.
    Rows h run along the plane's second coordinate (y for dim 0), columns w along its first (x).
    basis_mat: [app_dim, Ca*R*ndims];  basis_density: [1, Cd*R*ndims] or None;  embedding: [rows, 48] or None.
    mlp_weights: three [out, in];  mlp_biases: three [out] or None each.
    shard: the channel share that planes, lines and bases hold, C, Ca and Cd then being its padded widths; None for all channels.
    config is that of the whole scene.
    """

    config: SceneConfig
    density_planes: tuple[Tensor, ...]
    density_lines: tuple[Tensor, ...]
    app_planes: tuple[Tensor, ...]
    app_lines: tuple[Tensor, ...]
    basis_mat: Tensor
    basis_density: Tensor | None
    embedding: Tensor | None
    mlp_weights: tuple[Tensor, Tensor, Tensor]
    mlp_biases: tuple[Tensor | None, Tensor | None, Tensor | None]
    mask: AlphaMask | None
    warnings: tuple[str, ...] = field(default=())
    shard: ChannelShard | None = None
