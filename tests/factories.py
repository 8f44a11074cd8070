"""Small random scenes over every axis of the format, for tests of any room."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from landmark_batch.scene.weights import LINE_AXES, PLANE_AXES, AlphaMask, Box, SceneConfig, SceneWeights

RUNTIME = "fused" if "LANDMARK_TEST_KERNELS" in os.environ else "torch"  # of renders in a test's own process, see tests/kernels/compiled


@contextmanager
def quick_demo() -> Iterator[None]:
    """Demo cities made in here have decoders that are hardly fitted: wrong colours at a twentieth of the time. Geometry is as ever."""
    from landmark_batch.scene import demo

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo.SIZES, "small", replace(demo.SIZES["small"], steps=20))
        yield


def mlp_input_width(*, app_dim: int, view_pe: int, fea_pe: int, embedding_channels: int) -> int:
    """Columns of mlp.0: features, embedding, view direction, PE(features), PE(view direction)."""
    view = 3 + 6 * view_pe if view_pe >= 0 else 0
    return app_dim * (1 + 2 * fea_pe) + embedding_channels + view


def make_config(
    *,
    division: tuple[int, int] = (1, 1),
    layout: str | None = None,
    ndims: int = 1,
    resolutions: Sequence[int] = (1, 2),
    grid_size: tuple[int, int, int] = (9, 7, 5),
    aabb: Box = ((-1.0, -0.8, -0.1), (1.2, 0.9, 0.5)),
    near_far: tuple[float, float] = (0.3, 3.0),
    density_channels: int = 4,
    appearance_channels: int = 6,
    app_dim: int = 9,
    feature_width: int = 16,
    view_pe: int = 2,
    fea_pe: int = 2,
    activation: str = "softplus",
    density_shift: float = -2.0,
    distance_scale: float = 25.0,
    weight_threshold: float = 1e-3,
    step_ratio: float = 0.5,
    nonlinear_density: bool = False,
    bias: bool = True,
    embedding_rows: int = 0,
    embedding_channels: int = 48,
) -> SceneConfig:
    """A SceneConfig. grid_size: voxels of one block. layout: 'single' when division is (1, 1), else 'multi-block'."""
    levels = [(dim, res) for dim in range(ndims) for res in resolutions]
    low, high = torch.tensor(aabb, dtype=torch.float32).tolist()  # LandMark keeps its box in float32
    aabb = (tuple(low), tuple(high))
    return SceneConfig(
        layout=layout or ("single" if division == (1, 1) else "multi-block"),
        division=division,
        resolutions=tuple(resolutions),
        ndims=ndims,
        aabb=aabb,
        near_far=near_far,
        grid_size=grid_size,
        density_channels=density_channels,
        appearance_channels=appearance_channels,
        app_dim=app_dim,
        feature_width=feature_width,
        view_pe=view_pe,
        fea_pe=fea_pe,
        activation=activation,
        density_shift=density_shift,
        distance_scale=distance_scale,
        weight_threshold=weight_threshold,
        step_ratio=step_ratio,
        nonlinear_density=nonlinear_density,
        bias=bias,
        embedding_rows=embedding_rows,
        embedding_channels=embedding_channels if embedding_rows else 0,
        plane_sizes=tuple((grid_size[PLANE_AXES[d][1]] * r, grid_size[PLANE_AXES[d][0]] * r) for d, r in levels),
        line_sizes=tuple(grid_size[LINE_AXES[d]] * r for d, r in levels),
    )


def make_scene(
    *,
    seed: int = 0,
    division: tuple[int, int] = (1, 1),
    layout: str | None = None,
    ndims: int = 1,
    resolutions: Sequence[int] = (1, 2),
    grid_size: tuple[int, int, int] = (9, 7, 5),
    aabb: Box = ((-1.0, -0.8, -0.1), (1.2, 0.9, 0.5)),
    near_far: tuple[float, float] = (0.3, 3.0),
    density_channels: int = 4,
    appearance_channels: int = 6,
    app_dim: int = 9,
    feature_width: int = 16,
    view_pe: int = 2,
    fea_pe: int = 2,
    activation: str = "softplus",
    density_shift: float = -2.0,
    distance_scale: float = 25.0,
    weight_threshold: float = 1e-3,
    step_ratio: float = 0.5,
    nonlinear_density: bool = False,
    bias: bool = True,
    embedding_rows: int = 0,
    embedding_channels: int = 48,
    mask: float | None = None,
    mask_size: tuple[int, int, int] | None = None,
    mask_aabb: Box | None = None,
    contrast: float = 3.0,
) -> SceneWeights:
    """A random scene: half of its space near empty, half near opaque, colours of every kind.

    division: blocks along x, y (1, 1 with layout 'multi-block' is one block alone). grid_size: voxels (x, y, z) of one block.
    mask: share of occupied voxels, None = no mask; mask_size: its (X, Y, Z). contrast: spread of the density feature.
    """
    config = make_config(
        division=division,
        layout=layout,
        ndims=ndims,
        resolutions=resolutions,
        grid_size=grid_size,
        aabb=aabb,
        near_far=near_far,
        density_channels=density_channels,
        appearance_channels=appearance_channels,
        app_dim=app_dim,
        feature_width=feature_width,
        view_pe=view_pe,
        fea_pe=fea_pe,
        activation=activation,
        density_shift=density_shift,
        distance_scale=distance_scale,
        weight_threshold=weight_threshold,
        step_ratio=step_ratio,
        nonlinear_density=nonlinear_density,
        bias=bias,
        embedding_rows=embedding_rows,
        embedding_channels=embedding_channels,
    )
    weights = random_weights(config, seed=seed, contrast=contrast)
    if mask is None:
        return weights
    generator = torch.Generator().manual_seed(seed + 1)
    size_x, size_y, size_z = mask_size or grid_size
    volume = torch.rand((size_z, size_y, size_x), generator=generator) < mask
    config = replace(config, mask_size=(size_z, size_y, size_x))
    return replace(weights, config=config, mask=AlphaMask(volume, mask_aabb or config.aabb))


def random_weights(config: SceneConfig, *, seed: int = 0, contrast: float = 3.0) -> SceneWeights:
    """Random tensors of the shapes `config` asks for. No mask."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32) * scale

    blocks = config.blocks
    levels = config.level_sizes()
    density = contrast / (config.density_channels * len(levels)) ** 0.5

    def planes(channels: int, scale: float) -> tuple[Tensor, ...]:
        return tuple(normal(blocks, h, w, channels, scale=scale) for h, w, _ in config.level_sizes())

    def lines(channels: int) -> tuple[Tensor, ...]:
        return tuple(1.0 + normal(blocks, n, channels, scale=0.3) for _, _, n in config.level_sizes())

    width = mlp_input_width(
        app_dim=config.app_dim, view_pe=config.view_pe, fea_pe=config.fea_pe, embedding_channels=config.embedding_channels
    )
    hidden = config.feature_width
    app_columns = config.appearance_channels * len(levels)
    density_columns = config.density_channels * len(levels)
    return SceneWeights(
        config=config,
        density_planes=planes(config.density_channels, density),
        density_lines=lines(config.density_channels),
        app_planes=planes(config.appearance_channels, 1.0),
        app_lines=lines(config.appearance_channels),
        basis_mat=normal(config.app_dim, app_columns, scale=app_columns**-0.5),
        basis_density=normal(1, density_columns, scale=1.0) if config.nonlinear_density else None,
        embedding=normal(config.embedding_rows, config.embedding_channels) if config.embedding_rows else None,
        mlp_weights=(
            normal(hidden, width, scale=width**-0.5),
            normal(hidden, hidden, scale=hidden**-0.5),
            normal(3, hidden, scale=2.0 * hidden**-0.5),
        ),
        mlp_biases=(normal(hidden, scale=0.1), normal(hidden, scale=0.1), normal(3, scale=0.1)) if config.bias else (None, None, None),
        mask=None,
    )
