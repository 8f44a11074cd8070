"""A second renderer, written straight from the format's description: every sample of every ray, dense tensors, grid_sample.

Slow, without tiles, lists or skipping: what `Renderer` must agree with. In float32, and with the renderer's own rays: where a
sample lies exactly on a face of the box, the last bit decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.cameras.rays import pixel_rays
from landmark_batch.model.settings import RenderSettings
from landmark_batch.scene.weights import SceneConfig, SceneWeights

PLANES = ((0, 1), (0, 2), (1, 2))
LINES = (2, 1, 0)


def render_plainly(
    weights: SceneWeights,
    settings: RenderSettings,
    c2w: NDArray[np.floating],
    intrinsics: Sequence[float],
    width: int,
    height: int,
) -> dict[str, Tensor]:
    """rgb [H, W, 3], depth [H, W], alpha [H, W]."""
    config = weights.config
    dtype = torch.float32
    pose = torch.tensor(np.asarray(c2w), dtype=dtype)
    rays = pixel_rays(pose, intrinsics, settings.pixel_center, torch.arange(width * height), width)
    o, d = rays[:, :3], rays[:, 3:]
    t = _parameters(config, settings, o, d)
    xyz = o[:, None] + d[:, None] * t[..., None]
    valid = _valid(weights, settings, xyz)
    products = {kind: _products(weights, kind, xyz).to(dtype) for kind in ("density", "app")}

    feature = products["density"].sum(-1)
    if weights.basis_density is not None:
        feature = F.relu(products["density"] @ weights.basis_density[0].to(dtype))
    sigma = F.softplus(feature + config.density_shift) if config.activation == "softplus" else F.relu(feature)
    sigma = torch.where(valid, sigma, 0.0)
    delta = torch.cat([t[:, 1:] - t[:, :-1], torch.zeros_like(t[:, :1])], dim=1)
    opacity = 1 - torch.exp(-sigma * delta * settings.distance_scale)
    kept = torch.cat([torch.ones_like(t[:, :1]), 1 - opacity + 1e-10], dim=1).cumprod(1)[:, :-1]
    weight = opacity * kept

    colour = _colours(weights, settings, products["app"] @ weights.basis_mat.to(dtype).T, d)
    colour = torch.where((weight > config.weight_threshold)[..., None], colour, 0.0)
    alpha = weight.sum(1)
    rgb = (weight[..., None] * colour).sum(1)
    if settings.background == "white":
        rgb = rgb + (1 - alpha[:, None])
    return {
        "rgb": rgb.clamp(0, 1).view(height, width, 3),
        "depth": (weight * t).sum(1).view(height, width),
        "alpha": alpha.view(height, width),
    }


def _parameters(config: SceneConfig, settings: RenderSettings, o: Tensor, d: Tensor) -> Tensor:
    low, high = (torch.tensor(corner, dtype=o.dtype) for corner in config.aabb)
    if settings.mode == "hull":
        far = torch.where(d[:, 2] >= 0, settings.far, -(o[:, 2] - low[2]) / d[:, 2])[:, None]
        s = torch.linspace(0, 1, settings.samples, dtype=o.dtype)
        return settings.near * (1 - s) + far * s
    safe = torch.where(d == 0, 1e-6, d)
    entry = torch.minimum((high - o) / safe, (low - o) / safe).amax(-1).clamp(settings.near, settings.far)
    step = ((high - low) / (torch.tensor(config.grid_size) - 1)).mean() * config.step_ratio
    return entry[:, None] + step * torch.arange(settings.samples)


def _valid(weights: SceneWeights, settings: RenderSettings, xyz: Tensor) -> Tensor:
    low, high = (torch.tensor(corner, dtype=xyz.dtype) for corner in settings.aabb)
    valid = ((xyz >= low) & (xyz <= high)).all(-1)
    if weights.mask is not None:
        low, high = (torch.tensor(corner, dtype=xyz.dtype) for corner in weights.mask.aabb)
        unit = ((xyz - low) * (2 / (high - low)) - 1).view(1, -1, 1, 1, 3)
        value = F.grid_sample(weights.mask.volume[None, None].to(xyz.dtype), unit, align_corners=True).view(valid.shape)
        valid &= value > settings.alpha_mask_threshold
    return valid


def _products(weights: SceneWeights, kind: str, xyz: Tensor) -> Tensor:
    config = weights.config
    low, high = (torch.tensor(corner, dtype=xyz.dtype) for corner in config.aabb)
    unit = ((xyz - low) * (2 / (high - low)) - 1).view(-1, 3)
    planes = weights.density_planes if kind == "density" else weights.app_planes
    lines = weights.density_lines if kind == "density" else weights.app_lines
    columns = sum(plane.shape[-1] for plane in planes)
    out = torch.zeros(len(unit), columns, dtype=xyz.dtype)
    nx, ny = config.division
    cell = ((unit[:, :2] + 1) / 2 * torch.tensor([nx, ny])).floor()
    for block in range(config.blocks):
        here = torch.arange(len(unit)) if config.layout == "single" else (cell[:, 0] * ny + cell[:, 1] == block).nonzero().view(-1)
        at = unit[here]
        if config.layout != "single":
            corner = torch.tensor([block // ny / nx, block % ny / ny], dtype=xyz.dtype) * 2 - 1
            at = torch.cat([(at[:, :2] - corner) * torch.tensor([nx, ny]) - 1, at[:, 2:]], dim=1)
        values = []
        for i, (plane, line) in enumerate(zip(planes, lines, strict=True)):
            dim = i // len(config.resolutions)
            points = at[:, list(PLANES[dim])].view(1, -1, 1, 2)
            flat = F.grid_sample(plane[block].to(xyz.dtype).permute(2, 0, 1)[None], points, align_corners=True)[0, :, :, 0].T
            along = torch.stack([torch.zeros_like(at[:, 0]), at[:, LINES[dim]]], dim=1).view(1, -1, 1, 2)
            values.append(flat * F.grid_sample(line[block].to(xyz.dtype).T[None, :, :, None], along, align_corners=True)[0, :, :, 0].T)
        out[here] = torch.cat(values, dim=1)
    return out.view(*xyz.shape[:2], columns)


def _colours(weights: SceneWeights, settings: RenderSettings, features: Tensor, d: Tensor) -> Tensor:
    config = weights.config
    view = d[:, None].expand(*features.shape[:2], 3)
    parts = [features]
    if weights.embedding is not None:
        parts.append(weights.embedding[settings.appearance or 0].to(features.dtype).expand(*features.shape[:2], -1))
    if config.view_pe >= 0:
        parts.append(view)
    parts += [_encode(features, config.fea_pe), _encode(view, config.view_pe)]
    x = torch.cat(parts, dim=-1)
    for i, (matrix, bias) in enumerate(zip(weights.mlp_weights, weights.mlp_biases, strict=True)):
        x = x @ matrix.to(x.dtype).T + (bias.to(x.dtype) if bias is not None else 0)
        x = F.relu(x) if i < 2 else torch.sigmoid(x)
    return x


def _encode(x: Tensor, octaves: int) -> Tensor:
    if octaves <= 0:
        return x[..., :0]
    angles = torch.stack([x * 2**f for f in range(octaves)], dim=-1).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def look_at(eye: Sequence[float], target: Sequence[float]) -> NDArray[np.float64]:
    """c2w [3, 4] of a camera at `eye` that looks at `target`, z up."""
    forward = np.asarray(target, dtype=np.float64) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, forward), -forward, np.asarray(eye, dtype=np.float64)], axis=1)


def field_of_view(width: int, degrees: float = 60.0) -> float:
    """Focal length in pixels."""
    return width / 2 / math.tan(math.radians(degrees) / 2)
