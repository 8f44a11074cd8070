"""Refuses jobs of which one frame, or the scene, cannot be held by the memory there is, before a worker starts to load it."""

from __future__ import annotations

from dataclasses import dataclass

from landmark_batch.errors import ConfigError
from landmark_batch.workflows.machine import Machine, Placement
from landmark_batch.workflows.render_plan import bytes_text
from landmark_batch.workflows.request import RenderRequest, checkpoint_of

_PIXEL = 20  # bytes: rgb, depth, alpha as they are rendered


@dataclass(frozen=True)
class SceneMemory:
    """Bytes of a worker's share of a scene that is held whole. device: as kernels read it. loading: in the host's memory meanwhile."""

    device: int
    loading: int


def scene_memory_of(request: RenderRequest) -> SceneMemory | None:
    """None where it is no scene, or only the blocks in hand are held. Raises CheckpointError as `load_config`."""
    if request.renderer.get("kind") != "scene":
        return None
    if request.blocks is not None:
        choice, size = request.fetching, request.blocks.size
        if choice is None or choice.mode == "dynamic":
            return None
        held = size.blocks * size.block + size.rest
        return SceneMemory(held, held)
    from landmark_batch.scene.config import load_config
    from landmark_batch.scene.weights import scene_bytes

    scene = request.job.scene
    config = load_config(checkpoint_of(request.job), plane_division=scene.plane_division, edit=scene.edit, edit_block=scene.edit_block)
    shares = request.job.parallel.tensor_parallel
    whole = scene_bytes(config, shares=shares)
    return SceneMemory(scene_bytes(config, grid_element=2, shares=shares) if request.precision == "fp16" else whole, whole)


def check_memory(request: RenderRequest, placement: Placement, machine: Machine) -> None:
    """Raises ConfigError naming bytes needed and bytes there, where the workers of a placement cannot hold one frame each, or the scene.

    Only the pixels of a frame and the scene itself count, so that nothing is refused that might work; what workers take beside them is in
    the plan.
    """
    _check_frame(request, placement, machine)
    memory = scene_memory_of(request)
    if memory is None:
        return
    scene = checkpoint_of(request.job)
    if placement.device == "cuda":
        known = {gpu.ordinal: gpu for gpu in machine.gpus}
        smallest = min((known[ordinal] for ordinal in placement.gpus), key=lambda gpu: gpu.memory)
        if memory.device > smallest.memory:
            raise ConfigError(
                f"{scene}: its {request.precision} planes take {bytes_text(memory.device)} of a GPU's memory, "
                f"GPU {smallest.ordinal} ({smallest.name}) has {bytes_text(smallest.memory)}",
                remedy=_remedy(request),
            )
    need = placement.workers * memory.loading
    if need > machine.memory:
        fitting = machine.memory // memory.loading
        fewer = f"--workers {fitting} fits; " if fitting >= placement.group_size and placement.device == "cpu" else ""
        raise ConfigError(
            f"{scene}: {placement.workers} worker{'s' * (placement.workers != 1)} of {bytes_text(memory.loading)} each for the scene "
            f"need {bytes_text(need)}, this machine has {bytes_text(machine.memory)}",
            remedy=f"{fewer}{_remedy(request)}",
        )


def _check_frame(request: RenderRequest, placement: Placement, machine: Machine) -> None:
    if request.renderer.get("kind") != "scene":
        return
    floats, stored = _PIXEL * request.pixels, request.spec.bytes_per_frame
    size = f"cameras.width, height = {request.spec.width}, {request.spec.height}"
    if placement.device == "cuda":
        smallest = min(gpu.memory for gpu in machine.gpus if gpu.ordinal in placement.gpus)
        if floats > smallest:
            raise ConfigError(
                f"{size}: the pixels of a frame take {bytes_text(floats)} of a GPU's memory, there are {bytes_text(smallest)}",
                remedy="render smaller frames (--width)",
            )
        floats = 0
    need = placement.groups * (floats + stored)
    if need > machine.memory:
        fitting = machine.memory // (floats + stored)
        fewer = f"--workers {fitting * placement.group_size} fits; " if fitting and placement.device == "cpu" else ""
        raise ConfigError(
            f"{size}: the pixels of a frame take {bytes_text(floats + stored)} for each of {placement.groups} "
            f"worker{'s' * (placement.groups != 1)}, this machine has {bytes_text(machine.memory)}",
            remedy=f"{fewer}render smaller frames (--width)",
        )


def _remedy(request: RenderRequest) -> str:
    half = 'model.precision = "fp16" halves it; ' if request.precision == "fp32" and request.device == "cuda" else ""
    share = f"--tensor-parallel {2 * request.job.parallel.tensor_parallel} shares it among more workers; "
    if request.blocks is not None:
        return f'{half}{share}fetching.mode = "auto" holds only the blocks that frames see'
    return f"{half}{share}`landmark-batch convert` makes a block store of it, of which workers hold only what frames see"
