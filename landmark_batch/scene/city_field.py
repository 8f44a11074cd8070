"""The lit city as a GridNeRF field: planes over (x, y) times lines over z, at several resolutions.

Density is exact in two terms: relu(K·(h(x, y) − z)) has rank 2, whatever the height field. Appearance is a sum of planes whose
line is constant (colours, heights), one term for z itself, and one term a window type: columns in the plane, storeys in the line.
Each plane is a Laplacian pyramid over the resolutions, so their sum is the finest grid's value at its nodes. Terms with a common
line are spread over the channels by an orthonormal frame: every channel carries part of the picture, as in a trained scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from landmark_batch.scene.city_light import Surface
from landmark_batch.scene.city_solids import WINDOW_TYPES

METRES = 100.0  # a scene unit
FLOOR, CEILING = -3.0, 101.0  # metres: the box along z
HEIGHT_UNIT = 40.0  # metres of one unit of a height feature
APP_DIM = 27
SLOPE = 2600.0  # growth of sigma a scene unit below the surface: opaque within one sample

CONSTANT = 13  # terms of the constant line: 3 top, 3 wall, 3 glass, facade top, shade, gain, gloss
WINDOWS = WINDOW_TYPES + 1
TERMS = CONSTANT + 1 + WINDOWS  # the fewest appearance channels
# what the rows of basis_mat mean (see `_basis_terms`)
TOP, WALL, GLASS = slice(0, 3), slice(3, 6), slice(6, 9)
BELOW_TOP, BELOW_SHADE, GAIN, GLOSS, WINDOW, HEIGHT = 9, 10, 11, 12, 13, 14

BLUR, BLUR_REACH = 2.6, 7  # nodes of a coarse plane
_MIXED_AT_ONCE = 8  # channels in memory

_STOREYS = ((3.5, 1.3), (3.7, 0.6), (3.1, 1.2), (3.9, 1.1), (4.6, 1.1), (2.9, 1.3))  # metres a storey, sharpness
_SILLS = (4.4, 4.4, 0.0, 4.4, 4.6, 0.0)


@dataclass(frozen=True)
class FieldSpec:
    """Sizes of the field. fine: nodes of the finest plane along a block's side. storeys: line nodes at the coarsest resolution."""

    fine: int
    resolutions: tuple[int, ...] = (1, 2, 4)
    density_channels: int = 16
    appearance_channels: int = 48
    line: int = 112

    def plane_size(self, level: int) -> int:
        return self.fine * self.resolutions[level] // self.resolutions[-1]

    def line_size(self, level: int) -> int:
        return self.line * self.resolutions[level]


def logit(colour: Tensor) -> Tensor:
    """Display colour -> colour feature: half its logit, so that a decoder only passes it on."""
    return torch.logit(colour.clamp(0.02, 0.98)) / 2


def line_heights(n: int) -> Tensor:
    """[n] metres of a line's nodes."""
    return torch.from_numpy(np.linspace(FLOOR, CEILING, n)).float()


def window_rows(z: Tensor) -> Tensor:
    """[WINDOWS, n] in 0..1: how much of height z (metres) is window, by window type; the last row are shop fronts."""
    rows = []
    for (storey, sharp), sill in zip(_STOREYS, _SILLS, strict=True):
        wave = 0.5 - sharp * torch.cos(2 * torch.pi * (z - sill) / storey)
        rows.append(wave.clamp(0, 1) * ((z - sill) / 0.4).clamp(0, 1))
    rows.append(((z - 0.3) / 0.5).clamp(0, 1) * ((3.6 - z) / 0.5).clamp(0, 1))
    return torch.stack(rows)


def surface_terms(surface: Surface) -> Tensor:
    """[1 + CONSTANT + WINDOWS, h, w]: the normalised height, then every appearance term that has a plane of its own."""
    heights = [surface.facade_top / HEIGHT_UNIT, surface.shade / HEIGHT_UNIT, (surface.gain - 1) / 2, surface.gloss]
    colours = [logit(torch.from_numpy(c)) for c in (surface.top, surface.wall, surface.glass)]
    normalised = 2 * (surface.height - FLOOR) / (CEILING - FLOOR) - 1
    return torch.cat([torch.from_numpy(normalised)[None], *colours, torch.from_numpy(np.stack(heights)), torch.from_numpy(surface.windows)])


def pyramid(term: Tensor, spec: FieldSpec) -> list[Tensor]:
    """[h, w] at the finest size -> one plane a resolution whose bilinear sum is the term at its nodes."""
    levels: list[Tensor] = []
    rest = term[None, None]
    for level in range(len(spec.resolutions) - 1):
        size = spec.plane_size(level)
        coarse = _smooth(F.interpolate(F.avg_pool2d(rest, spec.fine // size), size=(size, size), mode="bilinear", align_corners=True))
        levels.append(coarse[0, 0])
        rest = rest - F.interpolate(coarse, size=term.shape, mode="bilinear", align_corners=True)
    return [*levels, rest[0, 0]]


def _smooth(plane: Tensor) -> Tensor:
    """Blur [1, 1, h, w] over a few nodes: a coarse plane bends at its own nodes, which are none of the finest plane's, and a bend
    of a cliff's size would show between those."""
    offsets = torch.arange(-BLUR_REACH, BLUR_REACH + 1)
    kernel = torch.exp(-0.5 * (offsets / BLUR) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(plane, (BLUR_REACH,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


class CityField:
    """Turns terms into the checkpoint's tensors. The channel mix is drawn once from the seed, the same for all blocks."""

    def __init__(self, spec: FieldSpec, seed: int) -> None:
        self.spec = spec
        generator = torch.Generator().manual_seed(seed)
        self._spread = spec.appearance_channels - 1 - WINDOWS  # channels with the constant line
        self._app_frame = _frame(CONSTANT, self._spread, generator)
        self._density_frame = _frame(2, spec.density_channels, generator)
        self.steepness = SLOPE * (CEILING - FLOOR) / METRES / 2

    def planes(self, terms: Tensor) -> Iterator[tuple[str, int, Tensor]]:
        """(tensor name, channel, [h, w]) of one block, one plane at a time: memory stays near that of the terms."""
        levels = [pyramid(term, self.spec) for term in terms]
        for level in range(len(self.spec.resolutions)):
            height = self.steepness * levels[0][level]
            for c in range(self.spec.density_channels):
                slope = -self.steepness * float(self._density_frame[1, c]) if level == 0 else 0.0
                yield f"density_plane.{level}", c, height * self._density_frame[0, c] + slope
            constant = torch.stack([levels[1 + k][level] for k in range(CONSTANT)])
            for first in range(0, self._spread, _MIXED_AT_ONCE):
                mixed = self._app_frame[:, first : first + _MIXED_AT_ONCE].T @ constant.flatten(1)
                for c, plane in enumerate(mixed.view(-1, *height.shape), first):
                    yield f"app_plane.{level}", c, plane
            yield f"app_plane.{level}", self._spread, torch.full_like(height, 1.0 if level == 0 else 0.0)
            for k in range(WINDOWS):
                yield f"app_plane.{level}", self._spread + 1 + k, levels[1 + CONSTANT + k][level]

    def lines(self) -> dict[str, Tensor]:
        """Every line [C, n]: the same in all blocks."""
        found = {}
        for level in range(len(self.spec.resolutions)):
            z = line_heights(self.spec.line_size(level))
            basis = torch.stack([torch.ones_like(z), 2 * (z - FLOOR) / (CEILING - FLOOR) - 1])
            found[f"density_line.{level}"] = self._density_frame.T @ basis
            found[f"app_line.{level}"] = torch.cat([torch.ones(self._spread, len(z)), z[None] / HEIGHT_UNIT, window_rows(z)])
        return found

    def basis_mat(self) -> Tensor:
        """[27, Ca·R]: undoes the channel mix."""
        levels = _basis_terms(len(self.spec.resolutions))
        return torch.cat([torch.cat([terms[:, :CONSTANT] @ self._app_frame, terms[:, CONSTANT:]], dim=1) for terms in levels], dim=1)

    def features(self, terms: Tensor, uv: Tensor, z: Tensor) -> Tensor:
        """The 27 features at points of one block. uv: [P, 2] in [-1, 1], z: [P] metres -> [P, 27]."""
        stacks = [torch.stack(planes) for planes in zip(*(pyramid(term, self.spec) for term in terms[1:]), strict=True)]
        total = torch.zeros(len(z), APP_DIM)
        for level, (stack, basis) in enumerate(zip(stacks, _basis_terms(len(stacks)), strict=True)):
            plane = F.grid_sample(stack[None], uv[None, None], align_corners=True)[0, :, 0]  # [terms, P]
            heights = self.lines()[f"app_line.{level}"][self._spread + 1 :]
            where = (z - FLOOR) / (CEILING - FLOOR) * 2 - 1
            grid = torch.stack([torch.zeros_like(where), where], dim=-1)[None, None]
            rows = F.grid_sample(heights[None, :, :, None], grid, align_corners=True)[0, :, 0]
            own = (z / HEIGHT_UNIT)[None] * (1.0 if level == 0 else 0.0)
            total.addmm_(torch.cat([plane[:CONSTANT], own, plane[CONSTANT:] * rows]).T, basis.T)
        return total


def _frame(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] with orthonormal rows."""
    q, _ = torch.linalg.qr(torch.randn(columns, rows, generator=generator, dtype=torch.float64))
    frame: Tensor = q.T.float()
    return frame.contiguous()


def _basis_terms(levels: int) -> list[Tensor]:
    """One [27, TERMS] a level: which terms make which feature."""
    common = torch.zeros(APP_DIM, TERMS)
    common[torch.arange(CONSTANT), torch.arange(CONSTANT)] = 1.0
    common[BELOW_TOP, CONSTANT] = common[BELOW_SHADE, CONSTANT] = -1.0
    common[HEIGHT, CONSTANT] = 1.0
    common[WINDOW, CONSTANT + 1 :] = 1.0
    common[15 : 15 + WINDOWS, CONSTANT + 1 :] = torch.eye(WINDOWS)
    common[22, BELOW_TOP] = common[23, BELOW_SHADE] = 1.0
    for row, part in enumerate((TOP, WALL, GLASS), 24):
        common[row, part] = 0.5
    return [common] * levels
