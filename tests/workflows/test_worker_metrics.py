"""A profiled job on real workers: what Dask's scheduler is told of their pipelines meanwhile, and the trace that each leaves."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Scheduler

from landmark_batch.job import RenderJob
from landmark_batch.workflows import cluster
from landmark_batch.workflows.load import LOAD
from landmark_batch.workflows.machine import Placement
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.trace_share import busy_shares, traces_of

FRAMES = 24  # some seconds of rendering: workers tell twice a second

Seen = dict[str, list[dict[str, Any]]]


def worker_metrics(dask_scheduler: Scheduler) -> dict[str, dict[str, Any]]:
    return {str(state.name): {name: state.metrics.get(name) for name in (*LOAD, "role")} for state in dask_scheduler.workers.values()}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Metrics of each worker, as the scheduler knew them while a job ran."""
    found: Seen = defaultdict(list)
    start_cluster = cluster.start_cluster

    def watch(client: Any) -> None:
        over = threading.Event()
        while not over.wait(0.1):
            try:
                metrics = client.run_on_scheduler(worker_metrics)
            except Exception:  # noqa: BLE001  the cluster has ended
                return
            for name, values in metrics.items():
                found[name].append(values)

    def start(placement: Placement, **options: Any) -> cluster.RenderCluster:
        made = start_cluster(placement, **options)
        threading.Thread(target=watch, args=(made.client,), daemon=True).start()
        return made

    monkeypatch.setattr(cluster, "start_cluster", start)
    return found


def test_queues_and_busy_shares_are_metrics_and_a_trace_shows_each_stage(make_job: Callable[..., RenderJob], seen: Seen) -> None:
    job = make_job("cameras.width=64", "cameras.height=36", "sampling.samples=384", f"cameras.frames=0-{FRAMES - 1}", "parallel.workers=1")
    assert run_render(job, profile=True).state == "complete"
    rendering = [values for values in seen["w0"] if values["role"] == "worker"]
    assert rendering
    most = {name: max(values[name] for values in rendering) for name in LOAD}
    assert 0 < most["busy"] <= 1
    assert most["frames_per_second"] > 0
    assert 1 <= most["frames_in_flight"] <= 4
    assert 1 <= most["chunks_out"] <= 2
    assert 0 <= most["copies_waiting"] <= 4
    assert 0 <= most["files_waiting"] <= 2

    (trace,) = traces_of(job.log_path)
    check_trace(trace)


def check_trace(path: Path) -> None:
    """One track a stage, whichever threads it ran in; every frame on each of them."""
    events = json.loads(path.read_text())
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    ranges: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for event in events:
        if event["ph"] == "X":
            ranges[tracks[event["tid"]]][event["name"]] += 1
    assert len(set(tracks.values())) == len(tracks)
    assert ranges["render"]["frame"] == FRAMES
    assert ranges["copies"]["copy"] == FRAMES
    assert FRAMES / 2 <= ranges["commit"]["commit"] <= FRAMES
    writers = [names for track, names in ranges.items() if track.startswith("frame-writer")]
    assert sum(names["encode"] for names in writers) == sum(names["write"] for names in writers) == FRAMES
    steps = {name for track, names in ranges.items() for name in names if track == "render" or track.startswith("landmark-tile")}
    assert {"march", "density", "appearance", "decode"} <= steps
    assert not any("Dask" in track for track in tracks.values())
    (share,) = busy_shares(events)
    assert share.what == "renderer"
    assert 0.1 < share.share <= 1
