"""A city made straight into a block store: every block alone, several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.city_decoder import Decoder, one_thread
from landmark_batch.scene.city_field import APP_DIM, CityField, surface_terms
from landmark_batch.scene.city_light import light
from landmark_batch.scene.city_mask import ShellMask
from landmark_batch.scene.city_noise import Array
from landmark_batch.scene.city_scene import CitySpec, Progress, SceneReport, Survey, block_nodes, checkpoint_content, city_of
from landmark_batch.scene.configure import CheckpointHead, configure, tensor_shapes
from landmark_batch.scene.geometry import mlp_width, read_geometry
from landmark_batch.scene.kwargs import read_settings
from landmark_batch.scene.layout import SceneFiles
from landmark_batch.scene.store_layout import DTYPES, BlockTable, Precision
from landmark_batch.scene.store_writer import StoreWriter, write_chunk
from landmark_batch.scene.weights import SceneConfig

_STRIP = 64  # rows of a plane that are brought to channels-last at a time
_PROCESS, _COPIES = 400 << 20, 4  # memory of a process: its libraries, and its block's finest appearance plane in float32 (measured)


@dataclass(frozen=True)
class Block:
    """What one process hands back of a block: digests of its planes by table, and its heights at the survey's nodes."""

    digests: tuple[bytes, ...]
    height: Array


@dataclass(frozen=True)
class BlockMaker:
    """Draws a block and writes its planes into the store under construction at `root`."""

    root: Path
    blocks: tuple[int, int]
    spec: CitySpec
    seed: int
    tables: tuple[BlockTable, ...]
    precision: Precision

    def make(self, block: int) -> Block:
        """Raises DiskFullError, CheckpointError."""
        spec, city = self.spec, city_of(self.blocks, self.spec, self.seed)
        with torch.no_grad(), one_thread():
            field = CityField(spec.field, self.seed)
            surface = light(city, *block_nodes(city, self.blocks, spec.side, spec.field.fine, block))
            height = surface.height
            if spec.survey_nodes != spec.field.fine:
                height = light(city, *block_nodes(city, self.blocks, spec.side, spec.survey_nodes, block)).height
            digests: dict[str, bytes] = {}
            for table, planes in self._grouped(field, surface_terms(surface)):
                digests[table.array] = write_chunk(self.root, table.key(block), _strips(planes, DTYPES[self.precision]))
        return Block(tuple(digests[table.array] for table in self.tables), height)

    def _grouped(self, field: CityField, terms: Tensor) -> Iterator[tuple[BlockTable, list[Tensor]]]:
        """The channels [h, w] of each plane in turn, all of a table together."""
        waiting: dict[str, list[Tensor]] = {}
        by_name = {f"{table.kind}_plane.{table.level}": table for table in self.tables}
        for name, _, plane in field.planes(terms):
            waiting.setdefault(name, []).append(plane)
            if len(waiting[name]) == by_name[name].channels:
                yield by_name[name], waiting.pop(name)


def write_store(
    path: Path,
    blocks: tuple[int, int],
    spec: CitySpec,
    seed: int,
    tell: Progress,
    *,
    precision: Precision = "fp32",
    jobs: int | None = None,
    force: bool = False,
) -> SceneReport:
    """Write the block store `path`: the very scene that `write_scene` writes as a checkpoint, whatever `jobs` is.

    jobs: processes; default one a core, fewer where memory is short. tell: called with the pass and the share that is done.
    Raises DiskFullError, CheckpointError.
    """
    city, count = city_of(blocks, spec, seed), blocks[0] * blocks[1]
    field, mask = CityField(spec.field, seed), ShellMask(city.half_x, city.half_y, spec.voxel, spec.shell)
    content, shapes = checkpoint_content(city, blocks, spec, field, _placeholder(spec))
    content["alphaMask.shape"] = (1, 1, *mask.shape)
    config, notes = _config(path, content, shapes)
    parts = tuple((h, w) for h, w, _ in config.level_sizes())
    with StoreWriter(path, config, division=blocks, parts=parts, precision=precision, force=force) as writer:
        tables = writer.head.tables()
        maker = BlockMaker(writer.root, blocks, spec, seed, tables, precision)
        with _Workers(maker, jobs or _default_jobs(spec, count)) as workers:
            tasks = [workers.start(block) for block in range(count)]
            tell("decoder", 0.0)
            with torch.no_grad(), one_thread():
                decoder = Survey(city, blocks, spec, field, seed).decoder()
            for block, task in enumerate(tasks):
                tell("planes", 0.1 + 0.85 * block / count)
                made = workers.result(task)
                for number, digest in enumerate(made.digests):
                    writer.note_plane(block, number, digest)
                mask.add(*block_nodes(city, blocks, spec.side, spec.survey_nodes, block), made.height)
                tasks[block] = None
        lines = field.lines()
        for number, line in enumerate(writer.head.line_tables()):
            values = lines[f"{line.kind}_line.{line.level}"].T.contiguous().numpy().astype(writer.dtype)
            for block in range(count):
                writer.put_line(block, number, values)
        tell("mask", 0.95)
        volume, occupancy = mask.pack()
        writer.finish(_decoder(field, decoder), volume, config.aabb, notes)
    return SceneReport(decoder.psnr, occupancy)


Task = Callable[[], Block] | Future[Block]


class _Workers:
    """Makes blocks in `jobs` processes; with one job, in this process when the result is asked for."""

    def __init__(self, maker: BlockMaker, jobs: int) -> None:
        self._maker = maker
        # spawned: a process with torch's threads must not be forked
        self._pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) if jobs > 1 else None

    def start(self, block: int) -> Task | None:
        if self._pool is None:
            return lambda: self._maker.make(block)
        return self._pool.submit(self._maker.make, block)

    def result(self, task: Task | None) -> Block:
        assert task is not None
        try:
            return task.result() if isinstance(task, Future) else task()
        except BrokenProcessPool as error:
            raise CheckpointError(
                "a process that made blocks of the city ended unexpectedly", remedy="give --jobs fewer processes if memory ran out"
            ) from error

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _strips(planes: list[Tensor], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Channels [h, w] as strips of [h, w, C] in the store's dtype."""
    for first in range(0, planes[0].shape[0], _STRIP):
        yield torch.stack([plane[first : first + _STRIP] for plane in planes], dim=-1).numpy().astype(dtype, copy=False)


def _config(path: Path, content: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> tuple[SceneConfig, list[str]]:
    """The config that the city's checkpoint would have, and notes."""
    settings, (names, held) = read_settings(content, path), tensor_shapes(content["state_dict"], path)
    first = CheckpointHead(path, content, settings, names, read_geometry(shapes | held, settings, path))
    return configure(SceneFiles("file", (path,), path), first, None)


def _placeholder(spec: CitySpec) -> Decoder:
    """A decoder of the right shapes, before the right one is known."""
    inputs, width = mlp_width(APP_DIM, spec.pe, spec.pe, 0), spec.width
    weights = (torch.zeros(width, inputs), torch.zeros(width, width), torch.zeros(3, width))
    return Decoder(weights, (torch.zeros(width), torch.zeros(width), torch.zeros(3)), 0.0)


def _decoder(field: CityField, decoder: Decoder) -> dict[str, NDArray[np.float32]]:
    found = {"basis_mat": field.basis_mat().numpy()}
    for layer, weight, bias in zip((0, 2, 4), decoder.weights, decoder.biases, strict=True):
        found |= {f"mlp.{layer}.weight": weight.numpy(), f"mlp.{layer}.bias": bias.numpy()}
    return found


def _default_jobs(spec: CitySpec, count: int) -> int:
    one = _PROCESS + _COPIES * 4 * spec.field.fine**2 * spec.field.appearance_channels
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, count, memory // 2 // one))
