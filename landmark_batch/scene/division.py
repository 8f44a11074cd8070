"""plane_division: how the blocks of a scene lie along x and y."""

from __future__ import annotations

from pathlib import Path

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.geometry import Geometry
from landmark_batch.scene.weights import Box

Division = tuple[int, int]


class DivisionError(CheckpointError):
    """How the blocks lie along x and y is not known, or what was asked for does not fit. fitting: the divisions that do."""

    fitting: tuple[Division, ...] = ()


def division_error(message: str, fitting: list[Division], otherwise: str | None = None) -> DivisionError:
    """A DivisionError whose remedy lists the divisions that fit."""
    listing = ", ".join(f"[{x}, {y}]" for x, y in fitting)
    error = DivisionError(message, remedy=f"set scene.plane_division to one that fits: {listing}" if fitting else otherwise)
    error.fitting = tuple(fitting)
    return error


def divisions_of(blocks: int) -> list[Division]:
    """Every (x, y) with x * y = blocks."""
    return [(x, blocks // x) for x in range(1, blocks + 1) if blocks % x == 0]


def divisions_of_grid(grid_size: tuple[int, int, int], geometry: Geometry, blocks: int | None = None) -> list[Division]:
    """Divisions by which a scene of `grid_size` voxels gives blocks of the planes' size (LandMark rounds, or cuts off).

    Meant for -sub{b}.th files, whose gridSize is that of the whole scene. blocks: only divisions into so many.
    """
    columns = _shares(grid_size[0], [plane[1] for plane in geometry.planes[: len(geometry.resolutions)]], geometry.resolutions)
    rows = _shares(grid_size[1], [plane[0] for plane in geometry.planes[: len(geometry.resolutions)]], geometry.resolutions)
    return [(x, y) for x in columns for y in rows if blocks is None or x * y == blocks]


def choose_division(
    path: Path, blocks: int, fitting: list[Division], asked: Division | None, trained: Division | None
) -> tuple[Division, list[str]]:
    """The division and notes about it: the one asked for, else the one training used, else the only one that fits.

    Raises DivisionError listing the divisions that fit.
    """
    count = f"{blocks} block{'s' if blocks > 1 else ''}"
    if asked is not None:
        if asked not in fitting:
            raise division_error(
                f"{path}: plane_division = {list(asked)} does not fit its {count}", fitting, "the files do not belong together"
            )
        if trained is not None and trained != asked:
            return asked, [f"plane_division = {list(asked)} as asked; training used {list(trained)}"]
        return asked, []
    if trained is not None and trained in fitting:
        return trained, []
    if len(fitting) == 1:
        return fitting[0], []
    if trained is not None:
        raise division_error(f"{path}: its plane_division = {list(trained)} does not fit its {count}", fitting)
    raise division_error(f"{path}: {count}, and the file does not say how they lie along x and y", fitting)


def block_box(aabb: Box, division: Division, block: int) -> Box:
    """The box of one block: block = x * division[1] + y."""
    low, high = aabb
    index = (block // division[1], block % division[1])
    size = tuple((high[axis] - low[axis]) / division[axis] for axis in (0, 1))
    return (
        (low[0] + size[0] * index[0], low[1] + size[1] * index[1], low[2]),
        (low[0] + size[0] * (index[0] + 1), low[1] + size[1] * (index[1] + 1), high[2]),
    )


def _shares(voxels: int, sizes: list[int], resolutions: tuple[int, ...]) -> list[int]:
    def fits(parts: int) -> bool:
        return all(size in (voxels * res // parts, round(voxels * res / parts)) for size, res in zip(sizes, resolutions, strict=True))

    most = max(1, voxels * resolutions[0] // max(1, sizes[0] - 1) + 1)
    return [parts for parts in range(1, min(most, 4096) + 1) if fits(parts)]
