"""What this machine has, and which devices a job will use. Reads files and asks CUDA's driver, or torch; starts nothing."""

from __future__ import annotations

import os
import platform
import socket
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from landmark_batch.errors import ConfigError
from landmark_batch.job import ParallelSection
from landmark_batch.kernels.cuda_driver import driver_gpus
from landmark_batch.kernels.torch_build import torch_build
from landmark_batch.parallel.shape import GroupShape, check_worker_count

MEMORY_SHARE = 0.8  # of the machine's memory that workers may plan to use


@dataclass(frozen=True)
class Gpu:
    """ordinal: as torch counts visible devices. memory: bytes."""

    ordinal: int
    name: str
    memory: int


@dataclass(frozen=True)
class Machine:
    """cores: usable by this process (affinity and cgroup limits count). memory: bytes, cgroup limit counted.

    gpus: that the driver tells of, if it is new enough for torch, else those usable by torch. gpus_present: NVIDIA GPUs that have files
    here, usable or not. gpu_problem: why torch cannot use those that are present, None if it can or there are none.
    """

    host: str
    cpu: str
    cores: int
    memory: int
    gpus: tuple[Gpu, ...]
    gpus_present: int
    gpu_problem: str | None
    torch: str
    torch_cuda: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Placement:
    """device: 'cuda' or 'cpu'. workers: processes. gpus: ordinal of each worker's GPU; empty on a CPU. device_name: for people.

    threads: of each worker on a CPU. group_size: workers of a render group; 1 where each renders alone.
    """

    device: str
    workers: int
    gpus: tuple[int, ...]
    device_name: str
    threads: int = 1
    group_size: int = 1

    @property
    def groups(self) -> int:
        """Render groups, each of which renders a chunk at a time."""
        return self.workers // self.group_size

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe_machine(root: Path = Path("/"), *, renders: bool = True) -> Machine:
    """Look at this machine. root: where /dev, /proc and /sys stand (tests put others there). renders: False leaves its GPUs out.

    Torch is imported only where it may find a GPU that the driver does not tell of: its import takes seconds.
    """
    torch = torch_build()
    has_gpus = torch.cuda is not None or torch.hip is not None
    gpus, trouble = _usable_gpus(torch.cuda) if renders and has_gpus and _may_have_gpus(root) else ((), None)
    present = gpus_present(root) if renders else 0
    problem = None
    if present and not gpus and not _hidden():
        problem = trouble or ("this torch was built without CUDA" if torch.cuda is None else "torch.cuda finds no device")
    return Machine(
        host=socket.gethostname(),
        cpu=_cpu_name(root),
        cores=usable_cores(root),
        memory=usable_memory(root),
        gpus=gpus,
        gpus_present=present,
        gpu_problem=problem,
        torch=torch.version,
        torch_cuda=torch.cuda,
    )


def usable_cores(root: Path = Path("/")) -> int:
    """CPU cores this process may use: its affinity, less if a cgroup quota allows less. At least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here, or no limit in it
    return max(1, cores)


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes of memory this process may use: the machine's, less if a cgroup allows less."""
    total = int(psutil.virtual_memory().total)
    try:
        text = (root / "sys/fs/cgroup/memory.max").read_text().strip()
        return total if text == "max" else min(total, int(text))
    except (OSError, ValueError):
        return total


def resident_memory(process: psutil.Process) -> int:
    """Bytes of memory that a process holds; what n processes share counts 1/n in each, where the system says so: that takes about 10 ms for
    5 GB, and others of its memory wait meanwhile. Raises psutil.Error.
    """
    try:
        held = process.memory_full_info()
    except psutil.AccessDenied:
        held = process.memory_info()
    return int(getattr(held, "pss", held.rss))


def memory_of_worker(parallel: ParallelSection, machine: Machine, device: str) -> tuple[int, int]:
    """(bytes of a worker's device, bytes of its share of the host's memory) where a job takes all it may of this machine."""
    host = int(machine.memory * MEMORY_SHARE)
    if device == "cuda":
        chosen = [gpu.memory for gpu in machine.gpus if parallel.gpus is None or gpu.ordinal in parallel.gpus] or [0]
        return min(chosen), host // max(1, parallel.workers or len(chosen))
    share = host // max(1, parallel.workers or machine.cores)
    return share, share


def own_memory(device: str) -> tuple[int, int]:
    """`memory_of_worker` for this process alone, which knows no more than its device and that others like it share the host."""
    host = int(usable_memory() * MEMORY_SHARE)
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory), host // max(1, gpus_present(Path("/")))
    share = host // usable_cores()
    return share, share


def choose_device(parallel: ParallelSection, machine: Machine) -> str:
    """'cuda' or 'cpu': what the job says, else GPUs where there are any.

    Raises ConfigError where the job asks for what the machine has not, and on a machine whose GPUs torch cannot use
    (unless the job says device = "cpu").
    """
    if parallel.device == "cpu":
        return "cpu"
    if machine.gpus:
        return "cuda"
    if parallel.device == "cuda" or parallel.gpus is not None:
        asked = 'device = "cuda"' if parallel.device == "cuda" else f"gpus = {list(parallel.gpus or ())}"
        reason = machine.gpu_problem or ("CUDA_VISIBLE_DEVICES hides its GPUs" if machine.gpus_present else "it has no NVIDIA GPU")
        raise ConfigError(
            f"{asked}, but torch {machine.torch} can use no GPU of this machine: {reason}",
            remedy="mend that, or render on the CPU with --device cpu",
        )
    if machine.gpu_problem is not None:
        count = machine.gpus_present
        raise ConfigError(
            f"this machine has {count} NVIDIA GPU{'s' * (count > 1)} that torch {machine.torch} cannot use: {machine.gpu_problem}",
            remedy="install a CUDA build of torch that fits the driver (see docs/install.md), or render on the CPU with --device cpu",
        )
    return "cpu"


def place_workers(
    parallel: ParallelSection, machine: Machine, *, device: str | None = None, worker_memory: int = 0, chunks: int | None = None
) -> tuple[Placement, list[str]]:
    """Number of workers and their devices, and warnings: one worker a visible GPU; on CPUs one a core, fewer where memory or chunks
    are few; always whole render groups, at least one of them on a CPU.

    device: default `choose_device`. worker_memory: bytes a worker is expected to need (0 = unknown). chunks: bound the groups.
    Raises ConfigError for GPUs that are not there and for numbers that do not divide into groups.
    """
    device = device or choose_device(parallel, machine)
    return _place_gpus(parallel, machine, chunks) if device == "cuda" else _place_cores(parallel, machine, worker_memory, chunks)


def group_shape(parallel: ParallelSection) -> GroupShape:
    """The shape of a job's render groups."""
    return GroupShape(tensor=parallel.tensor_parallel, data=parallel.data_parallel)


def _place_gpus(parallel: ParallelSection, machine: Machine, chunks: int | None) -> tuple[Placement, list[str]]:
    known = {gpu.ordinal: gpu for gpu in machine.gpus}
    chosen: Sequence[int] = parallel.gpus if parallel.gpus is not None else tuple(known)
    if any(ordinal not in known for ordinal in chosen):
        raise ConfigError(
            f"gpus = {list(chosen)}: torch sees GPUs {sorted(known)} here", remedy="name GPUs by their numbers, counted from 0"
        )
    if parallel.workers > len(chosen):
        raise ConfigError(
            f"workers = {parallel.workers} on {_gpus(len(chosen))}: one worker a GPU",
            remedy=f"leave workers out or set at most {len(chosen)}",
        )
    shape = group_shape(parallel)
    size, notes = shape.size, []
    if size > len(chosen):
        raise ConfigError(
            f"{_gpus(len(chosen))} for render groups of {size} ({shape.describe()}): one worker a GPU",
            remedy="choose smaller groups, or render on a cluster that has the GPUs (--scheduler ADDRESS)",
        )
    if parallel.workers or parallel.gpus is not None:
        check_worker_count(parallel.workers or len(chosen), shape, "workers" if parallel.workers else "GPUs")
    count = parallel.workers or len(chosen) // size * size
    if not parallel.workers and count < len(chosen):
        notes.append(f"{len(chosen) - count} of {_gpus(len(chosen))} left over: render groups take {size} each")
    if chunks is not None:
        count = max(1, min(count // size, chunks)) * size
    gpus = tuple(chosen[:count])
    return Placement("cuda", count, gpus, known[gpus[0]].name, max(1, machine.cores // count), size), notes


def _place_cores(parallel: ParallelSection, machine: Machine, worker_memory: int, chunks: int | None) -> tuple[Placement, list[str]]:
    notes: list[str] = []
    shape = group_shape(parallel)
    size = shape.size
    if parallel.workers:
        check_worker_count(parallel.workers, shape, "workers")
    need, have = f"{worker_memory / 2**30:.1f} GiB", f"{machine.memory / 2**30:.1f} GiB"
    cores = max(size, machine.cores // size * size)
    fitting = max(1, int(machine.memory * MEMORY_SHARE // worker_memory)) if worker_memory else max(cores, parallel.workers)
    count = parallel.workers or min(cores, max(size, fitting // size * size))
    if count > fitting:
        notes.append(f"{count} workers need about {need} each, this machine has {have}: {fitting} would fit")
    elif not parallel.workers and count < cores:
        notes.append(f"{count} workers for {machine.cores} cores: each needs about {need}, this machine has {have}")
    if chunks is not None:
        count = max(1, min(count // size, chunks)) * size
    threads = 1 if parallel.workers else max(1, machine.cores // count)
    return Placement("cpu", count, (), machine.cpu, threads, size), notes


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count != 1)}"


def _usable_gpus(cuda: str | None) -> tuple[tuple[Gpu, ...], str | None]:
    """GPUs torch can use, and what it complained about. cuda: release it was built with."""
    told = driver_gpus(cuda) if cuda is not None else None
    return _torch_gpus() if told is None else (tuple(Gpu(number, gpu.name, gpu.memory) for number, gpu in enumerate(told)), None)


def _torch_gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The same, asking torch."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    trouble = "; ".join(str(item.message).split("(Triggered")[0].strip() for item in caught) or None
    found = []
    for ordinal in range(count):
        properties = torch.cuda.get_device_properties(ordinal)
        found.append(Gpu(ordinal, str(properties.name), int(properties.total_memory)))
    return tuple(found), trouble


def _hidden() -> bool:
    """Whether the user hides the GPUs from every program (then a CPU job is what is meant)."""
    from landmark_batch.workflows.worker import gpus_hidden

    return gpus_hidden()


def gpus_present(root: Path) -> int:
    """NVIDIA GPUs by the driver's own files, so that a machine whose torch is blind is not taken for one without GPUs."""
    listed = len(list(root.glob("proc/driver/nvidia/gpus/*")))
    return listed or sum(path.name.removeprefix("nvidia").isdigit() for path in root.glob("dev/nvidia*"))


def _may_have_gpus(root: Path) -> bool:
    """Whether a driver that torch could ask for GPUs has a file here: NVIDIA's, also on boards and inside Windows, or AMD's."""
    known = ("dev/dxg", "dev/kfd", "dev/nvmap", "dev/nvhost-gpu")
    return gpus_present(root) > 0 or any((root / name).exists() for name in (*known, "dev/nvidiactl"))


def _cpu_name(root: Path) -> str:
    try:
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
