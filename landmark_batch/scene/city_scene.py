"""A city made into a checkpoint block by block: survey, fit of the decoder, planes. Memory stays near that of two blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark_batch.scene.city_decoder import Decoder, fit_decoder, one_thread, sample_points
from landmark_batch.scene.city_field import APP_DIM, CEILING, FLOOR, METRES, CityField, FieldSpec, surface_terms
from landmark_batch.scene.city_layout import City
from landmark_batch.scene.city_light import light
from landmark_batch.scene.city_mask import ShellMask
from landmark_batch.scene.city_noise import Array
from landmark_batch.scene.city_writer import PlaneFile

Progress = Callable[[str, float], None]

FIT_POINTS, FIT_BLOCKS = 160_000, 16
SURVEY_STEP = 0.4  # metres between nodes where the planes are finer


@dataclass(frozen=True)
class CitySpec:
    """side: metres of a block. width, pe: the decoder's. voxel, shell: metres of the mask's voxels and layer. steps: of the fit.

    samples: a ray, which the checkpoint's training arguments and the job recommend.
    """

    field: FieldSpec
    side: float
    width: int
    pe: int
    voxel: float
    shell: float
    steps: int
    samples: int

    @property
    def survey_nodes(self) -> int:
        """Nodes along a block's side at which mask and decoder see the city."""
        return min(self.field.fine, round(self.side / SURVEY_STEP))


@dataclass(frozen=True)
class SceneReport:
    """psnr: of the fitted decoder on held-out points, dB. occupancy: share of the mask's voxels."""

    psnr: float
    occupancy: float


def city_of(blocks: tuple[int, int], spec: CitySpec, seed: int) -> City:
    return City(seed, blocks[0] * spec.side / 2, blocks[1] * spec.side / 2)


def write_scene(path: Path, blocks: tuple[int, int], spec: CitySpec, seed: int, tell: Progress) -> SceneReport:
    """Write <path> (a -merged-stack.th). The same arguments give the same bytes, whatever torch's number of threads.

    tell: called with the pass and the share that is done. Raises DiskFullError, CheckpointError.
    """
    with torch.no_grad(), one_thread():
        return _write(path, blocks, spec, seed, tell)


def _write(path: Path, blocks: tuple[int, int], spec: CitySpec, seed: int, tell: Progress) -> SceneReport:
    city, count = city_of(blocks, spec, seed), blocks[0] * blocks[1]
    field = CityField(spec.field, seed)
    mask = ShellMask(city.half_x, city.half_y, spec.voxel, spec.shell)
    survey = Survey(city, blocks, spec, field, seed)
    kept: dict[int, Tensor] = {}  # a small city is drawn once
    for b in range(count):
        tell("survey", 0.3 * b / count)
        x, y = block_nodes(city, blocks, spec.side, spec.survey_nodes, b)
        surface = light(city, x, y)
        mask.add(x, y, surface.height)
        if b in survey.sampled:
            terms = surface_terms(surface)
            survey.add(terms)
            if spec.survey_nodes == spec.field.fine and count <= 4:
                kept[b] = terms
    volume, occupancy = mask.pack()
    tell("decoder", 0.3)
    decoder = survey.fit()
    content, planes = checkpoint_content(city, blocks, spec, field, decoder)
    box = content["kwargs"]["aabb"].clone()
    content |= {"alphaMask.shape": (1, 1, *mask.shape), "alphaMask.mask": volume, "alphaMask.aabb": box}
    with PlaneFile(path, content, planes) as file:
        for b in range(count):
            tell("planes", 0.6 + 0.4 * b / count)
            x, y = block_nodes(city, blocks, spec.side, spec.field.fine, b)
            for name, channel, plane in field.planes(kept[b] if b in kept else surface_terms(light(city, x, y))):
                file.put(name, channel, b, plane)
    return SceneReport(decoder.psnr, occupancy)


class Survey:
    """Points of some blocks, to which the decoder is fitted."""

    def __init__(self, city: City, blocks: tuple[int, int], spec: CitySpec, field: CityField, seed: int) -> None:
        self._city, self._blocks, self._spec, self._field, self._seed = city, blocks, spec, field, seed
        count = blocks[0] * blocks[1]
        self.sampled = range(0, count, -(-count // FIT_BLOCKS))
        self._generator = torch.Generator().manual_seed(seed)
        self._points: list[Tensor] = []

    def add(self, terms: Tensor) -> None:
        """Take points of the next sampled block from its terms at the survey's nodes."""
        self._points.append(sample_points(terms, self._field, FIT_POINTS // len(self.sampled), self._generator))

    def fit(self) -> Decoder:
        """The decoder fitted to the points of all sampled blocks."""
        features, spec = torch.cat(self._points), self._spec
        features = features[torch.randperm(len(features), generator=self._generator)]
        return fit_decoder(features, width=spec.width, fea_pe=spec.pe, view_pe=spec.pe, seed=self._seed, steps=spec.steps)

    def decoder(self) -> Decoder:
        """`fit` after drawing every sampled block here."""
        for b in self.sampled:
            self.add(surface_terms(light(self._city, *block_nodes(self._city, self._blocks, self._spec.side, self._spec.survey_nodes, b))))
        return self.fit()


def block_nodes(city: City, blocks: tuple[int, int], side: float, nodes: int, block: int) -> tuple[Array, Array]:
    """Node coordinates x, y [nodes] of a block in metres, block = bx·blocks[1] + by. Neighbours share the nodes of their border."""

    def axis(index: int, half: float) -> Array:
        return (-half + (index * (nodes - 1) + np.arange(nodes)) * (side / (nodes - 1))).astype(np.float32)

    bx, by = divmod(block, blocks[1])
    return axis(bx, city.half_x), axis(by, city.half_y)


def checkpoint_content(
    city: City, blocks: tuple[int, int], spec: CitySpec, field: CityField, decoder: Decoder
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The checkpoint's dict without planes and mask, and the planes' shapes."""
    count, sizes = blocks[0] * blocks[1], spec.field
    planes: dict[str, tuple[int, ...]] = {}
    for level in range(len(sizes.resolutions)):
        n = sizes.plane_size(level)
        planes[f"density_plane.{level}"] = (1, sizes.density_channels, count, n, n)
        planes[f"app_plane.{level}"] = (1, sizes.appearance_channels, count, n, n)
    state = {name: line[None, :, :, None].repeat(1, 1, 1, count) for name, line in field.lines().items()}
    grids = {name: torch.Size(shape) for name, shape in planes.items()} | {name: line.shape for name, line in state.items()}
    state["basis_mat.weight"] = field.basis_mat()
    for layer, weight, bias in zip((0, 2, 4), decoder.weights, decoder.biases, strict=True):
        state |= {f"renderModule.mlp.{layer}.weight": weight, f"renderModule.mlp.{layer}.bias": bias}
    return {"kwargs": _kwargs(city, blocks, spec), "state_dict": state, "gridShape": grids}, planes


def _kwargs(city: City, blocks: tuple[int, int], spec: CitySpec) -> dict[str, Any]:
    corner = torch.tensor([city.half_x, city.half_y]) / METRES
    low, high = torch.cat([-corner, torch.tensor([FLOOR / METRES])]), torch.cat([corner, torch.tensor([CEILING / METRES])])
    coarse = spec.field.plane_size(0) // spec.field.resolutions[0]
    return {
        "aabb": torch.stack([low, high]),
        "gridSize": [coarse, coarse, spec.field.line],
        "density_n_comp": [spec.field.density_channels],
        "appearance_n_comp": [spec.field.appearance_channels],
        "app_dim": APP_DIM,
        "density_shift": -10,
        "alphaMask_thres": 1e-4,
        "distance_scale": 25,
        "rayMarch_weight_thres": 1e-3,
        "fea2denseAct": "relu",
        "near_far": [0.2, round(2 * float(corner.norm()) + 2.5, 2)],
        "step_ratio": 0.25,
        "pos_pe": 6,
        "view_pe": spec.pe,
        "fea_pe": spec.pe,
        "featureC": spec.width,
        "device": "cpu",
        "args": {
            "dataset_name": "city",
            "resMode": list(spec.field.resolutions),
            "ndims": 1,
            "branch_parallel": 1,
            "plane_division": list(blocks),
            "sampling_opt": 1,
            "n_importance": spec.samples,
            "bias_enable": 1,
            "encode_app": 0,
            "nonlinear_density": 0,
            "seed": city.seed,
        },
    }
