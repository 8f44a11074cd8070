"""plan --probe: what a few frames tell, for people and as JSON; render and status remember it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from landmark_batch.commands.status import _predicted
from tests.commands.conftest import FRAMES, Run


def test_a_probed_plan_is_remembered_by_render_and_status(
    park: Path, run: Run, inline: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    outcome = run("plan", "--probe", "park.toml", "-o", "new.zarr")
    assert outcome.code == 0, outcome.text
    assert "as probed here" in outcome.out
    assert "  probe     5 places in windows of " in outcome.out  # of six frames, the worker's first left out
    assert not (park.parent / "new.zarr").exists()
    again = json.loads(run("plan", "park.toml", "-o", "new.zarr", "--json").out)
    assert again["probe"]["render_seconds"] == again["seconds"] > 0
    assert len(again["probe"]["seconds_by_frame"]) == FRAMES
    assert run("render", "park.toml", "-o", "new.zarr").code == 0
    status = run("status", "new.zarr")
    assert f"of rendering for {FRAMES} frames, they took" in status.out
    found = json.loads(run("status", "new.zarr", "--json").out)["predicted"]
    assert found["predicted"] == pytest.approx(again["probe"]["worker_seconds"], rel=1e-4)


def test_the_number_of_places_may_be_said(park: Path, run: Run, inline: object) -> None:
    outcome = run("plan", "park.toml", "--probe", "2", "-o", "new.zarr", "--json")
    assert outcome.code == 0, outcome.text
    assert len(json.loads(outcome.out)["probe"]["frames"]) == 2
    for word in ("--probe=1", "--probe=many"):
        assert run("plan", "park.toml", word).code == 2


def test_predicted_against_actual_in_words() -> None:
    found = {"frames": 1200, "predicted": 200.0, "actual": 221.0, "to_come": 0.0}
    assert _predicted(found) == "3:20 of rendering for 1,200 frames, they took 3:41 (+10%)"
    assert _predicted(found | {"to_come": 60.0}).endswith("; 1:00 of rendering to come")
    assert _predicted({"frames": 0, "predicted": 0.0, "actual": 0.0, "to_come": 60.0}) == "1:00 of rendering to come"
