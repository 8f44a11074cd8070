"""Builds and loads the compiled kernels: first use compiles them into a cache, later ones load them in milliseconds.

Nothing here raises for want of a compiler: a KernelStatus says what there is and why. `require` raises, for callers that cannot
go on. Once a library is loaded, its ops serve this whole process (but see `library.plain_ops`).
"""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .cache import (
    LOG,
    build_facts,
    build_lock,
    failure_since,
    is_whole,
    kernels_dir,
    key_of,
    mismatch,
    publish,
    remember_failure,
    remove_leftovers,
    scratch_prefix,
)
from .ninja_run import StoppedError, run_ninja
from .recipe import library_name, write_recipe
from .toolchain import Toolchain, ToolchainError, find_toolchain, visible_architectures
from .torch_build import torch_build

DEVICES = ("cpu", "cuda")
LIBRARIES = (*DEVICES, "png")  # that of PNGs does without torch and is loaded by `png`

_MEND_BUILD = "mend what the log says, or install another compiler"
_MEND_LIBRARY = "build it again here: landmark-batch kernels build --force"
_MEND_PREBUILT = "build for this torch with `landmark-batch kernels build --output`, or unset LANDMARK_BATCH_KERNELS"

_log = logging.getLogger(__name__)
_loaded: dict[str, KernelStatus] = {}

Progress = Callable[[str, float], None]


class KernelError(RuntimeError):
    """Compiled kernels are needed and not to be had; the message says why, `remedy` what would mend it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class KernelStatus:
    """What there is of a library of compiled kernels: device 'cpu', 'cuda', or 'png'.

    loaded: in this process. usable: loaded, or built, or there is all that a build needs. reason: one line for people.
    path: the library, None if there is none yet. seconds: this call spent building. log: of a build, None if none ran. remedy: what
    would make them usable, '' where they are.
    """

    device: str
    loaded: bool
    usable: bool
    reason: str
    path: Path | None = None
    seconds: float = 0.0
    log: Path | None = None
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def status(device: str, *, cache_dir: Path | None = None, prebuilt: Path | None = None, cuda_home: Path | None = None) -> KernelStatus:
    """What there is, without building or loading. Arguments as in `load`; device may be 'png', too."""
    _check(device, LIBRARIES)
    if device in _loaded:
        return _loaded[device]
    if prebuilt is not None:
        return _prebuilt(device, prebuilt)
    try:
        plan = _Plan(device, cache_dir, cuda_home, None)
        built = is_whole(plan.library)
    except ToolchainError as error:
        return KernelStatus(device, loaded=False, usable=False, reason=str(error), remedy=error.remedy)
    except OSError as error:
        return _no_cache(device, cache_dir, error)
    if built:
        return KernelStatus(device, loaded=False, usable=True, reason=f"built: {plan.library}", path=plan.library)
    return KernelStatus(device, loaded=False, usable=True, reason=f"not built yet: the first use compiles it with {plan.compilers}")


def build(
    device: str,
    *,
    cache_dir: Path | None = None,
    cuda_home: Path | None = None,
    architectures: Sequence[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> KernelStatus:
    """Compile a device's library into the cache, unless it is there. Does not load it, never raises for a failed build.

    device: 'cpu', 'cuda', or 'png'. cache_dir: the program's cache folder (~/.cache/landmark-batch). architectures: of the CUDA kernels,
    default those of the visible GPUs. force: compile even if it is there. progress: called with what is being done and the share that is
    done. stop: once set, the build ends and leaves nothing.
    """
    _check(device, LIBRARIES)
    start = time.time()
    stop = stop or threading.Event()

    def tell(label: str, share: float) -> None:
        if stop.is_set():
            raise StoppedError
        if progress is not None:
            progress(label, share)

    try:
        plan = _Plan(device, cache_dir, cuda_home, architectures)
        if is_whole(plan.library) and not force:
            return KernelStatus(device, loaded=False, usable=True, reason=f"built: {plan.library}", path=plan.library)
        with build_lock(plan.root, device, lambda: tell("waiting for another process that builds it", 0.0)):
            if is_whole(plan.library) and (not force or plan.library.stat().st_mtime >= start):
                return KernelStatus(device, loaded=False, usable=True, reason=f"built: {plan.library}", path=plan.library)
            reason = failure_since(plan.folder, start)
            if reason is None:
                reason = plan.run(tell, stop)
    except ToolchainError as error:
        return KernelStatus(device, loaded=False, usable=False, reason=str(error), seconds=time.time() - start, remedy=error.remedy)
    except OSError as error:
        return replace(_no_cache(device, cache_dir, error), seconds=time.time() - start)
    except StoppedError:
        return KernelStatus(device, loaded=False, usable=False, reason="the build was stopped", seconds=time.time() - start)
    seconds = time.time() - start
    log = plan.folder / LOG
    if reason:
        said = f"{reason} (log: {log})"
        return KernelStatus(device, loaded=False, usable=False, reason=said, seconds=seconds, log=log, remedy=_MEND_BUILD)
    _log.info("built the %s kernels in %.1f s: %s", device, seconds, plan.library)
    return KernelStatus(device, loaded=False, usable=True, reason=f"built: {plan.library}", path=plan.library, seconds=seconds, log=log)


def load(
    device: str,
    *,
    cache_dir: Path | None = None,
    prebuilt: Path | None = None,
    cuda_home: Path | None = None,
    progress: Progress | None = None,
) -> KernelStatus:
    """Load a device's library into this process, building it first if need be. Never raises; loads a library once.

    prebuilt: a folder with libraries made by `landmark-batch kernels build --output`: nothing is built. Others as in `build`.
    """
    _check(device)
    if device in _loaded:
        return _loaded[device]
    if prebuilt is not None:
        found = _prebuilt(device, prebuilt)
    else:
        found = build(device, cache_dir=cache_dir, cuda_home=cuda_home, progress=progress)
    if not found.usable or found.path is None:
        return found
    import torch

    from . import fused, library, weighing  # noqa: F401  the schemas must stand before an implementation is loaded

    try:
        torch.ops.load_library(str(found.path))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        reason = f"{found.path} cannot be loaded: {_one_line(str(error))}"
        return KernelStatus(device, False, False, reason, found.path, found.seconds, found.log, _MEND_LIBRARY)
    done = KernelStatus(device, True, True, f"loaded: {found.path}", found.path, found.seconds, found.log)
    _loaded[device] = done
    return done


def require(
    device: str,
    *,
    cache_dir: Path | None = None,
    prebuilt: Path | None = None,
    cuda_home: Path | None = None,
    progress: Progress | None = None,
) -> KernelStatus:
    """As `load`; raises KernelError with the reason where `load` would return a status that is not loaded."""
    found = load(device, cache_dir=cache_dir, prebuilt=prebuilt, cuda_home=cuda_home, progress=progress)
    if not found.loaded:
        raise KernelError(f"the {device} kernels cannot be used: {found.reason}", found.remedy)
    return found


class _Plan:
    """One build: its tools, recipe and place. Raises ToolchainError."""

    def __init__(self, device: str, cache_dir: Path | None, cuda_home: Path | None, architectures: Sequence[str] | None) -> None:
        tools = find_toolchain(device, cuda_home=cuda_home)
        if architectures is None:
            architectures = visible_architectures() if device == "cuda" else ()
        self.tools = tools
        self.device = device
        self.recipe = write_recipe(device, tools, architectures)
        versions = _versions(tools)
        self.compilers = ", ".join(versions.values())
        if device == "cuda":
            _check_release(versions["nvcc"])
        self.facts = build_facts(device, self.recipe, versions)
        self.root = kernels_dir(cache_dir)
        self.folder = self.root / key_of(self.facts)
        self.library = self.folder / library_name(device)

    def run(self, tell: Progress, stop: threading.Event) -> str:
        """Compile and publish. Returns '' or the reason of the failure; the output is in the folder's log. Raises StoppedError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.root, self.device)
        with tempfile.TemporaryDirectory(prefix=scratch_prefix(self.device), dir=self.root) as scratch:
            (Path(scratch) / "build.ninja").write_text(self.recipe)
            tell(f"compiling the {self.device} kernels", 0.0)
            try:
                code, output = run_ninja(
                    self.tools.ninja, Path(scratch), lambda share: tell(f"compiling the {self.device} kernels", share), stop
                )
            except TimeoutError as error:
                code, output = 1, f"error: {error}\n"
            (self.folder / LOG).write_text(f"{self.compilers}\n{self.recipe}\n{output}")
            if code == 0:
                publish(Path(scratch) / self.library.name, self.facts, self.folder)
                return ""
        reason = f"the build failed: {first_error(output)}"
        remember_failure(self.folder, reason)
        return reason


def first_error(output: str) -> str:
    """The line of a build's output that says what went wrong: the first real error of a compiler or linker."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"\berror\b.*:|\berror:|: fatal", r"undefined reference|cannot find|not found|No such file", r"^FAILED|^ninja:"):
        for line in lines:
            if re.search(pattern, line, re.IGNORECASE) and not line.startswith("["):
                return _one_line(line)
    return _one_line(lines[-1]) if lines else "no output"


def _versions(tools: Toolchain) -> dict[str, str]:
    """First line of the compiler's --version, last but one of nvcc's."""
    versions = {"c++": _first_line([str(tools.compiler), "--version"])}
    if tools.nvcc is not None:
        versions["nvcc"] = _first_line([str(tools.nvcc), "--version"], start="Cuda compilation tools")
    return versions


def _check_release(nvcc: str) -> None:
    """The library shares torch's CUDA runtime, so both have to be of one major release."""
    release = re.search(r"release (\d+)\.", nvcc)
    wanted = str(torch_build().cuda).partition(".")[0]
    if release and release[1] != wanted:
        raise ToolchainError(
            f"nvcc is of CUDA {release[1]} ({nvcc}), torch {torch_build().version} of CUDA {torch_build().cuda}",
            f"install an nvcc of CUDA {wanted}, or name such a toolkit in CUDA_HOME",
        )


def _no_cache(device: str, cache_dir: Path | None, error: OSError) -> KernelStatus:
    place = "the cache" if cache_dir is None else kernels_dir(cache_dir)
    reason = f"nothing can be built in {place}: {error.strerror or error}"
    return KernelStatus(device, False, False, reason, remedy="name a folder that can be written as the cache: XDG_CACHE_HOME")


def _first_line(command: list[str], start: str = "") -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"{command[0]} does not run: {error}", f"install {Path(command[0]).name} anew") from error
    for line in done.stdout.splitlines():
        if line.startswith(start):
            return line.strip()
    said = _one_line(done.stderr or done.stdout or f"exit code {done.returncode}")
    raise ToolchainError(f"{command[0]} does not run: {said}", f"install {Path(command[0]).name} anew")


def _prebuilt(device: str, folder: Path) -> KernelStatus:
    path = folder / library_name(device)
    reason = None if path.is_file() else "there is no such file"
    reason = reason or mismatch(path)
    if reason:
        return KernelStatus(device, loaded=False, usable=False, reason=f"prebuilt {path}: {reason}", path=path, remedy=_MEND_PREBUILT)
    return KernelStatus(device, loaded=False, usable=True, reason=f"prebuilt: {path}", path=path)


def export(found: KernelStatus, folder: Path) -> Path:
    """Copy a built library and what it was made of into `folder`, to be used elsewhere as prebuilt. Returns the copy."""
    import json

    assert found.path is not None, found.reason
    facts = json.loads((found.path.parent / f"{found.path.stem}.json").read_text())
    return publish(found.path, facts, folder)


def _check(device: str, known: Sequence[str] = DEVICES) -> None:
    if device not in known:
        raise ValueError(f"device = {device!r}: one of {', '.join(known)}")


def _one_line(text: str) -> str:
    with contextlib.suppress(IndexError):
        text = text.strip().splitlines()[0]
    return text if len(text) <= 300 else text[:297] + "..."
