"""Checks of a flight before anything is rendered: every error names the file, the frame and the value."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from landmark_batch.cameras.flight import Flight, Float64
from landmark_batch.cameras.view import Corners, box_depths, box_in_view
from landmark_batch.errors import CameraError

ROTATION_TOLERANCE = 1e-3  # |RᵀR − I|: poses written in float32 are off by 1e-7, hand-rounded ones by 1e-4
ROTATION_NOTE = 1e-4


def check_flight(
    flight: Flight, aabb: Corners | None, near_far: tuple[float, float] | None = None, *, frames: Iterable[int] | None = None
) -> list[str]:
    """Check that every frame can be rendered; returns what is worth saying (the camera file's warnings and new ones).

    Poses are finite and rotations (orthonormal within 1e-3, not mirrored, not scaled; used as they stand, never re-orthonormalised,
    since bits matter), focal > 0, size ≥ 1; with `aabb` (scene units) the view of every frame meets the box. near_far: t along the
    view axis; frames that have the whole box before near or behind far are warned of. frames: indices of those that are rendered, for
    the checks against the box; default all.
    Raises CameraError naming the first bad frame, its value and how many are alike.
    """
    _check_shapes(flight)
    c2w, lens = flight.c2w, flight.intrinsics
    finite = np.isfinite(c2w).reshape(len(flight), 12).all(axis=1)
    _refuse(flight, ~finite, lambda i: _not_finite(c2w[i]), "write the pose again: all its numbers are finite")
    focal, centre = lens[:, :2], lens[:, 2:]
    lit = (np.isfinite(focal) & (focal > 0)).all(axis=1)
    _refuse(flight, ~lit, lambda i: f"focal fl_x = {focal[i, 0]:g}, fl_y = {focal[i, 1]:g}: must be above 0", "a focal length is in pixels")
    known = np.isfinite(centre).all(axis=1)
    _refuse(flight, ~known, lambda i: f"principal point cx = {centre[i, 0]:g}, cy = {centre[i, 1]:g} is not finite", "it is in pixels")
    error = _check_rotations(flight)
    warnings = list(flight.warnings)
    if (error > ROTATION_NOTE).any():
        i = int(np.argmax(error))
        warnings.append(
            f"{_place(flight, i)}: its rotation is off by {error[i]:.1g} (orthonormal within {ROTATION_TOLERANCE:g}): used as it stands"
        )
    if aabb is not None:
        warnings += _check_view(flight, aabb, near_far, list(range(len(flight)) if frames is None else frames))
    return warnings


def _check_shapes(flight: Flight) -> None:
    count = len(flight)
    if count == 0:
        raise CameraError(f"{flight.source}: no frames: there is nothing to render", remedy="name a camera file with at least one pose")
    if flight.width < 1 or flight.height < 1:
        raise CameraError(f"{flight.source}: image size {flight.width}x{flight.height}", remedy="width and height are at least 1 pixel")
    shapes = (flight.c2w.shape, flight.intrinsics.shape, flight.time.shape, (len(flight.names),))
    if shapes != ((count, 3, 4), (count, 4), (count,), (count,)):
        raise CameraError(
            f"{flight.source}: c2w, intrinsics, time, names of shapes {shapes}", remedy="they are [F, 3, 4], [F, 4], [F], [F] for F frames"
        )


def _check_rotations(flight: Flight) -> Float64:
    """[F] largest |RᵀR − I|, all within tolerance. Raises CameraError saying what is wrong with the matrix."""
    rotation = flight.c2w[:, :, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        gram = np.swapaxes(rotation, 1, 2) @ rotation
        error: Float64 = np.abs(gram - np.eye(3)).max(axis=(1, 2))
        determinant = np.linalg.det(rotation)
    wrong = ~(error < ROTATION_TOLERANCE)
    _refuse(flight, wrong, lambda i: _diagnosis(rotation[i]), "a pose is a rotation and a position: [R | t], camera to world")
    _refuse(
        flight,
        determinant < 0,
        lambda i: f"the pose is mirrored (determinant {determinant[i]:.3g})",
        "an axis is negated or swapped once too often: OpenCV to OpenGL negates two columns, y and z",
    )
    return error


def _diagnosis(rotation: Float64) -> str:
    size = float(np.abs(rotation).max())
    unit = rotation / size if size > 0 else rotation  # huge numbers must not overflow
    norms = np.linalg.norm(unit, axis=0)
    shown = ", ".join(f"{x * size:.4g}" for x in norms.tolist())
    singular = np.linalg.svd(unit, compute_uv=False)
    if singular[2] <= 1e-6 * singular[0]:
        return f"the pose is singular (its columns have lengths {shown} and do not span space)"
    cosines = (unit.T @ unit) / np.outer(norms, norms)
    if np.abs(cosines - np.eye(3)).max() < ROTATION_TOLERANCE:
        return f"the pose is scaled (its columns have lengths {shown}, not 1)"
    a, b = max(((0, 1), (0, 2), (1, 2)), key=lambda pair: abs(cosines[pair]))
    angle = np.degrees(np.arccos(np.clip(cosines[a, b], -1, 1)))
    return f"the pose is skewed (its columns {'xyz'[a]} and {'xyz'[b]} meet at {angle:.3f} degrees, lengths {shown})"


def _check_view(flight: Flight, aabb: Corners, near_far: tuple[float, float] | None, frames: list[int]) -> list[str]:
    asked = np.zeros(len(flight), dtype=bool)
    asked[frames] = True
    unseen = asked & ~box_in_view(flight.c2w, flight.intrinsics, flight.width, flight.height, aabb)
    low, high = (", ".join(f"{x:g}" for x in corner) for corner in aabb)
    _refuse(
        flight,
        unseen,
        lambda i: f"sees nothing of the scene's box ({low}) to ({high}) from ({', '.join(f'{x:.4g}' for x in flight.c2w[i, :, 3])})",
        "check that the camera file belongs to the scene (its coordinates, its axes), or leave the frame out with --frames",
    )
    if near_far is None:
        return []
    nearest, farthest = box_depths(flight.c2w, aabb)
    warnings = []
    for bad, text in (
        (asked & (farthest < near_far[0]), f"all of the box lies nearer than near = {near_far[0]:g}"),
        (asked & (nearest > near_far[1]), f"all of the box lies farther than far = {near_far[1]:g}"),
    ):
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            warnings.append(f"{_place(flight, i)}: {text} (t = {nearest[i]:.4g} to {farthest[i]:.4g}){_alike(int(bad.sum()))}")
    return warnings


def _refuse(flight: Flight, bad: ArrayLike, text: Callable[[int], str], remedy: str) -> None:
    found = np.flatnonzero(bad)
    if len(found):
        i = int(found[0])
        raise CameraError(f"{_place(flight, i)}: {text(i)}{_alike(len(found))}", remedy=remedy)


def _alike(count: int) -> str:
    return f"; {count - 1} more frames alike" if count > 2 else "; one more frame alike" if count == 2 else ""


def _not_finite(pose: Float64) -> str:
    row, column = (int(k) for k in np.argwhere(~np.isfinite(pose))[0])
    return f"pose[{row}][{column}] = {pose[row, column]} is not finite"


def _place(flight: Flight, i: int) -> str:
    return f"{flight.source}: frame {i} ({flight.names[i]})"
