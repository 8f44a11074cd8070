"""kernels: build, look at and delete the compiled kernels."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import platformdirs

from landmark_batch.commands.common import human_bytes, human_time, json_option, path_type, say_json, say_table
from landmark_batch.errors import KernelBuildError, StoreError


@click.group("kernels")
def command() -> None:
    """Compiled kernels: build them now, see what there is, delete them.

    Nobody has to: the first render, and the first export of many PNGs, build what they need into a cache. A machine without a
    compiler takes prebuilt libraries from the folder that LANDMARK_BATCH_KERNELS names.
    """


@command.command("build")
@click.option(
    "--device",
    "devices",
    type=click.Choice(["cpu", "cuda", "png"]),
    multiple=True,
    help="Whose kernels; png: those that make PNGs on a CPU. Default: cpu and png, and cuda where torch sees a GPU.",
)
@click.option(
    "--arch",
    "architectures",
    multiple=True,
    help="GPU architecture, as 80, 90a or 100; repeatable. Default: of the visible GPUs, else all.",
)
@click.option("--output", "-o", type=path_type(file_okay=False), help="Copy the libraries there too, for machines that cannot build.")
@click.option("--force", is_flag=True, help="Build even what is there.")
@json_option
def build_command(devices: tuple[str, ...], architectures: tuple[str, ...], output: Path | None, force: bool, as_json: bool) -> None:
    """Build the kernels into the cache."""
    from landmark_batch.kernels import build
    from landmark_batch.model.runtime import KernelSource

    source = KernelSource.from_environment(os.environ, _cache())
    results = []
    for device in devices or _here():
        found = build.build(
            device,
            cache_dir=source.cache_dir,
            cuda_home=source.cuda_home,
            architectures=architectures or None,
            force=force,
            progress=None if as_json else _Bar(),
        )
        if not found.usable:
            raise KernelBuildError(f"{device}: {found.reason}", remedy=found.remedy)
        copy = None
        if output is not None:
            try:
                copy = build.export(found, output)
            except OSError as error:
                raise StoreError(f"{output}: {error.strerror}", remedy="choose another folder with --output") from error
        results.append(found.as_dict() | {"copy": str(copy) if copy else None})
        if not as_json:
            took = f"built in {human_time(found.seconds)}" if found.log else "already built"
            click.echo(f"{device}: {took}: {copy or found.path}")
    if as_json:
        say_json(results)


@command.command("status")
@json_option
def status_command(as_json: bool) -> None:
    """What there is, and what a render would use. Builds nothing."""
    from landmark_batch.kernels import build, cache
    from landmark_batch.model.runtime import KernelSource

    source = KernelSource.from_environment(os.environ, _cache())
    found = {device: source.status(device) for device in build.LIBRARIES}
    built = cache.entries(source.cache_dir)
    if as_json:
        say_json(
            {
                "devices": {device: status.as_dict() for device, status in found.items()},
                "built": [{"device": entry.device, "path": str(entry.library), "bytes": entry.size} for entry in built],
            }
        )
        return
    say_table([[device, status.reason] for device, status in found.items()])
    total = sum(entry.size for entry in built)
    click.echo(f"{len(built)} built, {human_bytes(total)}, in {cache.kernels_dir(source.cache_dir)}")


@command.command("clean")
@json_option
def clean_command(as_json: bool) -> None:
    """Delete every built library and its log from the cache. Running renders keep what they have loaded."""
    from landmark_batch.kernels import cache

    removed, size = cache.clean(_cache())
    if as_json:
        say_json({"removed": [str(path) for path in removed], "bytes": size})
    else:
        click.echo(f"deleted {len(removed)} builds, {human_bytes(size)}, from {cache.kernels_dir(_cache())}")


def _cache() -> Path:
    return platformdirs.user_cache_path("landmark-batch")


def _here() -> tuple[str, ...]:
    from landmark_batch.workflows.machine import describe_machine

    return ("cpu", "png", "cuda") if describe_machine().gpus else ("cpu", "png")


class _Bar:
    """One line that counts up on a terminal; without one, a line for each new thing that is done."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, label: str, share: float) -> None:
        terminal = sys.stderr.isatty()
        if terminal:
            end = "\n" if share >= 1 else ""
            click.echo(f"\r{label}: {share:4.0%}{end}", err=True, nl=False)
        elif label != self._last:
            click.echo(label, err=True)
        self._last = label
