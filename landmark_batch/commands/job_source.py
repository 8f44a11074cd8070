"""The job a command line asks for: from a job file, straight from a checkpoint, or in LandMark's own words, with the flags on top."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from landmark_batch.commands.common import command_line, path_type, shown_path
from landmark_batch.errors import ConfigError
from landmark_batch.job import RenderJob, job_from_dict, load_job
from landmark_batch.job_overrides import Override
from landmark_batch.job_template import scene_name, toml_value
from landmark_batch.landmark_options import COMMAND_LINE, Value, split_argv
from landmark_batch.object_path import as_store_path
from landmark_batch.scene.location import SceneLocation

F = TypeVar("F", bound=Callable[..., Any])
_KEPT = "landmark_batch.landmark_options"
_CHECKPOINTS = (".th", ".pth", ".pt", ".ckpt", ".tar")


@dataclass(frozen=True)
class JobRequest:
    """job: what is asked for, every flag applied. export_images, stage_times, timeline: LandMark's --save_png and PROFILE_*."""

    job: RenderJob
    export_images: bool = False
    stage_times: bool = False
    timeline: bool = False


class JobCommand(click.Command):
    """A command about a job. Reads LandMark's options too, and takes underscores for hyphens in its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.params for name in parameter.opts if name.startswith("--")} | {"--help"}
        found, rest = split_argv(list(args))
        ctx.meta[_KEPT] = found
        words = rest[: rest.index("--")] if "--" in rest else rest
        for number, word in enumerate(words):
            name, equals, value = word.partition("=")
            if not name.startswith("--"):
                continue
            plain = name.replace("_", "-")
            if plain not in own:
                near = difflib.get_close_matches(plain, [*own, *(f"--{key}" for key in COMMAND_LINE)], n=1)
                ctx.fail(f"no option {name}. " + (f"Did you mean {near[0]}?" if near else f"See {ctx.command_path} --help."))
            rest[number] = f"{plain}{equals}{value}"
        return super().parse_args(ctx, rest)


def job_options(function: F) -> F:
    """The argument and the flags of every command about a job; `read_job` takes them."""
    for option in reversed(
        (
            click.argument("source", required=False, type=path_type(urls=True), metavar="[JOB.toml|CHECKPOINT]"),
            click.option(
                "-o",
                "--output",
                type=as_store_path,
                metavar="PATH|URL",
                help="The store: a path, or a URL of s3://, gs:// or az://; names of exports follow it.",
            ),
            click.option("--cameras", type=path_type(), help="Camera file in place of the job's."),
            click.option("--frames", help="Frames to render: 0-239, 0-239x10, 3,5-10."),
            click.option("--width", type=int, help="Pixels; the focal is scaled along."),
            click.option("--height", type=int, help="Pixels; the focal is scaled along."),
            click.option("--device", help="auto, cuda or cpu."),
            click.option("--gpus", help="How many GPUs (4), or which (0,2)."),
            click.option("--workers", type=int, help="Processes; default one a GPU, or one a core."),
            click.option("--runtime", help="auto, torch or fused."),
            click.option("--samples", type=int, help="Samples a ray."),
            click.option("--tensor-parallel", type=int, help="Workers that share the scene's channels."),
            click.option("--data-parallel", type=int, help="Workers that share a frame's rays."),
            click.option("--priority", type=int, help="Of this job on a shared scheduler; higher goes first."),
            click.option("--render-timeout", type=float, help="Seconds after which a silent render group is replaced."),
            click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any value of the job file; repeatable."),
        )
    ):
        function = option(function)
    return function


def read_job(ctx: click.Context, flags: Mapping[str, Any]) -> JobRequest:
    """flags: the values of `job_options`, popped by name. Raises ConfigError, CheckpointError, CameraError."""
    source: SceneLocation | None = flags["source"]
    landmark: Mapping[str, Value] = ctx.meta.get(_KEPT, {})
    overrides = [*_overrides(flags), *flags["settings"]]
    if landmark:
        return _landmark_job(source, landmark, flags, overrides)
    if source is None:
        raise ConfigError(
            f"{ctx.command_path}: no job",
            remedy="name a job file, or a checkpoint with --cameras FILE; `landmark-batch new` writes a job file",
        )
    if isinstance(source, Path) and source.is_dir():
        from landmark_batch.frames.definition import is_store

        if is_store(source):
            raise ConfigError(
                f"{source}: a store of frames, not a job",
                remedy="name the job file that it was rendered from, or its scene with --cameras FILE",
            )
    if isinstance(source, Path) and not _is_checkpoint(source):
        return JobRequest(load_job(source, overrides))
    return JobRequest(_checkpoint_job(source, flags["cameras"], overrides))


def _landmark_job(
    source: SceneLocation | None, landmark: Mapping[str, Value], flags: Mapping[str, Any], overrides: list[str | Override]
) -> JobRequest:
    from landmark_batch.compat import job_from_landmark

    if source is not None:
        raise ConfigError(
            f"--{sorted(landmark)[0]} is an option of LandMark's and does not go with {source}",
            remedy="write --config FILE.txt --ckpt FILE.th in place of the job file, or this program's flags and --set section.key=value",
        )
    found = job_from_landmark(landmark, os.environ, cameras=flags["cameras"], runtime_given=flags["runtime"] is not None)
    job = job_from_dict(found.values, overrides, source=found.source)
    for note in found.notes:
        click.echo(f"landmark: {note}", err=True)
    return JobRequest(job, export_images=found.export_images, stage_times=found.stage_times, timeline=found.timeline)


def _checkpoint_job(checkpoint: SceneLocation, cameras: Path | None, overrides: list[str | Override]) -> RenderJob:
    if isinstance(checkpoint, str) and checkpoint.lower().endswith(".toml"):
        raise ConfigError(f"{checkpoint}: a job file is read from this machine alone", remedy="download it, and name the copy")
    if cameras is None:
        raise ConfigError(f"{checkpoint} is a checkpoint and says nothing of cameras", remedy="add --cameras FILE")
    values: dict[str, Any] = checkpoint_values(checkpoint)[0]
    values["scene"]["checkpoint"] = checkpoint
    values["name"] = scene_name(checkpoint)
    return job_from_dict(values, overrides, source=str(checkpoint))


def checkpoint_values(
    checkpoint: SceneLocation, plane_division: tuple[int, int] | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(section -> key -> value, 'section.key' -> remark): what a checkpoint's own training settings say of how to render it.

    Raises CheckpointError.
    """
    from landmark_batch.scene.config import load_config

    config = load_config(checkpoint, plane_division=plane_division)
    values: dict[str, dict[str, Any]] = {"scene": {}, "sampling": {}, "output": {}}
    remarks: dict[str, str] = {}

    def take(section: str, key: str, value: Any, remark: str) -> None:
        values[section][key] = value
        remarks[f"{section}.{key}"] = remark

    if config.blocks > 1:
        take("scene", "plane_division", list(config.division), "blocks along x and y, from the checkpoint")
    hull, samples, white = (config.training_arg(name) for name in ("sampling_opt", "n_importance", "white_bkgd"))
    if hull is False:
        take("sampling", "mode", "dense", "steps of the grid, as the checkpoint's sampling_opt = 0 says; \"hull\" is the renderer's way")
    elif isinstance(samples, int) and samples > 0:
        take("sampling", "mode", "hull", "evenly between near and the ground or far: the checkpoint's sampling_opt")
        take("sampling", "samples", samples, "a ray: the checkpoint's n_importance")
    if white is not None:
        take("output", "background", "white" if white else "black", f"the checkpoint's white_bkgd = {int(bool(white))}")
    return values, remarks


def _is_checkpoint(source: Path) -> bool:
    if source.suffix in _CHECKPOINTS or (source.is_dir() and source.suffix != ".zarr"):
        return True
    from landmark_batch.scene.store_layout import is_store_folder

    return is_store_folder(source)


_KEYS = {  # flag -> key of the job file
    "cameras": "cameras.file",
    "frames": "cameras.frames",
    "width": "cameras.width",
    "height": "cameras.height",
    "device": "parallel.device",
    "gpus": "parallel.gpus",
    "workers": "parallel.workers",
    "tensor_parallel": "parallel.tensor_parallel",
    "data_parallel": "parallel.data_parallel",
    "priority": "parallel.priority",
    "render_timeout": "parallel.render_timeout",
    "runtime": "model.runtime",
    "samples": "sampling.samples",
    "output": "output.store",
}


def _overrides(flags: Mapping[str, Any]) -> list[Override]:
    """Flags as values of the job file; the job's name follows the store's."""
    found = []
    for flag, key in _KEYS.items():
        value = flags[flag]
        if value is None:
            continue
        said = f"--{flag.replace('_', '-')} {shlex.quote(str(value))}"
        meant = parse_gpus(value) if flag == "gpus" else str(value) if flag == "output" else value
        found.append(Override(f"{key}={toml_value(meant)}", said))
        if flag == "output" and (name := value.name.removesuffix(".zarr")):
            found.append(Override(f"name={toml_value(name)}", said))
    return found


def parse_gpus(text: str) -> list[int]:
    """'4' -> the first four; '0,2' -> these two; '0,' -> number 0 alone. Raises ConfigError."""
    numbers = re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*,?\s*", text)
    if numbers is None:
        raise ConfigError(f"--gpus {text!r}", remedy="write how many (--gpus 4) or which (--gpus 0,2)")
    found = [int(part) for part in text.split(",") if part.strip()]
    if "," in text:
        return found
    if found[0] == 0:
        raise ConfigError("--gpus 0: no GPU at all", remedy="write --gpus 1 for one, --gpus 0, for number 0, --device cpu for none")
    return list(range(found[0]))


def going_on(ctx: click.Context) -> str:
    """The command line that goes on with a stopped job, for people to copy: the same one."""
    words: list[str] = (ctx.find_root().obj or {}).get("words", [])
    return command_line(*words)


def job_place(job: RenderJob) -> str:
    """The job for people: its file, or its name."""
    return shown_path(job.path) if job.path is not None else f"job {job.name!r}"
