"""doctor: what this machine has, and what `render` would use here, and why."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from landmark_batch.commands.common import cache_folder, human_bytes, json_option, say_json, say_table
from landmark_batch.errors import ConfigError, KernelBuildError, LandmarkError
from landmark_batch.job import ParallelSection

_TOOLS = ("c++", "g++", "clang++", "nvcc", "ninja")


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """What this machine has, and what `render` would use. Exit code 2 if nothing can be rendered here."""
    found = examine()
    if as_json:
        say_json(found)
    else:
        _say(found)
    if not found["render"]["possible"]:
        raise ConfigError(f"nothing can render here: {found['render']['reason']}", remedy="mend what stands above, then run doctor again")


def examine() -> dict[str, Any]:
    """Everything doctor shows, JSON-ready."""
    disk = shutil.disk_usage(Path.cwd())
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in ("torch", "numpy", "zarr", "dask", "distributed", "xarray", "av")},
        "tools": {name: shutil.which(name) for name in _TOOLS},
        "ninja_package": importlib.util.find_spec("ninja") is not None,
        "encoders": _encoders(),
        "disk": {"path": str(Path.cwd()), "free": disk.free, "total": disk.total},
    }
    try:
        import torch  # noqa: F401
    except Exception as error:  # noqa: BLE001  whatever torch's import ends with is what the user has to know
        found["render"] = {"possible": False, "reason": f"torch cannot be imported: {type(error).__name__}: {error}"}
        return found
    from landmark_batch.workflows.bytecode import without_bytecode
    from landmark_batch.workflows.machine import describe_machine

    machine = describe_machine()
    found["bytecode"] = dict(zip(("missing", "modules"), without_bytecode(), strict=True))
    found["machine"] = machine.as_dict()
    found["render"] = _choice(machine)
    return found


def _choice(machine: Any) -> dict[str, Any]:
    """What `render` would use without flags: device, workers, runtime, each with its reason."""
    from landmark_batch.model.runtime import KernelSource, resolve_runtime
    from landmark_batch.workflows.machine import place_workers

    choice: dict[str, Any] = {"possible": True}
    try:
        placement, notes = place_workers(ParallelSection(), machine)
    except LandmarkError as error:
        choice["refusal"] = str(error)
        placement, notes = place_workers(ParallelSection(device="cpu"), machine)
        choice["reason"] = "only with --device cpu"
    else:
        choice["reason"] = "all visible GPUs" if placement.device == "cuda" else "no GPU that torch can use"
    choice |= {"device": placement.device, "workers": placement.workers, "on": placement.device_name, "notes": notes}
    try:
        source = KernelSource.from_environment(os.environ, cache_folder())
        runtime = resolve_runtime("auto", placement.device, source=source)
        choice |= {"runtime": runtime.runtime, "runtime_reason": runtime.reason}
    except KernelBuildError as error:
        choice |= {"runtime": None, "runtime_reason": str(error)}
    return choice


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _encoders() -> list[str]:
    """Video encoders this build of FFmpeg has (a name says nothing of the hardware it may need)."""
    try:
        from landmark_batch.frames.video_codec import available_encoders
    except ImportError:
        return []
    return available_encoders()


def _say(found: dict[str, Any]) -> None:
    machine = found.get("machine")
    rows = [["python", f"{found['python']} ({found['executable']})"]]
    rows += [[name, version or "not installed"] for name, version in found["packages"].items()]
    if machine is not None:
        rows.append(["CUDA of torch", machine["torch_cuda"] or "none: a CPU build"])
        for gpu in machine["gpus"]:
            rows.append([f"GPU {gpu['ordinal']}", f"{gpu['name']}, {human_bytes(gpu['memory'])}"])
        if machine["gpu_problem"]:
            rows.append(["GPUs", f"{machine['gpus_present']} present, torch cannot use them: {machine['gpu_problem']}"])
        elif not machine["gpus"]:
            rows.append(["GPUs", f"{machine['gpus_present']} present, hidden from this process" if machine["gpus_present"] else "none"])
        rows.append(["CPU", f"{machine['cpu']}, {machine['cores']} cores usable"])
        rows.append(["memory", human_bytes(machine["memory"])])
    rows.append(["disk", f"{human_bytes(found['disk']['free'])} free of {human_bytes(found['disk']['total'])} at {found['disk']['path']}"])
    rows.append(["encoders", ", ".join(found["encoders"]) or "none"])
    tools = [name for name, path in found["tools"].items() if path]
    if found["ninja_package"] and "ninja" not in tools:
        tools.append("ninja (Python package)")
    rows.append(["compilers", ", ".join(tools) or "none"])
    say_table(rows)
    render = found["render"]
    if not render["possible"]:
        return
    if "refusal" in render:
        click.echo(f"render would stop: {render['refusal']}")
    workers = f"{render['workers']} worker{'' if render['workers'] == 1 else 's'}"
    click.echo(f"render would use: {render['device']} ({render['reason']}), {workers} on {render['on']}")
    click.echo(f"runtime: {render['runtime'] or 'none'} ({render['runtime_reason']})")
    from landmark_batch.workflows.bytecode import advice

    told = advice(found["bytecode"]["missing"], found["bytecode"]["modules"])
    for note in [*render["notes"], *([told] if told is not None else [])]:
        click.echo(f"note: {note}")
