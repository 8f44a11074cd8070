"""bench kernels: what the renderer's ops take, what they achieve beside what the device does at most, and what plain torch takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from landmark_batch.errors import ConfigError
from landmark_batch.job import RenderJob, job_from_dict, load_job
from landmark_batch.object_path import place_name
from landmark_batch.scene.location import SceneLocation
from landmark_batch.workflows.bench_side import Ceilings, FrameCost, Side, SideSpec
from landmark_batch.workflows.kernel_report import FrameTime, KernelReport, StageRow
from landmark_batch.workflows.machine import Machine, choose_device, describe_machine

HD, UHD, SMALL = (1920, 1080), (3840, 2160), (384, 216)
FRAMES = {"cpu": 3, "cuda": 12}
TORCH_FRAMES = 3  # at most, on a GPU, where torch's frames take long and vary little
WARM_UP = {"cpu": 1, "cuda": 3}
Tell = Callable[[str], None]


def bench_job(scene: SceneLocation | None, folder: Path, *, cameras: Path | None = None, settings: Sequence[str] = ()) -> RenderJob:
    """The job that is measured. scene: a job file, a scene (its own sampling; `cameras`, else an orbit), None = the small demo city.

    settings: 'section.key=value'. folder: where the demo city goes. Raises ConfigError.
    """
    if scene is None:
        from landmark_batch.scene.demo import write_demo

        return load_job(write_demo(folder / "demo").job, settings)
    texts = [*([f"cameras.file={str(cameras)!r}"] if cameras is not None else []), *settings]
    if isinstance(scene, Path) and scene.suffix == ".toml":
        return load_job(scene, texts)
    return job_from_dict({"name": Path(place_name(scene)).stem or "scene", "scene": {"checkpoint": scene}}, texts, source=str(scene))


def bench_kernels(
    job: RenderJob,
    *,
    sizes: Sequence[tuple[int, int]] = (),
    frames: int | None = None,
    machine: Machine | None = None,
    tell: Tell | None = None,
) -> KernelReport:
    """Measure the ops of a job's renderer. Device, precision and runtime are the job's; "auto" takes fused kernels where there are any.

    sizes: (width, height) of frames, the ops at the first; default 1080p and 4K on a GPU, 384×216 on a CPU. frames: poses, default 12
    on a GPU, 3 on a CPU. On a CPU every pose is rendered by both runtimes before the next, so that a machine that drifts drifts for both.
    Raises ConfigError, CheckpointError, CameraError; KernelBuildError for fused kernels that are demanded and not to be had.
    """
    machine = machine or describe_machine()
    tell = tell or (lambda line: None)
    device = choose_device(job.parallel, machine)
    runtime, note = _runtime(job, device, tell)
    sizes = tuple(sizes) or ((HD, UHD) if device == "cuda" else (SMALL,))
    spec = SideSpec(job, device, runtime, machine.cores, sizes, frames or FRAMES[device])
    measured = _on_cpu(spec, tell) if device == "cpu" else _on_gpu(spec, tell)
    notes = [note] if note else []
    if device == "cpu" and sizes == (SMALL,):
        notes.append(f"{SMALL[0]}×{SMALL[1]}: a CPU takes long for 1080p; --width and --height, or --4k, measure another size")
    return _report(spec, measured, machine, notes)


@dataclass(frozen=True)
class _Measured:
    """main: the job's runtime, by size; torch: beside it at the first size, where main is not torch itself. staged: with stage times."""

    about: dict[str, Any]
    main: dict[tuple[int, int], list[FrameCost]]
    staged: list[FrameCost]
    torch: list[FrameCost]
    torch_staged: list[FrameCost]
    ceilings: list[Ceilings]
    counts: list[Any]


def _runtime(job: RenderJob, device: str, tell: Tell) -> tuple[str, str]:
    """(runtime, note)."""
    from landmark_batch.model.runtime import resolve_runtime
    from landmark_batch.workflows.worker import kernel_source

    wanted = job.model.runtime
    if wanted == "torch":
        return "torch", ""
    last = ""

    def progress(what: str, _share: float) -> None:
        nonlocal last
        if what != last:
            tell(what)
        last = what

    status = kernel_source().prepare(device, progress)
    if wanted == "auto" and device == "cpu" and not status.usable:
        return "torch", f"no compiled kernels, torch alone is measured: {status.reason}"
    return resolve_runtime("fused", device, kernels=status).runtime, ""


def _stop(spec: SideSpec) -> float:
    """Transmittance below which the runtime ends a ray; plain torch never does."""
    from landmark_batch.kernels.weighing import STOP
    from landmark_batch.model.fused import STOP as GPU_STOP

    if spec.runtime == "torch":
        return 0.0
    return GPU_STOP[spec.job.model.precision] if spec.device == "cuda" else STOP


def _on_cpu(spec: SideSpec, tell: Tell) -> _Measured:
    """Both runtimes take turns. Stage times cost nothing here: every frame has them."""
    with ExitStack() as stack:
        tell(f"opening the scene for {spec.runtime}")
        main = stack.enter_context(Side(spec))
        other = main
        if spec.runtime != "torch":
            tell("opening the scene for torch")
            other = stack.enter_context(Side(replace(spec, runtime="torch", sizes=spec.sizes[:1])))
        for side in dict.fromkeys((main, other)):
            side.frame(0)
        found = _Measured(main.about, {size: [] for size in spec.sizes}, [], [], [], [], [])
        for pose in range(main.about["poses"]):
            tell(f"pose {pose + 1} of {main.about['poses']}")
            found.staged.append(main.frame(pose, stages=True))
            found.ceilings.append(main.ceilings())
            if other is not main:
                found.torch_staged.append(other.frame(pose, stages=True))
            found.counts.append(other.counts(pose, _stop(spec)))
            for number, size in enumerate(spec.sizes[1:], start=1):
                found.main[size].append(main.frame(pose, size=number))
        found.main[spec.sizes[0]].extend(found.staged)
        found.torch.extend(found.torch_staged)
        return found


def _on_gpu(spec: SideSpec, tell: Tell) -> _Measured:
    """One runtime after the other: two copies of a scene may not fit. Frames are timed without the events that time their stages."""
    tell(f"opening the scene for {spec.runtime}")
    with Side(spec) as main:
        poses = range(main.about["poses"])
        found = _Measured(main.about, {}, [], [], [], [main.ceilings()], [])
        for number, size in enumerate(spec.sizes):
            tell(f"{len(poses)} frames of {size[0]}×{size[1]} with {spec.runtime}")
            for _ in range(WARM_UP["cuda"]):
                main.frame(0, size=number)
            found.main[size] = [main.frame(pose, size=number) for pose in poses]
        main.frame(0, stages=True)
        found.staged.extend(main.frame(pose, stages=True) for pose in poses)
        found.ceilings.append(main.ceilings())
        if spec.runtime == "torch":
            found.counts.extend(main.counts(pose, _stop(spec)) for pose in poses)
            return found
    tell("opening the scene for torch")
    with Side(replace(spec, runtime="torch", sizes=spec.sizes[:1])) as other:
        chosen = poses[:: max(1, len(poses) // TORCH_FRAMES)][:TORCH_FRAMES]
        tell(f"{len(chosen)} frames of {spec.sizes[0][0]}×{spec.sizes[0][1]} with torch")
        other.frame(0)
        found.torch.extend(other.frame(pose) for pose in chosen)
        found.torch_staged.extend(other.frame(pose, stages=True) for pose in chosen)
        found.counts.extend(other.counts(pose, _stop(spec)) for pose in poses)
    return found


def _report(spec: SideSpec, found: _Measured, machine: Machine, notes: Sequence[str]) -> KernelReport:
    from landmark_batch.model.profile import medians
    from landmark_batch.model.work import COUNTED, SampleCounts, frame_work, work_of_range

    threads = spec.threads if spec.device == "cpu" else 1
    about, config = found.about, found.about["config"]
    counts = SampleCounts(*(round(mean(getattr(c, name) for c in found.counts)) for name in SampleCounts.__annotations__))
    work = frame_work(config, counts, element=2 if about["precision"] == "fp16" else 4)
    ceilings = highest(found.ceilings)
    stages = medians([cost.stages for cost in found.staged])
    torch_stages = medians([cost.stages for cost in found.torch_staged])
    half = spec.device == "cuda" and spec.runtime == "fused" and about["precision"] == "fp16"
    product = ceilings.fp16 if half and ceilings.fp16 else ceilings.fp32
    rows = []
    for name, seconds in stages.items():
        parallel = threads if name in work else 1
        done = work_of_range(name, work)
        beside = [torch_stages[part] for part in name.split(" and ") if part in torch_stages]
        rows.append(
            StageRow(
                name=name,
                seconds=seconds / parallel,
                bytes_per_second=done.bytes * parallel / seconds if done and done.bytes and seconds else None,
                flop_per_second=done.flop * parallel / seconds if done and done.flop and seconds else None,
                torch_seconds=sum(beside) / parallel if beside else None,
            )
        )
    times = [
        FrameTime(*size, spec.runtime, median(cost.seconds for cost in costs), tuple(cost.seconds for cost in costs))
        for size, costs in found.main.items()
    ]
    if found.torch:
        taken = [cost.seconds for cost in found.torch]
        times.append(FrameTime(*spec.sizes[0], "torch", median(taken), tuple(taken)))
    return KernelReport(
        scene=spec.job.name,
        device=machine.gpus[0].name if spec.device == "cuda" and machine.gpus else machine.cpu,
        device_type=spec.device,
        threads=threads,
        runtime=spec.runtime,
        precision=about["precision"],
        mode=about["mode"],
        samples=about["samples"],
        poses=about["poses"],
        rows=tuple(rows),
        times=tuple(times),
        ratio=_ratio(found),
        ceilings=ceilings,
        product=product,
        counts=counts.a_ray(),
        counted=COUNTED,
        notes=tuple(notes),
        machine=machine.as_dict(),
    )


def _ratio(found: _Measured) -> float | None:
    """Torch's time over the main runtime's, of the same poses: the median of pairs on a CPU, of medians on a GPU."""
    if not found.torch:
        return None
    first = next(iter(found.main.values()))
    if len(first) == len(found.torch):
        return median(slow.seconds / fast.seconds for slow, fast in zip(found.torch, first, strict=True))
    return median(cost.seconds for cost in found.torch) / median(cost.seconds for cost in first)


def highest(measured: Sequence[Ceilings]) -> Ceilings:
    """The best of several measurements: whatever disturbs one makes it lower."""
    half = [found.fp16 for found in measured if found.fp16 is not None]
    return Ceilings(max(found.copy for found in measured), max(found.fp32 for found in measured), max(half) if half else None)


def parse_size(width: int | None, height: int | None, uhd: bool) -> tuple[tuple[int, int], ...]:
    """Sizes of the options --width, --height, --4k. Raises ConfigError where they contradict each other."""
    if uhd and (width or height):
        raise ConfigError("--4k and a size of its own", remedy="leave --4k out, or --width and --height")
    if uhd:
        return (UHD,)
    if (width is None) != (height is None):
        raise ConfigError("--width and --height belong together", remedy="give both, in pixels")
    return ((width, height),) if width is not None and height is not None else ()
