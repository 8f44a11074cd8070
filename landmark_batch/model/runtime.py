"""Which implementation of the ops a render uses, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from landmark_batch.errors import ConfigError, KernelBuildError
from landmark_batch.kernels import build
from landmark_batch.kernels.build import KernelStatus
from landmark_batch.kernels.png import PngLibrary

PLAIN_REMEDY = "set --runtime torch"

_log = logging.getLogger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True)
class RuntimeChoice:
    """runtime: 'torch' (plain torch ops) or 'fused' (compiled kernels). reason: one line for status and doctor."""

    runtime: Literal["torch", "fused"]
    reason: str


@dataclass(frozen=True)
class KernelSource:
    """Where compiled kernels come from: the program's cache folder, a folder of prebuilt libraries instead, a CUDA toolkit."""

    cache_dir: Path | None = None
    prebuilt: Path | None = None
    cuda_home: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], cache_dir: Path | None = None) -> KernelSource:
        """Of LANDMARK_BATCH_KERNELS (prebuilt), CUDA_HOME and XDG_CACHE_HOME (the cache folder, unless it is given); the caller
        reads the environment.
        """

        def path(name: str) -> Path | None:
            return Path(environment[name]) if environment.get(name) else None

        home = path("XDG_CACHE_HOME")
        if cache_dir is None and home is not None:
            cache_dir = home / "landmark-batch"
        return cls(cache_dir, path("LANDMARK_BATCH_KERNELS"), path("CUDA_HOME"))

    def status(self, device: str) -> KernelStatus:
        """What there is, without building."""
        return build.status(device, cache_dir=self.cache_dir, prebuilt=self.prebuilt, cuda_home=self.cuda_home)

    def png_library(self) -> PngLibrary:
        """The compiled code for PNGs; nothing is looked for yet."""
        return PngLibrary(self.cache_dir, self.prebuilt)

    def prepare(self, device: str, progress: Callable[[str, float], None] | None = None) -> KernelStatus:
        """Build what is missing, so that workers find it; loads nothing into this process."""
        if self.prebuilt is not None:
            return self.status(device)
        return build.build(device, cache_dir=self.cache_dir, cuda_home=self.cuda_home, progress=progress)


def resolve_runtime(
    requested: str, device: str = "cpu", *, kernels: KernelStatus | None = None, source: KernelSource | None = None
) -> RuntimeChoice:
    """requested: 'auto', 'torch' or 'fused', for a device 'cpu' or 'cuda'.

    kernels: of `KernelSource.prepare` before a render; by default what there is of `source`, or of the usual cache, and nothing is
    built. Raises KernelBuildError for kernels that are demanded and not to be had: by 'fused', or by 'auto' on CUDA, where
    plain torch would be many times slower; on a CPU 'auto' then means torch, with one warning. ConfigError for any other word.
    """
    if requested not in ("auto", "torch", "fused"):
        raise ConfigError(f"model.runtime = {requested!r}: one of auto, torch, fused", remedy='set model.runtime = "auto"')
    if requested == "torch":
        return RuntimeChoice("torch", "asked for")
    kernels = kernels or (source or KernelSource()).status(device)
    if kernels.usable:
        return RuntimeChoice("fused", kernels.reason)
    if requested == "auto" and device == "cpu":
        way_out = f"; {kernels.remedy}" if kernels.remedy else ""
        _warn_once(f"the compiled CPU kernels cannot be used, so torch renders, many times slower: {kernels.reason}{way_out}")
        return RuntimeChoice("torch", f"no compiled kernels: {kernels.reason}")
    raise KernelBuildError(f'model.runtime = "{requested}" on {device}: {kernels.reason}', remedy=_either(kernels.remedy))


def load_runtime(
    runtime: str, device: str, *, source: KernelSource | None = None, progress: Callable[[str, float], None] | None = None
) -> KernelStatus | None:
    """Make this process render with the resolved `runtime`: loads the compiled kernels for 'fused', does nothing for 'torch'.

    The ops of a loaded library serve the whole process from then on; a `Renderer` of runtime 'torch' does without them even there.
    Raises KernelBuildError with the reason and the remedies.
    """
    if runtime == "torch":
        return None
    source = source or KernelSource()
    try:
        return build.require(device, cache_dir=source.cache_dir, prebuilt=source.prebuilt, cuda_home=source.cuda_home, progress=progress)
    except build.KernelError as error:
        raise KernelBuildError(str(error), remedy=_either(error.remedy)) from error


def _either(remedy: str) -> str:
    return f"{remedy}, or {PLAIN_REMEDY}" if remedy else PLAIN_REMEDY


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        _log.warning(message)
