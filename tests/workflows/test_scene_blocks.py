"""What a job over a block store resolves to before anything runs: modes, reasons, refusals, block sets, the order of chunks."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from landmark_batch.chunks import split_frames
from landmark_batch.compat import job_from_landmark
from landmark_batch.errors import ConfigError
from landmark_batch.fetching import flight_blocks as flight_blocks_module
from landmark_batch.fetching.choice import MIN_BATCH
from landmark_batch.job import RenderJob, job_from_dict
from landmark_batch.workflows.itinerary import route_chunks
from landmark_batch.workflows.machine import Machine, describe_machine
from landmark_batch.workflows.request import RenderRequest, scene_request
from landmark_batch.workflows.scene_blocks import KEPT
from tests.workflows.block_jobs import FRAMES, HIGH, SLOTS, block_job


@pytest.fixture(scope="module")
def machine() -> Machine:
    return replace(describe_machine(), memory=16 * 2**30, cores=4)


def job_of(town: Path, *overrides: str, scene: str = "town.zarr") -> RenderJob:
    return block_job(town / scene, town / "flight.json", town / "frames.zarr", *overrides)


def resolve(town: Path, machine: Machine | None, *overrides: str) -> RenderRequest:
    return scene_request(job_of(town, *overrides), "cpu", machine)


def limit_for(town: Path, machine: Machine, blocks: float) -> str:
    """fetching.gpu_memory that holds so many blocks of the town and what stays beside them."""
    found = resolve(town, machine).blocks
    assert found is not None
    size = found.size
    assert size.batch > MIN_BATCH
    return f"fetching.gpu_memory={int(size.rest + MIN_BATCH + blocks * size.block)}"


def test_a_scene_that_fits_is_held_whole_and_the_reason_is_said(town: Path, machine: Machine) -> None:
    request = resolve(town, machine)
    assert request.fetching is not None
    assert request.fetching.mode == "resident"
    assert request.fetching.reason.startswith("6 blocks of ")
    assert request.fetching.reason.endswith("GiB that a worker may use")


def test_under_a_limit_it_becomes_dynamic(town: Path, machine: Machine) -> None:
    request = resolve(town, machine, limit_for(town, machine, 2.5))
    assert request.fetching is not None
    assert (request.fetching.mode, request.fetching.slots, request.fetching.batch) == ("dynamic", 2, MIN_BATCH)
    assert "do not fit into fetching.gpu_memory" in request.fetching.reason
    whole = resolve(town, machine)
    assert request.worker_memory != whole.worker_memory
    assert request.renderer["blocks"]["choice"]["slots"] == 2


def test_fetching_is_no_setting_of_a_frame(town: Path, machine: Machine) -> None:
    """Frames of a resident job stand for a dynamic one, and the other way round."""
    resident, dynamic = resolve(town, machine, "fetching.mode=resident"), resolve(town, machine, *SLOTS)
    assert resident.settings == dynamic.settings
    assert resident.settings.contents == dynamic.settings.contents
    assert len(dynamic.settings.contents) == FRAMES


def test_a_worker_of_an_unknown_machine_decides_for_itself(town: Path) -> None:
    request = resolve(town, None)
    assert request.fetching is None
    assert request.renderer["blocks"]["choice"] is None
    assert request.renderer["blocks"]["size"]["blocks"] == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("fetching.mode=resident", "fetching.gpu_blocks=2"), r'gpu_blocks = 2 and fetching.mode = "resident" contradict'),
        (("fetching.gpu_blocks=6", "fetching.gpu_memory=1MiB"), "gpu_blocks = 6 and fetching.gpu_memory = 1MiB contradict"),
        (("fetching.gpu_memory=1MiB",), "fetching.gpu_memory = 1MiB: not one block fits in"),
    ],
)
def test_contradictions_are_refused(town: Path, machine: Machine, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(town, machine, *overrides)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("override", ["fetching.mode=dynamic", "fetching.gpu_blocks=2", "fetching.host_memory=1GiB"])
def test_a_checkpoint_cannot_be_fetched_and_the_way_out_is_named(town: Path, machine: Machine, override: str) -> None:
    job = job_of(town, override, scene="town-merged-stack.th")
    with pytest.raises(ConfigError, match=r"is a checkpoint, whose blocks cannot be read one by one") as caught:
        scene_request(job, "cpu", machine)
    checkpoint = town / "town-merged-stack.th"
    assert f"landmark-batch convert {checkpoint} " in str(caught.value.remedy)
    assert "scene.checkpoint=" in str(caught.value.remedy)
    assert scene_request(job_of(town, scene="town-merged-stack.th"), "cpu", machine).blocks is None


@pytest.mark.parametrize("name", ["MovingAreaTorch", "MovingAreaCudaKernel"])
def test_landmarks_moving_area_fetches_as_many_blocks(town: Path, machine: Machine, name: str) -> None:
    """On a block store it is a dynamic job; on the checkpoint, as LandMark users have it, the remedy is said; resident always works."""
    options = {"model_type": name, "neighbour_size": "4", "plane_division": ["2", "3"], "branch_parallel": True, "n_importance": "24"}
    for scene in ("town.zarr", "town-merged-stack.th"):
        found = job_from_landmark({**options, "ckpt": str(town / scene)}, {}, cameras=town / "flight.json")
        assert found.values["fetching"] == {"mode": "dynamic", "gpu_blocks": 4}
        found.values["model"]["runtime"] = "torch"  # no GPU here
        found.values["scene"].pop("appearance", None)  # the town has none
        found.values["output"]["store"] = town / "frames.zarr"
        job = job_from_dict(found.values)
        if scene == "town.zarr":
            request = scene_request(job, "cpu", machine)
            assert request.fetching is not None
            assert (request.fetching.mode, request.fetching.slots) == ("dynamic", 4)
        else:
            with pytest.raises(ConfigError, match="is a checkpoint") as caught:
                scene_request(job, "cpu", machine)
            assert "landmark-batch convert" in str(caught.value.remedy)
        whole = job.model_copy(update={"fetching": job.fetching.model_copy(update={"mode": "resident"})})
        if scene != "town.zarr":
            assert scene_request(whole, "cpu", machine).blocks is None


def test_what_a_flight_sees_is_computed_once(town: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kept by scene, flight and sampling; a damaged table is computed again, old ones go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[object] = []
    compute = flight_blocks_module.flight_blocks
    monkeypatch.setattr(flight_blocks_module, "flight_blocks", lambda *args, **more: calls.append(args) or compute(*args, **more))
    first = resolve(town, machine).blocks
    again = resolve(town, machine, "fetching.gpu_blocks=2", "model.precision=fp16").blocks
    assert first is not None
    assert again is not None
    assert len(calls) == 1
    assert np.array_equal(first.seen.ids, again.seen.ids)
    assert [*first.seen.of(HIGH[0])] == [0, 1, 2, 3, 4, 5]
    resolve(town, machine, "sampling.far=2.0")
    assert len(calls) == 2
    folder = next(tmp_path.rglob("seen"))
    for number in range(KEPT + 5):
        file = folder / f"{number:032x}.npz"
        file.write_bytes(b"old")
        os.utime(file, (number, number))
    kept = [file for file in folder.glob("*.npz") if file.stat().st_mtime > KEPT + 5]
    assert len(kept) == 2
    for file in kept:
        file.write_bytes(b"damaged")
    resolve(town, machine)
    assert len(calls) == 3
    assert len([*folder.glob("*.npz")]) == KEPT


SCRIPT = """\
import sys
from pathlib import Path
from landmark_batch.fetching import flight_blocks
from tests.workflows.block_jobs import block_job, request_of
flight_blocks.WORTH_A_PROCESS = 13
folder = Path(sys.argv[1])
blocks = request_of(block_job(folder / "town.zarr", folder / "flight.json", folder / "frames.zarr")).blocks
print(blocks.seen.ids.tolist())
"""  # without a main guard, on purpose


def test_a_long_flight_is_looked_at_by_processes_that_do_not_run_the_script_again(town: Path, machine: Machine, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script), str(town)], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    alone = resolve(town, machine).blocks
    assert alone is not None
    assert done.stdout.splitlines() == [str(alone.seen.ids.tolist())]


def test_chunks_go_out_in_flight_order_where_all_blocks_are_held(town: Path, machine: Machine) -> None:
    request = resolve(town, machine)
    chunks = split_frames(range(FRAMES), 2)
    route = route_chunks(request, chunks, 2)
    assert route.chunks == tuple(chunks)
    assert route.order is None
    assert route.costs is not None
    assert len(route.costs) == len(chunks)
    assert route.itinerary().frames.tolist() == list(range(FRAMES))
    assert route.itinerary().bounds.tolist() == [0, FRAMES]


def test_a_dynamic_jobs_chunks_are_ordered_in_space_in_ranges_of_groups(town: Path, machine: Machine) -> None:
    request = resolve(town, machine, *SLOTS)
    chunks = split_frames(range(FRAMES), 2)
    route = route_chunks(request, chunks, 2)
    assert route.order is not None
    assert route.chunks != tuple(chunks)
    assert sorted(chunk.id for chunk in route.chunks) == sorted(chunk.id for chunk in chunks)
    itinerary = route.itinerary()
    assert sorted(itinerary.frames.tolist()) == list(range(FRAMES))
    assert itinerary.bounds[0] == 0
    assert itinerary.bounds[-1] == FRAMES
    assert len(itinerary.bounds) == 3
    assert not any(bound % 2 for bound in itinerary.bounds), "ranges end with chunks"
    plain = route_chunks(resolve(town, machine), chunks, 1)
    assert route.costs is not None
    assert plain.costs is not None
    assert dict(zip(route.chunks, route.costs, strict=True)) == dict(zip(plain.chunks, plain.costs, strict=True))


def test_groups_of_an_unknown_machine_are_ordered_by_the_limit_that_is_said(town: Path, machine: Machine) -> None:
    chunks = split_frames(range(FRAMES), 2)
    assert route_chunks(resolve(town, None), chunks, 2).order is None
    assert route_chunks(resolve(town, None, "fetching.gpu_blocks=2"), chunks, 2).order is not None
    assert route_chunks(resolve(town, None, "fetching.mode=resident"), chunks, 2).order is None
    limited = route_chunks(resolve(town, None, limit_for(town, machine, 2.5)), chunks, 2)
    slots = route_chunks(resolve(town, None, "fetching.gpu_blocks=2"), chunks, 2)
    assert limited.order is not None
    assert slots.order is not None
    assert limited.order.loads == slots.order.loads
