"""Every bench runs once, tiny: that it runs and adds up, not how fast it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.errors import ConfigError
from landmark_batch.job import RenderJob
from landmark_batch.workflows.bench import BenchBar, run_bench
from landmark_batch.workflows.result import RenderResult
from landmark_batch.workflows.simulated import scheduling_cost
from tests.workflows.conftest import _own_cache, inline, make_job, scene_dir

__all__ = ["_own_cache", "inline", "make_job", "scene_dir"]  # fixtures

MakeJob = Callable[..., RenderJob]


@pytest.fixture
def lines() -> Iterator[list[str]]:
    yield []


@pytest.mark.usefixtures("inline")
def test_rendering_writing_and_exports_in_one_table(make_job: MakeJob, tmp_path: Path, lines: list[str]) -> None:
    folder = tmp_path / "bench"
    report = run_bench(folder, make_job(), frames=4, parts=("render", "write", "export"), tell=lines.append)
    figures = {row.what.strip(): row.value for row in report.rows}
    for what in ("bare renderer", "job", "store writing", "store reading", "images, png", "film, libx264"):
        assert figures[what] > 0
    assert report.job["frames"] == 4
    assert [bar.what for bar in report.bars] == ["job / bare rendering"]
    assert len(lines) == 5
    text = report.describe()
    assert "bare renderer" in text
    assert ("held" in text) or ("NOT held" in text)
    told: dict[str, Any] = json.loads(report.save(tmp_path / "bench.json").read_text())
    assert len(told["rows"]) == len(report.rows)
    assert told["machine"]["cores"] >= 1
    again = run_bench(folder, make_job(), frames=2, parts=("write",))  # a second bench in the same folder
    assert again.job["frames"] == 2
    with pytest.raises(ConfigError, match="cannot write"):
        report.save(tmp_path)


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bench speed: no such part"):
        run_bench(tmp_path / "none", parts=("speed",))
    assert not (tmp_path / "none").exists()


def test_scheduling_cost_adds_up(tmp_path: Path) -> None:
    result = RenderResult(
        state="complete",
        wanted=80,
        rendered=80,
        skipped=0,
        missing=(),
        failures={},
        seconds=9.0,
        startup_seconds=4.0,
        render_seconds=4.3,
        workers=2,
        device="cpu",
        store=tmp_path,
        log=None,
        dashboard=None,
        stages={"render": 8.1, "idle": 0.09, "check": 0.01, "quantise": 0.01, "write": 0.2},
    )
    cost = scheduling_cost(result, 10, 0.1)
    assert cost.rendering == 8.0
    assert cost.late == pytest.approx(0.1)
    assert cost.between == pytest.approx(0.1)
    assert cost.tail == pytest.approx(0.4)
    assert cost.share == pytest.approx(0.6 / 8.0)
    assert cost.scheduling_share == pytest.approx(0.1 / 8.0)
    assert cost.per_chunk() == pytest.approx(0.1 / 8)
    assert cost.share_of(10_000) == pytest.approx((0.2 * 125 + 0.4) / 1000)
    assert not BenchBar("x", 1.2, 1.15).held
