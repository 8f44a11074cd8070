from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.errors import ConfigError
from landmark_batch.job import ParallelSection
from landmark_batch.kernels.cuda_driver import DriverGpu
from landmark_batch.kernels.torch_build import torch_build
from landmark_batch.workflows import machine as machines
from landmark_batch.workflows.machine import Gpu, Machine, choose_device, describe_machine, place_workers, usable_cores, usable_memory
from landmark_batch.workflows.worker import gpu_environment

GIB = 2**30
CPUS = Machine("here", "a CPU", 8, 32 * GIB, (), 0, None, "2.13.0", "13.0")
GPUS = replace(CPUS, gpus=tuple(Gpu(i, "H100", 80 * GIB) for i in range(4)), gpus_present=4)


def test_this_machine_is_described() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.memory > GIB // 4
    assert machine.torch[0] == "2"
    assert machine.as_dict()["host"] == machine.host


def test_gpus_that_torch_cannot_see_are_found_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch sees GPUs here")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    found = describe_machine(tmp_path)
    assert (found.gpus, found.gpus_present) == ((), 2)
    assert found.gpu_problem is not None
    with pytest.raises(ConfigError, match="2 NVIDIA GPUs that torch"):
        choose_device(ParallelSection(), found)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the user hides them: a CPU job is what is meant
    hidden = describe_machine(tmp_path)
    assert hidden.gpu_problem is None
    assert choose_device(ParallelSection(), hidden) == "cpu"


def test_a_client_of_a_cluster_does_not_ask_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "driver_gpus", lambda cuda: pytest.fail("the driver was asked"))
    monkeypatch.setattr(machines, "_torch_gpus", lambda: pytest.fail("torch was asked"))
    monkeypatch.setattr(machines, "torch_build", lambda: replace(torch_build(), cuda="13.0"))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    found = describe_machine(tmp_path, renders=False)
    assert (found.gpus, found.gpus_present, found.gpu_problem, found.torch_cuda) == ((), 0, None, "13.0")
    assert describe_machine(tmp_path / "none").gpus == (), "where no driver is there is no GPU to ask for"
    monkeypatch.setattr(machines, "driver_gpus", lambda cuda: None)
    monkeypatch.setattr(machines, "_torch_gpus", lambda: ((Gpu(0, "H100", 80 * GIB),), None))
    for name in ("nvidia0", "dxg", "kfd", "nvidiactl"):
        (tmp_path / name / "dev").mkdir(parents=True)
        (tmp_path / name / "dev" / name).touch()
        assert describe_machine(tmp_path / name).gpus == (Gpu(0, "H100", 80 * GIB),)
    monkeypatch.setattr(
        machines,
        "driver_gpus",
        lambda cuda: (DriverGpu("H200", 140 * GIB, (9, 0)), DriverGpu("T4", 16 * GIB, (7, 5))) if cuda == "13.0" else None,
    )
    monkeypatch.setattr(machines, "_torch_gpus", lambda: pytest.fail("torch was asked"))
    assert describe_machine(tmp_path / "dxg").gpus == (Gpu(0, "H200", 140 * GIB), Gpu(1, "T4", 16 * GIB))


def test_limits_of_a_container_count(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("50000 100000\n")
    (group / "memory.max").write_text("123456789\n")
    assert usable_cores(tmp_path) == 1
    assert usable_memory(tmp_path) == 123456789
    (group / "cpu.max").write_text("max 100000\n")
    (group / "memory.max").write_text("max\n")
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "none")
    assert usable_memory(tmp_path) == usable_memory(tmp_path / "none")


def test_one_worker_a_gpu() -> None:
    placement, notes = place_workers(ParallelSection(), GPUS)
    assert (placement.device, placement.workers, placement.gpus, notes) == ("cuda", 4, (0, 1, 2, 3), [])
    assert place_workers(ParallelSection(gpus=(2, 0)), GPUS)[0].gpus == (2, 0)
    assert place_workers(ParallelSection(workers=2), GPUS)[0].gpus == (0, 1)
    assert place_workers(ParallelSection(), GPUS, chunks=3)[0].workers == 3
    assert place_workers(ParallelSection(device="cpu"), GPUS)[0].device == "cpu"


def test_one_worker_a_core_fewer_where_memory_or_chunks_are_few() -> None:
    placement, notes = place_workers(ParallelSection(), CPUS)
    assert (placement.device, placement.workers, placement.threads, notes) == ("cpu", 8, 1, [])
    placement, notes = place_workers(ParallelSection(), CPUS, worker_memory=10 * GIB)
    assert (placement.workers, placement.threads) == (2, 4)
    assert "2 workers for 8 cores: each needs about 10.0 GiB" in notes[0]
    placement, _ = place_workers(ParallelSection(), CPUS, chunks=2)
    assert (placement.workers, placement.threads) == (2, 4)
    placement, notes = place_workers(ParallelSection(workers=6), CPUS, worker_memory=10 * GIB)
    assert (placement.workers, placement.threads) == (6, 1)
    assert "2 would fit" in notes[0]
    assert place_workers(ParallelSection(workers=16), CPUS)[0].workers == 16


def parallel(tensor: int, data: int, **values: Any) -> ParallelSection:
    return ParallelSection(tensor_parallel=tensor, data_parallel=data, **values)


def placed(asked: ParallelSection, machine: Machine, **values: Any) -> tuple[int, int, int]:
    """(workers, groups, threads)"""
    placement = place_workers(asked, machine, **values)[0]
    assert placement.group_size == asked.tensor_parallel * asked.data_parallel
    return placement.workers, placement.groups, placement.threads


def test_cores_hold_whole_groups_at_least_one() -> None:
    two, six = replace(CPUS, cores=2), replace(CPUS, cores=6)
    assert placed(parallel(2, 2), two) == (4, 1, 1)
    assert placed(parallel(2, 2), CPUS) == (8, 2, 1)
    assert placed(parallel(2, 2), six) == (4, 1, 1)
    assert placed(parallel(3, 1), CPUS) == (6, 2, 1)
    assert placed(parallel(2, 1, workers=12), CPUS) == (12, 6, 1)
    assert placed(parallel(2, 1), CPUS, chunks=1) == (2, 1, 4)
    assert placed(parallel(2, 1), CPUS, chunks=3) == (6, 3, 1)
    assert placed(parallel(2, 1), CPUS, worker_memory=5 * GIB) == (4, 2, 2)  # 5 would fit
    placement, notes = place_workers(parallel(2, 2), CPUS, worker_memory=10 * GIB)
    assert placement.workers == 4
    assert notes == ["4 workers need about 10.0 GiB each, this machine has 32.0 GiB: 2 would fit"]


def test_gpus_hold_whole_groups_and_what_is_left_over_is_told() -> None:
    placement, notes = place_workers(parallel(2, 1), GPUS)
    assert (placement.workers, placement.groups, placement.gpus, notes) == (4, 2, (0, 1, 2, 3), [])
    placement, notes = place_workers(parallel(1, 3), GPUS)
    assert (placement.workers, placement.groups, placement.gpus) == (3, 1, (0, 1, 2))
    assert notes == ["1 of 4 GPUs left over: render groups take 3 each"]
    assert place_workers(parallel(2, 1, gpus=(3, 1)), GPUS)[0].gpus == (3, 1)
    assert place_workers(parallel(2, 1, workers=2), GPUS)[0].gpus == (0, 1)
    assert place_workers(parallel(2, 1), GPUS, chunks=1)[0].gpus == (0, 1)


@pytest.mark.parametrize(
    ("asked", "machine", "text"),
    [
        (parallel(4, 2), GPUS, r"^4 GPUs for render groups of 8 \(tensor_parallel 4 x data_parallel 2\)"),
        (parallel(2, 1, gpus=(1,)), GPUS, r"^1 GPU for render groups of 2"),
        (parallel(2, 1, gpus=(0, 1, 2)), GPUS, r"^3 GPUs do not divide into groups of 2 .*: use 2 or 4"),
        (parallel(2, 1, workers=3), GPUS, r"^3 workers do not divide into groups of 2 .*: use 2 or 4"),
        (parallel(2, 2, workers=6), CPUS, r"^6 workers do not divide into groups of 4 .*: use 4 or 8"),
        (parallel(2, 2, workers=1), CPUS, r"^1 worker does not divide into groups of 4 .*: use 4"),
        (parallel(2, 1, workers=5), GPUS, "workers = 5 on 4 GPUs"),
    ],
)
def test_what_does_not_divide_into_groups_is_refused(asked: ParallelSection, machine: Machine, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        place_workers(asked, machine)


@pytest.mark.parametrize(
    ("asked", "machine", "text"),
    [
        (ParallelSection(gpus=(4,)), GPUS, r"gpus = \[4\]: torch sees GPUs \[0, 1, 2, 3\]"),
        (ParallelSection(workers=5), GPUS, "workers = 5 on 4 GPUs: one worker a GPU"),
        (ParallelSection(device="cuda"), CPUS, "it has no NVIDIA GPU"),
        (ParallelSection(gpus=(0,)), CPUS, r"gpus = \[0\], but torch"),
        (ParallelSection(device="cuda"), replace(CPUS, gpus_present=1), "CUDA_VISIBLE_DEVICES hides its GPUs"),
    ],
)
def test_what_the_machine_has_not_is_refused(asked: ParallelSection, machine: Machine, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        place_workers(asked, machine)


def test_a_worker_sees_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_environment(2)["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")  # torch's number 1 is the machine's number 7
    assert gpu_environment(1)["CUDA_VISIBLE_DEVICES"] == "7"
