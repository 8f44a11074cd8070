"""What `render` does before its job is planned, and how it takes that back."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.commands.start_up import FewCollections, warm_workers
from landmark_batch.events import JobStarted
from tests.commands.conftest import Run
from tests.workflows.processes import until

Servers = Callable[[], list[int]]
FLAGS: dict[str, Any] = {"scheduler": None, "slurm": None}


def test_collections_are_few_until_the_job_starts() -> None:
    before = gc.get_threshold()
    with FewCollections() as collections:
        assert gc.get_threshold() > before
        collections(JobStarted("city", "city.zarr", 4, 4, 2, 1, "torch", None))
        assert gc.get_threshold() == before
        frozen = gc.get_freeze_count()
        assert frozen > 10_000, "all that is imported"
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() < frozen


@pytest.mark.parametrize(
    ("flags", "begun"),
    [
        ({}, True),
        ({"scheduler": "tcp://host:1"}, False),
        ({"slurm": Path("slurm.toml")}, False),
    ],
)
def test_workers_are_made_ready_for_this_machine(
    flags: dict[str, Any], begun: bool, monkeypatch: pytest.MonkeyPatch, servers: Servers
) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    environment = dict(os.environ)
    with warm_workers({**FLAGS, **flags}) as warm:
        assert (warm is not None) is begun
        until(lambda: len(servers()) == begun)
        assert dict(os.environ) == environment
    assert not servers()


def test_a_refused_job_leaves_no_process_and_no_word_of_one(run: Run, park: Path, servers: Servers) -> None:
    (park.parent / "park.zarr").mkdir()
    (park.parent / "park.zarr" / "notes.txt").write_text("mine")
    refused = run("render", park)
    assert refused.code == 2
    assert "foreign" in refused.err
    assert len(refused.err.strip().splitlines()) <= 2, refused.err
    assert not servers()
    assert [file.name for file in (park.parent / "park.zarr").iterdir()] == ["notes.txt"]
