"""What a camera can see: its view pyramid against axis-aligned boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Float64

Corners = tuple[tuple[float, float, float], tuple[float, float, float]]  # (min xyz, max xyz), as scene.weights.Box


def corner_rays(intrinsics: Float64, width: int, height: int) -> Float64:
    """[F, 4, 3] camera-space directions (unnormalised, z = -1) through the image's corners, in turn around the view axis."""
    fx, fy, cx, cy = (intrinsics[:, i] for i in range(4))
    left, right = -cx / fx, (width - cx) / fx
    top, bottom = cy / fy, (cy - height) / fy
    back = -np.ones_like(left)
    corners = [(left, top), (left, bottom), (right, bottom), (right, top)]
    return np.stack([np.stack([x, y, back], axis=-1) for x, y in corners], axis=1)


def box_in_view(c2w: Float64, intrinsics: Float64, width: int, height: int, box: Corners) -> NDArray[np.bool_]:
    """[F] whether the endless view pyramid of each pose [F, 3, 4] meets the box (touching counts).

    A pose whose middle ray hits the box sees it. For the others, exact by separating axes: for a cone and a box these are the box's axes,
    the cone's side planes and the cross products of their edges. A pyramid needs no near or far: LandMark's hull sampling goes down to
    the box's floor whatever far is.
    """
    rays = corner_rays(intrinsics, width, height) @ np.swapaxes(c2w[:, :, :3], 1, 2)  # [F, 4, 3] world
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    seen = _hits(c2w[:, :, 3], rays.sum(axis=1), box)
    rest = np.flatnonzero(~seen)
    seen[rest] = ~_separated(c2w[rest], rays[rest], box)
    return seen


def _hits(origin: Float64, ray: Float64, box: Corners) -> NDArray[np.bool_]:
    """[F] whether each ray [F, 3] from origin [F, 3] on meets the box. False where it runs in the plane of a face."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = (np.asarray(box[0]) - origin) / ray, (np.asarray(box[1]) - origin) / ray
    enter, leave = np.minimum(one, two).max(axis=1), np.maximum(one, two).min(axis=1)
    hit: NDArray[np.bool_] = (enter <= leave) & (leave >= 0)  # NaN is neither
    return hit


def _separated(c2w: Float64, rays: Float64, box: Corners) -> NDArray[np.bool_]:
    """[F] whether some plane lies between the pyramid of rays [F, 4, 3] (of length 1, in turn around it) and the box."""
    low, high = np.asarray(box[0], dtype=np.float64), np.asarray(box[1], dtype=np.float64)
    centre, half = (low + high) / 2 - c2w[:, :, 3], (high - low) / 2
    units = np.broadcast_to(np.eye(3), (len(rays), 3, 3))
    edges = np.cross(rays[:, :, None, :], units[:, None, :, :]).reshape(len(rays), 12, 3)
    axes = np.concatenate([units, np.cross(rays, np.roll(rays, -1, axis=1)), edges], axis=1)  # [F, 19, 3]
    axes = np.concatenate([axes, -axes], axis=1)
    along = np.einsum("fad,frd->far", axes, rays)  # the cone lies on the far side of an axis where no ray goes back
    scale = np.linalg.norm(axes, axis=-1)
    ahead = (along >= -1e-12 * scale[..., None]).all(axis=-1) & (scale > 1e-9)
    reach = np.einsum("fad,fd->fa", axes, centre) + np.abs(axes) @ half  # the box's farthest point along the axis
    slack = 1e-9 * scale * (np.abs(centre).sum(axis=-1, keepdims=True) + half.sum())
    separated = ahead & (reach < -slack)
    found: NDArray[np.bool_] = separated.any(axis=1)
    return found


def box_depths(c2w: Float64, box: Corners) -> tuple[Float64, Float64]:
    """([F] nearest, [F] farthest) depth t along the view axis (the ray parameter of unnormalised rays) over the box's corners."""
    corners = np.array([[box[i][0], box[j][1], box[k][2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
    depth = -np.einsum("fcd,fd->fc", corners[None] - c2w[:, None, :, 3], c2w[:, :, 2])
    return depth.min(axis=1), depth.max(axis=1)
