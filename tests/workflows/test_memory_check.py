from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from landmark_batch.errors import ConfigError
from landmark_batch.job import RenderJob
from landmark_batch.scene.config import load_config
from landmark_batch.scene.export import save_landmark_checkpoint
from landmark_batch.scene.weights import scene_bytes
from landmark_batch.workflows.machine import Gpu, Machine, place_workers
from landmark_batch.workflows.memory_check import check_memory, scene_memory_of
from landmark_batch.workflows.plan import make_plan
from landmark_batch.workflows.request import scene_request
from landmark_batch.workflows.simulated import simulated_job, simulated_request
from tests.factories import make_scene
from tests.workflows.block_jobs import block_job, request_of, write_flight, write_town

MakeJob = Callable[..., RenderJob]
MACHINE = Machine("here", "a CPU", 4, 16 * 2**30, (), 0, None, "2.13.0+cpu", None)
MIB = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A scene and its bytes in fp32."""
    path = tmp_path_factory.mktemp("large") / "large.th"
    save_landmark_checkpoint(make_scene(grid_size=(200, 200, 5), density_channels=16, appearance_channels=48), path)
    return path, scene_bytes(load_config(path))


def test_workers_whose_scenes_exceed_the_memory_are_refused(make_job: MakeJob, large: tuple[Path, int]) -> None:
    path, size = large
    job = make_job(f"scene.checkpoint={path}", "parallel.workers=4")
    with pytest.raises(
        ConfigError, match=r"4 workers of .* each for the scene need .*, this machine has .*\n.*--workers 2 fits; .*convert"
    ):
        make_plan(job, machine=replace(MACHINE, memory=int(2.5 * size)))
    assert not job.store_path.exists()
    with pytest.raises(ConfigError, match=r"1 worker of") as refused:
        make_plan(make_job(f"scene.checkpoint={path}", "parallel.workers=0"), machine=replace(MACHINE, memory=int(0.9 * size)))
    assert "fits" not in str(refused.value)
    shared = make_job(f"scene.checkpoint={path}", "parallel.workers=4", "parallel.tensor_parallel=4", "output.chunk_frames=24")
    assert make_plan(shared, machine=replace(MACHINE, memory=int(1.3 * size))).placement is not None


def test_a_scene_that_exceeds_a_gpu_is_refused(make_job: MakeJob, large: tuple[Path, int]) -> None:
    path, size = large
    gpus = (Gpu(0, "H100", 80 * 2**30), Gpu(1, "T4", int(0.8 * size)))
    words = (f"scene.checkpoint={path}", "parallel.device=cuda", "parallel.workers=0", "output.chunk_frames=1")
    machine = replace(MACHINE, gpus=gpus)
    with pytest.raises(ConfigError, match=r"its fp32 planes take .*, GPU 1 \(T4\) has .*\n.*fp16.*--tensor-parallel 2.*convert"):
        make_plan(make_job(*words), machine=machine)
    assert make_plan(make_job(*words, "model.precision=fp16"), machine=machine).placement is not None
    assert make_plan(make_job(*words, "parallel.tensor_parallel=2"), machine=machine).placement is not None
    assert make_plan(make_job(*words, "parallel.gpus=[0]"), machine=machine).placement is not None


def test_a_frame_that_nothing_can_hold_is_refused(make_job: MakeJob) -> None:
    huge = ("cameras.width=60000", "cameras.height=30000", "output.chunk_frames=1")
    with pytest.raises(
        ConfigError, match=r"60000, 30000: the pixels of a frame take .* for each of 2 workers, this .*\n.*1 fits; .*--width"
    ):
        make_plan(make_job(*huge, "parallel.workers=2"), machine=replace(MACHINE, memory=60 * 2**30))
    with pytest.raises(ConfigError, match=r"for each of 1 worker, .*\n  render smaller"):
        make_plan(make_job(*huge, "parallel.workers=0"), machine=replace(MACHINE, memory=20 * 2**30))
    machine = replace(MACHINE, memory=60 * 2**30, gpus=(Gpu(0, "T4", 16 * 2**30),))
    with pytest.raises(ConfigError, match=r"take 33.5 GiB of a GPU's memory, there are 16.0 GiB"):
        make_plan(make_job(*huge, "parallel.device=cuda", "parallel.workers=0"), machine=machine)


def test_blocks_in_hand_are_not_the_whole_scene(tmp_path: Path, make_job: MakeJob) -> None:
    _, store = write_town(tmp_path)
    cameras = write_flight(tmp_path)
    dynamic = request_of(block_job(store, cameras, tmp_path / "a.zarr", "fetching.mode=dynamic", "fetching.gpu_blocks=2"))
    assert scene_memory_of(dynamic) is None
    resident = request_of(block_job(store, cameras, tmp_path / "a.zarr", "fetching.mode=resident"))
    memory = scene_memory_of(resident)
    assert memory is not None
    assert resident.blocks is not None
    assert memory.device > 6 * resident.blocks.size.block
    placement, _ = place_workers(resident.job.parallel, MACHINE, device="cpu")
    with pytest.raises(ConfigError, match=r"fetching\.mode"):
        check_memory(resident, placement, replace(MACHINE, memory=memory.loading))
    simulated = simulated_request(simulated_job(tmp_path / "b.zarr", chunk_frames=8, workers=2), 4, 0.0)
    assert scene_memory_of(simulated) is None
    half = scene_request(make_job("model.precision=fp16"), "cpu")
    full = scene_memory_of(scene_request(make_job(), "cpu"))
    assert full is not None
    assert scene_memory_of(half) == replace(full, device=full.device - load_config(str(half.job.scene.checkpoint)).grid_parameters() * 2)
