from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from landmark_batch.fetching.block_sets import block_sets
from landmark_batch.workflows.fetch_plan import fetch_report
from landmark_batch.workflows.fetch_report import FetchReport, describe_fetching
from landmark_batch.workflows.plan import make_plan
from landmark_batch.workflows.render import run_render
from tests.workflows.block_jobs import SLOTS, block_job, write_flight, write_town

BOX = ((-4.0, -3.0, 0.0), (4.0, 3.0, 1.0))  # 4 x 3 blocks of side 2


def report(slots: int, groups: int = 1) -> FetchReport:
    """Two lines to and fro along x, 8 frames each; a frame needs its own block and the one at its side."""
    xs = np.arange(-3.5, 4.0)
    positions = np.array([(x, y, 2.0) for y, line in ((-2.0, xs), (0.0, xs[::-1])) for x in line])
    columns, rows = ((positions[:, 0] + 4) // 2).astype(int), ((positions[:, 1] + 3) // 2).astype(int)
    sets = block_sets([[column * 3 + row, column * 3 + row + 1] for column, row in zip(columns, rows, strict=True)])
    needs = SimpleNamespace(offsets=sets.offsets, ids=sets.ids, samples=np.full(16, 1000))
    chunks = [[i, i + 1] for i in range(0, 16, 2)]
    return describe_fetching(needs, chunks, positions, aabb=BOX, division=(4, 3), block_bytes=10**9, slots=slots, groups=groups)


def test_the_report_counts_what_every_way_moves() -> None:
    found = report(slots=3)
    assert (found.frames, found.chunks, found.blocks_mean, found.blocks_max) == (16, 8, 2.0, 2)
    assert (found.working_set, found.scene_blocks) == (12, 12)
    values = json.loads(json.dumps(found.as_dict()))
    assert values["orders"]["flight order"] == 14  # the line back finds two of the four blocks in the middle, demand fetching one
    assert values["order"] in ("Hilbert curve", "tour over block sets")
    assert values["loads"] == 12 == values["bytes"] // 10**9
    assert values["demand_loads"] == 15
    assert values["landmark"]["window"] == [1, 1]
    assert values["landmark"]["refills"] == 8
    assert values["landmark"]["dropped"] == (16 * 1000 + 7 * 1000) / (16 * 2000)  # the blocks at the side, and seven times its own


def test_the_table_says_what_was_chosen_and_why() -> None:
    text = report(slots=3).describe()
    assert "2.0 a frame on average, 2 at most" in text
    assert "12 blocks, 12 GB" in text
    assert "flight order 14" in text
    assert "15 blocks, 15 GB, 1.25 x" in text
    assert "of all samples" in text
    assert "no block is moved twice" in report(slots=12).describe()
    assert "3 in each of 2 groups" in report(slots=3, groups=2).describe()


@pytest.mark.parametrize(
    ("size", "text"), [(79, "948 bytes"), (1_000, "12 kB"), (83_300, "1 MB"), (2_100_000, "25.2 MB"), (10**11, "1.2 TB")]
)
def test_bytes_come_in_the_unit_that_fits(size: int, text: str) -> None:
    found = replace(report(slots=3), block_bytes=size).describe()
    assert f"needed    12 of 12 blocks, {text}\n" in found


def test_frames_in_passes_are_counted() -> None:
    found = report(slots=1)
    assert found.order.passes == 16
    assert "16 of 16 frames need more blocks than there are slots" in found.describe()
    assert found.as_dict()["frames_in_passes"] == 16
    assert "crowded frames counted whole" in found.describe()
    assert "moved     about 32 blocks" in replace(found, loads=32, sampled=True).describe()


@pytest.mark.usefixtures("inline")
def test_crowded_frames_are_counted_as_they_are_rendered(tmp_path: Path) -> None:
    """A frame sees all six blocks: region by region, it needs less than in passes; too small to be cut, it goes through passes whole."""
    write_town(tmp_path)
    words = (*SLOTS, "cameras.frames=20-25", "parallel.workers=1", "fetching.gpu_blocks=5", "sampling.samples=96")
    job = block_job(
        tmp_path / "town.zarr", write_flight(tmp_path), tmp_path / "frames.zarr", *words, "cameras.width=192", "cameras.height=128"
    )
    found = fetch_report(make_plan(job))
    assert (found.order.passes, found.order.loads, found.loads, found.sampled) == (1, 7, 6, False)
    assert run_render(job).counters["fetch_loads"] == 6
    small = fetch_report(make_plan(block_job(tmp_path / "town.zarr", tmp_path / "flight.json", tmp_path / "small.zarr", *words)))
    assert small.order.passes == 1
    assert small.loads == small.order.loads


def test_nothing_to_render_moves_nothing() -> None:
    empty = SimpleNamespace(offsets=np.zeros(1, dtype=np.int64), ids=np.zeros(0, dtype=np.int32), samples=np.zeros(0, dtype=np.int64))
    found = describe_fetching(empty, [], np.zeros((0, 3)), aabb=BOX, division=(4, 3), block_bytes=1, slots=4)
    assert (found.order.loads, found.window.loads, found.working_set) == (0, 0, 0)
    assert "0 blocks" in found.describe()
